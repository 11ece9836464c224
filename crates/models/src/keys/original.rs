//! The key maps the other way: rows that give a component in one naming the names of another.

use std::collections::{BTreeMap, BTreeSet};

use aquatint_weights::{Error, Remap, Reshape, WeightSet};

use super::{Layout, Naming, Place, TransformerKind, unet};
use crate::ModelError;

/// Other names for a component's tensors.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Renaming {
    /// What each tensor becomes; rows of one new name are parts of one tensor, in their order.
    pub rows: Vec<Remap>,
    /// Tensors that the new naming has no place for: copies of others, and what is no part of an encoder.
    pub left_out: Vec<String>,
}

/// The names that a component in diffusers' naming has in the files of its makers, which other programs read: of a
/// transformer, a UNet, or an autoencoder; with `ggml` also GGML's of T5's encoder. Nothing for tensors in another
/// naming, which is theirs already, and of components that are called the same everywhere.
///
/// # Errors
/// When a part of a tensor is missing that the original has in one piece.
pub fn to_original(set: &WeightSet, ggml: bool) -> Result<Renaming, ModelError> {
    let names = super::names(set);
    let Some((from, naming)) = original_naming(&names, ggml) else {
        return Ok(Renaming::default());
    };
    let to = Layout {
        // What diffusers' own programs put before a network's names is no prefix elsewhere.
        prefix: match from.prefix.as_str() {
            "transformer." | "unet." => "model.diffusion_model.".to_owned(),
            "vae." => "first_stage_model.".to_owned(),
            kept => kept.to_owned(),
        },
        naming,
    };
    invert(set, &names, &from.prefix, &to)
}

/// The component in diffusers' naming, and what its makers' naming is.
fn original_naming(names: &BTreeSet<&str>, ggml: bool) -> Option<(Layout, Naming)> {
    let count = |prefix: &str, name: &dyn Fn(usize) -> String| {
        let has = |i: &usize| names.contains(format!("{prefix}{}", name(*i)).as_str());
        (0..1000).take_while(has).count()
    };
    if let Some((from, kind)) = super::find_transformer(names) {
        let naming = match kind {
            TransformerKind::Flux => Naming::Flux,
            TransformerKind::Mmdit => Naming::Mmdit {
                layers: count(&from.prefix, &|i| {
                    format!("transformer_blocks.{i}.attn.to_q.weight")
                }),
            },
        };
        return (from.naming == Naming::Diffusers).then_some((from, naming));
    }
    if let Some(from) = super::find_unet(names) {
        let layers = |level| {
            count(&from.prefix, &|j| {
                format!("down_blocks.{level}.resnets.{j}.conv1.weight")
            })
        };
        let first = layers(0);
        // The original counts its blocks through, as many in every level.
        let even = (1..64)
            .map(layers)
            .take_while(|n| *n > 0)
            .all(|n| n == first);
        let plain = from.naming == Naming::Diffusers && even;
        return plain.then_some((from, Naming::LdmUNet { layers: first }));
    }
    if let Some(from) = super::find_t5(names) {
        let alone = from.naming == Naming::Diffusers && from.prefix.is_empty();
        return (ggml && alone).then_some((from, Naming::T5Ggml));
    }
    let from = super::find_vae(names)?;
    let levels = count(&from.prefix, &|i| {
        format!("decoder.up_blocks.{i}.resnets.0.norm1.weight")
    });
    (from.naming == Naming::Diffusers).then_some((from, Naming::LdmVae { levels }))
}

/// One source of a tensor of the original, and its place in it.
type Source<'a> = (Place, &'a str);

fn invert(
    set: &WeightSet,
    names: &BTreeSet<&str>,
    prefix: &str,
    to: &Layout,
) -> Result<Renaming, ModelError> {
    let own = |name: &str| names.contains(format!("{prefix}{name}").as_str());
    let has = |name: &str| match to.naming {
        Naming::LdmUNet { layers } => {
            let name = name.strip_prefix(&to.prefix).unwrap_or(name);
            unet::follows_attention(name, layers, &own)
        }
        _ => false,
    };
    let mut renaming = Renaming::default();
    let mut targets: BTreeMap<String, Vec<Source<'_>>> = BTreeMap::new();
    for name in names.iter().filter(|name| name.starts_with(prefix)) {
        let inner = &name[prefix.len()..];
        if to.naming == Naming::T5Ggml && is_no_encoder(inner, &own) {
            renaming.left_out.push((*name).to_owned());
            continue;
        }
        let place = to.place(inner, &has);
        let sources = targets.entry(place.name.clone()).or_default();
        sources.push((place, name));
    }
    for (target, mut sources) in targets {
        sources.sort_by_key(|(place, _)| place.part);
        check_whole(set, &target, &sources)?;
        for (place, name) in &sources {
            renaming.rows.extend(rows(place, name, &to.naming));
        }
    }
    Ok(renaming)
}

/// What T5 files hold beside the encoder, and a second copy of its embedding.
fn is_no_encoder(name: &str, own: &dyn Fn(&str) -> bool) -> bool {
    let copy = name == "encoder.embed_tokens.weight" && own("shared.weight");
    copy || name.starts_with("decoder.") || name.starts_with("lm_head.")
}

/// The parts of a tensor are all there, each once.
fn check_whole(set: &WeightSet, target: &str, sources: &[Source<'_>]) -> Result<(), ModelError> {
    let mut next = 0;
    for (place, name) in sources {
        let (part, of) = place.part.unwrap_or((0, 1));
        if part < next {
            return Err(ModelError::Weights(Error::Duplicate {
                path: set.path().to_owned(),
                name: target.to_owned(),
                first: sources[0].1.to_owned(),
                second: (*name).to_owned(),
            }));
        }
        if part > next {
            return Err(missing(set, target, next, of));
        }
        next += place.span;
    }
    match sources.last().and_then(|(place, _)| place.part) {
        Some((_, of)) if next < of => Err(missing(set, target, next, of)),
        _ => Ok(()),
    }
}

fn missing(set: &WeightSet, target: &str, part: usize, of: usize) -> ModelError {
    ModelError::Weights(Error::MissingTensor {
        path: set.path().to_owned(),
        name: format!("part {part} of {of} of {target}"),
    })
}

/// The rows of a key map from a tensor to its place.
fn rows(place: &Place, name: &str, naming: &Naming) -> Vec<Remap> {
    let mut row = Remap::new(name, &place.name);
    if place.transposed {
        row = row.transposed();
    }
    if is_attention_of_ldm(naming, &place.name) {
        row = row.reshaped(Reshape::Conv1x1);
    }
    match place.swapped {
        true => vec![row.clone().part(1, 2), row.part(0, 2)],
        false => vec![row],
    }
}

/// The rows that give the tensors of a set, which lie as `layout` says, diffusers' names: those of `wanted`.
pub(crate) fn to_diffusers<'a>(
    set: &WeightSet,
    layout: &Layout,
    wanted: impl Iterator<Item = &'a str>,
) -> Vec<Remap> {
    let mut rows = Vec::new();
    for name in wanted {
        let place = layout.place(name, &|n| set.contains(n));
        let len = set.info(&place.name).and_then(|i| i.shape.first().copied());
        let mut row = place.row(name, len);
        if is_attention_of_ldm(&layout.naming, &place.name) {
            row = row.reshaped(Reshape::Linear);
        }
        match place.swapped {
            true => rows.extend([row.clone().part(1, 2), row.part(0, 2)]),
            false => rows.push(row),
        }
    }
    rows
}

/// Whether the tensor of that name in the original belongs to an autoencoder's attention, which has linear layers in
/// diffusers and 1x1 convolutions there.
fn is_attention_of_ldm(naming: &Naming, name: &str) -> bool {
    matches!(naming, Naming::LdmVae { .. })
        && name.contains(".mid.attn_1.")
        && !name.contains(".norm.")
        && name.ends_with(".weight")
}
