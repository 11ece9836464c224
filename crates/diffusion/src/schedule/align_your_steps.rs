//! The levels that Align Your Steps searched.

use super::{ModelSigmas, ScheduleError, ScheduleOptions, resample};

/// Which of the published levels fit a network best. They are given for 10 steps; other numbers are
/// interpolated in log sigma.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SearchedLevels {
    /// Stable Diffusion 1.5: the paper's choice for latent models of that noise schedule.
    #[default]
    StableDiffusion,
    /// Stable Diffusion XL.
    StableDiffusionXl,
    /// Stable Video Diffusion, whose sigmas go up to 700.
    StableVideo,
}

impl SearchedLevels {
    /// The published sigmas, falling; a run replaces the last by 0.
    fn sigmas(self) -> [f64; 11] {
        match self {
            Self::StableDiffusion => [
                14.614_641_229_3,
                6.474_576_095_6,
                3.863_674_598_5,
                2.694_615_152,
                1.884_192_117_7,
                1.394_380_509_2,
                0.964_258_390_4,
                0.652_368_601_6,
                0.397_745_627_2,
                0.151_523_266_2,
                0.029_167_158_2,
            ],
            Self::StableDiffusionXl => [
                14.614_641_229_3,
                6.318_448_528_7,
                3.768_179_031_5,
                2.181_148_076_9,
                1.340_524_494_5,
                0.862_072_114_1,
                0.555_069_328_9,
                0.379_854_070_8,
                0.233_236_413_4,
                0.111_418_817_7,
                0.029_167_158_2,
            ],
            Self::StableVideo => [
                700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002,
            ],
        }
    }
}

/// The searched levels, resampled to `steps + 1`, without the last, which becomes 0. Absolute: they
/// do not follow the model's own ends.
pub(super) fn align_your_steps(
    model: &ModelSigmas<'_>,
    steps: usize,
    _: &ScheduleOptions,
) -> Result<Vec<f64>, ScheduleError> {
    let levels = model.searched.sigmas();
    reaches(model, levels[0], "align_your_steps")?;
    let mut sigmas = if steps + 1 == levels.len() {
        levels.to_vec()
    } else {
        resample(&levels, steps + 1)
    };
    sigmas.truncate(steps);
    Ok(sigmas)
}

/// Refuses a network that has never seen as much noise as the levels start with.
pub(super) fn reaches(
    model: &ModelSigmas<'_>,
    first: f64,
    schedule: &'static str,
) -> Result<(), ScheduleError> {
    // The published levels are rounded; a model of the same schedule differs in the fifth digit.
    if model.sigma_max >= first * 0.99 {
        return Ok(());
    }
    Err(ScheduleError::OtherModel {
        schedule,
        first,
        sigma_max: model.sigma_max,
    })
}
