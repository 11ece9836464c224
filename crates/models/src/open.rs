//! Opening a diffusers folder: which files, which configurations, which names.

use std::sync::Arc;

use aquatint_diffusion::SchedulerConfig;
use aquatint_weights::{Error, WeightSet};
use serde_json::Value;

use crate::ModelError;
use crate::apart::{other_text, other_vae};
use crate::checkpoint::{Checkpoint, OpenOptions, TextPart, facts, part, recognised};
use crate::families::Spec;
use crate::folder::Folder;
use crate::keys::Layout;
use crate::network::NetworkConfig;
use crate::open_transformer;
use crate::own::Own;
use crate::pixel;
use crate::text::{ClipTextConfig, ClipTokenizer, Padding};
use crate::unet::UNetConfig;
use crate::vae::VaeConfig;

pub(crate) const UNET_STEMS: &[&str] = &["diffusion_pytorch_model"];
pub(crate) const TEXT_STEMS: &[&str] = &["model"];

/// Where a tokenizer is.
#[derive(Debug, Clone)]
pub(crate) enum TokenizerPlace {
    /// A folder of a model.
    Folder(Folder, String),
    /// The vocabulary in this library.
    Published(Padding),
}

impl TokenizerPlace {
    pub(crate) fn load(&self) -> Result<Arc<ClipTokenizer>, ModelError> {
        match self {
            TokenizerPlace::Published(padding) => ClipTokenizer::embedded(*padding),
            TokenizerPlace::Folder(folder, part) => {
                let text = |file: &str| match part.as_str() {
                    "" => folder.text(file),
                    part => folder.text(&format!("{part}/{file}")),
                };
                let path = folder.path().join(part);
                Ok(Arc::new(ClipTokenizer::from_files(&path, &text)?))
            }
        }
    }
}

/// Opens a diffusers folder.
pub(crate) fn folder(folder: &Folder, options: &OpenOptions) -> Result<Checkpoint, ModelError> {
    if pixel::is_one(folder) {
        return Err(pixel::refused(&folder.path()));
    }
    let index = read_index(folder)?;
    let scheduler = scheduler(folder)?;
    if folder.has("transformer/config.json") {
        return open_transformer::folder(folder, &index, scheduler, options);
    }
    let config: UNetConfig = read_config(folder, "unet", UNetConfig::from_json)?;
    let unet = part(
        config,
        component(folder, "unet", UNET_STEMS, options)?,
        Layout::diffusers(),
        options,
    );
    let facts = facts(&unet.config, false, scheduler, &folder.path());
    let (family, mut spec) = recognised(facts, options.prediction)?;
    if let Some(zeros) = index["force_zeros_for_empty_prompt"].as_bool() {
        spec.zeros_without_negative = zeros;
    }
    own_defaults(folder, &mut spec)?;
    let vae = match &options.vae {
        Some(path) => other_vae(path, family, options)?,
        None => part(
            read_config(folder, "vae", VaeConfig::from_json)?,
            component(folder, "vae", UNET_STEMS, options)?,
            Layout::diffusers(),
            options,
        ),
    };
    let text = (0..(family.text)().len())
        .map(|i| {
            let suffix = if i == 0 {
                String::new()
            } else {
                format!("_{}", i + 1)
            };
            let encoder = match options.text_encoders.get(i) {
                Some(path) => other_text(path, i, family, options)?,
                None => {
                    let name = format!("text_encoder{suffix}");
                    part(
                        read_config(folder, &name, ClipTextConfig::from_json)?,
                        component(folder, &name, TEXT_STEMS, options)?,
                        Layout::diffusers(),
                        options,
                    )
                }
            };
            let name = format!("tokenizer{suffix}");
            let tokenizer = match options.tokenizers.get(i) {
                Some(path) => TokenizerPlace::Folder(Folder::Disk(path.clone()), String::new()),
                None if folder.has_folder(&name) => TokenizerPlace::Folder(folder.clone(), name),
                None => published(&encoder.config, i),
            };
            Ok(TextPart {
                slot: i,
                encoder,
                tokenizer,
            })
        })
        .collect::<Result<Vec<_>, ModelError>>()?;
    check_widths(&unet.config, &text)?;
    let network = unet.map(NetworkConfig::UNet);
    Ok(Checkpoint {
        name: folder.name(),
        path: folder.path(),
        family,
        spec,
        text,
        t5: None,
        network,
        vae,
        loras: Vec::new(),
    })
}

/// OpenAI's vocabulary with the padding of the encoder's generation.
pub(crate) fn published(config: &ClipTextConfig, index: usize) -> TokenizerPlace {
    let old = config.hidden_act == aquatint_ops::Activation::QuickGelu && index == 0;
    TokenizerPlace::Published(if old {
        Padding::EndOfText
    } else {
        Padding::Exclamation
    })
}

/// The text encoders' widths together are what the UNet attends to.
pub(crate) fn check_widths(unet: &UNetConfig, text: &[TextPart]) -> Result<(), ModelError> {
    let found: usize = text.iter().map(|t| t.encoder.config.hidden_size).sum();
    match unet.context_dim() {
        Some(expected) if expected != found => Err(ModelError::Config {
            component: "text encoder",
            key: "hidden_size".into(),
            found: found.to_string(),
            expected: format!("{expected}, which the UNet attends to"),
        }),
        _ => Ok(()),
    }
}

/// A folder with another kind of pipeline is refused by name; one without an index is looked through.
fn read_index(folder: &Folder) -> Result<Value, ModelError> {
    let Some(text) = folder.text("model_index.json")? else {
        if folder.has("unet/config.json") || folder.has("transformer/config.json") {
            return Ok(Value::Null);
        }
        return Err(ModelError::NotAModel {
            path: folder.path(),
            found: "a folder without model_index.json and without unet/config.json".into(),
        });
    };
    let path = folder.path().join("model_index.json");
    let index: Value = serde_json::from_str(&text).map_err(|e| ModelError::Json {
        path: path.clone(),
        message: format!("not readable as JSON ({e}); expected a diffusers model index"),
    })?;
    let class = index
        .get("_class_name")
        .and_then(Value::as_str)
        .unwrap_or("");
    let known = [
        "StableDiffusionPipeline",
        "StableDiffusionXLPipeline",
        "LatentConsistencyModelPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusion3Pipeline",
        "FluxPipeline",
    ];
    let has_network = folder.has("unet/config.json") || folder.has("transformer/config.json");
    if !known.contains(&class) && !has_network {
        return Err(ModelError::Unsupported {
            found: format!("a folder of diffusers' {class:?}"),
            hint: "give a folder of StableDiffusionPipeline, StableDiffusionXLPipeline, \
                   StableDiffusion3Pipeline or FluxPipeline"
                .into(),
        });
    }
    Ok(index)
}

/// Defaults that a folder brings along.
pub(crate) fn own_defaults(folder: &Folder, spec: &mut Spec) -> Result<(), ModelError> {
    let own = Own::read(folder)?;
    spec.own_size = own.size;
    spec.own_sampler = own.sampler;
    spec.defaults.steps = own.steps.unwrap_or(spec.defaults.steps);
    spec.defaults.guidance = own.guidance.unwrap_or(spec.defaults.guidance);
    Ok(())
}

pub(crate) fn scheduler(folder: &Folder) -> Result<Option<SchedulerConfig>, ModelError> {
    let file = "scheduler/scheduler_config.json";
    let Some(text) = folder.text(file)? else {
        return Ok(None);
    };
    let config = SchedulerConfig::from_json(&text).map_err(|e| ModelError::Json {
        path: folder.path().join(file),
        message: e.to_string(),
    })?;
    Ok(Some(config))
}

pub(crate) fn read_config<C>(
    folder: &Folder,
    part: &str,
    read: impl Fn(&str) -> Result<C, ModelError>,
) -> Result<C, ModelError> {
    let name = match part {
        "" => "config.json".to_owned(),
        part => format!("{part}/config.json"),
    };
    let text = folder.text(&name)?.ok_or_else(|| ModelError::Io {
        path: folder.path().join(&name),
        source: std::io::ErrorKind::NotFound.into(),
    })?;
    read(&text)
}

pub(crate) fn component(
    folder: &Folder,
    part: &str,
    stems: &[&str],
    options: &OpenOptions,
) -> Result<WeightSet, ModelError> {
    let variant = options.variant.as_deref();
    match folder.weights(part, stems, variant) {
        // A variant may be there for some components only.
        Err(Error::Variant { .. }) if variant.is_some() => Ok(folder.weights(part, stems, None)?),
        other => Ok(other?),
    }
}
