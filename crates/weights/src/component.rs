//! Finding the weights of one component in a model folder: plain files, variants, shards.

use crate::error::{List, Name, shorten};
use crate::safetensors::MAX_HEADER;
use crate::{Error, WeightFile, WeightSet, mmap, strict};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Component, Path};

/// What a folder holds for one stem: for each variant ("" is none) the file to open.
type Choices = BTreeMap<String, String>;

pub(crate) fn open_component(
    folder: &Path,
    stems: &[&str],
    variant: Option<&str>,
) -> Result<WeightSet, Error> {
    let names = list(folder)?;
    let found = stems
        .iter()
        .map(|stem| choices(&names, stem))
        .find(|c| !c.is_empty());
    let Some(found) = found else {
        let expected = stems
            .iter()
            .map(|s| format!("{s}.safetensors"))
            .collect::<Vec<_>>()
            .join(" or ");
        return Err(Error::NoWeights {
            folder: folder.into(),
            expected,
            found: unreadable(&names, stems),
        });
    };
    let chosen = match variant {
        Some(v) => found.get(v),
        None => found.get("").or(if found.len() == 1 {
            found.values().next()
        } else {
            None
        }),
    };
    match chosen {
        Some(name) => WeightSet::open(folder.join(name)),
        None => Err(Error::Variant {
            folder: folder.into(),
            wanted: variant.map(String::from),
            choices: found
                .keys()
                .map(|v| {
                    if v.is_empty() {
                        "(none)".into()
                    } else {
                        v.clone()
                    }
                })
                .collect(),
        }),
    }
}

/// The names of the files in a folder, sorted. A name that is not Unicode cannot be one of ours.
fn list(folder: &Path) -> Result<BTreeSet<String>, Error> {
    let meta = std::fs::metadata(folder).map_err(|e| Error::io(folder, "read", e))?;
    if !meta.is_dir() {
        return Err(Error::NotADirectory {
            path: folder.into(),
        });
    }
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, "list", e))? {
        let entry = entry.map_err(|e| Error::io(folder, "list", e))?;
        names.extend(entry.file_name().into_string().ok());
    }
    Ok(names)
}

/// `STEM[.VARIANT].safetensors` and `STEM.safetensors.index[.VARIANT].json`. Where a variant has both, the
/// whole file is taken.
fn choices(names: &BTreeSet<String>, stem: &str) -> Choices {
    let mut found = Choices::new();
    let mut indices = Choices::new();
    for name in names {
        let Some(rest) = name.strip_prefix(stem) else {
            continue;
        };
        if let Some(middle) = rest.strip_suffix(".safetensors") {
            found.extend(variant_of(middle).map(|v| (v, name.clone())));
        }
        let index = rest
            .strip_prefix(".safetensors.index")
            .and_then(|r| r.strip_suffix(".json"));
        if let Some(middle) = index {
            indices.extend(variant_of(middle).map(|v| (v, name.clone())));
        }
    }
    for (variant, name) in indices {
        found.entry(variant).or_insert(name);
    }
    found
}

/// "" is no variant, ".fp16" is `fp16`; anything else (shards, other stems) is none of ours.
fn variant_of(middle: &str) -> Option<String> {
    if middle.is_empty() {
        return Some(String::new());
    }
    let variant = middle.strip_prefix('.')?;
    let plain = !variant.is_empty() && !is_shard(variant);
    plain.then(|| variant.to_string())
}

/// Whether a name ends in `-00001-of-00002`.
fn is_shard(name: &str) -> bool {
    let number = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    name.rsplit_once("-of-").is_some_and(|(head, count)| {
        number(count) && head.rsplit_once('-').is_some_and(|(_, n)| number(n))
    })
}

/// Files of these stems in formats that are not read, and shards without their index.
fn unreadable(names: &BTreeSet<String>, stems: &[&str]) -> Vec<String> {
    const OTHERS: [&str; 7] = [".bin", ".ckpt", ".pt", ".pth", ".gguf", ".msgpack", ".onnx"];
    let ours = |n: &&String| {
        let shard = n.strip_suffix(".safetensors").is_some_and(is_shard);
        stems.iter().any(|s| n.starts_with(s)) && (shard || OTHERS.iter().any(|o| n.ends_with(o)))
            || n.starts_with("pytorch_model") && n.ends_with(".bin")
    };
    names.iter().filter(ours).cloned().collect()
}

/// Opens every shard that a `*.safetensors.index.json` names.
///
/// Tensors that the shards hold and the index does not mention are kept too, so that they show up as
/// unused; where two shards hold one name, the index decides.
pub(crate) fn open_index(path: &Path) -> Result<WeightSet, Error> {
    let damaged = |problem: String| Error::Index {
        path: path.into(),
        problem,
    };
    let weight_map = read_index(path)?;
    let shards: BTreeSet<&str> = weight_map.values().map(String::as_str).collect();
    if shards.is_empty() {
        return Err(damaged("its weight_map names no tensor".into()));
    }
    if let Some(bad) = shards.iter().find(|s| !is_plain_file_name(s)) {
        return Err(damaged(format!(
            "it names the shard {}, expected a file of the same folder",
            Name(bad)
        )));
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    let is_missing = |s: &&&str| !folder.join(s).exists();
    let missing: Vec<String> = shards
        .iter()
        .filter(is_missing)
        .map(|s| s.to_string())
        .collect();
    if !missing.is_empty() {
        return Err(Error::MissingShards {
            path: path.into(),
            missing,
            total: shards.len(),
        });
    }

    let mut files = HashMap::new();
    for shard in &shards {
        files.insert(*shard, WeightFile::open(folder.join(shard))?);
    }
    let absent = |(name, shard): &(&String, &String)| files[shard.as_str()].get(name).is_none();
    let absent: Vec<_> = weight_map.iter().filter(absent).collect();
    if let Some((_, shard)) = absent.first() {
        let names: Vec<String> = absent.iter().map(|(n, _)| n.to_string()).collect();
        return Err(damaged(format!(
            "its shards do not hold {}; the first should be in {}",
            List(&names),
            Name(shard)
        )));
    }

    let mut set = WeightSet::from_files(path, Vec::new())?;
    for shard in shards {
        let Some(file) = files.remove(shard) else {
            continue;
        };
        let belongs = |name: &str| weight_map.get(name).is_none_or(|s| s == shard);
        set = set.merged(&WeightSet::from(file).filtered(belongs))?;
    }
    Ok(set)
}

/// The `weight_map` of an index file: tensor to shard.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>, Error> {
    let damaged = |problem: String| Error::Index {
        path: path.into(),
        problem,
    };
    let len = mmap::regular_file_len(path)?;
    if len == 0 {
        return Err(Error::Empty { path: path.into() });
    }
    if len > MAX_HEADER {
        return Err(damaged(format!(
            "it has {len} bytes, expected at most {MAX_HEADER}"
        )));
    }
    let text = std::fs::read(path).map_err(|e| Error::io(path, "read", e))?;
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: strict::Texts,
    }
    let index: strict::Object<Index> =
        serde_json::from_slice(&text).map_err(|e| damaged(shorten(&e.to_string())))?;
    Ok(index.0.weight_map.0)
}

/// A name without folders, so that an index cannot reach out of its own.
fn is_plain_file_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let plain = matches!(parts.next(), Some(Component::Normal(_))) && parts.next().is_none();
    plain && !name.contains(['/', '\\', '\0', ':'])
}
