//! The linear-quadratic schedule of the Mochi video model.

use super::{ModelSigmas, ScheduleError, ScheduleOptions};

/// Half of the steps linearly from `sigma_max` through the first `linear_share` of it, the rest on
/// the parabola that goes on with the same slope and ends at 0.
pub(super) fn linear_quadratic(
    model: &ModelSigmas<'_>,
    steps: usize,
    options: &ScheduleOptions,
) -> Result<Vec<f64>, ScheduleError> {
    let share = options.linear_share;
    if !(share > 0.0 && share <= 0.5) {
        return Err(ScheduleError::Option {
            option: "linear_share",
            found: share,
            expected: "a number above 0 and at most 0.5",
        });
    }
    if steps == 1 {
        return Ok(vec![model.sigma_max]);
    }
    let linear = (steps / 2) as f64;
    let quadratic = steps as f64 - linear;
    let slope = share / linear;
    // What straight lines of that slope would leave to be removed at the end.
    let rest = 1.0 - slope * steps as f64;
    let removed = |i: usize| {
        let i = i as f64;
        let beyond = (i - linear).max(0.0) / quadratic;
        slope * i + rest * beyond * beyond
    };
    Ok((0..steps)
        .map(|i| model.sigma_max * (1.0 - removed(i)))
        .collect())
}
