//! What a forward pass costs.

/// Work and memory of a forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {}
