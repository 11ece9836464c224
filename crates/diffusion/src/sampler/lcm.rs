//! Samplers of distilled models: latent consistency models and trajectory consistency distillation.

use super::{Context, Sampler, clip};
use crate::error::Error;
use crate::math::combine;
use crate::plan::Step;

/// Multistep consistency sampling (Luo et al. 2023, algorithm 3).
#[derive(Debug)]
pub(crate) struct Lcm {
    pub clip: Option<f64>,
    /// Factor of the time in the boundary condition; flow models have none.
    pub timestep_scaling: Option<f64>,
}

impl Sampler for Lcm {
    fn moves_when_still(&self) -> bool {
        true
    }

    fn step(&mut self, ctx: &mut Context<'_>, i: usize, x: Vec<f32>) -> Result<Vec<f32>, Error> {
        const SIGMA_DATA: f64 = 0.5;
        let Step { from, to } = ctx.plan.steps[i];
        let mut denoised = ctx.denoise(&x, from)?;
        clip(&mut denoised, self.clip);
        // c_skip and c_out keep the consistency function the identity at time 0.
        let clean = match self.timestep_scaling {
            None => denoised,
            Some(scaling) => {
                let time = from.timestep * scaling;
                let norm = time * time + SIGMA_DATA * SIGMA_DATA;
                let (c_skip, c_out) = (SIGMA_DATA * SIGMA_DATA / norm, time / norm.sqrt());
                combine([(c_out, &denoised), (c_skip, &x)])
            }
        };
        if i + 1 == ctx.plan.len() {
            return Ok(clean);
        }
        let noise = ctx.noise(x.len());
        Ok(combine([(to.alpha, &clean), (to.sigma, &noise)]))
    }
}

/// Strategic stochastic sampling (Zheng et al. 2024, algorithm 4); `eta` is the paper's gamma.
#[derive(Debug)]
pub(crate) struct Tcd {
    pub eta: f64,
}

impl Sampler for Tcd {
    fn moves_when_still(&self) -> bool {
        true
    }

    fn step(&mut self, ctx: &mut Context<'_>, i: usize, x: Vec<f32>) -> Result<Vec<f32>, Error> {
        let Step { from, to } = ctx.plan.steps[i];
        let denoised = ctx.denoise(&x, from)?;
        if to.is_clean() {
            return Ok(denoised);
        }
        // The network is followed to an earlier time s, and noise leads back from there. The product is
        // rounded to f32 before its floor, as torch does.
        let s = ((1.0 - self.eta) as f32 * to.timestep as f32).floor() as usize;
        let s = ctx.plan.schedule.level(s);
        let ratio = s.sigma / from.sigma;
        let there = combine([(s.alpha - ratio * from.alpha, &denoised), (ratio, &x)]);
        if self.eta == 0.0 || i + 1 == ctx.plan.len() {
            return Ok(there);
        }
        let kept = to.alpha / s.alpha;
        let noise = ctx.noise(x.len());
        Ok(combine([
            (kept, &there),
            ((1.0 - kept * kept).max(0.0).sqrt(), &noise),
        ]))
    }
}
