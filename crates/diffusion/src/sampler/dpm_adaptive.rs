//! DPM-Solver-23 with adaptive steps (Lu et al. 2022, algorithm 3), k-diffusion's.

use super::{Context, Sampler};
use crate::error::Error;
use crate::math::combine;
use crate::plan::Plan;

/// Chooses its own steps between the ends of the plan; a step of the sampling loop is one proposal,
/// taken or refused. It stops at the smallest sigma of training, as it cannot step to zero.
#[derive(Debug)]
pub(crate) struct DpmAdaptive {
    /// Time, -ln(sigma).
    t: f64,
    t_start: f64,
    t_end: f64,
    h: f64,
    previous: Option<Vec<f32>>,
}

const RELATIVE_TOLERANCE: f64 = 0.05;
const ABSOLUTE_TOLERANCE: f64 = 0.0078;
const FIRST_STEP: f64 = 0.05;
const ACCEPT: f64 = 0.81;
/// A run takes some 20 proposals; one that takes so many is going nowhere.
const MOST_PROPOSALS: usize = 1000;

impl DpmAdaptive {
    pub fn new(plan: &Plan) -> Self {
        let (first, last) = Self::span(plan);
        Self {
            t: -first.ln(),
            t_start: -first.ln(),
            t_end: -last.ln(),
            h: FIRST_STEP,
            previous: None,
        }
    }

    /// The plan's first sigma, and its last; the smallest of training where the last is none.
    fn span(plan: &Plan) -> (f64, f64) {
        let first = plan.steps.first().map(|step| step.from.sigma);
        let last = plan.steps.last().map_or(0.0, |step| step.to.sigma);
        (
            first.unwrap_or(plan.schedule.sigma_max()),
            if last > 0.0 { last } else { plan.sigma_min() },
        )
    }

    fn eps(ctx: &mut Context<'_>, x: &[f32], t: f64) -> Result<Vec<f32>, Error> {
        let sigma = (-t).exp();
        let denoised = ctx.denoise(x, ctx.plan.level_at(sigma))?;
        Ok(combine([(1.0 / sigma, x), (-1.0 / sigma, &denoised)]))
    }
}

impl Sampler for DpmAdaptive {
    fn moves_when_still(&self) -> bool {
        true
    }

    fn step(&mut self, ctx: &mut Context<'_>, i: usize, x: Vec<f32>) -> Result<Vec<f32>, Error> {
        if i >= MOST_PROPOSALS {
            return Err(Error::NoConvergence {
                sampler: ctx.plan.info.name,
                calls: 3 * i,
            });
        }
        const R1: f64 = 1.0 / 3.0;
        const R2: f64 = 2.0 / 3.0;
        let t = (self.t + self.h).min(self.t_end);
        let h = t - self.t;
        let sigma = |t: f64| (-t).exp();
        let (s1, s2) = (self.t + R1 * h, self.t + R2 * h);
        let eps = Self::eps(ctx, &x, self.t)?;
        let u1 = combine([(1.0, &x), (-sigma(s1) * (R1 * h).exp_m1(), &eps)]);
        let eps_1 = Self::eps(ctx, &u1, s1)?;
        let slope = combine([(1.0, &eps_1), (-1.0, &eps)]);
        let bend = (R2 * h).exp_m1() / (R2 * h) - 1.0;
        let u2 = combine([
            (1.0, &x),
            (-sigma(s2) * (R2 * h).exp_m1(), &eps),
            (-sigma(s2) * (R2 / R1) * bend, &slope),
        ]);
        let eps_2 = Self::eps(ctx, &u2, s2)?;
        // Second and third order from the same three calls.
        let euler = combine([(1.0, &x), (-sigma(t) * h.exp_m1(), &eps)]);
        let low = combine([(1.0, &euler), (-sigma(t) / (2.0 * R1) * h.exp_m1(), &slope)]);
        let factor = -sigma(t) / R2 * (h.exp_m1() / h - 1.0);
        let high = combine([(1.0, &euler), (factor, &eps_2), (-factor, &eps)]);
        let error = relative_error(&low, &high, self.previous.as_deref().unwrap_or(&x));
        // An integral controller of order 3, limited by an arctangent.
        let change = 1.0 + ((1.0 / (error + 1e-8)).powf(1.0 / 3.0) - 1.0).atan();
        self.h *= change;
        if change < ACCEPT {
            return Ok(x);
        }
        self.t = t;
        self.previous = Some(low);
        Ok(high)
    }

    fn finished(&self, _: &Plan, _: usize) -> bool {
        self.t >= self.t_end - 1e-5
    }

    fn position(&self, _: &Plan, _: usize) -> (f64, f64) {
        (
            (self.t - self.t_start) / (self.t_end - self.t_start),
            (-self.t).exp(),
        )
    }
}

/// The root mean square of the difference over the tolerance.
fn relative_error(low: &[f32], high: &[f32], previous: &[f32]) -> f64 {
    let squares = low
        .iter()
        .zip(high)
        .zip(previous)
        .map(|((low, high), previous)| {
            let size = f64::from(low.abs().max(previous.abs()));
            let tolerance = ABSOLUTE_TOLERANCE.max(RELATIVE_TOLERANCE * size);
            ((f64::from(*low) - f64::from(*high)) / tolerance).powi(2)
        });
    (squares.sum::<f64>() / low.len().max(1) as f64).sqrt()
}
