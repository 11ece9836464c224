//! Schedules along a curve from `sigma_max` to `sigma_min`. One step starts at `sigma_max`.

use super::{ModelSigmas, ScheduleError, ScheduleOptions, positive};
use crate::math::linspace;

/// Evenly in the `rho`-th root of sigma.
pub(super) fn karras(
    model: &ModelSigmas<'_>,
    steps: usize,
    options: &ScheduleOptions,
) -> Result<Vec<f64>, ScheduleError> {
    let rho = positive("karras_rho", options.karras_rho)?;
    let (max, min) = (
        model.sigma_max.powf(1.0 / rho),
        model.sigma_min.powf(1.0 / rho),
    );
    Ok(linspace(0.0, 1.0, steps)
        .iter()
        .map(|ramp| (max + ramp * (min - max)).powf(rho))
        .collect())
}

/// Evenly in log sigma.
pub(super) fn exponential(
    model: &ModelSigmas<'_>,
    steps: usize,
    _: &ScheduleOptions,
) -> Result<Vec<f64>, ScheduleError> {
    Ok(in_log_sigma(model, steps, 1.0))
}

/// As [`exponential`] with a power of the ramp.
pub(super) fn polyexponential(
    model: &ModelSigmas<'_>,
    steps: usize,
    options: &ScheduleOptions,
) -> Result<Vec<f64>, ScheduleError> {
    let rho = positive("polyexponential_rho", options.polyexponential_rho)?;
    Ok(in_log_sigma(model, steps, rho))
}

fn in_log_sigma(model: &ModelSigmas<'_>, steps: usize, rho: f64) -> Vec<f64> {
    let (max, min) = (model.sigma_max.ln(), model.sigma_min.ln());
    linspace(1.0, 0.0, steps)
        .iter()
        .map(|ramp| (ramp.powf(rho) * (max - min) + min).exp())
        .collect()
}

/// Evenly in the arctangent of sigma, which is optimal in the Kullback-Leibler sense for normally
/// distributed data of unit variance. For one step ComfyUI divides by zero; here it starts at
/// `sigma_max`.
pub(super) fn kl_optimal(
    model: &ModelSigmas<'_>,
    steps: usize,
    _: &ScheduleOptions,
) -> Result<Vec<f64>, ScheduleError> {
    let (max, min) = (model.sigma_max.atan(), model.sigma_min.atan());
    Ok(linspace(0.0, 1.0, steps)
        .iter()
        .map(|ramp| (ramp * min + (1.0 - ramp) * max).tan())
        .collect())
}
