//! Pseudo numerical methods for diffusion models (Liu et al. 2022).

use std::collections::VecDeque;

use super::{Context, Sampler};
use crate::error::Error;
use crate::level::Level;
use crate::math::combine;
use crate::plan::{Plan, Step};
use crate::prediction::Prediction;

/// Pseudo linear multistep (PLMS), warmed up either by pseudo Runge-Kutta steps (PNDM proper) or by a
/// pseudo improved Euler step (as Stable Diffusion 1.x ships it).
///
/// The multistep formula combines the network's own outputs, noise or velocity, as diffusers does.
#[derive(Debug, Default)]
pub(crate) struct Pndm {
    /// Network outputs, the newest first.
    outputs: VecDeque<Vec<f32>>,
}

/// Number of Runge-Kutta steps that PNDM begins with.
const WARM_UP: usize = 3;

impl Pndm {
    /// Whether a plan begins with Runge-Kutta steps: they need levels at half a stride, and as many
    /// steps as the multistep formula looks back.
    pub fn has_runge_kutta(plan: &Plan) -> bool {
        let whole = plan.len() == plan.full_len && plan.len() > WARM_UP;
        !plan.config.skip_prk_steps.unwrap_or(false) && plan.stride > 1 && whole
    }

    /// Four calls for each Runge-Kutta step, or two for the improved Euler step.
    pub fn calls(plan: &Plan) -> usize {
        match plan.len() {
            n if Self::has_runge_kutta(plan) => n + 3 * WARM_UP,
            1 => 1,
            n => n + 1,
        }
    }
}

impl Sampler for Pndm {
    fn moves_when_still(&self) -> bool {
        true
    }

    fn step(&mut self, ctx: &mut Context<'_>, i: usize, x: Vec<f32>) -> Result<Vec<f32>, Error> {
        if Self::has_runge_kutta(ctx.plan) && i < WARM_UP {
            return self.runge_kutta(ctx, i, x);
        }
        let Step { from, to } = ctx.plan.steps[i];
        let newest = output(ctx, &x, from)?;
        self.outputs.push_front(newest);
        self.outputs.truncate(4);
        if i == 0 && ctx.plan.len() > 1 {
            return self.improved_euler(ctx, x);
        }
        let e: Vec<&[f32]> = self.outputs.iter().map(Vec::as_slice).collect();
        let combined = match e[..] {
            [e0] => e0.to_vec(),
            [e0, e1] => combine([(1.5, e0), (-0.5, e1)]),
            [e0, e1, e2] => combine([(23.0 / 12.0, e0), (-16.0 / 12.0, e1), (5.0 / 12.0, e2)]),
            _ => combine([
                (55.0 / 24.0, e[0]),
                (-59.0 / 24.0, e[1]),
                (37.0 / 24.0, e[2]),
                (-9.0 / 24.0, e[3]),
            ]),
        };
        Ok(transfer(ctx.plan, &x, &combined, from, to))
    }
}

impl Pndm {
    /// The first step of a run without Runge-Kutta: to the second visited level and back to average.
    fn improved_euler(&mut self, ctx: &mut Context<'_>, x: Vec<f32>) -> Result<Vec<f32>, Error> {
        let plan = ctx.plan;
        let (first, second) = (plan.steps[0].from, plan.steps[1].from);
        let predicted = transfer(
            plan,
            &x,
            &self.outputs[0],
            first,
            ahead(plan, first, plan.stride, second),
        );
        let output_2 = output(ctx, &predicted, second)?;
        let mean = combine([(0.5, &self.outputs[0]), (0.5, &output_2)]);
        // diffusers counts the level that it starts from back from where it ends, which on other than
        // leading spacing is near the first level, not on it.
        let start = if plan.stride == 0 {
            first
        } else {
            plan.schedule.level(second.timestep as usize + plan.stride)
        };
        Ok(transfer(plan, &x, &mean, start, second))
    }

    /// A fourth-order pseudo Runge-Kutta step.
    fn runge_kutta(
        &mut self,
        ctx: &mut Context<'_>,
        i: usize,
        x: Vec<f32>,
    ) -> Result<Vec<f32>, Error> {
        let plan = ctx.plan;
        let (from, to) = (plan.steps[i].from, plan.steps[i + 1].from);
        let half = plan.stride / 2;
        let middle = plan.schedule.level(to.timestep as usize + half);
        let e1 = output(ctx, &x, from)?;
        let x2 = transfer(plan, &x, &e1, from, ahead(plan, from, half, middle));
        let e2 = output(ctx, &x2, middle)?;
        let x3 = transfer(plan, &x, &e2, from, middle);
        let e3 = output(ctx, &x3, middle)?;
        let x4 = transfer(plan, &x, &e3, from, to);
        let e4 = output(ctx, &x4, to)?;
        let mean = combine([
            (1.0 / 6.0, &e1),
            (1.0 / 3.0, &e2),
            (1.0 / 3.0, &e3),
            (1.0 / 6.0, &e4),
        ]);
        self.outputs.push_front(e1);
        Ok(transfer(plan, &x, &mean, from, to))
    }
}

/// The level `by` training steps after `from`, or `otherwise` where levels are not training steps.
fn ahead(plan: &Plan, from: Level, by: usize, otherwise: Level) -> Level {
    if plan.stride == 0 {
        return otherwise;
    }
    plan.schedule
        .level((from.timestep as usize).saturating_sub(by))
}

/// The kind of output that the formula combines.
fn combined_kind(plan: &Plan) -> Prediction {
    if plan.prediction == Prediction::V {
        Prediction::V
    } else {
        Prediction::Epsilon
    }
}

/// The network's output at a level.
fn output(ctx: &mut Context<'_>, x: &[f32], level: Level) -> Result<Vec<f32>, Error> {
    let denoised = ctx.denoise(x, level)?;
    Ok(combined_kind(ctx.plan).output(&denoised, x, level))
}

/// Equation 11 of the paper: along an output from one level to another.
fn transfer(plan: &Plan, x: &[f32], output: &[f32], from: Level, to: Level) -> Vec<f32> {
    let clean = combined_kind(plan).denoised(output, x, from);
    // alpha_to · clean + sigma_to · noise, with noise = (x - alpha · clean) / sigma.
    let ratio = to.sigma / from.sigma;
    combine([(to.alpha - ratio * from.alpha, &clean), (ratio, x)])
}
