//! The parts of a model that a run begins with: configurations, first weights, tokenizer.

mod picture;

pub(crate) use picture::PictureParts;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aquatint_models::CheckpointSource;
use aquatint_models::keys::Layout;
use aquatint_models::text::{ClipTextConfig, ClipTokenizer};
use aquatint_models::unet::UNetConfig;
use aquatint_models::vae::{AutoencoderKl, VaeConfig};
use aquatint_ops::{Device, ParamSource, RawTensor};
use aquatint_weights::WeightSet;
use serde_json::{Map, Value};

use crate::config::DiffusionConfig;
use crate::tasks::Encoding;
use crate::{Init, TrainError};

/// Where a part's weights come from.
#[derive(Debug)]
pub(crate) enum Source {
    New(Init),
    Stored(Box<CheckpointSource>),
}

impl ParamSource for Source {
    fn tensor(
        &self,
        name: &str,
        shape: &[usize],
    ) -> Result<RawTensor, Box<dyn std::error::Error + Send + Sync>> {
        match self {
            Self::New(init) => init.tensor(name, shape),
            Self::Stored(source) => source.tensor(name, shape),
        }
    }

    fn has(&self, name: &str) -> bool {
        match self {
            Self::New(init) => init.has(name),
            Self::Stored(source) => source.has(name),
        }
    }
}

/// One part of a model.
#[derive(Debug)]
pub(crate) struct Part<C> {
    pub config: C,
    /// Its `config.json`.
    pub json: Map<String, Value>,
    pub source: Source,
}

impl<C> Part<C> {
    /// A part of a folder: `config.json` and weights.
    pub fn open(
        folder: &Path,
        stem: &str,
        read: impl FnOnce(&str) -> Result<C, aquatint_models::ModelError>,
    ) -> Result<Self, TrainError> {
        let path = folder.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(TrainError::io(&path))?;
        let config = read(&text)?;
        let json = match serde_json::from_str(&text) {
            Ok(Value::Object(json)) => json,
            _ => Map::new(),
        };
        let set = WeightSet::open_component(folder, &[stem], None)?;
        let source = CheckpointSource::new(set, Layout::diffusers(), None);
        Ok(Self {
            config,
            json,
            source: Source::Stored(Box::new(source)),
        })
    }

    /// A part with new weights.
    pub fn new(
        json: Map<String, Value>,
        init: Init,
        read: impl FnOnce(&str) -> Result<C, aquatint_models::ModelError>,
    ) -> Result<Self, TrainError> {
        let config = read(&Value::Object(json.clone()).to_string())?;
        Ok(Self {
            config,
            json,
            source: Source::New(init),
        })
    }

    pub fn is_new(&self) -> bool {
        matches!(self.source, Source::New(_))
    }
}

/// The file stems of diffusers' and transformers' models.
pub(crate) const DIFFUSERS: &str = "diffusion_pytorch_model";
pub(crate) const TRANSFORMERS: &str = "model";

/// A table of a configuration as JSON.
pub(crate) fn json(key: &str, table: &toml::Table) -> Result<Map<String, Value>, TrainError> {
    match serde_json::to_value(table) {
        Ok(Value::Object(map)) => Ok(map),
        _ => Err(TrainError::setting(
            key,
            "a value that JSON has not",
            "numbers, texts and lists",
        )),
    }
}

/// Sets a key that is not there.
pub(crate) fn default(map: &mut Map<String, Value>, key: &str, value: impl Into<Value>) {
    if !map.contains_key(key) {
        map.insert(key.into(), value.into());
    }
}

/// The parts of a model that is told captions.
#[derive(Debug)]
pub(crate) struct TextParts {
    pub unet: Part<UNetConfig>,
    pub text: Part<ClipTextConfig>,
    pub vae: Part<VaeConfig>,
    pub tokenizer: Arc<ClipTokenizer>,
    /// Where its files lie.
    pub tokenizer_folder: PathBuf,
    /// Whether the text encoder is trained too.
    pub train_text: bool,
    /// Whether the text encoder gets low-rank additions.
    pub adapt_text: bool,
    /// `scheduler_config.json` of the folder that the run starts from.
    pub scheduler: Option<aquatint_diffusion::SchedulerConfig>,
}

impl TextParts {
    /// As the configuration says; pictures of `resolution` pixels.
    pub fn open(config: &DiffusionConfig) -> Result<Self, TrainError> {
        let model = &config.model;
        let (from, resolution) = (model.from.as_deref(), config.data.resolution);
        let vae_folder = match (&model.autoencoder, from) {
            (Some(folder), _) => folder.clone(),
            (None, Some(from)) => from.join("vae"),
            (None, None) => {
                let expected =
                    "the folder of an autoencoder: a model that is told captions is a latent one";
                return Err(TrainError::setting("model.autoencoder", "absent", expected));
            }
        };
        let vae = Part::open(&vae_folder, DIFFUSERS, VaeConfig::from_json)?;
        let tokenizer_folder = match (&model.tokenizer, from) {
            (Some(folder), _) => folder.clone(),
            (None, Some(from)) => from.join("tokenizer"),
            // The configuration was checked.
            (None, None) => PathBuf::new(),
        };
        let tokenizer = Arc::new(ClipTokenizer::from_folder(&tokenizer_folder)?);
        let text = match from.filter(|_| model.text_encoder.is_empty()) {
            Some(from) => Part::open(
                &from.join("text_encoder"),
                TRANSFORMERS,
                ClipTextConfig::from_json,
            )?,
            None => new_text_encoder(config, &tokenizer)?,
        };
        if tokenizer.vocabulary() > text.config.vocab_size {
            let expected = format!(
                "at least the {} tokens of the tokenizer",
                tokenizer.vocabulary()
            );
            let key = "model.text_encoder.vocab_size";
            return Err(TrainError::setting(key, text.config.vocab_size, expected));
        }
        let unet = match from.filter(|_| model.unet.is_empty()) {
            Some(from) => Part::open(&from.join("unet"), DIFFUSERS, UNetConfig::from_json)?,
            None => {
                let mut keys = json("model.unet", &model.unet)?;
                let channels = vae.config.latent_channels;
                default(&mut keys, "in_channels", channels);
                default(&mut keys, "out_channels", channels);
                default(&mut keys, "cross_attention_dim", text.config.hidden_size);
                default(&mut keys, "sample_size", resolution / vae.config.factor());
                keys.insert("_class_name".into(), "UNet2DConditionModel".into());
                Part::new(keys, Init::new(config.seed, "unet"), UNetConfig::from_json)?
            }
        };
        let parts = Self {
            train_text: config.lora.is_none() && (model.train_text_encoder || text.is_new()),
            adapt_text: config.lora.as_ref().is_some_and(|l| l.text_encoder),
            scheduler: from.map(read_scheduler).transpose()?,
            unet,
            text,
            vae,
            tokenizer,
            tokenizer_folder,
        };
        parts.check()?;
        Ok(parts)
    }

    /// Whether the text encoder is a part of the network, because something in it is trained.
    pub fn text_in_network(&self) -> bool {
        self.train_text || self.adapt_text
    }

    /// What its latents are made with.
    pub fn encoding<'a>(&'a self, vae: &'a AutoencoderKl, device: &'a Device) -> Encoding<'a> {
        Encoding {
            part: &self.vae,
            vae,
            halvings: 1 << (self.unet.config.levels.len() - 1),
            device,
        }
    }

    fn check(&self) -> Result<(), TrainError> {
        let (unet, channels) = (&self.unet.config, self.vae.config.latent_channels);
        for (key, found) in [
            ("model.unet.in_channels", unet.in_channels),
            ("model.unet.out_channels", unet.out_channels),
        ] {
            if found != channels {
                let expected = format!("{channels}, as the autoencoder's latents have");
                return Err(TrainError::setting(key, found, expected));
            }
        }
        let width = self.text.config.hidden_size;
        if let Some(found) = unet.context_dim().filter(|&found| found != width) {
            let expected = format!("{width}, the hidden_size of the text encoder");
            return Err(TrainError::setting(
                "model.unet.cross_attention_dim",
                found,
                expected,
            ));
        }
        if unet.added.is_some() {
            let expected = "a model of the Stable Diffusion 1.x or 2.x kind";
            return Err(TrainError::setting(
                "model.from",
                "a model with added conditioning",
                expected,
            ));
        }
        Ok(())
    }
}

fn new_text_encoder(
    config: &DiffusionConfig,
    tokenizer: &ClipTokenizer,
) -> Result<Part<ClipTextConfig>, TrainError> {
    let mut keys = json("model.text_encoder", &config.model.text_encoder)?;
    default(&mut keys, "vocab_size", tokenizer.vocabulary());
    default(&mut keys, "bos_token_id", tokenizer.bos());
    default(&mut keys, "eos_token_id", tokenizer.eos());
    default(&mut keys, "pad_token_id", tokenizer.eos());
    default(&mut keys, "max_position_embeddings", tokenizer.context());
    keys.insert("architectures".into(), vec!["CLIPTextModel"].into());
    keys.insert("model_type".into(), "clip_text_model".into());
    let init = Init::new(config.seed, "text_encoder");
    Part::new(keys, init, ClipTextConfig::from_json)
}

fn read_scheduler(folder: &Path) -> Result<aquatint_diffusion::SchedulerConfig, TrainError> {
    let path = folder.join("scheduler/scheduler_config.json");
    let text = std::fs::read_to_string(&path).map_err(TrainError::io(&path))?;
    Ok(aquatint_diffusion::SchedulerConfig::from_json(&text)?)
}
