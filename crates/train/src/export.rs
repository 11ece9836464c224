//! The finished model as a folder that diffusers loads.

mod cards;

pub(crate) use cards::*;

use std::path::{Path, PathBuf};

use aquatint_diffusion::SchedulerConfig;
use aquatint_weights::{DType, TensorSpec, Writer};
use half::f16;
use serde_json::{Map, Value};

use crate::TrainError;
use crate::parts::Source;
use crate::run::Weights;
use crate::run::state::{bytes, write_synced};

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Storage {
    F32,
    F16,
}

/// A folder in the making: written under another name, renamed at the end.
pub(crate) struct Folder {
    target: PathBuf,
    part: PathBuf,
}

impl Folder {
    pub fn begin(target: &Path) -> Result<Self, TrainError> {
        let part = target.with_extension("part");
        if part.exists() {
            std::fs::remove_dir_all(&part).map_err(TrainError::io(&part))?;
        }
        std::fs::create_dir_all(&part).map_err(TrainError::io(&part))?;
        Ok(Self {
            target: target.into(),
            part,
        })
    }

    /// Where a file of the folder is written; its own folder is made.
    pub fn path(&self, name: &str) -> PathBuf {
        let path = self.part.join(name);
        if let Some(folder) = path.parent() {
            // What fails here fails again when the file is written, and is told then.
            let _ = std::fs::create_dir_all(folder);
        }
        path
    }

    pub fn text(&self, name: &str, content: &str) -> Result<(), TrainError> {
        write_synced(&self.path(name), content.as_bytes())
    }

    pub fn json(&self, name: &str, value: &Value) -> Result<(), TrainError> {
        let text = serde_json::to_string_pretty(value)
            .map_err(|_| TrainError::Internal("a configuration cannot be written as JSON"))?;
        self.text(name, &(text + "\n"))
    }

    pub fn copy(&self, from: &Path, name: &str) -> Result<(), TrainError> {
        let content = std::fs::read(from).map_err(TrainError::io(from))?;
        write_synced(&self.path(name), &content)
    }

    /// Writes the tensors whose names begin with `prefix`, without it.
    pub fn tensors(
        &self,
        name: &str,
        weights: &Weights,
        prefix: &str,
        storage: Storage,
    ) -> Result<(), TrainError> {
        let own = || {
            weights
                .iter()
                .filter_map(|(n, t)| Some((n.strip_prefix(prefix)?, t)))
        };
        let dtype = match storage {
            Storage::F32 => DType::F32,
            Storage::F16 => DType::F16,
        };
        let specs: Vec<TensorSpec> = own()
            .map(|(name, stored)| TensorSpec {
                name: name.into(),
                dtype,
                shape: stored.shape.clone(),
            })
            .collect();
        let metadata = [("format".to_owned(), "pt".to_owned())].into();
        let mut writer = Writer::create(self.path(name), &specs, &metadata)?;
        for (name, stored) in own() {
            let values = &stored.values;
            let bytes = match storage {
                Storage::F32 => bytes(values),
                Storage::F16 => values
                    .iter()
                    .flat_map(|&v| f16::from_f32(v).to_le_bytes())
                    .collect(),
            };
            writer.write(name, &bytes)?;
        }
        Ok(writer.finish()?)
    }

    /// Writes the weights of a part that was not trained, as they are stored.
    pub fn source(&self, name: &str, source: &Source) -> Result<(), TrainError> {
        let Source::Stored(source) = source else {
            return Err(TrainError::Internal("a part without weights"));
        };
        let set = source.weights();
        let views = set
            .names()
            .map(|name| set.get(name))
            .collect::<Result<Vec<_>, _>>()?;
        let metadata = [("format".to_owned(), "pt".to_owned())].into();
        Ok(aquatint_weights::safetensors::write(
            self.path(name),
            &views,
            &metadata,
        )?)
    }

    /// Puts the folder in its place.
    pub fn finish(self) -> Result<(), TrainError> {
        if self.target.exists() {
            std::fs::remove_dir_all(&self.target).map_err(TrainError::io(&self.target))?;
        }
        std::fs::rename(&self.part, &self.target).map_err(TrainError::io(&self.target))
    }
}

/// What of diffusers draws with a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// A pipeline over latents, which asks its scheduler for `init_noise_sigma`.
    Latents,
    /// `DDPMPipeline`.
    Pixels,
    /// Nothing but the parts.
    Parts,
}

/// The class of the scheduler that a model is written with.
pub(crate) fn scheduler_class(config: &SchedulerConfig, of: Use) -> &'static str {
    match (config.is_flow(), of) {
        (true, Use::Pixels | Use::Parts) => "FlowMatchEulerDiscreteScheduler",
        // The one for flows has no init_noise_sigma.
        (true, Use::Latents) => "DPMSolverMultistepScheduler",
        (false, Use::Pixels) => "DDPMScheduler",
        (false, Use::Latents | Use::Parts) => "DDIMScheduler",
    }
}

/// `scheduler_config.json` of a scheduler of diffusers, with the keys that its class has.
pub(crate) fn scheduler(config: &SchedulerConfig, class: &str) -> Value {
    let mut config = config.clone();
    config.class_name = Some(class.into());
    match class {
        "FlowMatchEulerDiscreteScheduler" => config.prediction_type = None,
        "DPMSolverMultistepScheduler" => {
            config.use_flow_sigmas = Some(true);
            config.flow_shift = config.shift.take();
        }
        "DDPMScheduler" => config.set_alpha_to_one = None,
        _ => {}
    }
    let mut keys = Map::new();
    keys.insert("_class_name".into(), class.into());
    keys.insert("_diffusers_version".into(), VERSION.into());
    if let Ok(Value::Object(set)) = serde_json::to_value(config) {
        keys.extend(set.into_iter().filter(|(_, value)| !value.is_null()));
    }
    Value::Object(keys)
}

/// The version of diffusers whose folders these are.
pub(crate) const VERSION: &str = "0.42.1";
