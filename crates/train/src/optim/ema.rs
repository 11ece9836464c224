//! Averaged weights, which draw better pictures than the last ones.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::PART;
use crate::TrainError;

/// An exponential moving average whose memory grows with the run: the decay after `n` updates is
/// `1 - (1 + n / inv_gamma)^-power`, at most `decay` (diffusers' `EMAModel` with its warm-up).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ema {
    /// The largest decay.
    pub decay: f64,
    /// How fast the decay approaches 1: 2/3 for a million steps and more, 3/4 for fewer.
    pub power: f64,
    /// Updates that pass before it begins to.
    pub inv_gamma: f64,
}

impl Default for Ema {
    fn default() -> Self {
        Self {
            decay: 0.9999,
            power: 0.75,
            inv_gamma: 1.0,
        }
    }
}

impl Ema {
    pub(crate) fn check(&self) -> Result<(), TrainError> {
        if !(0.0..1.0).contains(&self.decay) {
            return Err(TrainError::setting(
                "ema.decay",
                self.decay,
                "0 or more, less than 1",
            ));
        }
        for (key, value) in [("ema.power", self.power), ("ema.inv_gamma", self.inv_gamma)] {
            if !(value > 0.0 && value.is_finite()) {
                return Err(TrainError::setting(key, value, "a number above 0"));
            }
        }
        Ok(())
    }

    /// The decay of update `update`, from 1. The first takes the weights as they are.
    pub fn decay_at(&self, update: u64) -> f64 {
        let passed = update.saturating_sub(1) as f64;
        (1.0 - (1.0 + passed / self.inv_gamma).powf(-self.power)).clamp(0.0, self.decay)
    }

    /// Moves the average of one tensor towards its weights.
    ///
    /// # Panics
    /// When the slices differ in length.
    pub fn step(&self, update: u64, average: &mut [f32], weights: &[f32]) {
        assert_eq!(average.len(), weights.len(), "one tensor");
        let new = (1.0 - self.decay_at(update)) as f32;
        average
            .par_chunks_mut(PART)
            .zip(weights.par_chunks(PART))
            .for_each(|(average, weights)| {
                for (a, &w) in average.iter_mut().zip(weights) {
                    *a += (w - *a) * new;
                }
            });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_grows_with_the_run() {
        let ema = Ema::default();
        assert_eq!(ema.decay_at(1), 0.0);
        assert!((ema.decay_at(2) - (1.0 - 2f64.powf(-0.75))).abs() < 1e-12);
        assert_eq!(ema.decay_at(u64::MAX), 0.9999);
        let mut average = [9.0_f32];
        ema.step(1, &mut average, &[1.0]);
        assert_eq!(average, [1.0]);
    }
}
