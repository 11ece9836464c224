//! Extended reverse-time SDE solvers (Cui et al. 2023).

use super::{Context, Sampler};
use crate::error::Error;
use crate::math::combine;
use crate::plan::Step;

/// ER-SDE-Solver-3 with the paper's fifth noise scale.
#[derive(Debug)]
pub(crate) struct ErSde {
    pub s_noise: f64,
    /// Sigma, denoised latent and its derivative of the last step; sigma of the one before.
    last: Option<Last>,
}

#[derive(Debug)]
struct Last {
    sigma: f64,
    sigma_before: Option<f64>,
    denoised: Vec<f32>,
    derivative: Option<Vec<f32>>,
}

impl ErSde {
    pub fn new(s_noise: f64) -> Self {
        Self {
            s_noise,
            last: None,
        }
    }
}

/// How much noise the reverse process carries at a sigma.
fn noise_scale(sigma: f64) -> f64 {
    sigma * (sigma.powf(0.3).exp() + 10.0)
}

/// `∫ 1 / scale` and `∫ (sigma - from) / scale` from `to` up to `from`, as sums over 200 points.
fn integrals(from: f64, to: f64) -> (f64, f64) {
    const POINTS: usize = 200;
    let width = (from - to) / POINTS as f64;
    (0..POINTS).fold((0.0, 0.0), |(s, u), k| {
        let at = to + k as f64 * width;
        let weight = width / noise_scale(at);
        (s + weight, u + (at - from) * weight)
    })
}

impl Sampler for ErSde {
    fn step(&mut self, ctx: &mut Context<'_>, i: usize, x: Vec<f32>) -> Result<Vec<f32>, Error> {
        let Step { from, to } = ctx.plan.steps[i];
        let (from, to) = (from.sigma, to.sigma);
        let denoised = ctx.denoise(&x, ctx.plan.steps[i].from)?;
        if to == 0.0 {
            return Ok(denoised);
        }
        let r = noise_scale(to) / noise_scale(from);
        let mut next = combine([(r, &x), (1.0 - r, &denoised)]);
        let mut derivative = None;
        if let Some(last) = &self.last {
            let dt = to - from;
            let (s, s_u) = integrals(from, to);
            let d = combine([(1.0, &denoised), (-1.0, &last.denoised)]);
            let d = combine([(1.0 / (from - last.sigma), &d)]);
            next = combine([(1.0, &next), (dt + s * noise_scale(to), &d)]);
            if let (Some(before), Some(d_last)) = (last.sigma_before, &last.derivative) {
                // The second derivative, over the half of two steps.
                let factor = (dt * dt / 2.0 + s_u * noise_scale(to)) / ((from - before) / 2.0);
                next = combine([(1.0, &next), (factor, &d), (-factor, d_last)]);
            }
            derivative = Some(d);
        }
        self.last = Some(Last {
            sigma: from,
            sigma_before: self.last.as_ref().map(|l| l.sigma),
            denoised,
            derivative,
        });
        let fresh = (to * to - from * from * r * r).max(0.0).sqrt();
        let noise = ctx.noise(x.len());
        Ok(combine([(1.0, &next), (fresh * self.s_noise, &noise)]))
    }
}
