//! How much an error counts at each noise level.

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::level::Level;
use crate::prediction::Prediction;

/// The weight of an example's squared error, by its signal-to-noise ratio `snr = (alpha / sigma)²`.
///
/// Each published weight is one of the error of the clean latent; it is restated for what the network
/// predicts, so that a choice means the same loss for every [`Prediction`].
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum LossWeight {
    /// 1 for the predicted quantity itself (the simple loss of Ho et al. 2020).
    #[default]
    Uniform,
    /// `min(snr, gamma)` of the clean latent's error (Hang et al. 2023): `min(snr, gamma) / snr` for epsilon,
    /// `min(snr, gamma) / (snr + 1)` for v.
    MinSnr {
        /// Where the weight is cut; 5 in the paper.
        #[serde(default = "five")]
        gamma: f64,
    },
    /// `sqrt(snr)` of the clean latent's error (Yu et al. 2023): `1 / sqrt(snr)` for epsilon.
    Debiased,
    /// `1 / sigma²` of a straight flow's velocity, with its share of noise `sigma` (Esser et al. 2024; diffusers'
    /// `sigma_sqrt`).
    SigmaSqrt,
    /// `2 / (pi (1 - 2 sigma + 2 sigma²))` of a straight flow's velocity (Esser et al. 2024; diffusers' `cosmap`).
    #[serde(rename = "cosmap")]
    CosMap,
    /// `(s² + d²) / (s d)²` of the clean latent's error, with `s² = 1 / snr` (Karras et al. 2022).
    Edm {
        /// Standard deviation `d` of the data; 0.5 for pictures, 1 for scaled latents.
        #[serde(default = "half")]
        sigma_data: f64,
    },
}

fn five() -> f64 {
    5.0
}

fn half() -> f64 {
    0.5
}

impl LossWeight {
    pub(super) fn check(self) -> Result<(), Error> {
        let (option, found) = match self {
            Self::MinSnr { gamma } => ("loss_weight.gamma", gamma),
            Self::Edm { sigma_data } => ("loss_weight.sigma_data", sigma_data),
            Self::Uniform | Self::Debiased | Self::SigmaSqrt | Self::CosMap => return Ok(()),
        };
        if found > 0.0 && found.is_finite() {
            return Ok(());
        }
        Err(Error::Option {
            option,
            found,
            expected: "a number above 0",
        })
    }

    /// The weight at a level.
    pub(super) fn of(self, prediction: Prediction, level: Level) -> f64 {
        // What the clean latent's error weighs, and how much of it is an error of the prediction. Without
        // signal or without noise one factor is 0 and the other infinite; a level a hair beside has the limit.
        let level = Level {
            alpha: level.alpha.max(1e-6),
            sigma: level.sigma.max(1e-6),
            ..level
        };
        let snr = (level.alpha / level.sigma).powi(2);
        let share = level.sigma / (level.alpha + level.sigma);
        let of_clean = match self {
            Self::Uniform => return 1.0,
            Self::MinSnr { gamma } => snr.min(gamma),
            Self::Debiased => snr.sqrt(),
            // An error of the velocity is one of the clean latent times the share of noise.
            Self::SigmaSqrt => share.powi(-4),
            Self::CosMap => {
                let bottom = 1.0 - 2.0 * share + 2.0 * share * share;
                2.0 / (std::f64::consts::PI * bottom * share * share)
            }
            Self::Edm { sigma_data } => snr + 1.0 / (sigma_data * sigma_data),
        };
        of_clean * prediction.error_factor(level)
    }
}
