//! `aquatint train autoencoder CONFIG.toml`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{CheckpointConfig, DataConfig, Storage, clip_norm, parse, range, steps};
use crate::TrainError;
use crate::optim::{AdamW, Ema, LearningRate};

/// An autoencoder run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AutoencoderConfig {
    /// Seed of everything random.
    #[serde(default)]
    pub seed: u64,
    /// Updates of the weights.
    pub steps: u64,
    /// Pictures that the network sees at once.
    pub batch_size: usize,
    /// Batches whose gradients make one update.
    #[serde(default = "one")]
    pub accumulate: usize,
    /// Gradients longer than this are shortened; 0 for never.
    #[serde(default = "unit")]
    pub clip_norm: f64,
    /// Outputs of norms, activations and gates are not kept for the backward pass but computed again: less memory,
    /// a little slower, the same gradients.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gradient_checkpointing: bool,
    /// How the trained weights are stored.
    #[serde(default, skip_serializing_if = "Storage::is_f32")]
    pub storage: Storage,
    /// A folder with an autoencoder whose weights the run starts from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<PathBuf>,
    /// Keys of diffusers' `vae/config.json`; not needed with `from`.
    #[serde(default, skip_serializing_if = "toml::Table::is_empty")]
    pub model: toml::Table,
    /// The pictures.
    pub data: DataConfig,
    /// What is minimised.
    #[serde(default)]
    pub loss: AutoencoderLoss,
    /// AdamW.
    #[serde(default)]
    pub optimizer: AdamW,
    /// Learning rate.
    #[serde(default)]
    pub learning_rate: LearningRate,
    /// Averaged weights.
    #[serde(default)]
    pub ema: Ema,
    /// When the state is saved.
    #[serde(default)]
    pub checkpoint: CheckpointConfig,
    /// A grid of pictures beside their reconstructions every so many steps; 0 for never.
    #[serde(default)]
    pub samples_every: u64,
}

fn one() -> usize {
    1
}

fn unit() -> f64 {
    1.0
}

/// The parts of an autoencoder's loss, each with its factor; all are means over pixels.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AutoencoderLoss {
    /// Absolute difference.
    pub l1: f64,
    /// Squared difference.
    pub l2: f64,
    /// Absolute difference of the differences between neighbouring pixels: sharp edges.
    pub edge: f64,
    /// Absolute difference of the pictures at a half, a quarter and an eighth of the size: right colours of areas.
    pub multi_scale: f64,
    /// Divergence of the latents' distribution from a standard normal one, as a mean over latent values.
    pub kl: f64,
}

impl Default for AutoencoderLoss {
    fn default() -> Self {
        Self {
            l1: 1.0,
            l2: 0.0,
            edge: 0.5,
            multi_scale: 0.5,
            kl: 1e-4,
        }
    }
}

impl AutoencoderConfig {
    /// Reads a configuration. Paths in it are relative to its folder.
    ///
    /// # Errors
    /// A file that cannot be read, is not TOML, holds unknown keys or values outside of their ranges.
    pub fn read(path: &Path) -> Result<Self, TrainError> {
        let mut config: Self = parse::read(path)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        for path in [&mut config.data.dir, &mut config.from]
            .into_iter()
            .flatten()
        {
            *path = folder.join(&*path);
        }
        config.check()?;
        Ok(config)
    }

    /// Whether every value is one that can be used.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check(&self) -> Result<(), TrainError> {
        steps("steps", self.steps)?;
        range("batch_size", self.batch_size, 1, 65_536)?;
        range("accumulate", self.accumulate, 1, 65_536)?;
        clip_norm(self.clip_norm)?;
        self.storage.check()?;
        self.optimizer.check()?;
        self.learning_rate.check()?;
        self.ema.check()?;
        self.checkpoint.check()?;
        if self.data.dir.is_none() || self.data.points.is_some() {
            return Err(TrainError::setting(
                "data.dir",
                "absent",
                "a folder of pictures",
            ));
        }
        self.data.check_holdout()?;
        if self.from.is_none() && self.model.is_empty() {
            let expected = "a table with the keys of a vae/config.json, or `from`";
            return Err(TrainError::setting("model", "absent", expected));
        }
        let loss = &self.loss;
        let parts = [
            ("loss.l1", loss.l1),
            ("loss.l2", loss.l2),
            ("loss.edge", loss.edge),
            ("loss.multi_scale", loss.multi_scale),
            ("loss.kl", loss.kl),
        ];
        for (key, value) in parts {
            if !(value >= 0.0 && value.is_finite()) {
                return Err(TrainError::setting(key, value, "0 or more"));
            }
        }
        if loss.l1 + loss.l2 + loss.edge + loss.multi_scale == 0.0 {
            let expected = "a factor above 0 for l1, l2, edge or multi_scale";
            return Err(TrainError::setting(
                "loss",
                "nothing of the picture",
                expected,
            ));
        }
        Ok(())
    }

    /// The limit of the gradient's norm.
    pub fn clip(&self) -> Option<f64> {
        clip_norm(self.clip_norm).unwrap_or(None)
    }
}
