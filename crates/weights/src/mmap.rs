//! Files as shared bytes, without a copy.

use crate::Error;
use bytes::Bytes;
use memmap2::Mmap;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Refuses what is no regular file: a missing path, a folder, a device or a pipe (opening a pipe would
/// wait for ever). Gives the length in bytes.
pub(crate) fn regular_file_len(path: &Path) -> Result<u64, Error> {
    let meta = std::fs::metadata(path).map_err(|e| Error::io(path, "read", e))?;
    if meta.is_dir() {
        return Err(Error::Directory { path: path.into() });
    }
    if !meta.is_file() {
        return Err(Error::NotRegular { path: path.into() });
    }
    Ok(meta.len())
}

/// Maps a file read-only. The result is reference counted: slices of it are views that keep the mapping
/// alive, and nothing is read until it is touched.
///
/// # When the file changes while it is mapped
///
/// The pages are the file's own. If another program writes into the file, the new bytes are seen; if it
/// *shortens* the file, touching a page past the new end raises `SIGBUS` (an access violation on
/// Windows, which however refuses to shorten a mapped file) and the process ends. No check can close that
/// window, so weight files must be replaced by renaming a new file over them, as [`crate::Writer`] does:
/// the old mapping then stays whole. [`crate::WeightFile::check_unchanged`] compares the length again
/// before long work, which turns most such deaths into an error.
///
/// # Errors
///
/// A missing path, a folder, a device, an empty file, or one that cannot be opened or mapped.
pub fn map_file(path: &Path) -> Result<Bytes, Error> {
    Mapping::open(path).map(|mapping| mapping.bytes())
}

/// A mapped file, and the open file, whose length can be asked again whatever happens to the path.
#[derive(Clone, Debug)]
pub(crate) struct Mapping {
    map: Arc<Mmap>,
    pub(crate) file: Arc<File>,
}

impl Mapping {
    /// Maps a file; see [`map_file`].
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let (map, file) = map_with_handle(path)?;
        Ok(Self {
            map: Arc::new(map),
            file: Arc::new(file),
        })
    }

    /// The file's bytes; they keep it mapped.
    pub(crate) fn bytes(&self) -> Bytes {
        struct Owner(Arc<Mmap>);
        impl AsRef<[u8]> for Owner {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        Bytes::from_owner(Owner(self.map.clone()))
    }

    /// Where in the file a slice of it lies; nothing when it is no slice of it.
    pub(crate) fn place(&self, slice: &[u8]) -> Option<Range<usize>> {
        let start = slice
            .as_ptr()
            .addr()
            .checked_sub(self.map.as_ptr().addr())?;
        let end = start.checked_add(slice.len())?;
        (end <= self.map.len()).then_some(start..end)
    }

    /// Takes the pages of a part out of this process's memory. They stay in the system's cache, and come back
    /// when they are read again.
    #[cfg(unix)]
    #[allow(unsafe_code)]
    pub(crate) fn forget(&self, part: Range<usize>) {
        let end = part.end.min(self.map.len());
        let Some(len) = end.checked_sub(part.start).filter(|&len| len > 0) else {
            return;
        };
        // SAFETY: the mapping is shared, read-only and never written, so that a page that is dropped is read from
        // the file again with the same bytes. If the system refuses, the pages stay.
        let _ = unsafe {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            self.map.unchecked_advise_range(advice, part.start, len)
        };
    }

    /// Elsewhere the pages stay.
    #[cfg(not(unix))]
    pub(crate) fn forget(&self, _part: Range<usize>) {}
}

#[allow(unsafe_code)]
fn map_with_handle(path: &Path) -> Result<(Mmap, File), Error> {
    if regular_file_len(path)? == 0 {
        return Err(Error::Empty { path: path.into() });
    }
    let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    // SAFETY: the mapping is read-only and private to us, and it is only read as bytes, for which every
    // value is valid. Another process that writes into the file can change what is read (each reader
    // bounds-checks against the mapped length, not against values in the file read twice), and one that
    // shortens it ends this process by SIGBUS rather than by reading other memory; see above.
    let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, "map", e))?;
    let len = file
        .metadata()
        .map_err(|e| Error::io(path, "read", e))?
        .len();
    if map.len() as u64 != len || len == 0 {
        return Err(Error::Changed {
            path: path.into(),
            before: map.len() as u64,
            now: len,
        });
    }
    Ok((map, file))
}
