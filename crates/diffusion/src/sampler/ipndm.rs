//! Improved pseudo numerical methods (Zhang and Chen 2022, section 4).

use std::collections::VecDeque;

use super::{Context, Sampler};
use crate::error::Error;
use crate::math::combine;
use crate::plan::Step;

/// Adams-Bashforth with the coefficients of even steps, warmed up by its own lower orders.
#[derive(Debug, Default)]
pub(crate) struct Ipndm {
    /// Derivatives, the newest first.
    history: VecDeque<Vec<f32>>,
}

impl Sampler for Ipndm {
    fn step(&mut self, ctx: &mut Context<'_>, i: usize, x: Vec<f32>) -> Result<Vec<f32>, Error> {
        let Step { from, to } = ctx.plan.steps[i];
        let denoised = ctx.denoise(&x, from)?;
        if to.is_clean() {
            return Ok(denoised);
        }
        let d = combine([(1.0 / from.sigma, &x), (-1.0 / from.sigma, &denoised)]);
        self.history.push_front(d);
        self.history.truncate(4);
        let dt = to.sigma - from.sigma;
        let d: Vec<&[f32]> = self.history.iter().map(Vec::as_slice).collect();
        Ok(match d[..] {
            [d0] => combine([(1.0, &x), (dt, d0)]),
            [d0, d1] => combine([(1.0, &x), (dt * 1.5, d0), (-dt * 0.5, d1)]),
            [d0, d1, d2] => {
                let dt = dt / 12.0;
                combine([(1.0, &x), (dt * 23.0, d0), (-dt * 16.0, d1), (dt * 5.0, d2)])
            }
            _ => {
                let dt = dt / 24.0;
                combine([
                    (1.0, &x),
                    (dt * 55.0, d[0]),
                    (-dt * 59.0, d[1]),
                    (dt * 37.0, d[2]),
                    (-dt * 9.0, d[3]),
                ])
            }
        })
    }
}
