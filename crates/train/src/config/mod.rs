//! What a run is told, as TOML. Every key that is not known is an error that names the nearest one.

mod autoencoder;
mod data;
mod diffusion;
mod objective;
mod parse;
mod warm_up;

pub use autoencoder::{AutoencoderConfig, AutoencoderLoss};
pub use data::{BucketConfig, DataConfig, Points};
pub use diffusion::{
    DiffusionConfig, LoraConfig, LoraLayout, ModelConfig, ModelKind, SampleConfig,
};
pub use objective::ObjectiveConfig;
pub use warm_up::WarmUpConfig;

use serde::{Deserialize, Serialize};

use crate::TrainError;

/// When a run's state is saved.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Every so many minutes; 0 for never.
    pub minutes: f64,
    /// Every so many steps; 0 for never.
    pub steps: u64,
    /// How many are kept, beside the best.
    pub keep: usize,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self {
            minutes: 10.0,
            steps: 0,
            keep: 2,
        }
    }
}

impl CheckpointConfig {
    fn check(&self) -> Result<(), TrainError> {
        if !(0.0..=100_000.0).contains(&self.minutes) {
            return Err(TrainError::setting(
                "checkpoint.minutes",
                self.minutes,
                "0 to 100000",
            ));
        }
        range("checkpoint.keep", self.keep, 1, 1000)
    }
}

/// How trained weights are stored while they are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Storage {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits with the exponents of 32.
    Bf16,
    /// 16 bits.
    F16,
}

impl Storage {
    fn is_f32(&self) -> bool {
        *self == Self::F32
    }

    /// Whether the device has it: the CPU, which is the only one, has not.
    fn check(self) -> Result<(), TrainError> {
        let found = match self {
            Self::F32 => return Ok(()),
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        };
        let expected = "f32: on the CPU weights are trained in 32 bits, which its kernels compute in. Weights that are \
                        not trained (autoencoder, text encoder, what is below a LoRA) keep the type they are stored in";
        Err(TrainError::setting("storage", found, expected))
    }
}

/// Largest number of steps: more than any run, and sums of steps stay exact in f64.
const MOST_STEPS: u64 = 1 << 40;

fn range(key: &str, found: usize, least: usize, most: usize) -> Result<(), TrainError> {
    if (least..=most).contains(&found) {
        return Ok(());
    }
    Err(TrainError::setting(
        key,
        found,
        format!("{least} to {most}"),
    ))
}

fn steps(key: &str, found: u64) -> Result<(), TrainError> {
    if (1..=MOST_STEPS).contains(&found) {
        return Ok(());
    }
    Err(TrainError::setting(
        key,
        found,
        format!("1 to {MOST_STEPS}"),
    ))
}

fn clip_norm(found: f64) -> Result<Option<f64>, TrainError> {
    if found == 0.0 {
        return Ok(None);
    }
    if found > 0.0 && found.is_finite() {
        return Ok(Some(found));
    }
    Err(TrainError::setting(
        "clip_norm",
        found,
        "a number above 0, or 0 for none",
    ))
}
