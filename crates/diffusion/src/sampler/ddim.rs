//! Denoising diffusion implicit models (Song et al. 2021).

use super::{Context, Sampler, clip};
use crate::error::Error;
use crate::math::combine;
use crate::plan::Step;

/// Equation 12 of the paper; `eta` 0 is deterministic, 1 has the variance of DDPM.
#[derive(Debug)]
pub(crate) struct Ddim {
    pub eta: f64,
    pub clip: Option<f64>,
}

impl Sampler for Ddim {
    fn moves_when_still(&self) -> bool {
        true
    }

    fn step(&mut self, ctx: &mut Context<'_>, i: usize, x: Vec<f32>) -> Result<Vec<f32>, Error> {
        let Step { from, to } = ctx.plan.steps[i];
        let mut denoised = ctx.denoise(&x, from)?;
        let noise = combine([
            (1.0 / from.sigma, &x),
            (-from.alpha / from.sigma, &denoised),
        ]);
        // As in diffusers, the noise stays that of the unclipped latent.
        clip(&mut denoised, self.clip);
        let (variance, variance_to) = (from.sigma.powi(2), to.sigma.powi(2));
        let kept = (from.alpha / to.alpha).powi(2);
        let fresh = self.eta * (variance_to / variance * (1.0 - kept)).max(0.0).sqrt();
        let direction = (variance_to - fresh * fresh).max(0.0).sqrt();
        if self.eta == 0.0 {
            return Ok(combine([(to.alpha, &denoised), (direction, &noise)]));
        }
        let drawn = ctx.noise(x.len());
        Ok(combine([
            (to.alpha, &denoised),
            (direction, &noise),
            (fresh, &drawn),
        ]))
    }
}
