//! One or many files as one name space.

use crate::remap::Turn;
use crate::{DType, Error, Remap, TensorView, WeightFile, component, gguf, scaled};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Type and shape of a tensor, without its bytes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorInfo {
    /// How the elements are stored.
    pub dtype: DType,
    /// Axis lengths, outermost first.
    pub shape: Vec<usize>,
}

/// The tensors of one component or model: one file or many, under the names that its reader expects.
///
/// Cheap to clone in bytes (the files are shared), not in names. Renaming and scoping make new sets and
/// touch no tensor.
#[derive(Clone, Debug)]
pub struct WeightSet {
    path: PathBuf,
    files: Vec<Arc<WeightFile>>,
    entries: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    file: usize,
    /// Place in the file's table.
    tensor: usize,
    /// The scale of an 8-bit float tensor.
    scale: Option<f32>,
    /// What key maps do to it, first to last.
    turns: Vec<Turn>,
    info: TensorInfo,
}

impl WeightSet {
    /// Opens one weight file, or all the shards of a `*.safetensors.index.json`.
    ///
    /// # Errors
    ///
    /// As [`WeightFile::open`]; for an index also a damaged one, missing shards, and tensors that the
    /// shards do not hold.
    pub fn open(path: impl AsRef<Path>) -> Result<WeightSet, Error> {
        let path = path.as_ref();
        let name = path
            .file_name()
            .and_then(|n| n.to_str())
            .unwrap_or_default();
        match name.contains(".safetensors.index") && name.ends_with(".json") {
            true => component::open_index(path),
            false => WeightFile::open(path).map(WeightSet::from),
        }
    }

    /// Opens a component of a model folder: the file `STEM.safetensors` or its shards, for the first of
    /// the stems that has any. Without a variant that is the file with no suffix, else the only variant
    /// there is; with one it is `STEM.VARIANT.safetensors`.
    ///
    /// # Errors
    ///
    /// [`Error::NoWeights`] or [`Error::Variant`], which list what is there; and as [`WeightSet::open`].
    pub fn open_component(
        folder: impl AsRef<Path>,
        stems: &[&str],
        variant: Option<&str>,
    ) -> Result<WeightSet, Error> {
        component::open_component(folder.as_ref(), stems, variant)
    }

    /// Several files as one name space; `path` stands for all of them in messages.
    ///
    /// # Errors
    ///
    /// [`Error::Duplicate`] when two files hold one name.
    pub fn from_files(
        path: impl Into<PathBuf>,
        files: Vec<WeightFile>,
    ) -> Result<WeightSet, Error> {
        let mut set = WeightSet {
            path: path.into(),
            files: Vec::new(),
            entries: BTreeMap::new(),
        };
        for file in files {
            set = set.merged(&WeightSet::from(file))?;
        }
        Ok(set)
    }

    /// The file, index or folder that stands for the set in messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files that back the set.
    pub fn files(&self) -> &[Arc<WeightFile>] {
        &self.files
    }

    /// A value of the files' GGUF metadata, such as `tokenizer.ggml.tokens`; of several files the first that has it.
    pub fn gguf_value(&self, key: &str) -> Option<&gguf::Value> {
        self.files.iter().find_map(|f| f.gguf().get(key))
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Every name, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Every name with its type and shape, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.entries.iter().map(|(n, e)| (n.as_str(), &e.info))
    }

    /// Whether that name is there.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// Whether any name starts so.
    pub fn has_prefix(&self, prefix: &str) -> bool {
        self.under(prefix).next().is_some()
    }

    fn under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a String, &'a Entry)> {
        self.entries
            .range(prefix.to_string()..)
            .take_while(move |(n, _)| n.starts_with(prefix))
    }

    /// Takes the pages of the tensors whose names start with `prefix` out of this process's memory: for a
    /// component that is not needed for now. The files stay mapped, and what is read again comes from the system's
    /// cache.
    pub fn release_pages(&self, prefix: &str) {
        for (i, file) in self.files.iter().enumerate() {
            let of_file = self.under(prefix).map(|(_, entry)| entry);
            file.release_pages(of_file.filter(|e| e.file == i).map(|e| e.tensor));
        }
    }

    /// Takes the pages behind some bytes of a file out of this process's memory, for readers that pass once over
    /// more than fits in it. Bytes that are no part of a mapped file are left alone.
    pub fn release(&self, data: &[u8]) {
        for file in &self.files {
            file.release(data);
        }
    }

    /// Type and shape of a tensor, as it will be taken.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.entries.get(name).map(|e| &e.info)
    }

    /// Where a tensor comes from: its file, and its name there.
    pub fn origin(&self, name: &str) -> Option<(&Path, &str)> {
        let e = self.entries.get(name)?;
        let file = &self.files[e.file];
        Some((file.path(), &file.tensors()[e.tensor].name))
    }

    /// A tensor as a view of its file; a transposed one, or one of 8-bit floats with a scale, is a copy.
    ///
    /// # Errors
    ///
    /// [`Error::MissingTensor`].
    pub fn get(&self, name: &str) -> Result<TensorView, Error> {
        let e = self.entries.get(name).ok_or_else(|| Error::MissingTensor {
            path: self.path.clone(),
            name: name.into(),
        })?;
        let mut view = self.files[e.file].tensors()[e.tensor].clone();
        if let Some(scale) = e.scale {
            view = scaled::apply(&view, scale);
        }
        for turn in &e.turns {
            let shape = view.shape.clone();
            view = turn
                .apply(view)
                .map_err(|problem| self.remap_error(e, shape, problem))?;
        }
        Ok(TensorView {
            name: name.into(),
            ..view
        })
    }

    /// The tensor that one row of a key map makes, without a new set: `row.from` is looked up, and the
    /// view is called `row.to`.
    ///
    /// # Errors
    ///
    /// [`Error::MissingTensor`] of `row.from`, [`Error::Remap`].
    pub fn get_remapped(&self, row: &Remap) -> Result<TensorView, Error> {
        let mut view = self.get(&row.from)?;
        if let (Some(turn), Some(e)) = (row.turn(), self.entries.get(&row.from)) {
            let shape = view.shape.clone();
            view = turn
                .apply(view)
                .map_err(|problem| self.remap_error(e, shape, problem))?;
        }
        Ok(TensorView {
            name: row.to.clone(),
            ..view
        })
    }

    /// Type and shape of [`WeightSet::get_remapped`]'s tensor, without its bytes.
    ///
    /// # Errors
    ///
    /// As [`WeightSet::get_remapped`].
    pub fn info_remapped(&self, row: &Remap) -> Result<TensorInfo, Error> {
        let e = self
            .entries
            .get(&row.from)
            .ok_or_else(|| Error::MissingTensor {
                path: self.path.clone(),
                name: row.from.clone(),
            })?;
        let mut info = e.info.clone();
        if let Some(turn) = row.turn() {
            info.shape = turn
                .shape(info.dtype, &info.shape)
                .map_err(|problem| self.remap_error(e, info.shape.clone(), problem))?;
        }
        Ok(info)
    }

    fn remap_error(&self, e: &Entry, shape: Vec<usize>, problem: String) -> Error {
        let file = &self.files[e.file];
        let name = file.tensors()[e.tensor].name.clone();
        Error::Remap {
            path: file.path().into(),
            name,
            shape,
            problem,
        }
    }

    /// Only the names that start with `prefix`, without it; the others are out of sight.
    pub fn scoped(&self, prefix: &str) -> WeightSet {
        let entries = self
            .under(prefix)
            .map(|(n, e)| (n[prefix.len()..].to_string(), e.clone()));
        self.with(entries.collect())
    }

    /// Only the names that `keep` wants.
    pub fn filtered(&self, keep: impl Fn(&str) -> bool) -> WeightSet {
        let entries = self.entries.iter().filter(|(n, _)| keep(n));
        self.with(entries.map(|(n, e)| (n.clone(), e.clone())).collect())
    }

    fn with(&self, entries: BTreeMap<String, Entry>) -> WeightSet {
        WeightSet {
            path: self.path.clone(),
            files: self.files.clone(),
            entries,
        }
    }

    /// Every name through `rename`; `None` keeps the name, so that what no map knows is still seen (and
    /// listed as unused).
    ///
    /// # Errors
    ///
    /// [`Error::Duplicate`] when two tensors get one name.
    pub fn renamed(&self, rename: impl Fn(&str) -> Option<String>) -> Result<WeightSet, Error> {
        let mut out = self.with(BTreeMap::new());
        for (name, e) in &self.entries {
            out.add(rename(name).unwrap_or_else(|| name.clone()), e.clone())?;
        }
        Ok(out)
    }

    /// Every row of a key map whose `from` is here; names that no row mentions are kept as they are. One
    /// tensor may be the source of several rows.
    ///
    /// # Errors
    ///
    /// [`Error::Duplicate`] when two tensors get one name, [`Error::Remap`] when a tensor's shape does
    /// not allow what its row says.
    pub fn remapped(&self, rows: &[Remap]) -> Result<WeightSet, Error> {
        let sources: BTreeSet<&str> = rows.iter().map(|r| r.from.as_str()).collect();
        let mut out = self.filtered(|name| !sources.contains(name));
        for row in rows {
            let Some(e) = self.entries.get(&row.from) else {
                continue;
            };
            let mut e = e.clone();
            if let Some(turn) = row.turn() {
                e.info.shape = turn
                    .shape(e.info.dtype, &e.info.shape)
                    .map_err(|problem| self.remap_error(&e, e.info.shape.clone(), problem))?;
                e.turns.push(turn);
            }
            out.add(row.to.clone(), e)?;
        }
        Ok(out)
    }

    /// This set and another as one name space, for components that are given as files apart.
    ///
    /// # Errors
    ///
    /// [`Error::Duplicate`] when both hold one name.
    pub fn merged(&self, other: &WeightSet) -> Result<WeightSet, Error> {
        let mut out = self.clone();
        let base = out.files.len();
        out.files.extend(other.files.iter().cloned());
        for (name, e) in &other.entries {
            out.add(
                name.clone(),
                Entry {
                    file: base + e.file,
                    ..e.clone()
                },
            )?;
        }
        Ok(out)
    }

    fn add(&mut self, name: String, entry: Entry) -> Result<(), Error> {
        let Some(old) = self.entries.get(&name) else {
            self.entries.insert(name, entry);
            return Ok(());
        };
        let place = |e: &Entry| {
            let file = &self.files[e.file];
            format!(
                "{} in {}",
                file.tensors()[e.tensor].name.escape_debug(),
                file.path().display()
            )
        };
        let (first, second) = (place(old), place(&entry));
        Err(Error::Duplicate {
            path: self.path.clone(),
            name,
            first,
            second,
        })
    }

    /// [`WeightFile::check_unchanged`] of every file.
    ///
    /// # Errors
    ///
    /// [`Error::Changed`] for the first that did.
    pub fn check_unchanged(&self) -> Result<(), Error> {
        self.files.iter().try_for_each(|f| f.check_unchanged())
    }
}

impl From<WeightFile> for WeightSet {
    fn from(file: WeightFile) -> WeightSet {
        let scales = scaled::Scales::find(&file);
        let entry = |(tensor, t): (usize, &TensorView)| {
            let scale = scales.of.get(&t.name).copied();
            let info = TensorInfo {
                dtype: scale.map_or(t.dtype, scaled::scaled_dtype),
                shape: t.shape.clone(),
            };
            let entry = Entry {
                file: 0,
                tensor,
                scale,
                turns: Vec::new(),
                info,
            };
            (t.name.clone(), entry)
        };
        let shown = |(_, t): &(usize, &TensorView)| !scales.hidden.contains(&t.name);
        let entries = file
            .tensors()
            .iter()
            .enumerate()
            .filter(shown)
            .map(entry)
            .collect();
        WeightSet {
            path: file.path().into(),
            files: vec![Arc::new(file)],
            entries,
        }
    }
}
