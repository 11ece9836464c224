//! Samplers: a table, a trait, and the one loop that drives them.

use std::ops::ControlFlow;

use crate::denoiser::{Denoised, Denoiser};
use crate::error::Error;
use crate::level::Level;
use crate::noise::NoiseSource;
use crate::plan::{Plan, Step};

mod cfg_pp;
mod checks;
mod ddim;
mod ddpm;
mod deis;
mod dpm2;
mod dpm_adaptive;
mod dpmpp_3m_sde;
mod dpmpp_multistep;
mod dpmpp_sde;
mod dpmpp_singlestep;
mod er_sde;
mod euler;
mod heun;
mod history;
mod ipndm;
mod lcm;
mod lms;
mod pndm;
mod res_multistep;
mod rows;
mod table;
mod unipc;

use history::History;
pub use rows::SAMPLERS;
pub(crate) use table::Grid;
pub use table::{Frame, OnFlows, SamplerInfo, find, of_config};

/// What a request may set about a sampler.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplerOptions {
    /// How stochastic a step is, 0 to 1; `None` is the sampler's own default
    /// ([`SamplerInfo::default_eta`]). Samplers without one ignore it.
    pub eta: Option<f64>,
    /// Factor of the noise that a stochastic sampler of k-diffusion's kind adds.
    pub s_noise: f64,
}

impl Default for SamplerOptions {
    fn default() -> Self {
        Self {
            eta: None,
            s_noise: 1.0,
        }
    }
}

/// One step of a sampler. State between steps (earlier denoised latents) is the implementor's own.
pub trait Sampler {
    /// Takes the latent from the start of step `i` of the plan to its end.
    ///
    /// # Errors
    /// Those of the network, handed on.
    fn step(&mut self, ctx: &mut Context<'_>, i: usize, x: Vec<f32>) -> Result<Vec<f32>, Error>;

    /// Whether a step that leaves the noise as it is still changes the latent; where it does not, it
    /// is made without its network call.
    fn moves_when_still(&self) -> bool {
        false
    }

    /// Whether there is no step `i`. Only samplers that choose their own steps say otherwise.
    fn finished(&self, plan: &Plan, i: usize) -> bool {
        i >= plan.len()
    }

    /// How much of the run is done after `done` steps (one or more), 0 to 1, and the noise over
    /// signal then.
    fn position(&self, plan: &Plan, done: usize) -> (f64, f64) {
        let left = plan.steps[done.min(plan.len()) - 1].to;
        (done as f64 / plan.len() as f64, left.ratio())
    }
}

/// What a step may use: the plan, the network, the noise.
pub struct Context<'a> {
    /// The run's plan.
    pub plan: &'a Plan,
    denoiser: &'a mut dyn Denoiser,
    noise: &'a mut dyn NoiseSource,
    step: usize,
    calls: usize,
    denoised: Vec<f32>,
}

impl Context<'_> {
    /// The expected clean latent of `x` at `level`.
    ///
    /// # Errors
    /// The network's own error, or an output that is not finite or of another length.
    pub fn denoise(&mut self, x: &[f32], level: Level) -> Result<Vec<f32>, Error> {
        Ok(self.denoise_both(x, level)?.denoised)
    }

    /// As [`denoise`](Self::denoise), with the unguided latent where the denoiser keeps it.
    ///
    /// # Errors
    /// As [`denoise`](Self::denoise).
    pub fn denoise_both(&mut self, x: &[f32], level: Level) -> Result<Denoised, Error> {
        let step = self.step;
        let found = self
            .denoiser
            .denoise(x, level)
            .map_err(|source| Error::Network { step, source })?;
        self.calls += 1;
        let parts = [Some(&found.denoised), found.uncond_denoised.as_ref()];
        for part in parts.into_iter().flatten() {
            if part.len() != x.len() {
                let what = "the denoised latent";
                return Err(Error::Length {
                    what,
                    found: part.len(),
                    expected: x.len(),
                });
            }
            if !part.iter().all(|v| v.is_finite()) {
                return Err(Error::NotFinite {
                    step,
                    sigma: level.ratio(),
                });
            }
        }
        self.denoised.clone_from(&found.denoised);
        Ok(found)
    }

    /// A latent of standard normal noise: one draw.
    pub fn noise(&mut self, len: usize) -> Vec<f32> {
        let mut out = vec![0.0; len];
        self.noise.normal(&mut out);
        out
    }
}

/// How far a run is, after a step.
#[derive(Debug)]
pub struct Progress<'a> {
    /// Steps done, from 1.
    pub done: usize,
    /// Steps of the plan. An adaptive sampler may need more or fewer.
    pub steps: usize,
    /// How much of the run is done, 0 to 1.
    pub fraction: f64,
    /// Network calls made.
    pub calls: usize,
    /// Noise over signal that is left.
    pub sigma: f64,
    /// The latent, in the sampler's own form.
    pub x: &'a [f32],
    /// The clean latent expected at the step's last network call: what a preview shows.
    pub denoised: &'a [f32],
}

/// Runs a plan from an initial latent ([`Plan::initial`] or [`Plan::noised`]) to the clean one.
///
/// `observe` is called after each step; `ControlFlow::Break` stops the run.
///
/// # Errors
/// An option out of range, the network's error, an output that is not finite, or
/// [`Error::Cancelled`].
pub fn sample(
    plan: &Plan,
    options: &SamplerOptions,
    initial: Vec<f32>,
    denoiser: &mut dyn Denoiser,
    noise: &mut dyn NoiseSource,
    observe: &mut dyn FnMut(&Progress<'_>) -> ControlFlow<()>,
) -> Result<Vec<f32>, Error> {
    let mut sampler = plan.info.start(plan, options)?;
    let mut ctx = Context {
        plan,
        denoiser,
        noise,
        step: 0,
        calls: 0,
        denoised: Vec::new(),
    };
    let mut x = initial;
    let mut done = 0;
    while !sampler.finished(plan, done) {
        ctx.step = done;
        let still = plan.steps.get(done).is_some_and(Step::is_still);
        if !still || sampler.moves_when_still() {
            x = sampler.step(&mut ctx, done, x)?;
        } else if plan.info.stochastic {
            // The draw keeps the generator in step with the reference.
            ctx.noise(x.len());
        }
        done += 1;
        let (fraction, sigma) = sampler.position(plan, done);
        let progress = Progress {
            done,
            steps: plan.len(),
            fraction,
            calls: ctx.calls,
            sigma,
            x: &x,
            denoised: &ctx.denoised,
        };
        if observe(&progress).is_break() {
            return Err(Error::Cancelled {
                done,
                steps: plan.len(),
            });
        }
    }
    Ok(x)
}

/// Where a configuration clips the clean latent, if it does; `default` is the scheduler class's own.
fn clip_range(plan: &Plan, default: bool) -> Option<f64> {
    let config = &plan.config;
    // Classes with a default of their own have none for flows.
    config
        .clip_sample
        .unwrap_or(default && plan.flow.is_none())
        .then(|| config.clip_sample_range.unwrap_or(1.0))
}

/// Clips a clean latent to ±`range`.
fn clip(denoised: &mut [f32], range: Option<f64>) {
    if let Some(range) = range {
        let range = range as f32;
        denoised
            .iter_mut()
            .for_each(|d| *d = d.clamp(-range, range));
    }
}

/// A step of an ancestral sampler: to below the next level, then fresh noise up to it.
#[derive(Debug, Clone, Copy)]
struct Ancestral {
    /// The sigma to step down to.
    down: f64,
    /// Factor of the latent there, before the noise is added.
    keep: f64,
    /// Standard deviation of the fresh noise.
    up: f64,
}

impl Ancestral {
    /// Splits a step of a plan.
    fn split(plan: &Plan, Step { from, to }: Step, eta: f64) -> Self {
        if plan.frame == Frame::Straight {
            return Self::straight(from.sigma, to.sigma, eta);
        }
        let (down, up) = ancestral_step(from.sigma, to.sigma, eta);
        Self {
            down,
            keep: 1.0,
            up,
        }
    }

    /// ComfyUI's split for flows, whose signal must keep its size too (`sample_euler_ancestral_RF`).
    fn straight(from: f64, to: f64, eta: f64) -> Self {
        let down = to * (1.0 + (to / from - 1.0) * eta);
        let keep = (1.0 - to) / (1.0 - down);
        let up = (to * to - (down * keep).powi(2)).max(0.0).sqrt();
        Self { down, keep, up }
    }
}

/// Splits a step of an ancestral sampler: the sigma to step down to, and that of the fresh noise.
fn ancestral_step(from: f64, to: f64, eta: f64) -> (f64, f64) {
    let up = (eta
        * (to * to * (from * from - to * to) / (from * from))
            .max(0.0)
            .sqrt())
    .min(to);
    ((to * to - up * up).max(0.0).sqrt(), up)
}

/// As [`ancestral_step`] with the rounding of diffusers' f32, which where a step is long leaves few
/// digits of the sigma to step down to: they are part of its picture.
fn ancestral_step_single(from: f64, to: f64, eta: f64) -> (f64, f64) {
    let (from, to) = (from as f32, to as f32);
    let full = (to * to * (from * from - to * to) / (from * from))
        .max(0.0)
        .sqrt();
    let up = (eta as f32 * full).min(to);
    ((to * to - up * up).max(0.0).sqrt().into(), up.into())
}
