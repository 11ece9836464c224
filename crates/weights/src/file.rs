//! One open weight file.

use crate::mmap::Mapping;
use crate::{Error, TensorView, formats, gguf};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// Bytes of a page, or fewer.
const PAGE: usize = 4096;

/// One open weight file: its tensors as views of the mapped bytes, and its metadata.
#[derive(Debug)]
pub struct WeightFile {
    path: PathBuf,
    format: &'static str,
    len: u64,
    tensors: Vec<TensorView>,
    index: HashMap<String, usize>,
    metadata: BTreeMap<String, String>,
    gguf: gguf::Metadata,
    /// The mapped file; `None` when the bytes came from elsewhere.
    handle: Option<Mapping>,
}

impl WeightFile {
    /// Maps a file and reads its table of tensors; the tensors' bytes stay untouched.
    ///
    /// # Errors
    ///
    /// What cannot be opened, is of another format (see [`crate::FORMATS`]) or is damaged.
    pub fn open(path: impl AsRef<Path>) -> Result<WeightFile, Error> {
        let path = path.as_ref();
        let mapping = Mapping::open(path)?;
        let mut file = formats::open(path, mapping.bytes())?;
        file.handle = Some(mapping);
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
            gguf: gguf::Metadata::default(),
            handle: None,
        }
    }

    pub(crate) fn with_gguf(self, gguf: gguf::Metadata) -> WeightFile {
        WeightFile { gguf, ..self }
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

    /// The typed metadata of a GGUF file; empty for other formats.
    pub fn gguf(&self) -> &gguf::Metadata {
        &self.gguf
    }

    /// The file's own notes, such as `format: pt`; of a GGUF file its metadata as text, long ones cut.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Takes the pages of some tensors, by their places in the table, out of this process's memory. They stay in
    /// the system's cache and are mapped again when they are read.
    pub(crate) fn release_pages(&self, tensors: impl Iterator<Item = usize>) {
        let Some(mapping) = &self.handle else { return };
        let mut places: Vec<_> = tensors
            .filter_map(|i| mapping.place(&self.tensors.get(i)?.data))
            .collect();
        places.sort_unstable_by_key(|place| place.start);
        // Neighbours in one call; the bytes between them are padding, or a tensor that comes back when it is read.
        let mut places = places.into_iter().peekable();
        while let Some(mut part) = places.next() {
            while let Some(next) = places.next_if(|next| next.start <= part.end + PAGE) {
                part.end = part.end.max(next.end);
            }
            mapping.forget(part);
        }
    }

    /// Takes the pages behind some bytes of the file out of this process's memory.
    pub(crate) fn release(&self, data: &[u8]) {
        let Some(mapping) = &self.handle else { return };
        if let Some(place) = mapping.place(data) {
            mapping.forget(place);
        }
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
            .file
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
