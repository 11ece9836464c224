//! Writing safetensors files: whole or not at all.

use super::{MAX_AXES, MAX_HEADER};
use crate::output::{Output, Slot};
use crate::{DType, Error, TensorView};
use serde_json::{Map, json};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

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
pub struct Writer(Output);

impl Writer {
    /// Starts a file of exactly these tensors.
    ///
    /// # Errors
    ///
    /// A repeated name or one that the format reserves, a quantised type, a size that overflows, a header beyond
    /// the format's limit; a folder that is not there or cannot be written; a target that is a folder or a
    /// device.
    pub fn create(
        path: impl AsRef<Path>,
        tensors: &[TensorSpec],
        metadata: &BTreeMap<String, String>,
    ) -> Result<Writer, Error> {
        let path = path.as_ref();
        let Layout { header, slots, len } = layout(path, tensors, metadata)?;
        Output::create(path, &header, slots, len).map(Writer)
    }

    /// Writes the bytes of one announced tensor, row-major and little-endian.
    ///
    /// # Errors
    ///
    /// A tensor that was not announced, is written already, or has another number of bytes; what the
    /// disk refuses, such as having no space left.
    pub fn write(&mut self, name: &str, data: &[u8]) -> Result<(), Error> {
        self.0.write(name, data)
    }

    /// Writes the next bytes of one announced tensor, for tensors that never are in memory whole.
    ///
    /// # Errors
    ///
    /// As [`Writer::write`]; that bytes are left out shows in [`Writer::finish`].
    pub fn append(&mut self, name: &str, data: &[u8]) -> Result<(), Error> {
        self.0.append(name, data)
    }

    /// Brings everything to the disk and puts the file in its place.
    ///
    /// # Errors
    ///
    /// A tensor that was announced and not written; what the disk refuses. Nothing is left then.
    pub fn finish(self) -> Result<(), Error> {
        self.0.finish()
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

/// The most bytes of tensors, so that with the header every offset fits what files can seek to.
const LARGEST: u64 = i64::MAX as u64 - MAX_HEADER - 16;

/// The first bytes of the file, up to the tensors, where each tensor goes, and the length of the whole.
struct Layout {
    header: Vec<u8>,
    slots: HashMap<String, Slot>,
    len: u64,
}

fn layout(
    path: &Path,
    tensors: &[TensorSpec],
    metadata: &BTreeMap<String, String>,
) -> Result<Layout, Error> {
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
            .insert(t.name.clone(), Slot::new(begin, len))
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
    let len = header.len() as u64 + end;
    Ok(Layout { header, slots, len })
}
