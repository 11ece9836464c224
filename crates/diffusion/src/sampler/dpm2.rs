//! DPM-Solver-2 in k-diffusion's form: a midpoint rule with the midpoint in the logarithm of sigma.

use super::{Ancestral, Context, Sampler};
use crate::error::Error;
use crate::math::combine;
use crate::plan::Step;

/// The midpoint rule; `eta` above 0 makes it ancestral.
#[derive(Debug)]
pub(crate) struct Dpm2 {
    pub eta: f64,
    pub s_noise: f64,
}

impl Sampler for Dpm2 {
    fn step(&mut self, ctx: &mut Context<'_>, i: usize, x: Vec<f32>) -> Result<Vec<f32>, Error> {
        let Step { from, to } = ctx.plan.steps[i];
        let denoised = ctx.denoise(&x, from)?;
        let Ancestral { down, keep, up } = Ancestral::split(ctx.plan, Step { from, to }, self.eta);
        if down == 0.0 {
            return Ok(denoised);
        }
        let middle = ctx.plan.level_at((from.sigma * down).sqrt());
        let ratio = middle.sigma / from.sigma;
        let halfway = combine([(ratio, &x), (1.0 - ratio, &denoised)]);
        let denoised_2 = ctx.denoise(&halfway, middle)?;
        // x + d_2 · dt, with d_2 = (halfway - denoised_2) / sigma_middle.
        let slope = (down - from.sigma) / middle.sigma;
        if self.eta == 0.0 {
            return Ok(combine([
                (1.0, &x),
                (slope, &halfway),
                (-slope, &denoised_2),
            ]));
        }
        let noise = ctx.noise(x.len());
        Ok(combine([
            (keep, &x),
            (keep * slope, &halfway),
            (-keep * slope, &denoised_2),
            (up * self.s_noise, &noise),
        ]))
    }
}
