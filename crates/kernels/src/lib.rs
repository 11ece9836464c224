//! CPU kernels of Aquatint: slices and strides, SIMD, threads.
//!
//! This crate knows no tensor type, no file and no model. Activations are `f32` and channels last
//! (`[batch, height, width, channels]` or `[batch, tokens, channels]`); weights keep PyTorch's layouts
//! and their storage type, and are widened while they are packed.
//!
//! Every function is safe: it checks lengths and strides and returns [`KernelError`] when a slice is
//! too short for the shape. Work is split over the *current* rayon pool, so that the caller decides
//! about threads by `pool.install(..)`; small problems stay on the calling thread.
//!
//! [`reference`](mod@reference) holds a naive version of every kernel, with `f64` accumulation.

mod arena;
mod attention;
pub mod blocks;
pub mod buffer;
mod conv;
mod elementwise;
mod error;
mod gemm;
mod norm;
mod peak;
pub mod reference;
mod rows;
mod scratch;
mod simd;
mod threads;

pub use attention::{
    Attention, AttentionBackward, HeadsRef, Mask, attention, attention_backward, attention_with_lse,
};
pub use blocks::BlockFormat;
pub use buffer::Buffer;
pub use conv::{
    Conv2d, Conv2dBackwardData, Conv2dBackwardWeight, ConvAlgorithm, Padding, conv2d,
    conv2d_backward_data, conv2d_backward_weight,
};
pub use elementwise::{
    ActivateBackward, GegluBackward, Rotary, RotaryPairs, TimestepEmbedding, activate,
    activate_backward, add, geglu, geglu_backward, rotary, softmax_rows, timestep_embedding,
    upsample_nearest,
};
pub use error::KernelError;
pub use gemm::{Activation, Epilogue, Gemm, MatMut, MatRef, Rhs, RhsData, RhsLayout, gemm};
pub use norm::{
    AddGated, GroupNorm, GroupNormBackward, GroupNormInPlace, LayerNorm, LayerNormBackward,
    ModulatedNorm, RmsNorm, RmsNormBackward, add_gated, group_norm, group_norm_backward,
    group_norm_in_place, layer_norm, layer_norm_backward, modulated_norm, rms_norm,
    rms_norm_backward,
};
pub use peak::{peak_gflops, peak_gflops_of_all_threads};
pub use rows::join_rows;
pub use simd::Isa;
