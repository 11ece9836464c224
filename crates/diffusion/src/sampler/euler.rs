//! Euler's method, plain and ancestral.

use super::{Ancestral, Context, Frame, Sampler, ancestral_step_single};
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
        if ctx.plan.frame == Frame::Straight {
            return Ok(self.straight_step(ctx, ctx.plan.steps[i], &x, denoised));
        }
        let (down, up) = ancestral_step_single(from.sigma, to.sigma, self.eta);
        let down = euler_step(&x, &denoised, from.sigma, down - from.sigma);
        // diffusers draws at the last step too, where the noise counts for nothing.
        let noise = ctx.noise(x.len());
        Ok(combine([(1.0, &down), (up * self.s_noise, &noise)]))
    }
}

impl EulerAncestral {
    /// ComfyUI's `sample_euler_ancestral_RF`, which draws nothing at the last step.
    fn straight_step(
        &self,
        ctx: &mut Context<'_>,
        step: Step,
        x: &[f32],
        denoised: Vec<f32>,
    ) -> Vec<f32> {
        if step.to.is_clean() {
            return denoised;
        }
        let Ancestral { down, keep, up } =
            Ancestral::straight(step.from.sigma, step.to.sigma, self.eta);
        let ratio = down / step.from.sigma;
        if self.eta == 0.0 {
            return combine([(ratio, x), (1.0 - ratio, &denoised)]);
        }
        let noise = ctx.noise(x.len());
        combine([
            (keep * ratio, x),
            (keep * (1.0 - ratio), &denoised),
            (up * self.s_noise, &noise),
        ])
    }
}
