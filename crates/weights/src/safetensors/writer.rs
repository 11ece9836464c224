//! Writing safetensors files: whole or not at all.

use super::{MAX_AXES, MAX_HEADER};
use crate::{DType, Error, TensorView};
use serde_json::{Map, json};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// Name, type and shape of a tensor that is going to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// How its elements are stored.
    pub dtype: DType,
    /// Axis lengths, outermost first.
    pub shape: Vec<usize>,
}

impl From<&TensorView> for TensorSpec {
    fn from(view: &TensorView) -> TensorSpec {
        TensorSpec {
            name: view.name.clone(),
            dtype: view.dtype,
            shape: view.shape.clone(),
        }
    }
}

/// Writes tensors one after another into a temporary file beside the target, which takes the target's
/// place only in [`Writer::finish`]. Dropped before that, it leaves nothing behind, and a file that was
/// at the target stays as it was, mapped or not.
///
/// Tensors are laid out by descending element size (then in the order announced), so that each is
/// aligned for its type; they may be written in any order.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    out: BufWriter<NamedTempFile>,
    slots: HashMap<String, Slot>,
    /// Where `out` stands, in bytes from the start of the file.
    at: u64,
}

#[derive(Debug)]
struct Slot {
    /// In bytes from the start of the file.
    begin: u64,
    len: usize,
    written: bool,
}

impl Writer {
    /// Starts a file of exactly these tensors.
    ///
    /// # Errors
    ///
    /// A repeated name or one that the format reserves, a size that overflows, a header beyond the
    /// format's limit; a folder that is not there or cannot be written; a target that is a folder or a
    /// device.
    pub fn create(
        path: impl AsRef<Path>,
        tensors: &[TensorSpec],
        metadata: &BTreeMap<String, String>,
    ) -> Result<Writer, Error> {
        let path = path.as_ref();
        let (header, slots) = layout(path, tensors, metadata)?;
        let out = BufWriter::with_capacity(1 << 20, temporary_beside(path)?);
        let at = header.len() as u64;
        let mut writer = Writer {
            path: path.into(),
            out,
            slots,
            at,
        };
        writer.out.write_all(&header).map_err(|e| writer.io(e))?;
        Ok(writer)
    }

    /// Writes the bytes of one announced tensor, row-major and little-endian.
    ///
    /// # Errors
    ///
    /// A tensor that was not announced, is written already, or has another number of bytes; what the
    /// disk refuses, such as having no space left.
    pub fn write(&mut self, name: &str, data: &[u8]) -> Result<(), Error> {
        let problem = match self.slots.get(name) {
            None => "it was not announced".into(),
            Some(slot) if slot.written => "it is written already".into(),
            Some(slot) if slot.len != data.len() => {
                format!("it has {} bytes, expected {}", data.len(), slot.len)
            }
            Some(slot) => return self.put(name, slot.begin, data),
        };
        Err(Error::Write {
            path: self.path.clone(),
            name: name.into(),
            problem,
        })
    }

    fn put(&mut self, name: &str, begin: u64, data: &[u8]) -> Result<(), Error> {
        if begin != self.at {
            self.out
                .seek(SeekFrom::Start(begin))
                .map_err(|e| self.io(e))?;
        }
        self.out.write_all(data).map_err(|e| self.io(e))?;
        self.at = begin + data.len() as u64;
        if let Some(slot) = self.slots.get_mut(name) {
            slot.written = true;
        }
        Ok(())
    }

    /// Brings everything to the disk and puts the file in its place.
    ///
    /// # Errors
    ///
    /// A tensor that was announced and not written; what the disk refuses. Nothing is left then.
    pub fn finish(self) -> Result<(), Error> {
        let Writer {
            path, out, slots, ..
        } = self;
        let absent = slots
            .iter()
            .filter(|(_, slot)| !slot.written)
            .map(|(name, _)| name)
            .min();
        if let Some(name) = absent {
            let problem = "it was announced and never written".into();
            return Err(Error::Write {
                path,
                name: name.clone(),
                problem,
            });
        }
        let temporary = out
            .into_inner()
            .map_err(|e| Error::io(&path, "write", e.into_error()))?;
        temporary
            .as_file()
            .sync_all()
            .map_err(|e| Error::io(&path, "write", e))?;
        temporary
            .persist(&path)
            .map_err(|e| Error::io(&path, "write", e.error))?;
        // The new name reaches the disk with its folder. Systems that cannot sync a folder lose at most
        // the renaming in a crash, never half a file.
        let _ = File::open(folder_of(&path)).and_then(|folder| folder.sync_all());
        Ok(())
    }

    fn io(&self, error: std::io::Error) -> Error {
        Error::io(&self.path, "write", error)
    }
}

/// Writes a file of these tensors at once; see [`Writer`].
///
/// # Errors
///
/// As [`Writer::create`], [`Writer::write`] and [`Writer::finish`].
pub fn write(
    path: impl AsRef<Path>,
    tensors: &[TensorView],
    metadata: &BTreeMap<String, String>,
) -> Result<(), Error> {
    let specs: Vec<TensorSpec> = tensors.iter().map(TensorSpec::from).collect();
    let mut writer = Writer::create(path, &specs, metadata)?;
    for tensor in tensors {
        writer.write(&tensor.name, &tensor.data)?;
    }
    writer.finish()
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if p != Path::new("") => p,
        _ => Path::new("."),
    }
}

fn temporary_beside(path: &Path) -> Result<NamedTempFile, Error> {
    match std::fs::metadata(path) {
        Ok(m) if m.is_dir() => return Err(Error::Directory { path: path.into() }),
        // Renaming over a device would replace it.
        Ok(m) if !m.is_file() => return Err(Error::NotRegular { path: path.into() }),
        _ => {}
    }
    let folder = folder_of(path);
    let mut builder = tempfile::Builder::new();
    builder.prefix(".aquatint-").suffix(".part");
    #[cfg(unix)]
    {
        // As any new file, by the user's umask; the crate's own default would hide it from others.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder
        .tempfile_in(folder)
        .map_err(|e| Error::io(folder, "create a file in", e))
}

/// The most bytes of tensors, so that with the header every offset fits what files can seek to.
const LARGEST: u64 = i64::MAX as u64 - MAX_HEADER - 16;

/// The first bytes of the file, up to the tensors, and where each tensor goes.
fn layout(
    path: &Path,
    tensors: &[TensorSpec],
    metadata: &BTreeMap<String, String>,
) -> Result<(Vec<u8>, HashMap<String, Slot>), Error> {
    let refuse = |name: &str, problem: &str| Error::Write {
        path: path.into(),
        name: name.into(),
        problem: problem.into(),
    };
    let mut order: Vec<&TensorSpec> = tensors.iter().collect();
    order.sort_by_key(|t| std::cmp::Reverse(t.dtype.alignment()));
    let mut table = Map::new();
    if !metadata.is_empty() {
        table.insert("__metadata__".into(), json!(metadata));
    }
    let mut slots = HashMap::with_capacity(order.len());
    let mut end = 0u64;
    for t in order {
        if t.name == "__metadata__" {
            return Err(refuse(&t.name, "the format reserves that name"));
        }
        if t.dtype.blocks().is_some() {
            return Err(refuse(&t.name, "safetensors has no quantised types"));
        }
        if t.shape.len() > MAX_AXES {
            return Err(refuse(&t.name, "it has too many axes"));
        }
        let begin = end;
        let elements = t.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let len = elements
            .and_then(|n| t.dtype.byte_size(n))
            .ok_or_else(|| refuse(&t.name, "its size overflows"))?;
        end = begin
            .checked_add(len as u64)
            .filter(|end| *end <= LARGEST)
            .ok_or_else(|| refuse(&t.name, "no file can be that long"))?;
        if slots
            .insert(
                t.name.clone(),
                Slot {
                    begin,
                    len,
                    written: false,
                },
            )
            .is_some()
        {
            return Err(refuse(&t.name, "it is announced twice"));
        }
        let row = json!({"dtype": t.dtype, "shape": t.shape, "data_offsets": [begin, end]});
        table.insert(t.name.clone(), row);
    }
    let mut text = serde_json::Value::Object(table).to_string();
    // Trailing spaces, so that the tensors start at a multiple of 8.
    text.extend(std::iter::repeat_n(
        ' ',
        text.len().next_multiple_of(8) - text.len(),
    ));
    if text.len() as u64 > MAX_HEADER {
        let name = tensors.first().map_or("__metadata__", |t| &t.name);
        return Err(refuse(
            name,
            "the header would be longer than the format allows",
        ));
    }
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.extend_from_slice(text.as_bytes());
    for slot in slots.values_mut() {
        slot.begin += header.len() as u64;
    }
    Ok((header, slots))
}
