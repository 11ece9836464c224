//! The mathematics of diffusion: noise schedules, predictions, samplers, guidance, randomness.
//!
//! A run is laid out by [`Plan::new`] and driven by [`sample`]; the network stands behind the
//! [`Denoiser`] contract `denoised = D(x, level)`, which [`GuidedDenoiser`] fulfils for anything
//! that implements [`Network`]. Nothing here does I/O or knows a tensor type: latents are `f32`
//! slices, because a network call is the only expensive thing.
//!
//! ```
//! use std::ops::ControlFlow;
//! use aquatint_diffusion::*;
//! use aquatint_diffusion::rng::TorchCpu;
//!
//! /// A network that sees no noise at all.
//! struct Blind;
//! impl Network for Blind {
//!     fn run(&mut self, input: &[f32], _timestep: f64, _: Branches) -> Result<Outputs, BoxError> {
//!         Ok(Outputs { cond: vec![0.0; input.len()], uncond: Some(vec![0.0; input.len()]) })
//!     }
//! }
//!
//! # fn main() -> Result<(), Error> {
//! let config = SchedulerConfig::stable_diffusion(Prediction::Epsilon);
//! let plan = Plan::new(sampler::find("DPM++ 2M")?, &config, 20, Sigmas::Karras)?;
//! let mut noise = TorchCpu::from_seed(42);
//! let mut latent = vec![0.0; 4 * 8 * 8];
//! noise.normal(&mut latent);
//! let mut denoiser = GuidedDenoiser {
//!     network: Blind,
//!     prediction: plan.prediction,
//!     guidance: Guidance::new(7.5),
//!     images: 1,
//!     keep_uncond: plan.info.needs_uncond,
//! };
//! let clean = sample(
//!     &plan,
//!     &SamplerOptions::default(),
//!     plan.initial(&latent),
//!     &mut denoiser,
//!     &mut noise,
//!     &mut |progress| {
//!         assert!(progress.done <= progress.steps);
//!         ControlFlow::Continue(())
//!     },
//! )?;
//! assert_eq!(clean.len(), latent.len());
//! # Ok(())
//! # }
//! ```

pub mod beta;
pub mod config;
pub mod denoiser;
pub mod error;
pub mod flow;
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
pub mod training;

pub use beta::{BetaSchedule, NoiseSchedule};
pub use config::{FlowSpacing, SchedulerConfig, TimeShift, TimestepSpacing};
pub use denoiser::{Branches, Denoised, Denoiser, GuidedDenoiser, Network, Outputs};
pub use error::{BoxError, Error};
pub use flow::FlowSchedule;
pub use guidance::{Guidance, SkipGuidance};
pub use level::Level;
pub use noise::{NoNoise, NoiseSource};
pub use plan::{Plan, Sigmas, Step};
pub use prediction::Prediction;
pub use sampler::{Progress, SAMPLERS, SamplerInfo, SamplerOptions, sample};
