//! The written backward of every fused operation: against finite differences of its formula in f64,
//! against PyTorch, and against burn's own autodiff through the reference.

mod cases;
mod exact;
mod frozen;
mod low_rank;
mod support;
mod three_ways;
