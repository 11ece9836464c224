//! The tiny checkpoints in the other layouts that users have, made from the folders in `golden/`:
//! single files in the original (LDM) layout, variants, shards.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::{TensorView, serialize_to_file};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use crate::{Error, golden};

/// Writes the checkpoint `golden/<family>` as one file in the original layout to
/// `<into>/<family>.safetensors` and returns its path. It holds the same values as the folder.
///
/// The map is `golden/<family>/single_file.json`, which its script checked with diffusers' own
/// conversion; each tensor is checked here against the checksum that was written then.
///
/// # Errors
/// When a golden is missing or does not give the recorded checksum.
pub fn single_file(family: &str, into: &Path) -> Result<PathBuf, Error> {
    write_single_file(family, into, family, |_| true)
}

/// Like [`single_file`], with the UNet alone: `<into>/<family>_unet.safetensors`.
///
/// # Errors
/// As [`single_file`].
pub fn unet_only(family: &str, into: &Path) -> Result<PathBuf, Error> {
    write_single_file(family, into, &format!("{family}_unet"), |name| {
        name.starts_with("model.diffusion_model.")
    })
}

/// Writes a flow family's checkpoint (see [`crate::flow_folder`]) as one file in the original layout, text encoders and
/// autoencoder included: `<into>/<family>.safetensors`. `wanted` picks the tensors by name.
///
/// # Errors
/// As [`single_file`].
pub fn flow_single_file(
    family: &str,
    into: &Path,
    wanted: impl Fn(&str) -> bool,
) -> Result<PathBuf, Error> {
    write_single_file(&format!("flow/{family}"), into, family, wanted)
}

/// Copies the diffusers folder `golden/<family>`, without its references, to `<into>/<family>`.
///
/// # Errors
/// When a file cannot be read or written.
pub fn folder(family: &str, into: &Path) -> Result<PathBuf, Error> {
    let (source, target) = (golden(family), into.join(family));
    for part in list(&source)?.into_iter().filter(|path| path.is_dir()) {
        let copy = target.join(part.file_name().unwrap_or_default());
        fs::create_dir_all(&copy).map_err(io(&copy))?;
        for file in list(&part)? {
            copy_file(&file, &copy.join(file.file_name().unwrap_or_default()))?;
        }
    }
    let index = "model_index.json";
    copy_file(&source.join(index), &target.join(index))?;
    Ok(target)
}

/// The folder with its weights under a variant's name: `model.fp16.safetensors` and so on, as
/// `save_pretrained(variant="fp16")` names them.
///
/// # Errors
/// When a file cannot be read or written.
pub fn variant_folder(family: &str, variant: &str, into: &Path) -> Result<PathBuf, Error> {
    let target = folder(family, into)?;
    for part in list(&target)?.into_iter().filter(|path| path.is_dir()) {
        for file in weight_files(&part)? {
            let renamed = file.with_extension(format!("{variant}.safetensors"));
            fs::rename(&file, &renamed).map_err(io(&renamed))?;
        }
    }
    Ok(target)
}

/// The folder with its UNet in two shards and an index.
///
/// # Errors
/// When a file cannot be read or written.
pub fn sharded_folder(family: &str, into: &Path) -> Result<PathBuf, Error> {
    let target = folder(family, into)?;
    let unet = target.join("unet");
    let whole = unet.join("diffusion_pytorch_model.safetensors");
    let bytes = fs::read(&whole).map_err(io(&whole))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(format_error(&whole))?;
    let mut names = tensors.names();
    names.sort_unstable();
    let mut weight_map = BTreeMap::new();
    for (i, part) in names.chunks(names.len().div_ceil(2)).enumerate() {
        let shard = format!("diffusion_pytorch_model-{:05}-of-00002.safetensors", i + 1);
        let views: Vec<_> = part
            .iter()
            .filter_map(|name| Some((*name, tensors.tensor(name).ok()?)))
            .collect();
        let path = unet.join(&shard);
        serialize_to_file(views, None, &path).map_err(format_error(&path))?;
        weight_map.extend(part.iter().map(|name| (*name, shard.clone())));
    }
    let index = serde_json::json!({
        "metadata": { "total_size": bytes.len() },
        "weight_map": weight_map,
    });
    let path = unet.join("diffusion_pytorch_model.safetensors.index.json");
    fs::write(&path, index.to_string()).map_err(io(&path))?;
    fs::remove_file(&whole).map_err(io(&whole))?;
    Ok(target)
}

/// SDXL's tiny folder with the scheduler of SDXL-Turbo (Euler ancestral, trailing).
///
/// # Errors
/// When a file cannot be read or written.
pub fn turbo_folder(into: &Path) -> Result<PathBuf, Error> {
    let target = folder("sdxl", into)?;
    let config = "scheduler_config.json";
    let from = target.join("scheduler_turbo").join(config);
    copy_file(&from, &target.join("scheduler").join(config))?;
    Ok(target)
}

#[derive(Deserialize)]
struct Map {
    files: BTreeMap<String, String>,
    vocabulary: usize,
    rows: Vec<usize>,
    tensors: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    name: String,
    op: Op,
    part: Option<String>,
    #[serde(default)]
    sources: Vec<String>,
    shape: Option<Vec<usize>>,
    dtype: Option<String>,
    value: Option<f32>,
    checksum: u64,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "snake_case")]
enum Op {
    Copy,
    Concat,
    Swap,
    Transpose,
    Vocabulary,
    Arange,
    Fill,
}

struct Made {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

fn write_single_file(
    family: &str,
    into: &Path,
    stem: &str,
    wanted: impl Fn(&str) -> bool,
) -> Result<PathBuf, Error> {
    let base = golden(family);
    let map_path = base.join("single_file.json");
    let text = fs::read_to_string(&map_path).map_err(io(&map_path))?;
    let map: Map = serde_json::from_str(&text).map_err(format_error(&map_path))?;
    let mut files = BTreeMap::new();
    for (part, file) in &map.files {
        let path = base.join(file);
        files.insert(part.as_str(), fs::read(&path).map_err(io(&path))?);
    }
    let mut parts = BTreeMap::new();
    for (part, bytes) in &files {
        let tensors = SafeTensors::deserialize(bytes).map_err(format_error(&base.join(part)))?;
        parts.insert(*part, tensors);
    }
    let mut made = Vec::new();
    for row in map.tensors.iter().filter(|row| wanted(&row.name)) {
        let tensor = row
            .make(&map, &parts)
            .ok_or_else(|| fault(&map_path, format!("no such source for {}", row.name)))?;
        if checksum(&tensor.data) != row.checksum {
            let what = format!("{} does not give its checksum", row.name);
            return Err(fault(&map_path, what));
        }
        made.push((row.name.as_str(), tensor));
    }
    let path = into.join(format!("{stem}.safetensors"));
    let mut views = Vec::new();
    for (name, tensor) in &made {
        let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.data)
            .map_err(format_error(&map_path))?;
        views.push((*name, view));
    }
    serialize_to_file(views, None, &path).map_err(format_error(&path))?;
    Ok(path)
}

impl Row {
    fn make(&self, map: &Map, parts: &BTreeMap<&str, SafeTensors<'_>>) -> Option<Made> {
        match self.op {
            Op::Arange => {
                let shape = self.shape.clone()?;
                let count = shape.iter().product::<usize>() as i64;
                let data = (0..count).flat_map(i64::to_le_bytes).collect();
                return Some(Made {
                    dtype: Dtype::I64,
                    shape,
                    data,
                });
            }
            Op::Fill => return self.fill(),
            _ => {}
        }
        let part = parts.get(self.part.as_deref()?)?;
        let views: Vec<_> = self
            .sources
            .iter()
            .map(|name| part.tensor(name).ok())
            .collect::<Option<_>>()?;
        let first = views.first()?;
        let (dtype, mut shape) = (first.dtype(), first.shape().to_vec());
        let data = match self.op {
            Op::Concat => {
                shape[0] = views.iter().map(|view| view.shape()[0]).sum();
                views.iter().flat_map(|view| view.data()).copied().collect()
            }
            Op::Swap => {
                let (first, second) = first.data().split_at(first.data().len() / 2);
                [second, first].concat()
            }
            Op::Transpose => {
                let (rows, columns, size) =
                    (shape[0], shape[1], first.data().len() / shape[0] / shape[1]);
                shape = vec![columns, rows];
                (0..columns)
                    .flat_map(|c| (0..rows).map(move |r| (r * columns + c) * size))
                    .flat_map(|at| &first.data()[at..at + size])
                    .copied()
                    .collect()
            }
            Op::Vocabulary => {
                let width = first.data().len() / shape[0];
                let mut data = vec![0; map.vocabulary * width];
                for (row, source) in map.rows.iter().zip(first.data().chunks(width)) {
                    data[row * width..(row + 1) * width].copy_from_slice(source);
                }
                shape[0] = map.vocabulary;
                data
            }
            _ => {
                shape = self.shape.clone().unwrap_or(shape);
                first.data().to_vec()
            }
        };
        Some(Made { dtype, shape, data })
    }

    fn fill(&self) -> Option<Made> {
        let (shape, value) = (self.shape.clone()?, self.value?);
        let (dtype, one) = match self.dtype.as_deref()? {
            "F16" => (
                Dtype::F16,
                half::f16::from_f32(value).to_le_bytes().to_vec(),
            ),
            "F32" => (Dtype::F32, value.to_le_bytes().to_vec()),
            "I64" => (Dtype::I64, (value as i64).to_le_bytes().to_vec()),
            _ => return None,
        };
        let data = one.repeat(shape.iter().product());
        Some(Made { dtype, shape, data })
    }
}

/// The sum of `(i + 1) * byte[i]`, modulo 2^64.
fn checksum(data: &[u8]) -> u64 {
    (1u64..).zip(data).fold(0, |sum, (i, &byte)| {
        sum.wrapping_add(i.wrapping_mul(u64::from(byte)))
    })
}

fn list(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(io(folder))? {
        paths.push(entry.map_err(io(folder))?.path());
    }
    paths.sort();
    Ok(paths)
}

fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut files = list(folder)?;
    files.retain(|path| path.extension().is_some_and(|e| e == "safetensors"));
    Ok(files)
}

fn copy_file(from: &Path, to: &Path) -> Result<(), Error> {
    // Not fs::copy: the copy must be writable whatever the golden is.
    let bytes = fs::read(from).map_err(io(from))?;
    fs::write(to, bytes).map_err(io(to))
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> Error + use<> {
    let path = path.to_path_buf();
    move |source| Error::Io {
        path: path.clone(),
        source,
    }
}

fn fault(path: &Path, what: String) -> Error {
    Error::Format {
        path: path.to_path_buf(),
        what,
    }
}

fn format_error<E: std::fmt::Display>(path: &Path) -> impl Fn(E) -> Error + use<E> {
    let path = path.to_path_buf();
    move |error| fault(&path, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tensors;

    #[test]
    fn single_files_hold_the_folder_s_values() {
        let dir = tempfile::tempdir().unwrap();
        for family in ["sd1", "sd2", "sdxl"] {
            let file = Tensors::read(single_file(family, dir.path()).unwrap()).unwrap();
            let unet = "unet/diffusion_pytorch_model.safetensors";
            let unet = Tensors::read(golden(family).join(unet)).unwrap();
            let one = file.get("model.diffusion_model.input_blocks.4.0.in_layers.2.weight");
            assert_eq!(one, unet.get("down_blocks.1.resnets.0.conv1.weight"));
        }
    }

    #[test]
    fn fused_attention_is_q_k_and_v() {
        let dir = tempfile::tempdir().unwrap();
        let file = Tensors::read(single_file("sdxl", dir.path()).unwrap()).unwrap();
        let folder = Tensors::read(golden("sdxl/text_encoder_2/model.safetensors")).unwrap();
        let prefix = "conditioner.embedders.1.model.";
        let fused = file.get(&format!(
            "{prefix}transformer.resblocks.2.attn.in_proj_weight"
        ));
        assert_eq!(fused.shape(), [96, 32]);
        let of = |x: &str| {
            let name = format!("encoder.layers.2.self_attn.{x}_proj.weight");
            let name = folder.names().find(|n| n.ends_with(&name)).unwrap();
            folder.get(name).f32().to_vec()
        };
        assert_eq!(fused.f32(), [of("q"), of("k"), of("v")].concat());
        let projection = file.get(&format!("{prefix}text_projection"));
        let transposed = folder.get("text_projection.weight").permuted(&[1, 0]);
        assert_eq!(projection, &transposed);
    }

    #[test]
    fn shards_together_hold_the_unet() {
        let dir = tempfile::tempdir().unwrap();
        let unet = sharded_folder("sd1", dir.path()).unwrap().join("unet");
        let shard = |i| {
            unet.join(format!(
                "diffusion_pytorch_model-0000{i}-of-00002.safetensors"
            ))
        };
        let whole = Tensors::read(golden("sd1/unet/diffusion_pytorch_model.safetensors")).unwrap();
        let (a, b) = (
            Tensors::read(shard(1)).unwrap(),
            Tensors::read(shard(2)).unwrap(),
        );
        assert_eq!(a.names().count() + b.names().count(), whole.names().count());
        for (name, tensor) in a.iter().chain(b.iter()) {
            assert_eq!(tensor, whole.get(name));
        }
    }

    #[test]
    fn variants_and_turbo_are_whole_folders() {
        let dir = tempfile::tempdir().unwrap();
        let variant = variant_folder("sd2", "fp16", dir.path()).unwrap();
        assert!(
            variant
                .join("text_encoder/model.fp16.safetensors")
                .is_file()
        );
        assert!(
            variant
                .join("vae/diffusion_pytorch_model.fp16.safetensors")
                .is_file()
        );
        assert!(
            !variant
                .join("vae/diffusion_pytorch_model.safetensors")
                .exists()
        );
        assert!(variant.join("model_index.json").is_file());
        let turbo = turbo_folder(dir.path())
            .unwrap()
            .join("scheduler/scheduler_config.json");
        assert!(fs::read_to_string(turbo).unwrap().contains("\"trailing\""));
    }
}
