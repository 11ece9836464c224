//! Euler's method, plain and ancestral.

use super::{Context, Sampler, ancestral_step_single};
use crate::error::Error;
use crate::math::{combine, euler_step};
use crate::plan::Step;

/// Euler's method on the probability-flow ODE (Karras et al. 2022, algorithm 2 without churn).
#[derive(Debug)]
pub(crate) struct Euler;

impl Sampler for Euler {
    fn step(&mut self, ctx: &mut Context<'_>, i: usize, x: Vec<f32>) -> Result<Vec<f32>, Error> {
        let Step { from, to } = ctx.plan.steps[i];
        let denoised = ctx.denoise(&x, from)?;
        Ok(euler_step(&x, &denoised, from.sigma, to.sigma - from.sigma))
    }
}

/// Euler steps to below the next level, then fresh noise up to it.
#[derive(Debug)]
pub(crate) struct EulerAncestral {
    pub eta: f64,
    pub s_noise: f64,
}

impl Sampler for EulerAncestral {
    fn step(&mut self, ctx: &mut Context<'_>, i: usize, x: Vec<f32>) -> Result<Vec<f32>, Error> {
        let Step { from, to } = ctx.plan.steps[i];
        let denoised = ctx.denoise(&x, from)?;
        let (down, up) = ancestral_step_single(from.sigma, to.sigma, self.eta);
        let down = euler_step(&x, &denoised, from.sigma, down - from.sigma);
        // diffusers draws at the last step too, where the noise counts for nothing.
        let noise = ctx.noise(x.len());
        Ok(combine([(1.0, &down), (up * self.s_noise, &noise)]))
    }
}
