//! A model on the disk: opened, recognised, and loaded part by part.

use std::path::{Path, PathBuf};

use aquatint_diffusion::{Prediction, SchedulerConfig, sampler};
use aquatint_ops::{Device, Params, Storage};
use aquatint_weights::{LoadReport, WeightSet};

use crate::ModelError;
use crate::families::{self, Facts, Family, Spec};
use crate::flux::{Flux, FluxConfig};
use crate::folder::{EmbeddedFiles, Folder};
use crate::keys::{self, Layout};
use crate::lora::{self, Adapted, Added, Additions, Lora};
use crate::mmdit::{Mmdit, MmditConfig};
use crate::network::NetworkConfig;
use crate::open;
use crate::open_transformer;
use crate::source::CheckpointSource;
use crate::t5::{T5Config, T5Encoder, T5Tokenizer};
use crate::text::{ClipTextConfig, ClipTextEncoder, ClipTokenizer};
use crate::unet::{UNet2DCondition, UNetConfig};
use crate::vae::{AutoencoderKl, AutoencoderTiny, TinyConfig, VaeConfig};

/// Where a model is.
#[derive(Debug, Clone)]
pub enum Location {
    /// A diffusers folder or a weight file.
    Path(PathBuf),
    /// A diffusers folder in the program itself.
    Embedded {
        /// What the model is called.
        name: &'static str,
        /// Its files.
        files: EmbeddedFiles,
    },
}

/// How a model is opened.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Storage of matrices and convolutions in memory; `None` is as stored.
    pub storage: Option<Storage>,
    /// Autoencoder to take instead of the model's own.
    pub vae: Option<PathBuf>,
    /// Text encoders to take instead of the model's own, in order.
    pub text_encoders: Vec<PathBuf>,
    /// T5 to take instead of the model's own.
    pub t5: Option<PathBuf>,
    /// Folders of tokenizers to take instead of the model's own, in order.
    pub tokenizers: Vec<PathBuf>,
    /// A diffusers folder whose configurations describe a single file.
    pub config: Option<PathBuf>,
    /// Variant of a folder's files, such as `fp16`.
    pub variant: Option<String>,
    /// What the network predicts, whatever the files say.
    pub prediction: Option<Prediction>,
    /// Low-rank additions to the network and the CLIP text encoders.
    pub loras: Vec<Lora>,
}

/// One component: its configuration and where its tensors are.
#[derive(Debug)]
pub struct Part<C> {
    /// The configuration.
    pub config: C,
    /// The tensors.
    pub source: CheckpointSource,
    /// What is added to them.
    pub(crate) additions: Additions,
}

impl<C> Part<C> {
    /// The tensors with what is added to them.
    pub(crate) fn adapted(&self) -> Adapted<'_> {
        Adapted {
            base: &self.source,
            additions: &self.additions,
        }
    }

    /// The same tensors under another configuration.
    pub(crate) fn map<D>(self, config: impl FnOnce(C) -> D) -> Part<D> {
        Part {
            config: config(self.config),
            source: self.source,
            additions: self.additions,
        }
    }
}

/// T5 and its tokenizer's place.
#[derive(Debug)]
pub struct T5Part {
    /// The encoder.
    pub encoder: Part<T5Config>,
    /// Where the tokenizer is.
    pub(crate) tokenizer: open_transformer::T5Place,
}

/// A text encoder and its tokenizer's place.
#[derive(Debug)]
pub struct TextPart {
    /// Which of the family's encoders it is, from 0: some may be left out.
    pub slot: usize,
    /// The encoder.
    pub encoder: Part<ClipTextConfig>,
    /// Where the tokenizer is.
    pub(crate) tokenizer: open::TokenizerPlace,
}

/// A model whose files are open and whose tensors are not read yet.
#[derive(Debug)]
pub struct Checkpoint {
    /// What the model is called.
    pub name: String,
    /// The file or folder.
    pub path: PathBuf,
    /// Its family.
    pub family: &'static Family,
    /// What the family is like for this model.
    pub spec: Spec,
    /// The text encoders.
    pub text: Vec<TextPart>,
    /// T5, where the family has it and the model brings it along.
    pub t5: Option<T5Part>,
    /// The network that denoises.
    pub network: Part<NetworkConfig>,
    /// The autoencoder.
    pub vae: Part<VaeConfig>,
    /// What was added to it.
    pub loras: Vec<Added>,
}

impl TextPart {
    /// Loads the tokenizer.
    ///
    /// # Errors
    /// When its files are missing or damaged.
    pub fn load_tokenizer(&self) -> Result<std::sync::Arc<ClipTokenizer>, ModelError> {
        self.tokenizer.load()
    }
}

impl Checkpoint {
    /// Opens a model: maps its files, reads its configurations, recognises its family.
    ///
    /// # Errors
    /// What is missing, damaged, of another kind, or of a family that is not supported.
    pub fn open(location: &Location, options: &OpenOptions) -> Result<Self, ModelError> {
        let mut model = match location {
            Location::Embedded { name, files } => {
                open::folder(&Folder::Embedded { name, files }, options)
            }
            Location::Path(path) if path.is_dir() => {
                open::folder(&Folder::Disk(path.clone()), options)
            }
            Location::Path(path) => crate::single_file::open(path, options),
        }?;
        lora::attach(&mut model, &options.loras)?;
        Ok(model)
    }

    /// Loads the tokenizers and text encoders.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape, a tokenizer that does not fit its encoder.
    pub fn load_text(
        &self,
        device: &Device,
    ) -> Result<Vec<(std::sync::Arc<ClipTokenizer>, ClipTextEncoder)>, ModelError> {
        self.text
            .iter()
            .map(|part| {
                let tokenizer = part.tokenizer.load()?;
                let config = &part.encoder.config;
                if tokenizer.vocabulary() > config.vocab_size {
                    return Err(ModelError::Tokenizer(format!(
                        "found {} tokens, expected at most the {} that the text encoder knows",
                        tokenizer.vocabulary(),
                        config.vocab_size
                    )));
                }
                let source = part.encoder.adapted();
                let params = Params::new(&source, device);
                Ok((tokenizer, ClipTextEncoder::load(&params, config)?))
            })
            .collect()
    }

    /// Loads T5 and its tokenizer, where the model has them.
    ///
    /// # Errors
    /// As [`Checkpoint::load_text`].
    pub fn load_t5(&self, device: &Device) -> Result<Option<(T5Tokenizer, T5Encoder)>, ModelError> {
        let Some(part) = &self.t5 else {
            return Ok(None);
        };
        let tokenizer = part.tokenizer.load()?;
        let config = &part.encoder.config;
        if tokenizer.vocabulary() > config.vocab_size {
            return Err(ModelError::Tokenizer(format!(
                "found {} tokens, expected at most the {} that the T5 text encoder knows",
                tokenizer.vocabulary(),
                config.vocab_size
            )));
        }
        let params = Params::new(&part.encoder.source, device);
        Ok(Some((tokenizer, T5Encoder::load(&params, config)?)))
    }

    /// Loads the transformer of Stable Diffusion 3.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape.
    pub fn load_mmdit(&self, config: &MmditConfig, device: &Device) -> Result<Mmdit, ModelError> {
        Mmdit::load(&Params::new(&self.network.adapted(), device), config)
    }

    /// Loads the transformer of FLUX.1.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape.
    pub fn load_flux(&self, config: &FluxConfig, device: &Device) -> Result<Flux, ModelError> {
        Flux::load(&Params::new(&self.network.adapted(), device), config)
    }

    /// Loads the UNet.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape, or another network than a UNet.
    pub fn load_unet(&self, device: &Device) -> Result<UNet2DCondition, ModelError> {
        let source = self.network.adapted();
        let params = Params::new(&source, device);
        UNet2DCondition::load(&params, self.network.config.unet()?)
    }

    /// Loads the autoencoder.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape.
    pub fn load_vae(&self, device: &Device) -> Result<AutoencoderKl, ModelError> {
        let params = Params::new(&self.vae.source, device);
        AutoencoderKl::load(&params, &self.vae.config)
    }

    /// Each part's name and source.
    pub fn sources(&self) -> Vec<(String, &CheckpointSource)> {
        let text = self.text.iter().map(|part| {
            let name = match part.slot {
                0 => "text encoder".to_owned(),
                i => format!("text encoder {}", i + 1),
            };
            (name, &part.encoder.source)
        });
        let t5 = self.t5.iter();
        let t5 = t5.map(|part| ("T5 text encoder".to_owned(), &part.encoder.source));
        text.chain(t5)
            .chain([
                (self.network.config.title().to_owned(), &self.network.source),
                ("autoencoder".to_owned(), &self.vae.source),
            ])
            .collect()
    }

    /// What was taken of each part so far, and what was not.
    pub fn reports(&self) -> Vec<(String, LoadReport)> {
        self.sources()
            .into_iter()
            .map(|(name, source)| (name, source.report()))
            .collect()
    }

    /// Bytes of all parts' weights in the storage type that they are used in.
    pub fn weight_bytes(&self) -> u64 {
        self.sources().iter().map(|(_, s)| s.bytes()).sum()
    }

    /// Bytes of the weights that each stage of a run reads: text encoders, UNet, the autoencoder's decoder. A stage
    /// lets go of its weights before the next.
    pub fn stage_weight_bytes(&self) -> [u64; 3] {
        let text = self.text.iter().map(|part| {
            let Part {
                source, additions, ..
            } = &part.encoder;
            source.bytes() + additions.bytes()
        });
        let text = text.chain(self.t5.iter().map(|part| part.encoder.source.bytes()));
        // A decode does not touch the pages of the encoder.
        let decoder = self.vae.source.bytes_of(|name| !name.contains("encoder."));
        let network = self.network.source.bytes() + self.network.additions.bytes();
        [text.sum(), network, decoder]
    }

    /// The first weight that is not finite, as an error that names its tensor. Reads all weights that
    /// were loaded: for use after a run went wrong.
    pub fn non_finite(&self) -> Option<ModelError> {
        self.sources()
            .into_iter()
            .find_map(|(_, source)| source.non_finite())
            .map(ModelError::from)
    }

    /// Width and height of the default picture in pixels.
    pub fn default_sides(&self) -> [u32; 2] {
        self.spec.own_size.unwrap_or([self.default_size(); 2])
    }

    /// Side of the default picture in pixels, where the folder recommends no other.
    pub fn default_size(&self) -> u32 {
        let factor = self.vae.config.factor();
        match self.network.config.sample_size() {
            Some([h, w]) if h == w => {
                let side = (h * factor) as u32;
                if (64..=4096).contains(&side) && side.is_multiple_of(8) {
                    side
                } else {
                    self.spec.defaults.size
                }
            }
            _ => self.spec.defaults.size,
        }
    }

    /// The sampler that the model's own scheduler is.
    pub fn default_sampler(&self) -> &'static str {
        let of_class = || Some(sampler::of_config(&self.spec.scheduler)?.name);
        let own = self.spec.own_sampler.or_else(of_class);
        own.unwrap_or(self.spec.defaults.sampler)
    }
}

/// Loads a tiny autoencoder: a diffusers folder or file, or the original decoder's file.
///
/// # Errors
/// When there is none at `path`, or it is damaged.
pub fn load_tiny(path: &Path, device: &Device) -> Result<AutoencoderTiny, ModelError> {
    let folder = path.is_dir().then(|| Folder::Disk(path.to_owned()));
    let set = match &folder {
        Some(folder) => folder.weights("", &["diffusion_pytorch_model"], None)?,
        None => WeightSet::open(path)?,
    };
    let text = match &folder {
        Some(folder) => folder.text("config.json")?,
        None => None,
    };
    let shape = ["1.weight", "decoder.layers.0.weight"]
        .iter()
        .find_map(|name| set.info(name))
        .map(|info| info.shape.clone());
    let config = match (text, shape.as_deref()) {
        (Some(json), _) => TinyConfig::from_json(&json)?,
        // The first convolution of the decoder tells its width.
        (None, Some(&[channels, latent_channels, _, _])) => TinyConfig {
            latent_channels,
            encoder_channels: channels,
            decoder_channels: channels,
            ..TinyConfig::default()
        },
        (None, _) => TinyConfig::default(),
    };
    let naming = keys::find_taesd(&keys::names(&set)).ok_or_else(|| ModelError::NotThePart {
        path: path.to_owned(),
        expected: "a tiny autoencoder",
        found: recognise(&set)
            .unwrap_or("tensors of no known model")
            .to_owned(),
    })?;
    let source = CheckpointSource::new(set, Layout::diffusers(), None);
    let params = Params::new(&source, device);
    match naming {
        keys::TinyNaming::Diffusers => AutoencoderTiny::load(&params, &config),
        keys::TinyNaming::Original => AutoencoderTiny::load_parts(&params, None, &config),
    }
}

/// What a set of tensors looks like, when it holds no UNet at all.
pub fn recognise(set: &WeightSet) -> Option<&'static str> {
    let any = |test: &dyn Fn(&str) -> bool| set.names().any(test);
    let names = keys::names(set);
    if any(&|n| n.contains("lora_down.") || n.contains("lora_A.") || n.contains(".lora_up.")) {
        return Some("a LoRA (low-rank changes to a model)");
    }
    if any(&|n| n.starts_with("control_model.") || n.starts_with("controlnet_")) {
        return Some("a ControlNet");
    }
    let kind = keys::find_transformer(&names).map(|(_, kind)| kind);
    if kind == Some(keys::TransformerKind::Flux) || any(&|n| n.contains("double_blocks.")) {
        return Some("a FLUX transformer");
    }
    if kind == Some(keys::TransformerKind::Mmdit) || any(&|n| n.contains("joint_blocks.")) {
        return Some("a Stable Diffusion 3 transformer");
    }
    if keys::find_unet(&names).is_some() {
        return Some("a UNet alone");
    }
    if keys::find_vae(&names).is_some() {
        return Some("an autoencoder");
    }
    if keys::find_taesd(&names).is_some() {
        return Some("a tiny autoencoder");
    }
    if keys::find_t5(&names).is_some() {
        return Some("a T5 text encoder");
    }
    if keys::find_text(&names, 0).is_some() || keys::find_text(&names, 1).is_some() {
        return Some("a text encoder");
    }
    if any(&|n| n == "emb_params" || n == "string_to_param") {
        return Some("a textual inversion (an embedding)");
    }
    None
}

/// Facts of a UNet, for detection.
pub(crate) fn facts(
    unet: &UNetConfig,
    open_clip: bool,
    scheduler: Option<SchedulerConfig>,
    path: &Path,
) -> Facts {
    Facts {
        in_channels: unet.in_channels,
        out_channels: unet.out_channels,
        cross_attention_dim: unet.context_dim(),
        text_time: unet.added.is_some(),
        linear_projection: unet.linear_projection,
        open_clip,
        sample_size: unet.sample_size.map(|[h, _]| h),
        scheduler,
        name: crate::folder::name_of(path).to_lowercase(),
        transformer: None,
        prediction_marker: None,
    }
}

/// The family and its spec for a set of facts, `prediction` overriding what the files say.
pub(crate) fn recognised(
    mut facts: Facts,
    prediction: Option<Prediction>,
) -> Result<(&'static Family, Spec), ModelError> {
    if let Some(p) = prediction {
        if let Some(scheduler) = &mut facts.scheduler {
            scheduler.prediction_type = Some(p);
        }
        facts.prediction_marker = Some(p);
    }
    let (family, why) = families::detect(&facts)?;
    let mut spec = (family.spec)(&facts);
    spec.why = why.to_owned();
    Ok((family, spec))
}

/// A part read from `set`.
pub(crate) fn part<C>(config: C, set: WeightSet, layout: Layout, options: &OpenOptions) -> Part<C> {
    Part {
        config,
        source: CheckpointSource::new(set, layout, options.storage),
        additions: Additions::default(),
    }
}
