//! DPM-Solver++ in k-diffusion's stochastic forms, in variance-exploding form.
//!
//! k-diffusion and diffusers draw the noise of the SDE samplers from a Brownian tree; here each noise
//! is independent, which has the same distribution.

use super::{Ancestral, Context, Sampler, ancestral_step};
use crate::error::Error;
use crate::math::combine;
use crate::plan::Step;

/// Two stages with noise in each (diffusers' `DPMSolverSDEScheduler`, midpoint ratio 1/2).
#[derive(Debug)]
pub(crate) struct DpmppSde {
    pub eta: f64,
    pub s_noise: f64,
}

impl DpmppSde {
    /// From a sigma to a lower one along a denoised latent, with noise.
    fn leap(
        &self,
        ctx: &mut Context<'_>,
        x: &[f32],
        denoised: &[f32],
        from: f64,
        to: f64,
    ) -> Vec<f32> {
        let (down, up) = ancestral_step(from, to, self.eta);
        let ratio = down / from;
        let noise = ctx.noise(x.len());
        combine([
            (ratio, x),
            (1.0 - ratio, denoised),
            (up * self.s_noise, &noise),
        ])
    }
}

impl Sampler for DpmppSde {
    fn step(&mut self, ctx: &mut Context<'_>, i: usize, x: Vec<f32>) -> Result<Vec<f32>, Error> {
        let Step { from, to } = ctx.plan.steps[i];
        let denoised = ctx.denoise(&x, from)?;
        if to.is_clean() {
            return Ok(denoised);
        }
        let middle = ctx.plan.level_at((from.sigma * to.sigma).sqrt());
        let x_2 = self.leap(ctx, &x, &denoised, from.sigma, middle.sigma);
        let denoised_2 = ctx.denoise(&x_2, middle)?;
        Ok(self.leap(ctx, &x, &denoised_2, from.sigma, to.sigma))
    }
}

/// Two stages to below the next level, then fresh noise up to it.
#[derive(Debug)]
pub(crate) struct Dpmpp2sAncestral {
    pub eta: f64,
    pub s_noise: f64,
}

impl Sampler for Dpmpp2sAncestral {
    fn step(&mut self, ctx: &mut Context<'_>, i: usize, x: Vec<f32>) -> Result<Vec<f32>, Error> {
        let Step { from, to } = ctx.plan.steps[i];
        let denoised = ctx.denoise(&x, from)?;
        let Ancestral { down, keep, up } = Ancestral::split(ctx.plan, Step { from, to }, self.eta);
        if down == 0.0 {
            return Ok(denoised);
        }
        let middle = ctx.plan.level_at((from.sigma * down).sqrt());
        let ratio = middle.sigma / from.sigma;
        let x_2 = combine([(ratio, &x), (1.0 - ratio, &denoised)]);
        let denoised_2 = ctx.denoise(&x_2, middle)?;
        let ratio = down / from.sigma;
        let noise = ctx.noise(x.len());
        Ok(combine([
            (keep * ratio, &x),
            (keep * (1.0 - ratio), &denoised_2),
            (up * self.s_noise, &noise),
        ]))
    }
}
