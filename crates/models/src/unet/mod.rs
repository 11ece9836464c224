//! The UNet of Stable Diffusion 1.x, 2.x and XL (Ronneberger et al., 2015; Rombach et al., 2022):
//! one configurable module, diffusers' `UNet2DConditionModel`. Beside it the one without text,
//! [`UNet2D`].

mod blocks;
mod conditioning;
mod config;
pub(crate) mod cost;
mod embedding;
mod model;
mod presets;
pub(crate) mod resnet;
mod transformer;
mod unconditional;

pub use conditioning::{AddedConditioning, Conditioning};
pub use config::{AddedConfig, MidKind, UNetConfig, UNetLevel};
pub use cost::Cost;
pub use model::UNet2DCondition;
pub use unconditional::{ClassKind, Classes, UNet2D, UNet2DConfig, UNet2DLevel};

use aquatint_ops::Tensor;

/// Is shown each stage of a forward pass: its name (a checkpoint's, such as
/// `down_blocks.0.resnets.1`) and its output, channels last.
pub type Trace<'a> = dyn FnMut(&str, &Tensor<4>) + 'a;
