//! The `aquatint` binary.

fn main() {}
