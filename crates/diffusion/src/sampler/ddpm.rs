//! Denoising diffusion probabilistic models (Ho et al. 2020).

use super::{Context, Sampler, clip};
use crate::config::VarianceType;
use crate::error::Error;
use crate::math::combine;
use crate::plan::Step;

/// Algorithm 2 of the paper, between any two visited steps.
#[derive(Debug)]
pub(crate) struct Ddpm {
    pub clip: Option<f64>,
    pub variance: VarianceType,
}

impl Sampler for Ddpm {
    fn moves_when_still(&self) -> bool {
        true
    }

    fn step(&mut self, ctx: &mut Context<'_>, i: usize, x: Vec<f32>) -> Result<Vec<f32>, Error> {
        let Step { from, to } = ctx.plan.steps[i];
        let mut denoised = ctx.denoise(&x, from)?;
        clip(&mut denoised, self.clip);
        let (variance, variance_to) = (from.sigma.powi(2), to.sigma.powi(2));
        let kept = from.alpha / to.alpha;
        let beta = 1.0 - kept * kept;
        // Equation 7: the mean of q(x_to | x_from, x0).
        let (of_clean, of_x) = (to.alpha * beta / variance, kept * variance_to / variance);
        // Drawn at training step 1 too, where the variance is nearly zero, but not at step 0.
        if from.timestep <= 0.0 {
            return Ok(combine([(of_clean, &denoised), (of_x, &x)]));
        }
        let spread = match self.variance {
            VarianceType::FixedLarge => beta.max(0.0),
            _ => (variance_to / variance * beta).max(1e-20),
        };
        let noise = ctx.noise(x.len());
        Ok(combine([
            (of_clean, &denoised),
            (of_x, &x),
            (spread.sqrt(), &noise),
        ]))
    }
}
