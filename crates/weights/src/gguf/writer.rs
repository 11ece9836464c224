//! Writing GGUF files: whole or not at all.

use super::metadata::text;
use super::{ALIGNMENT, MAX_AXES, Metadata, TypeId, Value};
use crate::output::{Output, Slot};
use crate::{Error, TensorSpec};
use std::collections::HashMap;
use std::path::Path;

/// The longest name that stable-diffusion.cpp and ComfyUI-GGUF read.
pub const LONGEST_NAME: usize = 127;

/// Writes a GGUF file of version 3, tensors one after another in any order, into a temporary file beside the
/// target, which takes the target's place only in [`Writer::finish`].
#[derive(Debug)]
pub struct Writer(Output);

impl Writer {
    /// Starts a file of exactly these tensors, with shapes in PyTorch's order. `general.alignment` among the
    /// metadata is left out: tensors are aligned to 32 bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Write`] for a repeated or too long name, a type that GGUF lacks, a row that is no whole number of
    /// blocks, too many axes, or a size that overflows; and what the file system refuses.
    pub fn create(
        path: impl AsRef<Path>,
        tensors: &[TensorSpec],
        metadata: &Metadata,
    ) -> Result<Writer, Error> {
        let path = path.as_ref();
        let pairs: Vec<(&str, &Value)> = metadata
            .iter()
            .filter(|(key, _)| *key != "general.alignment")
            .collect();
        let mut header = b"GGUF".to_vec();
        header.extend(3u32.to_le_bytes());
        header.extend((tensors.len() as u64).to_le_bytes());
        header.extend((pairs.len() as u64).to_le_bytes());
        for (key, value) in pairs {
            header.extend(text(key));
            value.write(&mut header);
        }
        let mut slots = HashMap::with_capacity(tensors.len());
        let mut end = 0u64;
        for tensor in tensors {
            let refuse = |problem: &str| Error::Write {
                path: path.into(),
                name: tensor.name.clone(),
                problem: problem.into(),
            };
            let len = row(tensor, end, &mut header).map_err(|problem| refuse(&problem))?;
            let slot = Slot::new(end, len);
            if slots.insert(tensor.name.clone(), slot).is_some() {
                return Err(refuse("it is announced twice"));
            }
            end = end
                .checked_add(len as u64)
                .and_then(|end| end.checked_next_multiple_of(ALIGNMENT as u64))
                .filter(|end| *end < i64::MAX as u64 / 2)
                .ok_or_else(|| refuse("no file can be that long"))?;
        }
        header.resize(header.len().next_multiple_of(ALIGNMENT), 0);
        let start = header.len() as u64;
        for slot in slots.values_mut() {
            slot.begin += start;
        }
        Output::create(path, &header, slots, start + end).map(Writer)
    }

    /// Writes the bytes of one announced tensor.
    ///
    /// # Errors
    ///
    /// A tensor that was not announced, is written already, or has another number of bytes; what the
    /// disk refuses.
    pub fn write(&mut self, name: &str, data: &[u8]) -> Result<(), Error> {
        self.0.write(name, data)
    }

    /// Writes the next bytes of one announced tensor.
    ///
    /// # Errors
    ///
    /// As [`Writer::write`].
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

/// Adds a tensor's row to the table and gives its bytes, or why it cannot be.
fn row(tensor: &TensorSpec, offset: u64, header: &mut Vec<u8>) -> Result<usize, String> {
    if tensor.name.len() > LONGEST_NAME {
        return Err(format!("names have at most {LONGEST_NAME} bytes"));
    }
    if tensor.shape.len() > MAX_AXES {
        return Err("it has too many axes".into());
    }
    let Some(id) = TypeId::of(tensor.dtype) else {
        return Err(format!("GGUF has no type {}", tensor.dtype));
    };
    let inner = tensor.shape.last().copied().unwrap_or(1);
    if !inner.is_multiple_of(tensor.dtype.block_len()) {
        return Err(format!(
            "its rows of {inner} are no whole number of {} blocks",
            tensor.dtype
        ));
    }
    let elements = tensor
        .shape
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d));
    let len = elements
        .and_then(|n| tensor.dtype.byte_size(n))
        .ok_or("its size overflows")?;
    header.extend(text(&tensor.name));
    header.extend((tensor.shape.len() as u32).to_le_bytes());
    header.extend(
        tensor
            .shape
            .iter()
            .rev()
            .flat_map(|&n| (n as u64).to_le_bytes()),
    );
    header.extend(id.0.to_le_bytes());
    header.extend(offset.to_le_bytes());
    Ok(len)
}
