//! What a network predicts, and how that becomes a clean latent.

use serde::{Deserialize, Serialize};

use crate::level::Level;

/// What a network was trained to predict from `x = alpha · x0 + sigma · noise`.
///
/// New kinds are further variants; nothing outside of this file matches on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Prediction {
    /// The noise.
    #[default]
    #[serde(rename = "epsilon")]
    Epsilon,
    /// The velocity `alpha · noise - sigma · x0` of Salimans and Ho (2022).
    #[serde(rename = "v_prediction")]
    V,
    /// The clean latent itself.
    #[serde(rename = "sample", alias = "original_sample")]
    Sample,
    /// The velocity `noise - x0` of a straight flow.
    #[serde(rename = "flow_prediction", alias = "flow", alias = "flow_matching")]
    Flow,
}

impl Prediction {
    /// The network's input for a latent at a level.
    ///
    /// Networks see latents of unit variance, `x / sqrt(alpha² + sigma²)`: the latent itself in variance-preserving
    /// form, and `x / sqrt(sigma² + 1)` in variance-exploding form. Those of a flow see `x / (alpha + sigma)`, the
    /// latent itself in the flow's own form.
    pub fn network_input(self, x: &[f32], level: Level) -> Vec<f32> {
        let norm = match self {
            Self::Flow => level.alpha + level.sigma,
            _ => (level.alpha * level.alpha + level.sigma * level.sigma).sqrt(),
        };
        // A preserving level is 1 up to rounding; leave the bits alone there, as the reference does.
        if (norm - 1.0).abs() < 1e-12 {
            return x.to_vec();
        }
        x.iter().map(|&x| (f64::from(x) / norm) as f32).collect()
    }

    /// The clean latent that the network's output stands for.
    ///
    /// # Shapes
    /// `output` and `x` have the same length; so has the result. `x` is the latent before
    /// [`network_input`](Self::network_input).
    pub fn denoised(self, output: &[f32], x: &[f32], level: Level) -> Vec<f32> {
        let (of_x, of_output) = self.coefficients(level);
        crate::math::combine([(of_x, x), (of_output, output)])
    }

    /// What a network of this kind is trained to give.
    ///
    /// # Shapes
    /// `clean` and `noise` have the same length; so has the result.
    pub fn target(self, clean: &[f32], noise: &[f32], level: Level) -> Vec<f32> {
        match self {
            Self::Epsilon => noise.to_vec(),
            Self::Sample => clean.to_vec(),
            Self::Flow => crate::math::combine([(1.0, noise), (-1.0, clean)]),
            Self::V => {
                let norm = level.alpha.hypot(level.sigma);
                crate::math::combine([(level.alpha / norm, noise), (-level.sigma / norm, clean)])
            }
        }
    }

    /// How much a squared error of the output weighs as one of the clean latent:
    /// `|x0 - x0'|² = factor · |output - output'|²` for a given noised latent.
    pub(crate) fn error_factor(self, level: Level) -> f64 {
        self.coefficients(level).1.powi(2)
    }

    /// The output that a network of this kind would give for a clean latent: the inverse of
    /// [`denoised`](Self::denoised).
    pub fn output(self, denoised: &[f32], x: &[f32], level: Level) -> Vec<f32> {
        let (of_x, of_output) = self.coefficients(level);
        crate::math::combine([(1.0 / of_output, denoised), (-of_x / of_output, x)])
    }

    /// `denoised = a · x + b · output`.
    fn coefficients(self, level: Level) -> (f64, f64) {
        let Level { alpha, sigma, .. } = level;
        match self {
            Self::Epsilon => (1.0 / alpha, -sigma / alpha),
            Self::V => {
                let variance = alpha * alpha + sigma * sigma;
                (alpha / variance, -sigma / variance.sqrt())
            }
            Self::Sample => (0.0, 1.0),
            Self::Flow => (1.0 / (alpha + sigma), -sigma / (alpha + sigma)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_prediction_recovers_the_clean_latent_in_every_frame() {
        let (clean, noise) = ([0.3_f32, -1.2, 0.8], [1.1_f32, 0.4, -0.6]);
        let levels = [
            Level::preserving(0.3, 500.0),
            Level::exploding(3.0, 500.0),
            Level::preserving(0.9991, 1.0),
            Level::straight(0.6, 600.0),
        ];
        for level in levels {
            let x = level.add_noise(&clean, &noise);
            let norm = level.alpha.hypot(level.sigma);
            let v: Vec<f32> = (0..3)
                .map(|i| {
                    ((level.alpha * f64::from(noise[i]) - level.sigma * f64::from(clean[i])) / norm)
                        as f32
                })
                .collect();
            let outputs = [
                (Prediction::Epsilon, noise.to_vec()),
                (Prediction::V, v),
                (Prediction::Sample, clean.to_vec()),
                (
                    Prediction::Flow,
                    (0..3).map(|i| noise[i] - clean[i]).collect(),
                ),
            ];
            for (prediction, output) in outputs {
                let found = prediction.denoised(&output, &x, level);
                for (a, b) in found.iter().zip(&clean) {
                    assert!((a - b).abs() < 2e-6, "{prediction:?} {level:?}: {a} {b}");
                }
                let back = prediction.output(&found, &x, level);
                for (a, b) in back.iter().zip(&output) {
                    // Near the clean end a last-place error of x0 is divided by sigma = 0.03.
                    assert!((a - b).abs() < 2e-5, "{prediction:?} {level:?}: {a} {b}");
                }
            }
        }
    }

    #[test]
    fn velocity_stands_for_a_clean_latent_where_no_signal_is_left() {
        let level = Level::preserving(0.0, 999.0);
        assert_eq!(Prediction::V.denoised(&[0.5], &[2.0], level), [-0.5]);
    }
}
