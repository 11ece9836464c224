//! Opening a diffusers folder whose network is a transformer.

use std::path::PathBuf;

use aquatint_diffusion::SchedulerConfig;
use aquatint_weights::WeightSet;
use serde_json::Value;

use crate::ModelError;
use crate::apart::{other_t5, other_text, other_vae};
use crate::checkpoint::{Checkpoint, OpenOptions, Part, T5Part, TextPart, part, recognised};
use crate::families::{Facts, Family, Spec, TextUse};
use crate::flux::FluxConfig;
use crate::folder::Folder;
use crate::keys::Layout;
use crate::mmdit::MmditConfig;
use crate::network::NetworkConfig;
use crate::open::{
    TEXT_STEMS, TokenizerPlace, UNET_STEMS, component, own_defaults, published, read_config,
};
use crate::t5::{T5Config, T5Tokenizer};
use crate::text::ClipTextConfig;
use crate::vae::VaeConfig;

/// Where T5's tokenizer is.
#[derive(Debug, Clone)]
pub(crate) enum T5Place {
    /// A part of a model's folder.
    Folder(Folder, String),
    /// A file or folder of its own.
    Path(PathBuf),
    /// The metadata of T5's own file.
    Weights(WeightSet),
    /// Nowhere: the vocabulary is too large for this library to bring along.
    Missing,
}

impl T5Place {
    pub(crate) fn load(&self) -> Result<T5Tokenizer, ModelError> {
        match self {
            T5Place::Folder(folder, part) => T5Tokenizer::read(folder, part),
            T5Place::Path(path) => T5Tokenizer::from_path(path),
            T5Place::Weights(set) => T5Tokenizer::from_gguf(set).unwrap_or_else(none),
            T5Place::Missing => none(),
        }
    }

    /// Takes the tokenizer of T5's own file where there is no other.
    pub(crate) fn or_of(self, set: &WeightSet) -> Self {
        match self {
            T5Place::Missing => T5Place::Weights(set.clone()),
            place => place,
        }
    }
}

fn none() -> Result<T5Tokenizer, ModelError> {
    Err(ModelError::Tokenizer(
        "found none for T5, expected tokenizer.json, spiece.model, or a GGUF file that holds it"
            .into(),
    ))
}

/// Opens the folder, whose index is `index`.
pub(crate) fn folder(
    folder: &Folder,
    index: &Value,
    scheduler: Option<SchedulerConfig>,
    options: &OpenOptions,
) -> Result<Checkpoint, ModelError> {
    let network = part(
        read_config(folder, "transformer", |json| read_network(folder, json))?,
        component(folder, "transformer", UNET_STEMS, options)?,
        Layout::diffusers(),
        options,
    );
    let facts = facts(&network.config, scheduler, &folder.path());
    let (family, mut spec) = recognised(facts, options.prediction)?;
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
    let text = clips(folder, index, family, options)?;
    let t5 = t5(folder, index, family, options)?;
    check_text(&folder.path(), &spec, &text, t5.as_ref())?;
    check_widths(&network.config, &text, t5.as_ref())?;
    Ok(Checkpoint {
        name: folder.name(),
        path: folder.path(),
        family,
        spec,
        text,
        t5,
        network,
        vae,
        loras: Vec::new(),
    })
}

fn read_network(folder: &Folder, json: &str) -> Result<NetworkConfig, ModelError> {
    let class = serde_json::from_str::<Value>(json)
        .ok()
        .and_then(|v| v["_class_name"].as_str().map(str::to_owned))
        .unwrap_or_default();
    match class.as_str() {
        "SD3Transformer2DModel" => MmditConfig::from_json(json).map(NetworkConfig::Mmdit),
        "FluxTransformer2DModel" => FluxConfig::from_json(json).map(NetworkConfig::Flux),
        _ => Err(ModelError::Unsupported {
            found: format!(
                "{}: a transformer of diffusers' {class:?}",
                folder.path().display()
            ),
            hint: "Stable Diffusion 3, 3.5 and FLUX.1 are supported".into(),
        }),
    }
}

/// Facts of a transformer, for detection.
pub(crate) fn facts(
    network: &NetworkConfig,
    scheduler: Option<SchedulerConfig>,
    path: &std::path::Path,
) -> Facts {
    let channels = network.out_channels();
    Facts {
        in_channels: channels,
        out_channels: channels,
        cross_attention_dim: network.context_dim(),
        text_time: false,
        linear_projection: false,
        open_clip: false,
        sample_size: network.sample_size().map(|[side, _]| side),
        scheduler,
        name: crate::folder::name_of(path).to_lowercase(),
        transformer: Some(network.clone()),
        prediction_marker: None,
    }
}

/// `name` with the number of a family's encoder, as diffusers counts.
fn numbered(name: &str, slot: usize) -> String {
    match slot {
        0 => name.to_owned(),
        slot => format!("{name}_{}", slot + 1),
    }
}

/// Whether the folder brings the part along.
fn brings(folder: &Folder, index: &Value, part: &str) -> bool {
    // An absent part is written as [null, null].
    let listed = index.get(part).is_none_or(|entry| !entry[0].is_null());
    listed && folder.has(&format!("{part}/config.json"))
}

fn clips(
    folder: &Folder,
    index: &Value,
    family: &'static Family,
    options: &OpenOptions,
) -> Result<Vec<TextPart>, ModelError> {
    let mut parts = Vec::new();
    for slot in 0..(family.text)().len() {
        let name = numbered("text_encoder", slot);
        let encoder = match options.text_encoders.get(slot) {
            Some(path) => other_text(path, slot, family, options)?,
            None if brings(folder, index, &name) => part(
                read_config(folder, &name, ClipTextConfig::from_json)?,
                component(folder, &name, TEXT_STEMS, options)?,
                Layout::diffusers(),
                options,
            ),
            None => continue,
        };
        let name = numbered("tokenizer", slot);
        let tokenizer = match options.tokenizers.get(slot) {
            Some(path) => TokenizerPlace::Folder(Folder::Disk(path.clone()), String::new()),
            None if folder.has_folder(&name) => TokenizerPlace::Folder(folder.clone(), name),
            None => published(&encoder.config, slot),
        };
        parts.push(TextPart {
            slot,
            encoder,
            tokenizer,
        });
    }
    Ok(parts)
}

fn t5(
    folder: &Folder,
    index: &Value,
    family: &'static Family,
    options: &OpenOptions,
) -> Result<Option<T5Part>, ModelError> {
    let slot = (family.text)().len();
    let name = numbered("text_encoder", slot);
    let encoder = match &options.t5 {
        Some(path) => other_t5(path, family, options)?,
        None if brings(folder, index, &name) => part(
            read_config(folder, &name, T5Config::from_json)?,
            component(folder, &name, TEXT_STEMS, options)?,
            Layout::diffusers(),
            options,
        ),
        None => return Ok(None),
    };
    let name = numbered("tokenizer", slot);
    let tokenizer = match (options.tokenizers.get(slot), &options.t5) {
        (Some(path), _) => T5Place::Path(path.clone()),
        (None, _) if folder.has_folder(&name) => T5Place::Folder(folder.clone(), name),
        (None, Some(path)) => beside(path).or_of(encoder.source.weights()),
        (None, None) => T5Place::Missing,
    };
    Ok(Some(T5Part { encoder, tokenizer }))
}

/// The tokenizer in the folder of T5's weights, or in that of the whole model.
pub(crate) fn beside(path: &std::path::Path) -> T5Place {
    let folder = match path.is_dir() {
        true => path,
        false => path.parent().unwrap_or(path),
    };
    ["", "tokenizer_3", "tokenizer_2", "tokenizer"]
        .iter()
        .map(|part| folder.join(part))
        .find(|place| {
            ["tokenizer.json", "spiece.model"]
                .iter()
                .any(|file| place.join(file).is_file())
        })
        .map_or(T5Place::Missing, T5Place::Path)
}

/// Which encoders a family cannot do without.
pub(crate) fn check_text(
    path: &std::path::Path,
    spec: &Spec,
    text: &[TextPart],
    t5: Option<&T5Part>,
) -> Result<(), ModelError> {
    let apart = |what, option| {
        Err(ModelError::Apart {
            path: path.to_owned(),
            what,
            option,
        })
    };
    match spec.text {
        TextUse::T5AndPooled if t5.is_none() => apart("T5 text encoder", "--t5"),
        TextUse::T5AndPooled if text.is_empty() => apart("text encoder", "--text-encoder"),
        TextUse::Joint if text.is_empty() && t5.is_none() => {
            apart("text encoder", "--text-encoder")
        }
        _ => Ok(()),
    }
}

/// What the text encoders give is what the network reads.
pub(crate) fn check_widths(
    network: &NetworkConfig,
    text: &[TextPart],
    t5: Option<&T5Part>,
) -> Result<(), ModelError> {
    let wrong = |component, key: &str, found: usize, expected: String| {
        Err(ModelError::Config {
            component,
            key: key.to_owned(),
            found: found.to_string(),
            expected,
        })
    };
    let (context, pooled) = match network {
        NetworkConfig::UNet(_) => return Ok(()),
        NetworkConfig::Mmdit(config) => (config.context_dim, config.pooled_dim),
        NetworkConfig::Flux(config) => (config.context_dim, config.pooled_dim),
    };
    if let Some(Part { config, .. }) = t5.map(|part| &part.encoder)
        && config.d_model != context
    {
        let expected = format!("{context}, which the transformer attends to");
        return wrong("T5 text encoder", "d_model", config.d_model, expected);
    }
    let joint = matches!(network, NetworkConfig::Mmdit(_));
    let width = |config: &ClipTextConfig| match joint {
        true => config.projection.unwrap_or(0),
        false => config.hidden_size,
    };
    let found: usize = text.iter().map(|part| width(&part.encoder.config)).sum();
    let whole = text.len() == if joint { 2 } else { 1 };
    if found > pooled || (whole && found != pooled) {
        let expected = format!("{pooled} together, the pooled text that the transformer is told");
        return wrong("text encoder", "projection_dim", found, expected);
    }
    let states: usize = text
        .iter()
        .map(|part| part.encoder.config.hidden_size)
        .sum();
    if joint && states > context {
        let expected = format!("at most {context}, which the transformer attends to");
        return wrong("text encoder", "hidden_size", states, expected);
    }
    Ok(())
}
