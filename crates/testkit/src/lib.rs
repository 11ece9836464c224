//! Golden tensors, tolerances and conformance suites for the tests of Aquatint.
