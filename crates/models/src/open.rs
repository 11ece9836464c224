//! Opening a model: which files, which configurations, which names.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aquatint_diffusion::{Prediction, SchedulerConfig, sampler};
use aquatint_weights::{Error, WeightSet, to_f32_vec};
use serde_json::Value;

use crate::ModelError;
use crate::checkpoint::{
    Checkpoint, OpenOptions, Part, TextPart, facts, part, recognise, recognised,
};
use crate::families::{Family, Spec};
use crate::folder::{Folder, name_of};
use crate::infer::{self, Shapes};
use crate::keys::{self, Layout};
use crate::text::{ClipTextConfig, ClipTokenizer, Padding};
use crate::unet::UNetConfig;
use crate::vae::VaeConfig;

const UNET_STEMS: &[&str] = &["diffusion_pytorch_model"];
const TEXT_STEMS: &[&str] = &["model"];

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
    let index = read_index(folder)?;
    let scheduler = scheduler(folder)?;
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
            Ok(TextPart { encoder, tokenizer })
        })
        .collect::<Result<Vec<_>, ModelError>>()?;
    check_widths(&unet.config, &text)?;
    Ok(Checkpoint {
        name: folder.name(),
        path: folder.path(),
        family,
        spec,
        text,
        unet,
        vae,
    })
}

/// Opens one weight file that holds all, or that holds a UNet with the rest given apart.
pub(crate) fn single_file(path: &Path, options: &OpenOptions) -> Result<Checkpoint, ModelError> {
    let set = WeightSet::open(path)?;
    let names = keys::names(&set);
    let Some(layout) = keys::find_unet(&names) else {
        return Err(ModelError::NotAModel {
            path: path.to_owned(),
            found: recognise(&set)
                .unwrap_or("tensors of no known model")
                .to_owned(),
        });
    };
    let given = options.config.as_ref().map(|p| Folder::Disk(p.clone()));
    let text_layouts = [keys::find_text(&names, 0), keys::find_text(&names, 1)];
    let open_clip = text_layouts[0].as_ref().is_some_and(infer::is_open_clip);
    drop(names);

    let shapes = Shapes::new(&set, &layout);
    let family = guess(&shapes, open_clip)?;
    let vae = single_vae(path, &set, family, given.as_ref(), options)?;
    let text = single_text(path, &set, &text_layouts, family, given.as_ref(), options)?;
    let (mut config, configured) = match given.as_ref().filter(|f| f.has("unet/config.json")) {
        Some(folder) => (read_config(folder, "unet", UNetConfig::from_json)?, true),
        None => {
            let pooled = text.get(1).and_then(|t| t.encoder.config.projection);
            (infer::unet(&shapes, (family.unet)(), pooled)?, false)
        }
    };
    let scheduler = match &given {
        Some(folder) => scheduler(folder)?,
        None => None,
    };
    let mut facts = facts(&config, open_clip, scheduler, path);
    if !configured {
        // The inferred size is the family's, not the file's own word.
        facts.sample_size = None;
    }
    facts.prediction_marker = marker(&set, &layout);
    let (family, spec) = recognised(facts, options.prediction)?;
    if !configured {
        let side = spec.defaults.size as usize / 8;
        config.sample_size = Some([side, side]);
    }
    let unet = part(config, set, layout, options);
    check_widths(&unet.config, &text)?;
    Ok(Checkpoint {
        name: name_of(path),
        path: path.to_owned(),
        family,
        spec,
        text,
        unet,
        vae,
    })
}

/// The family by the UNet's tensors: its published parts are the base for reading off shapes.
fn guess(shapes: &Shapes<'_>, open_clip: bool) -> Result<&'static Family, ModelError> {
    let text_time = shapes.shape("add_embedding.linear_1.weight").is_some();
    let context = [
        "down_blocks.0",
        "down_blocks.1",
        "mid_block",
        "down_blocks.2",
    ]
    .iter()
    .find_map(|b| {
        shapes.shape(&format!(
            "{b}.attentions.0.transformer_blocks.0.attn2.to_k.weight"
        ))
    })
    .and_then(|s| s.get(1).copied());
    let linear = ["down_blocks.0", "down_blocks.1", "mid_block"]
        .iter()
        .find_map(|b| shapes.shape(&format!("{b}.attentions.0.proj_in.weight")))
        .is_some_and(|s| s.len() == 2);
    let channels = |name: &str, axis: usize| {
        let shape = shapes.shape(name);
        shape.and_then(|s| s.get(axis).copied()).unwrap_or(4)
    };
    let facts = crate::families::Facts {
        in_channels: channels("conv_in.weight", 1),
        out_channels: channels("conv_out.weight", 0),
        cross_attention_dim: context,
        text_time,
        linear_projection: linear,
        open_clip,
        sample_size: None,
        scheduler: None,
        name: String::new(),
        prediction_marker: None,
    };
    Ok(crate::families::detect(&facts)?.0)
}

fn single_vae(
    path: &Path,
    set: &WeightSet,
    family: &'static Family,
    given: Option<&Folder>,
    options: &OpenOptions,
) -> Result<Part<VaeConfig>, ModelError> {
    if let Some(other) = &options.vae {
        return other_vae(other, family, options);
    }
    let layout = keys::find_vae(&keys::names(set)).ok_or_else(|| ModelError::Apart {
        path: path.to_owned(),
        what: "autoencoder",
        option: "--vae",
    })?;
    let config = match given.filter(|f| f.has("vae/config.json")) {
        Some(folder) => read_config(folder, "vae", VaeConfig::from_json)?,
        None => infer::vae(&Shapes::new(set, &layout), (family.vae)())?,
    };
    Ok(part(config, set.clone(), layout, options))
}

fn single_text(
    path: &Path,
    set: &WeightSet,
    layouts: &[Option<Layout>; 2],
    family: &'static Family,
    given: Option<&Folder>,
    options: &OpenOptions,
) -> Result<Vec<TextPart>, ModelError> {
    let bases = (family.text)();
    let alone = bases.len() == 1;
    bases
        .into_iter()
        .enumerate()
        .map(|(i, base)| {
            let suffix = if i == 0 {
                String::new()
            } else {
                format!("_{}", i + 1)
            };
            let name = format!("text_encoder{suffix}");
            let configured = given.filter(|f| f.has(&format!("{name}/config.json")));
            let encoder = match (options.text_encoders.get(i), &layouts[i]) {
                (Some(other), _) => other_text(other, i, family, options)?,
                (None, Some(layout)) => {
                    let config = match configured {
                        Some(folder) => read_config(folder, &name, ClipTextConfig::from_json)?,
                        None => {
                            let shapes = Shapes::new(set, layout);
                            let drop_last = alone && infer::is_open_clip(layout);
                            infer::text(&shapes, base, drop_last)?
                        }
                    };
                    part(config, set.clone(), layout.clone(), options)
                }
                (None, None) => {
                    return Err(ModelError::Apart {
                        path: path.to_owned(),
                        what: if i == 0 {
                            "text encoder"
                        } else {
                            "second text encoder"
                        },
                        option: "--text-encoder",
                    });
                }
            };
            let tokenizer_name = format!("tokenizer{suffix}");
            let tokenizer = match (options.tokenizers.get(i), given) {
                (Some(p), _) => TokenizerPlace::Folder(Folder::Disk(p.clone()), String::new()),
                (None, Some(folder)) if folder.has_folder(&tokenizer_name) => {
                    TokenizerPlace::Folder(folder.clone(), tokenizer_name)
                }
                _ => published(&encoder.config, i),
            };
            Ok(TextPart { encoder, tokenizer })
        })
        .collect()
}

/// OpenAI's vocabulary with the padding of the encoder's generation.
fn published(config: &ClipTextConfig, index: usize) -> TokenizerPlace {
    let old = config.hidden_act == aquatint_ops::Activation::QuickGelu && index == 0;
    TokenizerPlace::Published(if old {
        Padding::EndOfText
    } else {
        Padding::Exclamation
    })
}

/// An autoencoder given apart: a file, a component's folder, or a model's folder.
fn other_vae(
    path: &Path,
    family: &'static Family,
    options: &OpenOptions,
) -> Result<Part<VaeConfig>, ModelError> {
    let (set, folder) = other(path, "vae", UNET_STEMS, options)?;
    let layout = keys::find_vae(&keys::names(&set)).ok_or_else(|| ModelError::NotThePart {
        path: path.to_owned(),
        expected: "an autoencoder",
        found: recognise(&set)
            .unwrap_or("tensors of no known model")
            .to_owned(),
    })?;
    let config = match folder {
        Some(f) => read_config(&f, "", VaeConfig::from_json)?,
        None => infer::vae(&Shapes::new(&set, &layout), (family.vae)())?,
    };
    Ok(part(config, set, layout, options))
}

/// A text encoder given apart.
fn other_text(
    path: &Path,
    index: usize,
    family: &'static Family,
    options: &OpenOptions,
) -> Result<Part<ClipTextConfig>, ModelError> {
    let part_name = if index == 0 {
        "text_encoder"
    } else {
        "text_encoder_2"
    };
    let (set, folder) = other(path, part_name, TEXT_STEMS, options)?;
    let names = keys::names(&set);
    let layout = keys::find_text(&names, index)
        .or_else(|| keys::find_text(&names, 1 - index.min(1)))
        .ok_or_else(|| ModelError::NotThePart {
            path: path.to_owned(),
            expected: "a text encoder",
            found: recognise(&set)
                .unwrap_or("tensors of no known model")
                .to_owned(),
        })?;
    drop(names);
    let bases = (family.text)();
    let base = bases[index.min(bases.len() - 1)].clone();
    let config = match folder {
        Some(f) => read_config(&f, "", ClipTextConfig::from_json)?,
        None => {
            let drop_last = bases.len() == 1 && infer::is_open_clip(&layout);
            infer::text(&Shapes::new(&set, &layout), base, drop_last)?
        }
    };
    Ok(part(config, set, layout, options))
}

/// The weights of a part given apart, and the folder of its configuration when there is one.
fn other(
    path: &Path,
    part: &str,
    stems: &[&str],
    options: &OpenOptions,
) -> Result<(WeightSet, Option<Folder>), ModelError> {
    if !path.is_dir() {
        return Ok((WeightSet::open(path)?, None));
    }
    let inner = path.join(part);
    let folder = if inner.is_dir() {
        inner
    } else {
        path.to_owned()
    };
    let variant = options.variant.as_deref();
    let set = WeightSet::open_component(&folder, stems, variant)?;
    let folder = Folder::Disk(folder);
    let configured = folder.has("config.json");
    Ok((set, configured.then_some(folder)))
}

/// The text encoders' widths together are what the UNet attends to.
fn check_widths(unet: &UNetConfig, text: &[TextPart]) -> Result<(), ModelError> {
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
        if folder.has("unet/config.json") {
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
    ];
    if !known.contains(&class) && !folder.has("unet/config.json") {
        return Err(ModelError::Unsupported {
            found: format!("a folder of diffusers' {class:?}"),
            hint: "give a folder of StableDiffusionPipeline or StableDiffusionXLPipeline".into(),
        });
    }
    Ok(index)
}

/// Defaults that a folder brings along in `aquatint.json`: steps, guidance, sampler.
fn own_defaults(folder: &Folder, spec: &mut Spec) -> Result<(), ModelError> {
    let Some(text) = folder.text("aquatint.json")? else {
        return Ok(());
    };
    let own: Value = serde_json::from_str(&text).map_err(|e| ModelError::Json {
        path: folder.path().join("aquatint.json"),
        message: format!("not readable as JSON ({e})"),
    })?;
    if let Some(steps) = own["steps"].as_u64().filter(|n| (1..=1000).contains(n)) {
        spec.defaults.steps = steps as u32;
    }
    if let Some(guidance) = own["guidance"]
        .as_f64()
        .filter(|g| (0.0..=100.0).contains(g))
    {
        spec.defaults.guidance = guidance;
    }
    if let Some(sampler) = own["sampler"].as_str().and_then(|s| sampler::find(s).ok()) {
        spec.own_sampler = Some(sampler.name);
    }
    Ok(())
}

fn scheduler(folder: &Folder) -> Result<Option<SchedulerConfig>, ModelError> {
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

fn read_config<C>(
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

fn component(
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

/// What the file's tensors say of its prediction: a marker that newer files carry, or for Stable
/// Diffusion 2.x the spread of one norm's bias, which tells the two trainings apart (the test that
/// ComfyUI makes).
fn marker(set: &WeightSet, layout: &Layout) -> Option<Prediction> {
    if set.contains("v_pred") {
        return Some(Prediction::V);
    }
    let name = "up_blocks.3.attentions.2.transformer_blocks.0.norm1.bias";
    let place = layout.place(name, &|n| set.contains(n));
    let wide = set.info(&place.name)?.shape == [320];
    let linear = set
        .info(
            &layout
                .place("up_blocks.3.attentions.2.proj_in.weight", &|n| {
                    set.contains(n)
                })
                .name,
        )
        .is_some_and(|i| i.shape.len() == 2);
    if !wide || !linear {
        return None;
    }
    let values = to_f32_vec(&set.get(&place.name).ok()?).ok()?;
    let mean = values.iter().sum::<f32>() / values.len() as f32;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / values.len() as f32;
    Some(if variance.sqrt() > 0.09 {
        Prediction::V
    } else {
        Prediction::Epsilon
    })
}

/// Paths under a folder that look like models: diffusers folders and weight files.
///
/// # Errors
/// When the folder cannot be listed.
pub fn find_models(folder: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let mut found = Vec::new();
    walk(folder, 3, &mut found)?;
    found.sort();
    Ok(found)
}

fn walk(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<(), ModelError> {
    if folder.join("model_index.json").is_file() || folder.join("unet/config.json").is_file() {
        found.push(folder.to_owned());
        return Ok(());
    }
    let failed = |source| ModelError::Io {
        path: folder.to_owned(),
        source,
    };
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() {
            // A folder that cannot be listed is none of ours.
            if depth > 0 {
                let _ = walk(&path, depth - 1, found);
            }
        } else if path.extension().is_some_and(|e| e == "safetensors") {
            found.push(path);
        }
    }
    Ok(())
}
