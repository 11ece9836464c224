//! The fused operations under autodiff on `Flex`: the kernels forward, a written backward.
//!
//! Each function gives `None` when an operand is not on `Flex`, or is tracked in another type than
//! f32; the caller then takes the reference. An operand is *tracked* when its gradient is wanted,
//! by itself or by what it was made from; a tensor outside autodiff (a frozen f16 weight) is a
//! constant. A rule computes gradients of tracked operands only, and keeps only what these need:
//!
//! | operation | kept |
//! |---|---|
//! | linear, conv2d | x if the weight is tracked; the weight if x is; the sum before an activation |
//! | attention | q, k, v, the output and its log-sum-exps; scores are computed again in tiles |
//! | norms, activate, geglu | the input; statistics are computed again |
//! | join_channels, embedding, rotary | sizes, ids, angles |
//!
//! A modulated norm is the norm's rule and burn's product and sum; a gated sum is burn's.
//!
//! Norms, `activate` and `geglu` are cheap: with `device.autodiff().gradient_checkpointing()` their
//! outputs are dropped after the forward pass and computed again where a backward asks for them.

mod attention;
mod conv;
mod elementwise;
mod epilogue;
mod linear;
mod norm;
mod record;
mod values;

pub(crate) use attention::attention;
pub(crate) use conv::conv2d;
pub(crate) use elementwise::{activate, embedding, geglu, join_channels, rotary};
pub(crate) use linear::{linear, linear_packed};
pub(crate) use norm::{group_norm, layer_norm, rms_norm};
