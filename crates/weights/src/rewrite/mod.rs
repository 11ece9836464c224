//! One weight file made of another, in another format or other storage types, without ever holding a whole
//! tensor.
//!
//! [`Plan::new`] says what becomes of each tensor before anything is written; [`Plan::write`] does it.

mod copy;
mod rules;

pub use rules::{Container, Fate, Rules, Why};

use crate::gguf::{self, Array, Metadata, ORIGINAL_SHAPE, Value};
use crate::{Error, TensorSpec, WeightSet, safetensors};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

/// What becomes of every tensor of a set.
#[derive(Clone, Debug)]
pub struct Plan {
    container: Container,
    tensors: Vec<Fate>,
    left_out: Vec<String>,
}

/// Bytes of tensors so far, and of all: told now and then while a plan is written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Written.
    pub done: u64,
    /// To be written in all.
    pub total: u64,
}

impl Plan {
    /// Decides by the rules.
    ///
    /// # Errors
    ///
    /// [`Error::Conversion`] for a type that the container or this version cannot write.
    pub fn new(set: &WeightSet, rules: &Rules<'_>) -> Result<Plan, Error> {
        let mut plan = Plan {
            container: rules.container,
            tensors: Vec::with_capacity(set.len()),
            left_out: Vec::new(),
        };
        for (name, info) in set.iter() {
            match rules.fate(name, info)? {
                Some(fate) => plan.tensors.push(fate),
                None => plan.left_out.push(name.into()),
            }
        }
        Ok(plan)
    }

    /// Every tensor that is written.
    pub fn tensors(&self) -> &[Fate] {
        &self.tensors
    }

    /// Tensors of integer types that the container lacks; they hold no weights.
    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// Bytes of all tensors as they will be.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(Fate::bytes).sum()
    }

    /// Writes the file: whole, or not at all. `metadata` are for GGUF; those of a GGUF source are kept where
    /// `metadata` do not say otherwise, and a safetensors file keeps the notes of safetensors sources. `observe` is
    /// called after each piece and may stop it, which leaves nothing behind and is `Ok(false)`.
    ///
    /// # Errors
    ///
    /// [`Error::NonFinite`] for a number that no block can hold, [`Error::Write`] for one that is too large for its
    /// new type; what reading and the file system refuse.
    pub fn write(
        &self,
        set: &WeightSet,
        path: &Path,
        metadata: &Metadata,
        observe: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<bool, Error> {
        set.check_unchanged()?;
        let specs: Vec<TensorSpec> = self.tensors.iter().map(Fate::spec).collect();
        let mut writer = match self.container {
            Container::Safetensors => {
                let notes = notes(set);
                Sink::Safetensors(safetensors::Writer::create(path, &specs, &notes)?)
            }
            Container::Gguf => {
                let metadata = self.gguf_metadata(set, metadata);
                Sink::Gguf(gguf::Writer::create(path, &specs, &metadata)?)
            }
        };
        let mut progress = Progress {
            done: 0,
            total: self.bytes(),
        };
        for fate in &self.tensors {
            let told = &mut |bytes: usize| {
                progress.done += bytes as u64;
                observe(progress)
            };
            if copy::tensor(set, fate, path, &mut writer, told)?.is_break() {
                return Ok(false);
            }
        }
        set.check_unchanged()?;
        writer.finish()?;
        Ok(true)
    }

    fn gguf_metadata(&self, set: &WeightSet, metadata: &Metadata) -> Metadata {
        let sources = set.files().iter().flat_map(|f| f.gguf().iter());
        // A noted shape belongs to how the source stores a tensor.
        let kept = sources.filter(|(key, _)| !key.starts_with(ORIGINAL_SHAPE));
        let given = kept.chain(metadata.iter());
        let mut all: Metadata = given.map(|(k, v)| (k.to_string(), v.clone())).collect();
        for fate in &self.tensors {
            if fate.stored != fate.shape {
                let axes = fate
                    .shape
                    .iter()
                    .map(|&n| i32::try_from(n).unwrap_or(i32::MAX));
                let value = Value::Array(Array::I32(axes.collect()));
                all.insert(format!("{ORIGINAL_SHAPE}{}", fate.name), value);
            }
        }
        all
    }
}

/// The notes of safetensors sources, and what PyTorch's readers ask for.
fn notes(set: &WeightSet) -> BTreeMap<String, String> {
    let mut notes = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    for file in set.files().iter().filter(|f| f.format() == "safetensors") {
        notes.extend(file.metadata().clone());
    }
    notes
}

/// A file of either format.
enum Sink {
    Safetensors(safetensors::Writer),
    Gguf(gguf::Writer),
}

impl Sink {
    fn append(&mut self, name: &str, data: &[u8]) -> Result<(), Error> {
        match self {
            Sink::Safetensors(w) => w.append(name, data),
            Sink::Gguf(w) => w.append(name, data),
        }
    }

    fn finish(self) -> Result<(), Error> {
        match self {
            Sink::Safetensors(w) => w.finish(),
            Sink::Gguf(w) => w.finish(),
        }
    }
}
