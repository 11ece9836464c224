//! `[warm_up]` of a diffusion run.

use serde::{Deserialize, Serialize};

use super::{DiffusionConfig, ModelKind, range, steps};
use crate::TrainError;
use crate::optim::{Decay, LearningRate};

/// A text encoder that begins at random learns to guess what pictures look like from their captions, before the
/// network learns to draw.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WarmUpConfig {
    /// Updates of the text encoder.
    pub steps: u64,
    /// Captions of an update.
    pub batch_size: usize,
    /// Largest learning rate; it rises over a twentieth of the steps and falls along a cosine to 0.
    pub learning_rate: f64,
    /// What is guessed is the latent, averaged to so many squares across and down.
    pub grid: usize,
}

impl Default for WarmUpConfig {
    fn default() -> Self {
        Self {
            steps: 1000,
            batch_size: 128,
            learning_rate: 1e-3,
            grid: 8,
        }
    }
}

impl WarmUpConfig {
    pub(super) fn check(&self, of: &DiffusionConfig) -> Result<(), TrainError> {
        steps("warm_up.steps", self.steps)?;
        range("warm_up.batch_size", self.batch_size, 1, 65_536)?;
        range("warm_up.grid", self.grid, 1, 64)?;
        if !(self.learning_rate > 0.0 && self.learning_rate <= 10.0) {
            let (key, found) = ("warm_up.learning_rate", self.learning_rate);
            return Err(TrainError::setting(key, found, "more than 0, at most 10"));
        }
        let new = of.model.from.is_none() || !of.model.text_encoder.is_empty();
        let trained = of.lora.is_none() && (new || of.model.train_text_encoder);
        if of.model.kind != ModelKind::Text || !trained {
            let expected = "absent: no text encoder is trained here";
            return Err(TrainError::setting("warm_up", "set", expected));
        }
        Ok(())
    }

    /// The configuration of the warm-up as a run of its own, with nothing in it that the warm-up does not depend on.
    pub(crate) fn run_of(&self, config: &DiffusionConfig) -> DiffusionConfig {
        DiffusionConfig {
            steps: self.steps,
            batch_size: self.batch_size,
            accumulate: 1,
            objective: Default::default(),
            samples: Default::default(),
            learning_rate: LearningRate {
                peak: self.learning_rate,
                warmup: self.steps / 20,
                decay: Decay::Cosine,
                floor: 0.0,
            },
            ..config.clone()
        }
    }
}
