//! What is in a set of weight files, for people and for JSON.

use crate::{DType, WeightFile, WeightSet};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Everything that the tables of the files say; no tensor is touched to make it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inspection {
    /// The file, index or folder.
    pub path: PathBuf,
    /// Each file behind it.
    pub files: Vec<FileRow>,
    /// Number of elements of all tensors.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// How much of each storage type there is.
    pub dtypes: Vec<DTypeRow>,
    /// Each tensor, sorted by name.
    pub tensors: Vec<TensorRow>,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FileRow {
    /// Where it is.
    pub path: PathBuf,
    /// Its format, as in [`crate::FORMATS`].
    pub format: &'static str,
    /// Its length.
    pub bytes: u64,
    /// Its own notes.
    pub metadata: BTreeMap<String, String>,
}

/// One storage type.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DTypeRow {
    /// The type.
    pub dtype: DType,
    /// Tensors stored so.
    pub tensors: usize,
    /// Their elements.
    pub parameters: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// One tensor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorRow {
    /// Its name in the set.
    pub name: String,
    /// How it is stored.
    pub dtype: DType,
    /// Axis lengths, outermost first.
    pub shape: Vec<usize>,
    /// Its bytes.
    pub bytes: u64,
}

impl WeightSet {
    /// What the set holds. Of a set that a key map cut into parts, the parts are counted.
    pub fn inspect(&self) -> Inspection {
        let tensors: Vec<TensorRow> = self
            .iter()
            .map(|(name, info)| {
                // The sizes of every tensor of a file were checked when it was opened.
                let elements = info.shape.iter().product();
                let bytes = info.dtype.byte_size(elements).unwrap_or(0) as u64;
                TensorRow {
                    name: name.into(),
                    dtype: info.dtype,
                    shape: info.shape.clone(),
                    bytes,
                }
            })
            .collect();
        let mut dtypes = BTreeMap::new();
        for t in &tensors {
            let empty = DTypeRow {
                dtype: t.dtype,
                tensors: 0,
                parameters: 0,
                bytes: 0,
            };
            let row = dtypes.entry(t.dtype).or_insert(empty);
            row.tensors += 1;
            row.parameters += t.shape.iter().product::<usize>() as u64;
            row.bytes += t.bytes;
        }
        let dtypes: Vec<DTypeRow> = dtypes.into_values().collect();
        Inspection {
            path: self.path().into(),
            files: self.files().iter().map(|f| FileRow::of(f)).collect(),
            parameters: dtypes.iter().map(|d| d.parameters).sum(),
            bytes: dtypes.iter().map(|d| d.bytes).sum(),
            dtypes,
            tensors,
        }
    }
}

impl FileRow {
    fn of(file: &WeightFile) -> FileRow {
        FileRow {
            path: file.path().into(),
            format: file.format(),
            bytes: file.len_bytes(),
            metadata: file.metadata().clone(),
        }
    }
}
