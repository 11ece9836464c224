//! The GGUF format: a magic number and counts, typed metadata, a table of tensors, then the tensors' bytes.
//!
//! Versions 2 and 3, little-endian. Every count and length is held against what is left of the file before
//! anything is allocated for it. Shapes are handed out in PyTorch's order, outermost first; the file has them the
//! other way round. A tensor whose true shape is noted as `comfy.gguf.orig_shape.NAME` (a convolution that was
//! quantised as one long row) gets that shape.

mod cursor;
mod metadata;
mod problem;
mod table;
mod types;
mod writer;

pub use metadata::{Array, Metadata, Value};
pub use problem::Problem;
pub use types::TypeId;
pub use writer::{LONGEST_NAME, Writer};

use crate::{Error, TensorView, WeightFile};
use bytes::Bytes;
use std::path::Path;

/// The most bytes of metadata and table together. Vocabularies of 256,000 tokens take about 10 MB.
pub const MAX_HEADER: usize = 256 << 20;

/// The most axes of a tensor. GGML itself has four.
pub const MAX_AXES: usize = 8;

/// The alignment of tensors where `general.alignment` does not say.
pub const ALIGNMENT: usize = 32;

/// What a metadata key starts with that notes a tensor's true shape.
pub const ORIGINAL_SHAPE: &str = "comfy.gguf.orig_shape.";

/// Reads metadata and the table of tensors out of a whole file's bytes. `path` is only for messages.
///
/// Every view of the result lies inside `bytes`, and no two overlap.
///
/// # Errors
///
/// [`Error::Gguf`] with the first rule of the format that the bytes break.
pub fn read(path: &Path, bytes: Bytes) -> Result<WeightFile, Error> {
    let problem = |problem| Error::Gguf {
        path: path.into(),
        problem: Box::new(problem),
    };
    let header = table::parse(&bytes).map_err(problem)?;
    let tensors = header
        .tensors
        .into_iter()
        .map(|t| TensorView {
            name: t.name,
            dtype: t.dtype,
            shape: t.shape,
            data: bytes.slice(t.range),
        })
        .collect();
    let notes = header.metadata.as_text();
    let file = WeightFile::from_parts(path, "gguf", bytes.len() as u64, tensors, notes);
    Ok(file.with_gguf(header.metadata))
}
