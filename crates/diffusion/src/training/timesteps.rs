//! Distributions of the noise levels that a training run visits.

use serde::{Deserialize, Serialize};

use super::Draw;
use crate::error::Error;

/// How the times of a batch are drawn. A time in [0, 1) stands for that share of the training steps.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum TimestepSampling {
    /// Each example on its own, evenly (Ho et al. 2020).
    #[default]
    Uniform,
    /// `sigmoid(mean + std · normal)`, which favours the middle (Esser et al. 2024).
    LogitNormal {
        /// Mean of the logits; 0 is usual, less favours little noise.
        #[serde(default)]
        mean: f64,
        /// Standard deviation of the logits; 1 is usual.
        #[serde(default = "one")]
        std: f64,
    },
    /// `1 - u - scale · (cos²(pi/2 · u) - 1 + u)` of an even `u` (Esser et al. 2024, equation 20).
    Mode {
        /// Above 0 favours the middle, below 0 the ends; 1.29 is usual.
        #[serde(default = "mode_scale")]
        scale: f64,
    },
    /// Evenly spaced over the batch with one random shift (Kingma et al. 2021): each step sees all
    /// parts of the range, which lowers the variance of the loss.
    LowDiscrepancy,
}

fn one() -> f64 {
    1.0
}

fn mode_scale() -> f64 {
    1.29
}

/// The largest scale for which the map of [`TimestepSampling::Mode`] rises: `2 / (pi - 2)`.
const MOST_MODE: f64 = 1.75;

impl TimestepSampling {
    pub(super) fn check(self) -> Result<(), Error> {
        let (mean, std) = match self {
            Self::LogitNormal { mean, std } => (mean, std),
            Self::Mode { scale } if !(-1.0..=MOST_MODE).contains(&scale) => {
                return Err(Error::Option {
                    option: "timesteps.scale",
                    found: scale,
                    expected: "-1 to 1.75",
                });
            }
            Self::Uniform | Self::Mode { .. } | Self::LowDiscrepancy => return Ok(()),
        };
        if !(-10.0..=10.0).contains(&mean) {
            return Err(Error::Option {
                option: "timesteps.mean",
                found: mean,
                expected: "-10 to 10",
            });
        }
        if !(std > 0.0 && std <= 10.0) {
            return Err(Error::Option {
                option: "timesteps.std",
                found: std,
                expected: "more than 0, at most 10",
            });
        }
        Ok(())
    }

    /// The times of a batch, each in [0, 1).
    pub(super) fn times(self, draw: &Draw, batch: usize) -> Vec<f64> {
        (0..batch)
            .map(|i| match self {
                Self::Uniform => draw.time(i),
                Self::LogitNormal { mean, std } => {
                    // Box and Muller; the first uniform must not be 0.
                    let (u, v) = (1.0 - draw.time(2 * i), draw.time(2 * i + 1));
                    let normal = (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos();
                    1.0 / (1.0 + (-(mean + std * normal)).exp())
                }
                Self::Mode { scale } => {
                    let u = draw.time(i);
                    let cos = (std::f64::consts::FRAC_PI_2 * u).cos();
                    // Rounding may reach 1, and a step beside the last.
                    let time = 1.0 - u - scale * (cos * cos - 1.0 + u);
                    time.clamp(0.0, 1.0 - f64::EPSILON)
                }
                Self::LowDiscrepancy => (draw.time(0) + i as f64 / batch as f64).fract(),
            })
            .collect()
    }
}
