//! PyTorch's checkpoints: a pickle in a zip archive, or in the older format several pickles and raw storages one
//! after another.
//!
//! A pickle is a program that builds objects. Ours runs on a machine that builds lists, dictionaries, numbers,
//! texts and descriptions of tensors, and has no way to call anything: every opcode and every class or function
//! that it does not know is refused by name ([`Problem::Opcode`], [`Problem::Global`]). Memory is bounded by the
//! length of the pickle.
//!
//! Tensors that lie in one piece in an uncompressed entry are views of the mapped file.

mod globals;
mod legacy;
mod machine;
mod problem;
mod tensors;
mod zip;

pub use problem::Problem;

use crate::{Error, TensorView, WeightFile};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::Path;

/// Reads a checkpoint of the zip format (PyTorch 1.6 and later). `path` is only for messages.
///
/// # Errors
///
/// [`Error::Pickle`] with what is wrong or refused.
pub fn read_zip(path: &Path, bytes: Bytes) -> Result<WeightFile, Error> {
    file(path, "pickle", &bytes, zip::tensors(&bytes))
}

/// Reads a checkpoint of the older format. `path` is only for messages.
///
/// # Errors
///
/// [`Error::Pickle`] with what is wrong or refused.
pub fn read_legacy(path: &Path, bytes: Bytes) -> Result<WeightFile, Error> {
    file(path, "pickle-legacy", &bytes, legacy::tensors(&bytes))
}

fn file(
    path: &Path,
    format: &'static str,
    bytes: &Bytes,
    tensors: Result<Vec<TensorView>, Problem>,
) -> Result<WeightFile, Error> {
    let tensors = tensors.map_err(|problem| Error::Pickle {
        path: path.into(),
        problem: Box::new(problem),
    })?;
    let len = bytes.len() as u64;
    Ok(WeightFile::from_parts(
        path,
        format,
        len,
        tensors,
        BTreeMap::new(),
    ))
}
