//! The schedule by quantiles of a Beta distribution.

use super::{ModelSigmas, ScheduleError, ScheduleOptions, positive};
use crate::math::linspace;
use crate::special::beta_quantile;

/// Training steps at the quantiles 1, 1 - 1/n, ..., 1/n of a Beta distribution, whose default
/// shapes put more of them at both ends.
///
/// Where rounding makes two of them the same training step, ComfyUI leaves one out and so takes
/// fewer steps than it was asked for; here the later one moves to the nearest free training step.
/// (diffusers' `use_beta_sigmas` is another curve: quantiles between the sigmas themselves; see
/// [`Sigmas::Beta`](crate::Sigmas::Beta).)
pub(super) fn beta(
    model: &ModelSigmas<'_>,
    steps: usize,
    options: &ScheduleOptions,
) -> Result<Vec<f64>, ScheduleError> {
    let a = positive("beta_shapes", options.beta_shapes.0)?;
    let b = positive("beta_shapes", options.beta_shapes.1)?;
    let last = model.sigmas.len() - 1;
    let mut chosen: Vec<usize> = linspace(0.0, 1.0, steps + 1)
        .iter()
        .take(steps)
        .map(|p| (beta_quantile(1.0 - p, a, b) * last as f64).round_ties_even() as usize)
        .collect();
    make_distinct(&mut chosen, last);
    Ok(chosen.into_iter().map(|step| model.sigmas[step]).collect())
}

/// Moves the members of a falling list apart, within `0 ..= last`. The list has room:
/// `chosen.len() <= last + 1`.
fn make_distinct(chosen: &mut [usize], last: usize) {
    let count = chosen.len();
    let mut above = last + 1;
    for (i, step) in chosen.iter_mut().enumerate() {
        // Below the one before, and with room for all that follow.
        *step = (*step).min(above - 1).max(count - 1 - i);
        above = *step;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_move_to_free_places() {
        for (mut list, last, expected) in [
            (vec![9, 9, 9, 5, 5, 0, 0], 9, vec![9, 8, 7, 5, 4, 1, 0]),
            (vec![3, 3, 3, 3], 3, vec![3, 2, 1, 0]),
            (vec![0, 0, 0], 5, vec![2, 1, 0]),
            (vec![7, 4, 1], 9, vec![7, 4, 1]),
        ] {
            make_distinct(&mut list, last);
            assert_eq!(list, expected);
        }
    }
}
