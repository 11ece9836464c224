//! Euler's method, plain and ancestral.

use super::{Context, Sampler};
use crate::error::Error;
use crate::math::combine;
use crate::plan::Step;

/// Euler's method on the probability-flow ODE (Karras et al. 2022, algorithm 2 without churn).
#[derive(Debug)]
pub(crate) struct Euler;

impl Sampler for Euler {
    fn step(&mut self, ctx: &mut Context<'_>, i: usize, x: Vec<f32>) -> Result<Vec<f32>, Error> {
        let Step { from, to } = ctx.plan.steps[i];
        let denoised = ctx.denoise(&x, from)?;
        // x + d · dt, with d = (x - denoised) / sigma and dt = sigma_next - sigma.
        let ratio = to.sigma / from.sigma;
        Ok(combine([(ratio, &x), (1.0 - ratio, &denoised)]))
    }
}
