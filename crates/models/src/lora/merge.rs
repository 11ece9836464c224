//! Writing a model with its additions merged into the weights: `W + scale up down`, summed in f32.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use aquatint_ops::fused::{self, Epilogue};
use aquatint_ops::{Device, Tensor};
use aquatint_weights::{
    DType, Error, TensorSpec, TensorView, WeightFile, Writer, check_finite, convert, to_f32_vec,
};
use burn::tensor::{DType as Element, TensorData};

use super::additions::Addition;
use super::{Added, Additions};
use crate::ModelError;
use crate::checkpoint::{Checkpoint, Location, OpenOptions};
use crate::folder::Folder;
use crate::keys::Place;
use crate::source::CheckpointSource;

/// Extensions of files with weights.
const WEIGHTS: &[&str] = &[
    "safetensors",
    "bin",
    "ckpt",
    "pt",
    "pth",
    "gguf",
    "msgpack",
    "h5",
    "onnx",
    "onnx_data",
    "pb",
];

/// How a merged model is written.
#[derive(Debug, Clone, Copy, Default)]
pub struct MergeOptions {
    /// Type of all floats; `None` is as stored.
    pub dtype: Option<DType>,
    /// Write over what is at the target.
    pub overwrite: bool,
}

/// What a merge did.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Merged {
    /// The files that were merged in.
    pub loras: Vec<Added>,
    /// Tensors that changed.
    pub changed: usize,
    /// Weight files written.
    pub files: Vec<PathBuf>,
}

/// Writes the model at `location` to `out`, with the additions of `options.loras` merged: a folder for a folder, a file
/// for a file. Nothing is left of a merge that fails.
///
/// # Errors
/// As [`Checkpoint::open`]; a target that is there already; weights that the type cannot hold; a full disk.
pub fn merge(
    location: &Location,
    options: &OpenOptions,
    out: &Path,
    how: &MergeOptions,
) -> Result<Merged, ModelError> {
    let model = Checkpoint::open(location, options)?;
    let mut plan = Plan::new(&model)?;
    let folder = match location {
        Location::Embedded { name, files } => Some(Folder::Embedded { name, files }),
        Location::Path(path) if path.is_dir() => Some(Folder::Disk(path.clone())),
        Location::Path(_) => None,
    };
    check_target(out, folder.is_some(), how)?;
    let mut merged = Merged {
        loras: model.loras.clone(),
        changed: plan.changes.len(),
        files: Vec::new(),
    };
    match folder {
        None => {
            let [file] = &plan.files[..] else {
                return Err(unsupported("a model of several files apart"));
            };
            write_file(file, &mut plan.changes, out, how)?;
            merged.files.push(out.to_owned());
        }
        Some(folder) => {
            let part = Part::begin(out)?;
            copy_others(&folder, &plan, &part.path)?;
            for file in &plan.files {
                let inside = file.path().strip_prefix(folder.path());
                let inside = inside.map_err(|_| unsupported("a model with parts given apart"))?;
                let target = part.path.join(inside);
                make_folder_of(&target)?;
                write_file(file, &mut plan.changes, &target, how)?;
                merged.files.push(out.join(inside));
            }
            part.finish(out)?;
        }
    }
    Ok(merged)
}

fn unsupported(found: &str) -> ModelError {
    ModelError::Unsupported {
        found: found.to_owned(),
        hint: "merge into a whole model: one safetensors file, or a diffusers folder".into(),
    }
}

fn check_target(out: &Path, folder: bool, how: &MergeOptions) -> Result<(), ModelError> {
    let wrong = |found: &str, expected: &str, hint: &str| {
        Err(ModelError::Target {
            path: out.to_owned(),
            found: found.to_owned(),
            expected: expected.to_owned(),
            hint: hint.to_owned(),
        })
    };
    let is_weights = out.extension().is_some_and(|e| e == "safetensors");
    if folder && is_weights {
        return wrong(
            "the name of a file",
            "a folder, as the model is",
            "name a folder",
        );
    }
    if !folder && !is_weights {
        let hint = "name a file that ends in .safetensors";
        return wrong("another name", "a .safetensors file, as the model is", hint);
    }
    if !folder && out.is_dir() || folder && out.is_file() {
        return wrong(
            "something else there",
            "what the model is",
            "take another name",
        );
    }
    if !how.overwrite && out.symlink_metadata().is_ok() {
        let hint = "use --force to write over it, or another name";
        return wrong("something there already", "a free name", hint);
    }
    Ok(())
}

/// One tensor's changes: where in the stored tensor, and what is added.
type Change<'a> = Vec<(Place, &'a Addition)>;

/// Which tensors of which files change.
struct Plan<'a> {
    files: Vec<std::sync::Arc<WeightFile>>,
    /// By file and name in it.
    changes: BTreeMap<(PathBuf, String), Change<'a>>,
}

impl<'a> Plan<'a> {
    fn new(model: &'a Checkpoint) -> Result<Self, ModelError> {
        let mut plan = Plan {
            files: Vec::new(),
            changes: BTreeMap::new(),
        };
        for part in &model.text {
            plan.part(&part.encoder.source, &part.encoder.additions)?;
        }
        plan.part(&model.network.source, &model.network.additions)?;
        plan.part(&model.vae.source, &model.vae.additions)?;
        for file in &plan.files {
            if file.format() != "safetensors" {
                return Err(unsupported(&format!(
                    "a file of the format {}",
                    file.format()
                )));
            }
        }
        Ok(plan)
    }

    fn part(
        &mut self,
        source: &CheckpointSource,
        additions: &'a Additions,
    ) -> Result<(), ModelError> {
        let set = source.weights();
        for file in set.files() {
            if self.files.iter().all(|f| f.path() != file.path()) {
                self.files.push(file.clone());
            }
        }
        for (layer, addition) in additions.iter() {
            let name = format!("{layer}.weight");
            let place = source.layout().place(&name, &|n| set.contains(n));
            let Some((file, stored)) = set.origin(&place.name) else {
                return Err(Error::MissingTensor {
                    path: set.path().to_owned(),
                    name: place.name,
                }
                .into());
            };
            let key = (file.to_owned(), stored.to_owned());
            self.changes.entry(key).or_default().push((place, addition));
        }
        Ok(())
    }
}

/// Writes one weight file with its changes.
fn write_file(
    file: &WeightFile,
    changes: &mut BTreeMap<(PathBuf, String), Change<'_>>,
    out: &Path,
    how: &MergeOptions,
) -> Result<(), ModelError> {
    let stored_as = |view: &TensorView| match how.dtype {
        Some(dtype) if is_float(view.dtype) => dtype,
        _ => view.dtype,
    };
    let specs: Vec<TensorSpec> = file
        .tensors()
        .iter()
        .map(|view| TensorSpec {
            dtype: stored_as(view),
            ..TensorSpec::from(view)
        })
        .collect();
    let mut writer = Writer::create(out, &specs, file.metadata())?;
    for view in file.tensors() {
        let key = (file.path().to_owned(), view.name.clone());
        let written = match changes.remove(&key) {
            None => convert(view, stored_as(view))?,
            Some(change) => {
                let sum = convert(&changed(view, &change)?, stored_as(view))?;
                check_finite(&sum, file.path())?;
                sum
            }
        };
        writer.write(&view.name, &written.data)?;
    }
    Ok(writer.finish()?)
}

fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::F64 | DType::F32 | DType::F16 | DType::Bf16)
}

/// A tensor with its changes, in f32.
fn changed(view: &TensorView, change: &Change<'_>) -> Result<TensorView, ModelError> {
    let mut values = to_f32_vec(view)?;
    for (place, addition) in change {
        let mut delta = product(addition);
        if place.swapped {
            let half = delta.len() / 2;
            delta.rotate_left(half);
        }
        let rows = match place.part {
            None => &mut values[..],
            Some((index, of)) => {
                let part = values.len() / of;
                &mut values[index * part..][..place.span * part]
            }
        };
        if place.transposed {
            let columns = view.shape.last().copied().unwrap_or(1).max(1);
            let height = rows.len() / columns;
            for (i, value) in rows.iter_mut().enumerate() {
                *value += delta[i % columns * height + i / columns];
            }
        } else {
            for (value, d) in rows.iter_mut().zip(&delta) {
                *value += d;
            }
        }
    }
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let sum = TensorView::new(&view.name, DType::F32, view.shape.clone(), bytes.into());
    Ok(sum.expect("as many values as the tensor has"))
}

/// `scale up down`, `[out, in kh kw]`.
fn product(addition: &Addition) -> Vec<f32> {
    let (up, down) = (addition.scaled_up(), addition.down());
    let rank = addition.rank();
    let (out, inner) = (up.len() / rank, down.len() / rank);
    let mut turned = vec![0f32; down.len()];
    for (r, row) in down.chunks_exact(inner).enumerate() {
        for (i, value) in row.iter().enumerate() {
            turned[i * rank + r] = *value;
        }
    }
    let device = Device::flex();
    let tensor = |values: Vec<f32>, shape: [usize; 2]| {
        Tensor::<2>::from_data(TensorData::new(values, shape), (&device, Element::F32))
    };
    let delta = fused::linear(
        tensor(up, [out, rank]),
        tensor(turned, [inner, rank]),
        Epilogue::default(),
    );
    delta
        .into_data()
        .try_into_vec::<f32>()
        .expect("a product of f32 is f32")
}

/// Copies what is no weight file of a part that is written anew.
fn copy_others(folder: &Folder, plan: &Plan<'_>, out: &Path) -> Result<(), ModelError> {
    let root = folder.path();
    let opened: BTreeSet<&Path> = plan
        .files
        .iter()
        .filter_map(|f| f.path().parent())
        .collect();
    for name in folder.files()? {
        let from = root.join(&name);
        let extension = from
            .extension()
            .and_then(|e| e.to_str())
            .unwrap_or_default();
        let place = from.parent().unwrap_or(&root);
        // Other variants would be the model before the merge.
        if WEIGHTS.contains(&extension) && (opened.contains(place) || place == root) {
            continue;
        }
        let to = out.join(&name);
        make_folder_of(&to)?;
        folder.copy(&name, &to)?;
    }
    Ok(())
}

fn make_folder_of(path: &Path) -> Result<(), ModelError> {
    let folder = path.parent().unwrap_or(path);
    std::fs::create_dir_all(folder).map_err(|source| ModelError::Io {
        path: folder.to_owned(),
        source,
    })
}

/// A folder in the making, beside its target. Dropped before it is finished, it is taken away.
struct Part {
    path: PathBuf,
    done: bool,
}

impl Part {
    fn begin(target: &Path) -> Result<Self, ModelError> {
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let path = target.with_file_name(format!(".{name}.part-{}", std::process::id()));
        std::fs::create_dir(&path).map_err(|source| ModelError::Io {
            path: path.clone(),
            source,
        })?;
        Ok(Part { path, done: false })
    }

    fn finish(mut self, target: &Path) -> Result<(), ModelError> {
        let failed = |source| ModelError::Io {
            path: target.to_owned(),
            source,
        };
        let old = self.path.with_extension("old");
        let replaces = target.exists();
        if replaces {
            std::fs::rename(target, &old).map_err(failed)?;
        }
        if let Err(error) = std::fs::rename(&self.path, target) {
            if replaces {
                // What was there comes back.
                let _ = std::fs::rename(&old, target);
            }
            return Err(failed(error));
        }
        self.done = true;
        match replaces {
            true => std::fs::remove_dir_all(&old).map_err(failed),
            false => Ok(()),
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.done {
            // What cannot be taken away stays under its telling name.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}
