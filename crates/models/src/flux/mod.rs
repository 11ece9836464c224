//! FLUX.1's transformer (Black Forest Labs, 2024): diffusers' `FluxTransformer2DModel`.

mod block;
mod config;
mod model;

pub use config::FluxConfig;
pub(crate) use config::PATCH;
pub use model::Flux;
