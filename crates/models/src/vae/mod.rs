//! Autoencoders between pictures and latents: the one of Stable Diffusion ([`AutoencoderKl`]), with
//! a decode by tiles ([`TiledDecode`]), the tiny one ([`AutoencoderTiny`]), and a linear
//! approximation for previews ([`LatentRgb`]).
//!
//! Pictures are `[batch, height, width, 3]` from -1 to 1; latents are `[batch, height / 8,
//! width / 8, channels]`, channels last.

mod attention;
mod coder;
mod config;
mod cost;
mod kl;
mod preview;
mod survey;
mod tiled;
mod tiny;

pub use config::VaeConfig;
pub use kl::{AutoencoderKl, Posterior};
pub use preview::LatentRgb;
pub use tiled::{TiledDecode, Tiling};
pub use tiny::{AutoencoderTiny, TinyConfig};

use aquatint_ops::Tensor;

/// Is shown each stage of a pass: its name (a checkpoint's, such as `decoder.up_blocks.1`) and its
/// output, channels last.
pub type Trace<'a> = dyn FnMut(&str, &Tensor<4>) + 'a;
