//! Low-rank additions to a model (LoRA; Hu et al., 2021), from files in kohya's, diffusers' and peft's layouts.
//!
//! A file is matched to a model by asking the model: its layers are walked in diffusers' names ([`sites`]), each name is
//! spelled as files spell it, and what a file holds beyond that is an error. So nothing depends on how the model's own
//! files name their tensors, and there is no map from a file's spelling back to layers.

mod additions;
mod file;
mod merge;
mod names;
mod sites;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub(crate) use additions::{Adapted, Additions};
pub use file::{Component, LoraFile};
pub use merge::{MergeOptions, merge};

use crate::ModelError;
use crate::checkpoint::Checkpoint;
use crate::keys::Place;
use additions::Addition;
use file::Module;
use sites::Site;

/// A low-rank addition that a model is opened with.
#[derive(Debug, Clone, PartialEq)]
pub struct Lora {
    /// The file, or the folder that it is in.
    pub path: PathBuf,
    /// How much of it is added; 1 is as trained.
    pub weight: f64,
}

/// What was added to a model.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Added {
    /// Name of the file, without its extension.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// How much of it was added.
    pub weight: f64,
    /// Layers that it changes.
    pub layers: usize,
    /// Its largest rank.
    pub rank: usize,
}

/// Adds to a model what files hold, in order.
pub(crate) fn attach(model: &mut Checkpoint, loras: &[Lora]) -> Result<(), ModelError> {
    if loras.is_empty() {
        return Ok(());
    }
    let layers = layers(model)?;
    for lora in loras {
        let file = LoraFile::open(&lora.path)?;
        if !lora.weight.is_finite() {
            return Err(refused(
                file.path(),
                format!("the weight {}", lora.weight),
                "a finite number",
            ));
        }
        let mut added = Added {
            name: crate::folder::name_of(file.path()),
            path: file.path().to_owned(),
            weight: lora.weight,
            layers: 0,
            rank: 0,
        };
        for (component, target, module) in matched(&file, &layers)? {
            let addition = Addition::new(&file, module, target, lora.weight)?;
            added.layers += 1;
            added.rank = added.rank.max(addition.rank());
            let all = match component {
                Component::UNet => Some(&mut model.network.additions),
                Component::Text(slot) => {
                    let mut parts = model.text.iter_mut();
                    let part = parts.find(|part| part.slot == slot);
                    part.map(|part| &mut part.encoder.additions)
                }
            };
            if let Some(all) = all {
                all.add(&target.site.name, addition);
            }
        }
        model.loras.push(added);
    }
    Ok(())
}

/// A layer that a file's module is for.
#[derive(Debug, Clone)]
struct Target {
    site: Site,
    /// Which of the module's rows are the layer's, where the file has several layers in one.
    place: Option<Place>,
}

/// Layers by the part of the model and the name that files know them by.
type Layers = BTreeMap<(Component, String), Vec<Target>>;

/// The layers of a model that can be added to, under every name that files have for them.
fn layers(model: &Checkpoint) -> Result<Layers, ModelError> {
    let mut layers = Layers::new();
    let config = &model.network.config;
    for site in sites::network(&model.network.source, config)? {
        for (name, place) in names::network(&site.name, config) {
            let targets = layers.entry((Component::UNet, name)).or_default();
            // The same name in two namings is one layer's.
            if targets.iter().all(|target| target.site != site) {
                let site = site.clone();
                targets.push(Target { site, place });
            }
        }
    }
    for part in &model.text {
        for site in sites::text(&part.encoder)? {
            let name = (Component::Text(part.slot), names::text(&site.name));
            layers.insert(name, vec![Target { site, place: None }]);
        }
    }
    Ok(layers)
}

/// A file's modules with the layers that they belong to.
fn matched<'a>(
    file: &'a LoraFile,
    layers: &'a Layers,
) -> Result<Vec<(Component, &'a Target, &'a Module)>, ModelError> {
    let mut found = Vec::new();
    let mut strange = Vec::new();
    for ((component, name), module) in file.modules() {
        match layers.get(&(*component, name.clone())) {
            Some(targets) => {
                found.extend(targets.iter().map(|target| (*component, target, module)));
            }
            None => strange.push(module.spelled.as_str()),
        }
    }
    if strange.is_empty() {
        return Ok(found);
    }
    const SHOWN: usize = 3;
    let all = file.modules().len();
    let more = match strange.len() > SHOWN {
        true => ", ...",
        false => "",
    };
    let few = strange[..strange.len().min(SHOWN)].join(", ");
    Err(ModelError::Lora {
        path: file.path().to_owned(),
        found: format!(
            "{} of {all} layers that this model has not ({few}{more})",
            strange.len()
        ),
        expected: "layers of the model".into(),
        hint: file.made_for_hint(),
    })
}

/// A file that cannot be used.
fn refused(path: &Path, found: String, expected: &str) -> ModelError {
    ModelError::Lora {
        path: path.to_owned(),
        found,
        expected: expected.to_owned(),
        hint: String::new(),
    }
}
