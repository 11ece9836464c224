//! DPM-Solver++(3M) SDE, k-diffusion's.
//!
//! k-diffusion draws from a Brownian tree; here each noise is independent, which has the same
//! distribution.

use super::{Context, History, Sampler};
use crate::error::Error;
use crate::math::{combine, phi2, phi3};
use crate::plan::Step;

/// Third order once three results are known.
#[derive(Debug)]
pub(crate) struct Dpmpp3mSde {
    pub eta: f64,
    pub s_noise: f64,
    history: History,
}

impl Dpmpp3mSde {
    pub fn new(eta: f64, s_noise: f64) -> Self {
        Self {
            eta,
            s_noise,
            history: History::default(),
        }
    }
}

impl Sampler for Dpmpp3mSde {
    fn step(&mut self, ctx: &mut Context<'_>, i: usize, x: Vec<f32>) -> Result<Vec<f32>, Error> {
        let Step { from, to } = ctx.plan.steps[i];
        let denoised = ctx.denoise(&x, from)?;
        if to.is_clean() {
            return Ok(denoised);
        }
        self.history.push(from, denoised, 3);
        let order = self.history.len();
        let h = (from.sigma / to.sigma).ln();
        let h_eta = h * (self.eta + 1.0);
        let (m0, d1, d2) = self.history.differences(h, order);
        let mut next = combine([((-h_eta).exp(), &x), (-(-h_eta).exp_m1(), m0)]);
        // k-diffusion's phi_2 and phi_3 are (phi2(-h) and phi3(-h)) · h.
        if order >= 2 {
            next = combine([(1.0, &next), (h_eta * phi2(-h_eta), &d1)]);
        }
        if order >= 3 {
            next = combine([(1.0, &next), (h_eta * phi3(-h_eta), &d2)]);
        }
        if self.eta > 0.0 {
            let fresh = to.sigma * (-(-2.0 * h * self.eta).exp_m1()).sqrt();
            let noise = ctx.noise(x.len());
            next = combine([(1.0, &next), (fresh * self.s_noise, &noise)]);
        }
        Ok(next)
    }
}
