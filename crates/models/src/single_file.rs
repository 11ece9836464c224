//! Opening one weight file that holds a whole model, or a UNet with the rest given apart.

use std::path::Path;

use aquatint_diffusion::Prediction;
use aquatint_weights::{WeightSet, to_f32_vec};

use crate::ModelError;
use crate::apart::{other_text, other_vae};
use crate::checkpoint::{
    Checkpoint, OpenOptions, Part, TextPart, facts, part, recognise, recognised,
};
use crate::families::Family;
use crate::folder::{Folder, name_of};
use crate::infer::{self, Shapes};
use crate::keys::{self, Layout};
use crate::network::NetworkConfig;
use crate::open::{TokenizerPlace, check_widths, published, read_config, scheduler};
use crate::single_transformer;
use crate::text::ClipTextConfig;
use crate::unet::UNetConfig;
use crate::vae::VaeConfig;

/// Opens one weight file that holds all, or that holds a UNet with the rest given apart.
pub(crate) fn open(path: &Path, options: &OpenOptions) -> Result<Checkpoint, ModelError> {
    let set = WeightSet::open(path)?;
    let names = keys::names(&set);
    if let Some((layout, kind)) = keys::find_transformer(&names) {
        drop(names);
        return single_transformer::open(path, set, layout, kind, options);
    }
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
            let base = (family.network)().unet()?.clone();
            (infer::unet(&shapes, base, pooled)?, false)
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
    let network = unet.map(NetworkConfig::UNet);
    Ok(Checkpoint {
        name: name_of(path),
        path: path.to_owned(),
        family,
        spec,
        text,
        t5: None,
        network,
        vae,
        loras: Vec::new(),
    })
}

/// The family by the UNet's tensors: its published parts are the base for reading off shapes.
pub(crate) fn guess(shapes: &Shapes<'_>, open_clip: bool) -> Result<&'static Family, ModelError> {
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
        transformer: None,
        prediction_marker: None,
    };
    Ok(crate::families::detect(&facts)?.0)
}

pub(crate) fn single_vae(
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
            Ok(TextPart {
                slot: i,
                encoder,
                tokenizer,
            })
        })
        .collect()
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
