//! Files of low-rank additions.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use aquatint_weights::{TensorView, WeightSet, to_f32_vec};
use serde_json::Value;

use super::names::{self, Role};
use super::refused;
use crate::ModelError;
use crate::families::{self, LoraClues};

pub use super::names::Component;

/// Names of the file in a folder, as diffusers and peft write it.
const NAMES: &[&str] = &[
    "pytorch_lora_weights.safetensors",
    "adapter_model.safetensors",
];

/// One layer's addition, as the file has it.
#[derive(Debug, Clone)]
pub(super) struct Module {
    /// Its name in the file.
    pub spelled: String,
    /// `[rank, in]` or `[rank, in, kh, kw]`.
    pub down: TensorView,
    /// `[rank, rank, kh, kw]` between a 1x1 convolution down and one up, in files of LyCORIS.
    pub mid: Option<TensorView>,
    /// `[out, rank]` or `[out, rank, 1, 1]`.
    pub up: TensorView,
    /// The factor of the product: alpha over rank, or 1.
    pub scale: f64,
}

impl Module {
    pub fn rank(&self) -> usize {
        self.up.shape.get(1).copied().unwrap_or(0)
    }
}

/// A file of low-rank additions, mapped and sorted into modules.
#[derive(Debug, Clone)]
pub struct LoraFile {
    path: PathBuf,
    modules: BTreeMap<(Component, String), Module>,
}

impl LoraFile {
    /// Opens a file in kohya's, diffusers' or peft's layout, or the folder that it is in.
    ///
    /// # Errors
    /// [`ModelError::Lora`] for a file of another kind, a module that lacks a half, an alpha that is none;
    /// [`ModelError::Weights`] for a damaged file and values that are not finite.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let path = file_of(path)?;
        let set = WeightSet::open(&path)?;
        let mut halves: BTreeMap<(Component, String), Halves> = BTreeMap::new();
        for name in set.names() {
            let Some((spelled, role)) = names::split(name) else {
                return Err(strange_tensor(&path, &set, name));
            };
            let half = halves.entry(names::place(spelled)).or_default();
            half.take(&path, spelled, role, set.get(name)?)?;
        }
        if halves.is_empty() {
            return Err(refused(&path, "no tensors".into(), "a LoRA"));
        }
        let alphas = Alphas::read(&path, &set)?;
        let modules = halves.into_iter().map(|((component, name), half)| {
            let module = half.whole(&path, component, &alphas)?;
            for view in [&module.down, &module.up].into_iter().chain(&module.mid) {
                aquatint_weights::check_finite(view, &path)?;
            }
            Ok(((component, name), module))
        });
        let modules = modules.collect::<Result<_, ModelError>>()?;
        Ok(LoraFile { path, modules })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Layers that the file changes in a part of the model.
    pub fn layers(&self, of: Component) -> usize {
        self.modules.keys().filter(|(c, _)| *c == of).count()
    }

    /// The smallest and the largest rank.
    pub fn ranks(&self) -> (usize, usize) {
        let ranks = || self.modules.values().map(Module::rank);
        (ranks().min().unwrap_or(0), ranks().max().unwrap_or(0))
    }

    /// The family that the file seems made for, in words, when something in it tells.
    pub fn made_for(&self) -> Option<&'static str> {
        let context = self.modules.iter().find_map(|((component, name), module)| {
            let reads_text = *component == Component::UNet && name.ends_with("attn2_to_k");
            reads_text.then(|| module.down.shape.get(1).copied())?
        });
        let names = self.modules.keys().map(|(_, name)| name.as_str());
        families::of_lora(&LoraClues {
            context,
            second_encoder: self.layers(Component::Text(1)) > 0,
            names: names.collect(),
        })
    }

    /// What to do with a file that does not fit.
    pub(super) fn made_for_hint(&self) -> String {
        match self.made_for() {
            Some(family) => format!("the file seems made for {family}: use it with such a model"),
            None => "use it with the model that it was made for".into(),
        }
    }

    pub(super) fn modules(&self) -> &BTreeMap<(Component, String), Module> {
        &self.modules
    }
}

/// The file itself, or that of a folder.
fn file_of(path: &Path) -> Result<PathBuf, ModelError> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    let files = NAMES.iter().map(|name| path.join(name));
    files.into_iter().find(|p| p.is_file()).ok_or_else(|| {
        let found = "a folder without either".to_owned();
        refused(path, found, &NAMES.join(" or "))
    })
}

/// Why a tensor has no place in a file of additions.
fn strange_tensor(path: &Path, set: &WeightSet, name: &str) -> ModelError {
    let plain = "a LoRA: pairs of lora_down and lora_up, or lora_A and lora_B";
    if let Some(kind) = set.names().find_map(names::other_kind) {
        return refused(path, format!("{kind}, which is not supported"), plain);
    }
    if !set.names().any(|n| n.contains("lora")) {
        let kind = crate::recognise(set).unwrap_or("tensors of no known kind");
        return refused(path, kind.to_owned(), plain);
    }
    refused(path, format!("the tensor {name:?}"), plain)
}

/// What was seen of a module so far.
#[derive(Default)]
struct Halves {
    spelled: String,
    down: Option<TensorView>,
    mid: Option<TensorView>,
    up: Option<TensorView>,
    alpha: Option<f64>,
}

impl Halves {
    fn take(
        &mut self,
        path: &Path,
        spelled: &str,
        role: Role,
        view: TensorView,
    ) -> Result<(), ModelError> {
        self.spelled = spelled.to_owned();
        let slot = match role {
            Role::Down => &mut self.down,
            Role::Mid => &mut self.mid,
            Role::Up => &mut self.up,
            Role::Alpha => {
                let values = to_f32_vec(&view)?;
                let [alpha] = values[..] else {
                    let found = format!("{spelled}.alpha of shape {:?}", view.shape);
                    return Err(refused(path, found, "one number"));
                };
                if !alpha.is_finite() {
                    let found = format!("{spelled}.alpha of {alpha}");
                    return Err(refused(path, found, "a finite number"));
                }
                self.alpha = Some(f64::from(alpha));
                return Ok(());
            }
        };
        match slot.replace(view) {
            None => Ok(()),
            Some(_) => {
                let found = format!("{spelled} in two spellings");
                Err(refused(path, found, "every layer once"))
            }
        }
    }

    fn whole(
        self,
        path: &Path,
        component: Component,
        alphas: &Alphas,
    ) -> Result<Module, ModelError> {
        let (down, up) = match (self.down, self.up) {
            (Some(down), Some(up)) => (down, up),
            (down, _) => {
                let half = if down.is_some() { "up (B)" } else { "down (A)" };
                let found = format!("{} without its matrix {half}", self.spelled);
                return Err(refused(path, found, "both halves of each layer"));
            }
        };
        let rank = up.shape.get(1).copied().unwrap_or(0);
        if rank == 0 || down.shape.first() != Some(&rank) {
            let found = format!(
                "{} with matrices of shapes {:?} and {:?}",
                self.spelled, down.shape, up.shape
            );
            return Err(refused(path, found, "[rank, in] and [out, rank]"));
        }
        let scale = match self.alpha {
            Some(alpha) => alpha / rank as f64,
            None => alphas.scale(component, &self.spelled, rank),
        };
        Ok(Module {
            spelled: self.spelled,
            down,
            mid: self.mid,
            up,
            scale,
        })
    }
}

/// Alphas apart from the tensors: diffusers' metadata, or peft's `adapter_config.json`.
#[derive(Default)]
struct Alphas {
    /// Keys such as `unet.lora_alpha`.
    keys: BTreeMap<String, Value>,
}

impl Alphas {
    fn read(path: &Path, set: &WeightSet) -> Result<Self, ModelError> {
        let parse = |what: &str, text: &str| {
            serde_json::from_str::<BTreeMap<String, Value>>(text).map_err(|e| {
                refused(
                    path,
                    format!("{what} that is not readable ({e})"),
                    "a JSON object",
                )
            })
        };
        let stored = set.files().iter().flat_map(|f| f.metadata());
        for (key, text) in stored {
            if key == "lora_adapter_metadata" {
                let keys = parse("lora_adapter_metadata", text)?;
                return Ok(Alphas { keys });
            }
        }
        let config = path.with_file_name("adapter_config.json");
        if path.ends_with(NAMES[1]) && config.is_file() {
            let text = std::fs::read_to_string(&config).map_err(|source| ModelError::Io {
                path: config,
                source,
            })?;
            let keys = parse("an adapter_config.json", &text)?;
            return Ok(Alphas { keys });
        }
        Ok(Alphas::default())
    }

    fn get(&self, component: Component, key: &str) -> Option<&Value> {
        let prefixes: &[&str] = match component {
            Component::UNet => &["unet.", "transformer.", ""],
            Component::Text(0) => &["text_encoder.", ""],
            Component::Text(_) => &["text_encoder_2.", ""],
        };
        let keys = prefixes.iter().map(|prefix| format!("{prefix}{key}"));
        keys.into_iter().find_map(|key| self.keys.get(&key))
    }

    /// Alpha over rank (over its root under rsLoRA); 1 where nothing is said.
    fn scale(&self, component: Component, module: &str, rank: usize) -> f64 {
        let patterns = self
            .get(component, "alpha_pattern")
            .and_then(Value::as_object);
        let own = patterns.into_iter().flatten().find_map(|(pattern, alpha)| {
            let rest = module.strip_suffix(pattern.as_str())?;
            (rest.is_empty() || rest.ends_with('.')).then(|| alpha.as_f64())?
        });
        let whole = || self.get(component, "lora_alpha").and_then(Value::as_f64);
        let Some(alpha) = own.or_else(whole).filter(|a| a.is_finite()) else {
            return 1.0;
        };
        let rooted = self
            .get(component, "use_rslora")
            .and_then(Value::as_bool)
            .unwrap_or(false);
        match rooted {
            true => alpha / (rank as f64).sqrt(),
            false => alpha / rank as f64,
        }
    }
}
