//! Heun's method.

use super::{Context, Sampler, clip};
use crate::error::Error;
use crate::math::combine;
use crate::plan::Step;

/// The trapezoidal rule on the probability-flow ODE (Karras et al. 2022, algorithm 2 without churn).
#[derive(Debug)]
pub(crate) struct Heun {
    pub clip: Option<f64>,
}

impl Sampler for Heun {
    fn step(&mut self, ctx: &mut Context<'_>, i: usize, x: Vec<f32>) -> Result<Vec<f32>, Error> {
        let Step { from, to } = ctx.plan.steps[i];
        let mut denoised = ctx.denoise(&x, from)?;
        clip(&mut denoised, self.clip);
        let ratio = to.sigma / from.sigma;
        let euler = combine([(ratio, &x), (1.0 - ratio, &denoised)]);
        if to.is_clean() {
            return Ok(euler);
        }
        let mut denoised_2 = ctx.denoise(&euler, to)?;
        clip(&mut denoised_2, self.clip);
        // x + (d + d_2) / 2 · dt, with d = (x - denoised) / sigma at either end.
        let (a, b) = (
            0.5 * (to.sigma - from.sigma) / from.sigma,
            0.5 * (to.sigma - from.sigma) / to.sigma,
        );
        Ok(combine([
            (1.0 + a, &x),
            (-a, &denoised),
            (b, &euler),
            (-b, &denoised_2),
        ]))
    }
}
