//! The engine of Aquatint: from a request to events and an image.

mod any;
pub mod bench;
mod decode;
mod error;
mod events;
pub mod memory;
pub mod metadata;
mod network;
mod noise;
pub mod picture;
mod pipeline;
mod pixels;
mod plan;
mod preview;
mod request;
mod schedule;
mod text;
mod transformer;

pub use any::Model;
pub use aquatint_diffusion as diffusion;
pub use aquatint_models as models;
pub use aquatint_ops::Device;
pub use aquatint_weights as weights;
pub use error::EngineError;
pub use events::{Event, Latents, Observer, Stage};
pub use pipeline::{Run, RunOptions, StageSeconds, generate};
pub use pixels::{estimate_pixels, generate_pixels};
pub use plan::{Estimate, estimate};
pub use preview::PreviewMaker;
pub use request::{
    MAX_BATCH, MAX_STEPS, PromptSyntax, Request, SIDES, SkipLayers, T5_TOKENS, Tiling,
};
pub use schedule::{find_rng, find_sampler, find_schedule, layout};

/// Compiles the README's example.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
pub struct Readme;
