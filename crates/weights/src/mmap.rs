//! Files as shared bytes, without a copy.

use crate::Error;
use bytes::Bytes;
use memmap2::Mmap;
use std::fs::File;
use std::path::Path;

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
    map_with_handle(path).map(|(bytes, _)| bytes)
}

/// [`map_file`], and the open file, whose length can be asked again whatever happens to the path.
#[allow(unsafe_code)]
pub(crate) fn map_with_handle(path: &Path) -> Result<(Bytes, File), Error> {
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
    Ok((Bytes::from_owner(map), file))
}
