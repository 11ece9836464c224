//! Parts that are given apart from the model.

use std::path::Path;

use aquatint_weights::WeightSet;

use crate::ModelError;
use crate::checkpoint::{OpenOptions, Part, part, recognise};
use crate::families::Family;
use crate::folder::Folder;
use crate::infer::{self, Shapes};
use crate::keys;
use crate::open::{TEXT_STEMS, UNET_STEMS, read_config};
use crate::t5::T5Config;
use crate::text::ClipTextConfig;
use crate::vae::VaeConfig;

/// An autoencoder given apart: a file, a component's folder, or a model's folder.
pub(crate) fn other_vae(
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
pub(crate) fn other_text(
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

/// T5 given apart.
pub(crate) fn other_t5(
    path: &Path,
    family: &'static Family,
    options: &OpenOptions,
) -> Result<Part<T5Config>, ModelError> {
    let (set, folder) = ["text_encoder_3", "text_encoder_2"]
        .into_iter()
        .find(|part| path.join(part).is_dir())
        .map_or_else(
            || other(path, "text_encoder", TEXT_STEMS, options),
            |part| other(path, part, TEXT_STEMS, options),
        )?;
    let layout = keys::find_t5(&keys::names(&set)).ok_or_else(|| ModelError::NotThePart {
        path: path.to_owned(),
        expected: "a T5 text encoder",
        found: recognise(&set)
            .unwrap_or("tensors of no known model")
            .to_owned(),
    })?;
    let base = family.t5.map_or_else(T5Config::xxl, |t5| t5());
    let config = match folder {
        Some(f) => read_config(&f, "", T5Config::from_json)?,
        None => infer::t5(&Shapes::new(&set, &layout), base)?,
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
