//! The levels that GITS searched.

use super::align_your_steps::reaches;
use super::gits_table::{
    CHOICES, COEFFICIENT_STEP, FIRST_COEFFICIENT, LEVELS, MAX_STEPS, MIN_STEPS,
};
use super::{ModelSigmas, ScheduleError, ScheduleOptions, resample};

/// The levels for the coefficient and the number of steps, without the last, which becomes 0.
/// Beyond 20 steps those of 20 are resampled; one step, which the table lacks, starts at the first
/// level. Absolute: they do not follow the model's own ends.
pub(super) fn gits(
    model: &ModelSigmas<'_>,
    steps: usize,
    options: &ScheduleOptions,
) -> Result<Vec<f64>, ScheduleError> {
    let by_steps = row(options.gits_coefficient)?;
    reaches(model, LEVELS[0], "gits")?;
    if steps < MIN_STEPS {
        return Ok(LEVELS[..steps].to_vec());
    }
    let chosen = by_steps[steps.min(MAX_STEPS) - MIN_STEPS];
    let mut sigmas: Vec<f64> = LEVELS
        .iter()
        .enumerate()
        .filter(|(i, _)| (chosen >> i) & 1 == 1)
        .map(|(_, level)| *level)
        .collect();
    if steps > MAX_STEPS {
        sigmas = resample(&sigmas, steps + 1);
    }
    sigmas.truncate(steps);
    Ok(sigmas)
}

/// The table's rows for a coefficient.
fn row(coefficient: f64) -> Result<&'static [u128], ScheduleError> {
    let place = (coefficient - FIRST_COEFFICIENT) / COEFFICIENT_STEP;
    let index = place.round();
    if (place - index).abs() < 1e-6 && (0.0..CHOICES.len() as f64).contains(&index) {
        return Ok(&CHOICES[index as usize]);
    }
    Err(ScheduleError::Option {
        option: "gits_coefficient",
        found: coefficient,
        expected: "0.80 to 1.50 in steps of 0.05",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_a_level_more_than_steps() {
        for rows in CHOICES {
            for (steps, chosen) in (MIN_STEPS..=MAX_STEPS).zip(rows) {
                assert_eq!(chosen.count_ones() as usize, steps + 1);
                let ends = 1 | (1 << (LEVELS.len() - 1));
                assert_eq!(chosen & ends, ends);
                assert_eq!(chosen >> LEVELS.len(), 0);
            }
        }
    }
}
