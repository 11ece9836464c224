//! Schedules that count training steps.

use super::{ModelSigmas, ScheduleError, ScheduleOptions};
use crate::math::{interpolate, linspace};

/// Evenly from the last training step to the first, both included; between two training steps the
/// logarithm of sigma is linear. One step starts at the last.
pub(super) fn normal(
    model: &ModelSigmas<'_>,
    steps: usize,
    _: &ScheduleOptions,
) -> Result<Vec<f64>, ScheduleError> {
    Ok(even(model, steps, steps))
}

/// As [`normal`] with one step more, whose start is left out: the gap to 0 is as wide as the others.
pub(super) fn sgm_uniform(
    model: &ModelSigmas<'_>,
    steps: usize,
    _: &ScheduleOptions,
) -> Result<Vec<f64>, ScheduleError> {
    Ok(even(model, steps + 1, steps))
}

/// The first `steps` of `count` sigmas, evenly over the training steps from the top.
fn even(model: &ModelSigmas<'_>, count: usize, steps: usize) -> Vec<f64> {
    if let Some(flow) = model.flow {
        // As ComfyUI, which shifts the even times between the ends, the lower of which is shifted already.
        return linspace(model.sigma_max, model.sigma_min, count)
            .iter()
            .take(steps)
            .map(|&time| flow.sigma(time))
            .collect();
    }
    let logs: Vec<f64> = model.sigmas.iter().map(|sigma| sigma.ln()).collect();
    let step_of = |sigma: f64| {
        let log = sigma.ln();
        let high = logs.partition_point(|&l| l < log).clamp(1, logs.len() - 1);
        let (a, b) = (logs[high - 1], logs[high]);
        (high - 1) as f64 + ((log - a) / (b - a)).clamp(0.0, 1.0)
    };
    linspace(step_of(model.sigma_max), step_of(model.sigma_min), count)
        .iter()
        .take(steps)
        .map(|&at| interpolate(&logs, at).exp())
        .collect()
}

/// Every `len / steps`-th training step from the last one down.
pub(super) fn simple(
    model: &ModelSigmas<'_>,
    steps: usize,
    _: &ScheduleOptions,
) -> Result<Vec<f64>, ScheduleError> {
    let stride = model.sigmas.len() as f64 / steps as f64;
    let falling = |i: usize| model.sigmas[model.sigmas.len() - 1 - (i as f64 * stride) as usize];
    Ok((0..steps).map(falling).collect())
}

/// Training steps 1, 1 + n, 1 + 2n, ... with the whole number n = len / steps, from the top.
///
/// This is diffusers' `leading` spacing with an offset of 1. ComfyUI's ddim_uniform goes on up to
/// the last training step and so makes more steps than it was asked for where the division leaves a
/// rest (150 steps of 1000 become 167); here their number holds. In both, few steps start well
/// below the largest sigma, one step almost at the smallest: take another schedule for those.
pub(super) fn ddim_uniform(
    model: &ModelSigmas<'_>,
    steps: usize,
    _: &ScheduleOptions,
) -> Result<Vec<f64>, ScheduleError> {
    let stride = model.sigmas.len() / steps;
    let rising = |i: usize| model.sigmas[1 + i * stride];
    Ok((0..steps).rev().map(rising).collect())
}
