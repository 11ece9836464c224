//! The course of the learning rate.

use serde::{Deserialize, Serialize};

use crate::TrainError;

/// How the rate falls after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decay {
    /// Not at all.
    #[default]
    Constant,
    /// Along half a cosine (Loshchilov and Hutter 2017), to `floor` at the last step.
    Cosine,
    /// Evenly, to `floor` at the last step.
    Linear,
}

/// A learning rate for every step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LearningRate {
    /// The rate after the warm-up.
    pub peak: f64,
    /// Steps over which the rate rises evenly from 0.
    pub warmup: u64,
    /// What follows.
    pub decay: Decay,
    /// Share of the peak that the decay ends at.
    pub floor: f64,
}

impl Default for LearningRate {
    fn default() -> Self {
        Self {
            peak: 1e-4,
            warmup: 500,
            decay: Decay::Constant,
            floor: 0.0,
        }
    }
}

impl LearningRate {
    pub(crate) fn check(&self) -> Result<(), TrainError> {
        if !(self.peak > 0.0 && self.peak <= 10.0) {
            let key = "learning_rate.peak";
            return Err(TrainError::setting(
                key,
                self.peak,
                "more than 0, at most 10",
            ));
        }
        if !(0.0..=1.0).contains(&self.floor) {
            return Err(TrainError::setting(
                "learning_rate.floor",
                self.floor,
                "0 to 1",
            ));
        }
        Ok(())
    }

    /// The rate of a step (from 0) in a run of `steps`.
    pub fn at(&self, step: u64, steps: u64) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / self.warmup as f64;
        }
        let length = steps.saturating_sub(self.warmup).max(1);
        let share = ((step - self.warmup) as f64 / length as f64).min(1.0);
        let fallen = match self.decay {
            Decay::Constant => return self.peak,
            Decay::Cosine => 0.5 - 0.5 * (std::f64::consts::PI * share).cos(),
            Decay::Linear => share,
        };
        self.peak * (1.0 - (1.0 - self.floor) * fallen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_stays_and_falls() {
        let rate = |decay, step| {
            LearningRate {
                peak: 2.0,
                warmup: 4,
                decay,
                floor: 0.1,
            }
            .at(step, 104)
        };
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        near(rate(Decay::Cosine, 0), 0.5);
        near(rate(Decay::Cosine, 3), 2.0);
        near(rate(Decay::Cosine, 54), 1.1);
        near(rate(Decay::Cosine, 104), 0.2);
        near(rate(Decay::Cosine, 1_000), 0.2);
        near(rate(Decay::Linear, 29), 1.55);
        near(rate(Decay::Constant, 90), 2.0);
    }
}
