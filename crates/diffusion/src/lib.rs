//! The mathematics of diffusion: noise schedules, predictions, samplers, guidance, randomness.
//!
//! A run is laid out by [`Plan::new`] and driven by [`sample`]; the network stands behind the
//! [`Denoiser`] contract `denoised = D(x, level)`, which [`GuidedDenoiser`] fulfils for anything
//! that implements [`Network`]. Nothing here does I/O or knows a tensor type: latents are `f32`
//! slices, because a network call is the only expensive thing.

pub mod beta;
pub mod config;
pub mod denoiser;
pub mod error;
pub mod guidance;
pub mod level;
mod math;
pub mod noise;
pub mod plan;
pub mod prediction;
pub mod rng;
pub mod sampler;
pub mod schedule;
mod spacing;
mod special;

pub use beta::{BetaSchedule, NoiseSchedule};
pub use config::{SchedulerConfig, TimestepSpacing};
pub use denoiser::{Branches, Denoised, Denoiser, GuidedDenoiser, Network, Outputs};
pub use error::{BoxError, Error};
pub use guidance::Guidance;
pub use level::Level;
pub use noise::{NoNoise, NoiseSource};
pub use plan::{Plan, Sigmas, Step};
pub use prediction::Prediction;
pub use sampler::{Progress, SAMPLERS, SamplerInfo, SamplerOptions, sample};
