//! One weight file made of another, in another format or other storage types, without ever holding a whole
//! tensor.
//!
//! [`Plan::new`] says what becomes of each tensor before anything is written; [`Plan::write`] does it.

mod copy;
mod rules;

pub use rules::{Container, Fate, Rules, Why};

use crate::gguf::{self, Array, Metadata, ORIGINAL_SHAPE, Value};
use crate::{DType, Error, Remap, TensorInfo, TensorSpec, WeightSet, safetensors};
use std::collections::{BTreeMap, BTreeSet};
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
        Plan::remapped(set, &[], rules)
    }

    /// As [`Plan::new`], under other names: each row of a key map whose `from` is in the set gives a tensor, and rows
    /// of one `to` give one together, joined along the first axis in their order. Names that no row mentions are kept.
    /// Rules speak of the new names.
    ///
    /// # Errors
    ///
    /// As [`Plan::new`]; [`Error::Remap`] for a shape that does not allow what its row says, or parts that do not fit
    /// together; [`Error::Duplicate`] when a kept name is also a row's.
    pub fn remapped(set: &WeightSet, rows: &[Remap], rules: &Rules<'_>) -> Result<Plan, Error> {
        let mut plan = Plan {
            container: rules.container,
            tensors: Vec::with_capacity(set.len()),
            left_out: Vec::new(),
        };
        for (name, parts) in new_names(set, rows)? {
            let info = joined(set, &parts)?;
            match rules.fate(&name, &info)? {
                Some(fate) => plan.tensors.push(Fate { parts, ..fate }),
                None => plan.left_out.push(name),
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

/// What each tensor of the new file is made of.
fn new_names(set: &WeightSet, rows: &[Remap]) -> Result<BTreeMap<String, Vec<Remap>>, Error> {
    let mut names: BTreeMap<String, Vec<Remap>> = BTreeMap::new();
    for row in rows.iter().filter(|row| set.contains(&row.from)) {
        names.entry(row.to.clone()).or_default().push(row.clone());
    }
    let sources: BTreeSet<&str> = rows.iter().map(|row| row.from.as_str()).collect();
    for name in set.names().filter(|name| !sources.contains(name)) {
        let kept = Remap::new(name, name);
        if let Some(other) = names.insert(name.into(), vec![kept]) {
            return Err(Error::Duplicate {
                path: set.path().into(),
                name: name.into(),
                first: name.into(),
                second: other
                    .first()
                    .map_or_else(String::new, |row| row.from.clone()),
            });
        }
    }
    Ok(names)
}

/// Type and shape of parts that lie one below the other. Parts of several types count as F32, which holds them all.
fn joined(set: &WeightSet, parts: &[Remap]) -> Result<TensorInfo, Error> {
    let mut whole: Option<TensorInfo> = None;
    for part in parts {
        let info = set.info_remapped(part)?;
        let Some(whole) = &mut whole else {
            whole = Some(info);
            continue;
        };
        let fits = match (&mut whole.shape[..], &info.shape[..]) {
            ([rows, row @ ..], [more, other @ ..]) if row == other => {
                *rows += more;
                true
            }
            _ => false,
        };
        if !fits {
            return Err(Error::Remap {
                path: set.path().into(),
                name: part.from.clone(),
                shape: info.shape,
                problem: format!(
                    "it does not fit below {:?}, the part before it",
                    whole.shape
                ),
            });
        }
        if whole.dtype != info.dtype {
            whole.dtype = DType::F32;
        }
    }
    whole.ok_or_else(|| Error::MissingTensor {
        path: set.path().into(),
        name: String::new(),
    })
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
