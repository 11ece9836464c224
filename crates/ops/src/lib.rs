//! Fused tensor operations of Aquatint as a burn extension, and the layers built on them.
//!
//! Activations are channels last: `[batch, height, width, channels]` or `[batch, tokens, channels]`,
//! in f32. Weights keep PyTorch's layouts and their storage type (f32, f16, bf16; matrices of linear layers and
//! embeddings f8 and blocks too); the CPU kernels widen them while they pack.
//!
//! Every operation stands beside its plain reference made of burn operations ([`reference`]). The
//! `Flex` device takes the kernel, with a written backward under autodiff; every other device takes the
//! reference.

mod autodiff;
mod error;
mod flex;
pub mod fused;
pub mod nn;
mod packed;
pub mod params;
pub mod reference;
mod trainable;

pub use aquatint_kernels as kernels;
pub use aquatint_kernels::{BlockFormat, buffer};
pub use burn;
pub use burn::tensor::{Device, Tensor};
pub use error::OpsError;
pub use fused::{
    Activation, AttentionMask, Conv2dShape, Epilogue, Modulation, RotaryPairs, RowNorm,
};
pub use packed::{PackedWeight, Weight};
pub use params::{LowRank, ParamSource, Params, RawTensor, Storage};
pub use trainable::{NamedGradients, Trainable};
