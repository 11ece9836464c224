//! Fused tensor operations of Aquatint as a burn extension, and the layers built on them.
