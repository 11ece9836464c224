//! The safetensors format: eight bytes of header length, a JSON header, then the tensors' bytes.
//!
//! The header is read by our own code, because the reference crate takes a repeated name silently and
//! its errors name neither the tensor nor the numbers. Tests and a fuzz target hold that both read the
//! same tensors from the same files. Where ours refuses more: repeated names, a header that does not
//! start with a brace (both are the format's rules), a tensor written as an array instead of an object,
//! more than [`MAX_AXES`] axes, and the storage types that [`crate::DType`] lacks.

mod header;
mod writer;

pub use header::HeaderProblem;
pub use writer::{TensorSpec, Writer, write};

use crate::{Error, TensorView, WeightFile};
use bytes::Bytes;
use std::path::Path;

/// The longest header that the format allows, in bytes.
pub const MAX_HEADER: u64 = 100_000_000;

/// The most axes that a tensor may have. The format sets no limit; nothing real has more than 8.
pub const MAX_AXES: usize = 32;

/// Reads the table of tensors out of a whole file's bytes. `path` is only for messages.
///
/// Every view of the result lies inside `bytes`, the views do not overlap, and together they cover all
/// that follows the header.
///
/// # Errors
///
/// [`Error::Header`] with the first rule of the format that the bytes break.
pub fn read(path: &Path, bytes: Bytes) -> Result<WeightFile, Error> {
    let problem = |problem| Error::Header {
        path: path.into(),
        problem,
    };
    let header = header::parse(&bytes).map_err(problem)?;
    let payload = bytes.slice(header.payload_start..);
    let tensors = header
        .tensors
        .into_iter()
        .map(|t| TensorView {
            name: t.name,
            dtype: t.dtype,
            shape: t.shape,
            data: payload.slice(t.range),
        })
        .collect();
    Ok(WeightFile::from_parts(
        path,
        "safetensors",
        bytes.len() as u64,
        tensors,
        header.metadata,
    ))
}
