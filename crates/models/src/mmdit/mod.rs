//! The multimodal diffusion transformer of Stable Diffusion 3 and 3.5 (Esser et al., 2024): diffusers'
//! `SD3Transformer2DModel`.

mod block;
mod config;
mod model;

pub use config::MmditConfig;
pub use model::Mmdit;
