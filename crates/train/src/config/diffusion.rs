//! `aquatint train diffusion CONFIG.toml`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{
    CheckpointConfig, DataConfig, ObjectiveConfig, Storage, WarmUpConfig, clip_norm, parse, range,
    steps,
};
use crate::TrainError;
use crate::data::{Buckets, PictureOptions, Size};
use crate::optim::{AdamW, Ema, LearningRate};

/// A diffusion run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiffusionConfig {
    /// Seed of everything random.
    #[serde(default)]
    pub seed: u64,
    /// Updates of the weights.
    pub steps: u64,
    /// Examples that the network sees at once.
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
    /// The network.
    pub model: ModelConfig,
    /// The pictures.
    pub data: DataConfig,
    /// What is learned.
    #[serde(default)]
    pub objective: ObjectiveConfig,
    /// AdamW.
    #[serde(default)]
    pub optimizer: AdamW,
    /// Learning rate.
    #[serde(default)]
    pub learning_rate: LearningRate,
    /// Averaged weights; `decay = 0` trains without.
    #[serde(default)]
    pub ema: Ema,
    /// A low-rank addition is trained instead of the network itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
    /// The text encoder learns before the network does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<WarmUpConfig>,
    /// When the state is saved.
    #[serde(default)]
    pub checkpoint: CheckpointConfig,
    /// Pictures on the way.
    #[serde(default)]
    pub samples: SampleConfig,
}

fn one() -> usize {
    1
}

fn unit() -> f64 {
    1.0
}

/// What a model is told beside the noise level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModelKind {
    /// A caption, through a text encoder.
    #[default]
    Text,
    /// A class: the subfolder a picture lies in.
    Class,
    /// Nothing.
    Unconditional,
    /// Nothing; it draws points in the plane, not pictures.
    Points,
}

/// The network of a run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// What it is told.
    pub kind: ModelKind,
    /// A diffusers folder whose weights the run starts from; the tables below are not needed then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<PathBuf>,
    /// Keys of diffusers' `unet/config.json`.
    #[serde(skip_serializing_if = "toml::Table::is_empty")]
    pub unet: toml::Table,
    /// A folder with an autoencoder (`config.json` and weights), for a latent model; without one the model
    /// draws pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub autoencoder: Option<PathBuf>,
    /// Keys of transformers' `CLIPTextConfig`, for a text encoder that is trained together with the network.
    #[serde(skip_serializing_if = "toml::Table::is_empty")]
    pub text_encoder: toml::Table,
    /// A folder with `vocab.json` and `merges.txt`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    /// Whether the text encoder is trained too. One that begins at random always is.
    pub train_text_encoder: bool,
    /// Width and depth of the network for points.
    #[serde(skip_serializing_if = "toml::Table::is_empty")]
    pub points: toml::Table,
}

/// How a LoRA's file names its tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LoraLayout {
    /// As `pipe.save_lora_weights` of diffusers does.
    #[default]
    Diffusers,
    /// As kohya's sd-scripts do, which AUTOMATIC1111 and ComfyUI read.
    Kohya,
}

/// A low-rank addition (Hu et al. 2021).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank of each addition.
    pub rank: usize,
    /// The addition counts `alpha / rank`.
    pub alpha: f64,
    /// Endings of the names of the linear layers that get one.
    pub targets: Vec<String>,
    /// Also for the text encoder's `q_proj`, `k_proj`, `v_proj` and `out_proj`.
    pub text_encoder: bool,
    /// How the file is written.
    pub layout: LoraLayout,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 8.0,
            targets: ["to_q", "to_k", "to_v", "to_out.0"]
                .map(str::to_owned)
                .to_vec(),
            text_encoder: false,
            layout: LoraLayout::Diffusers,
        }
    }
}

/// Pictures that show how far a run is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SampleConfig {
    /// Every so many steps; 0 for never.
    pub every: u64,
    /// One picture each: captions, or names of classes. Without any, a model draws `count` pictures, of all classes
    /// in turn.
    pub prompts: Vec<String>,
    /// Pictures of an unconditional model; points of a toy are a hundred times as many.
    pub count: usize,
    /// Name of the sampler.
    pub sampler: String,
    /// Steps of the sampler.
    pub steps: usize,
    /// Guidance scale.
    pub guidance: f64,
    /// Seed of the first picture; the others follow.
    pub seed: u64,
}

impl Default for SampleConfig {
    fn default() -> Self {
        Self {
            every: 0,
            prompts: Vec::new(),
            count: 16,
            sampler: "ddim".into(),
            steps: 20,
            guidance: 4.0,
            seed: 0,
        }
    }
}

impl DiffusionConfig {
    /// Reads a configuration. Paths in it are relative to its folder.
    ///
    /// # Errors
    /// A file that cannot be read, is not TOML, holds unknown keys or values outside of their ranges.
    pub fn read(path: &Path) -> Result<Self, TrainError> {
        let mut config: Self = parse::read(path)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let paths = [
            &mut config.data.dir,
            &mut config.model.from,
            &mut config.model.autoencoder,
            &mut config.model.tokenizer,
        ];
        for path in paths.into_iter().flatten() {
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
        if self.model.from.is_none() {
            self.objective.build(None)?;
        }
        range("samples.steps", self.samples.steps, 1, 10_000)?;
        range("samples.count", self.samples.count, 1, 1024)?;
        self.data.check_holdout()?;
        self.check_source()?;
        self.check_lora()?;
        self.warm_up.map_or(Ok(()), |warm| warm.check(self))
    }

    fn check_source(&self) -> Result<(), TrainError> {
        let points = self.model.kind == ModelKind::Points;
        match (points, &self.data.dir, self.data.points) {
            (true, None, Some(_)) | (false, Some(_), None) => {}
            (true, ..) => {
                let expected = "`points = \"swiss-roll\"` and no dir, for a model of kind points";
                return Err(TrainError::setting("data", "another source", expected));
            }
            (false, ..) => {
                let expected = "a folder of pictures";
                return Err(TrainError::setting("data.dir", "absent", expected));
            }
        }
        if self.model.from.is_none() && !points && self.model.unet.is_empty() {
            let expected = "a table with the keys of a unet/config.json, or model.from";
            return Err(TrainError::setting("model.unet", "absent", expected));
        }
        if self.model.kind == ModelKind::Text && self.model.from.is_none() {
            for (key, absent) in [
                ("model.text_encoder", self.model.text_encoder.is_empty()),
                ("model.tokenizer", self.model.tokenizer.is_none()),
            ] {
                if absent {
                    let expected = "set, for a model that is told captions";
                    return Err(TrainError::setting(key, "absent", expected));
                }
            }
        }
        Ok(())
    }

    fn check_lora(&self) -> Result<(), TrainError> {
        let Some(lora) = &self.lora else {
            return Ok(());
        };
        if self.model.kind != ModelKind::Text {
            let expected = "absent: only a model that is told captions takes low-rank additions";
            return Err(TrainError::setting("lora", "set", expected));
        }
        range("lora.rank", lora.rank, 1, 4096)?;
        if !(lora.alpha > 0.0 && lora.alpha.is_finite()) {
            return Err(TrainError::setting(
                "lora.alpha",
                lora.alpha,
                "a number above 0",
            ));
        }
        if lora.targets.is_empty() {
            return Err(TrainError::setting(
                "lora.targets",
                "empty",
                "names of layers, such as to_q",
            ));
        }
        if self.model.from.is_none() {
            let expected = "a model folder: a LoRA is trained on top of one";
            return Err(TrainError::setting("model.from", "absent", expected));
        }
        Ok(())
    }

    /// The limit of the gradient's norm.
    pub fn clip(&self) -> Option<f64> {
        clip_norm(self.clip_norm).unwrap_or(None)
    }

    /// Sizes of the pictures for a model that halves its input to `1 / multiple`.
    ///
    /// # Errors
    /// Sizes that are not multiples of it.
    pub fn buckets(&self, multiple: usize) -> Result<Buckets, TrainError> {
        let side = self.data.resolution;
        match self.data.buckets {
            Some(b) => Buckets::by_aspect(side, b.smallest, b.largest, b.step, multiple),
            None => Buckets::one(
                Size {
                    width: side,
                    height: side,
                },
                multiple,
            ),
        }
    }

    /// Crops and flips.
    pub fn picture_options(&self) -> PictureOptions {
        PictureOptions {
            crop: self.data.crop,
            flip: self.data.flip,
        }
    }
}
