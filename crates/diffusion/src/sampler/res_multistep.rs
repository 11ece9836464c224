//! Refined exponential solver, multistep (Zhang et al. 2023).

use super::{Ancestral, Context, Sampler};
use crate::error::Error;
use crate::math::{combine, phi1, phi2};
use crate::plan::Step;

/// RES, second order; `eta` above 0 makes it ancestral.
#[derive(Debug)]
pub(crate) struct ResMultistep {
    pub eta: f64,
    pub s_noise: f64,
    /// Sigma, the sigma it stepped down to, and denoised latent of the last step.
    last: Option<(f64, f64, Vec<f32>)>,
}

impl ResMultistep {
    pub fn new(eta: f64, s_noise: f64) -> Self {
        Self {
            eta,
            s_noise,
            last: None,
        }
    }
}

impl Sampler for ResMultistep {
    fn step(&mut self, ctx: &mut Context<'_>, i: usize, x: Vec<f32>) -> Result<Vec<f32>, Error> {
        let Step { from, to } = ctx.plan.steps[i];
        let denoised = ctx.denoise(&x, from)?;
        let Ancestral { down, keep, up } = Ancestral::split(ctx.plan, Step { from, to }, self.eta);
        if down == 0.0 {
            return Ok(denoised);
        }
        // Time is -ln(sigma).
        let h = (from.sigma / down).ln();
        let mut next = match &self.last {
            None => combine([((-h).exp(), &x), (-(-h).exp_m1(), &denoised)]),
            Some((sigma, sigma_down, last)) => {
                let c2 = (sigma_down / sigma).ln() / h;
                let b2 = phi2(-h) / c2;
                let b1 = phi1(-h) - b2;
                combine([((-h).exp(), &x), (h * b1, &denoised), (h * b2, last)])
            }
        };
        if self.eta > 0.0 {
            let noise = ctx.noise(x.len());
            next = combine([(keep, &next), (up * self.s_noise, &noise)]);
        }
        self.last = Some((from.sigma, down, denoised));
        Ok(next)
    }
}
