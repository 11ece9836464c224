//! One open weight file.

use crate::{Error, TensorView, formats, mmap};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

/// One open weight file: its tensors as views of the mapped bytes, and its metadata.
#[derive(Debug)]
pub struct WeightFile {
    path: PathBuf,
    format: &'static str,
    len: u64,
    tensors: Vec<TensorView>,
    index: HashMap<String, usize>,
    metadata: BTreeMap<String, String>,
    /// The mapped file; `None` when the bytes came from elsewhere.
    handle: Option<File>,
}

impl WeightFile {
    /// Maps a file and reads its table of tensors; the tensors' bytes stay untouched.
    ///
    /// # Errors
    ///
    /// What cannot be opened, is of another format (see [`crate::FORMATS`]) or is damaged.
    pub fn open(path: impl AsRef<Path>) -> Result<WeightFile, Error> {
        let path = path.as_ref();
        let (bytes, handle) = mmap::map_with_handle(path)?;
        let mut file = formats::open(path, bytes)?;
        file.handle = Some(handle);
        Ok(file)
    }

    /// Reads a file that is in memory already, such as one embedded in a program. `path` stands for it in
    /// messages.
    ///
    /// # Errors
    ///
    /// As [`WeightFile::open`].
    pub fn from_bytes(path: impl AsRef<Path>, bytes: bytes::Bytes) -> Result<WeightFile, Error> {
        formats::open(path.as_ref(), bytes)
    }

    /// The names of `tensors` must be unique; readers check that.
    pub(crate) fn from_parts(
        path: &Path,
        format: &'static str,
        len: u64,
        tensors: Vec<TensorView>,
        metadata: BTreeMap<String, String>,
    ) -> WeightFile {
        let index = tensors
            .iter()
            .enumerate()
            .map(|(i, t)| (t.name.clone(), i))
            .collect();
        WeightFile {
            path: path.into(),
            format,
            len,
            tensors,
            index,
            metadata,
            handle: None,
        }
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name of its format, as in [`crate::FORMATS`].
    pub fn format(&self) -> &'static str {
        self.format
    }

    /// The file's length in bytes when it was opened.
    pub fn len_bytes(&self) -> u64 {
        self.len
    }

    /// Every tensor, in the order of the file.
    pub fn tensors(&self) -> &[TensorView] {
        &self.tensors
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&TensorView> {
        self.index.get(name).map(|&i| &self.tensors[i])
    }

    /// The file's own notes, such as `format: pt`.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Looks again whether the file is as long as when it was mapped; see [`crate::map_file`].
    ///
    /// # Errors
    ///
    /// [`Error::Changed`] when another program shortened or lengthened it in place. A file that was
    /// replaced or removed since is no error: the mapping still holds the old one.
    pub fn check_unchanged(&self) -> Result<(), Error> {
        let Some(handle) = &self.handle else {
            return Ok(());
        };
        let now = handle
            .metadata()
            .map_err(|e| Error::io(&self.path, "read", e))?
            .len();
        if now == self.len {
            return Ok(());
        }
        Err(Error::Changed {
            path: self.path.clone(),
            before: self.len,
            now,
        })
    }
}
