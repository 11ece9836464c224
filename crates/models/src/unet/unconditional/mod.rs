//! The UNet without text (Ho et al., 2020; Song et al., 2021): diffusers' `UNet2DModel`, over pixels
//! or latents, told of nothing or of a class.

mod attention;
mod blocks;
mod class;
mod config;
mod cost;
mod model;

pub use class::Classes;
pub use config::{ClassKind, UNet2DConfig, UNet2DLevel};
pub use model::UNet2D;
