//! A file that is whole or not there: written beside its target, then renamed over it.

use crate::Error;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// A file being written, and the places that its tensors have in it.
#[derive(Debug)]
pub(crate) struct Output {
    path: PathBuf,
    out: BufWriter<NamedTempFile>,
    slots: HashMap<String, Slot>,
    /// Where `out` stands, in bytes from the start of the file.
    at: u64,
    /// The whole file's length.
    len: u64,
}

/// A tensor's place.
#[derive(Debug)]
pub(crate) struct Slot {
    /// In bytes from the start of the file.
    pub begin: u64,
    pub len: usize,
    /// Bytes that are written.
    done: usize,
    /// Whether anything was, be it no bytes at all.
    touched: bool,
}

impl Slot {
    pub(crate) fn new(begin: u64, len: usize) -> Slot {
        Slot {
            begin,
            len,
            done: 0,
            touched: false,
        }
    }
}

impl Output {
    /// Starts a file with `header`; it will be `len` bytes long.
    pub(crate) fn create(
        path: &Path,
        header: &[u8],
        slots: HashMap<String, Slot>,
        len: u64,
    ) -> Result<Output, Error> {
        let out = BufWriter::with_capacity(1 << 20, temporary_beside(path)?);
        let mut output = Output {
            path: path.into(),
            out,
            slots,
            at: header.len() as u64,
            len,
        };
        output.out.write_all(header).map_err(|e| output.io(e))?;
        Ok(output)
    }

    /// A whole tensor.
    pub(crate) fn write(&mut self, name: &str, data: &[u8]) -> Result<(), Error> {
        let problem = match self.slots.get(name) {
            None => "it was not announced".into(),
            Some(slot) if slot.touched => "it is written already".into(),
            Some(slot) if slot.len != data.len() => {
                format!("it has {} bytes, expected {}", data.len(), slot.len)
            }
            Some(_) => return self.put(name, data),
        };
        Err(self.refuse(name, problem))
    }

    /// The next bytes of a tensor.
    pub(crate) fn append(&mut self, name: &str, data: &[u8]) -> Result<(), Error> {
        let problem = match self.slots.get(name) {
            None => "it was not announced".into(),
            Some(slot) if slot.len - slot.done < data.len() => format!(
                "it has more than the {} bytes that were announced",
                slot.len
            ),
            Some(_) => return self.put(name, data),
        };
        Err(self.refuse(name, problem))
    }

    fn refuse(&self, name: &str, problem: String) -> Error {
        Error::Write {
            path: self.path.clone(),
            name: name.into(),
            problem,
        }
    }

    fn put(&mut self, name: &str, data: &[u8]) -> Result<(), Error> {
        let Some(slot) = self.slots.get_mut(name) else {
            return Ok(());
        };
        let begin = slot.begin + slot.done as u64;
        slot.done += data.len();
        slot.touched = true;
        if begin != self.at {
            self.out
                .seek(SeekFrom::Start(begin))
                .map_err(|e| self.io(e))?;
        }
        self.out.write_all(data).map_err(|e| self.io(e))?;
        self.at = begin + data.len() as u64;
        Ok(())
    }

    /// Brings everything to the disk and puts the file in its place.
    pub(crate) fn finish(self) -> Result<(), Error> {
        let Output {
            path,
            out,
            slots,
            len,
            ..
        } = self;
        let absent = slots
            .iter()
            .filter(|(_, slot)| !slot.touched || slot.done < slot.len);
        if let Some(name) = absent.map(|(name, _)| name).min() {
            return Err(Error::Write {
                path,
                name: name.clone(),
                problem: "it was announced and never written".into(),
            });
        }
        let temporary = out
            .into_inner()
            .map_err(|e| Error::io(&path, "write", e.into_error()))?;
        let file = temporary.as_file();
        file.set_len(len)
            .and_then(|()| file.sync_all())
            .map_err(|e| Error::io(&path, "write", e))?;
        temporary
            .persist(&path)
            .map_err(|e| Error::io(&path, "write", e.error))?;
        // The new name reaches the disk with its folder. Systems that cannot sync a folder lose at most
        // the renaming in a crash, never half a file.
        let _ = File::open(folder_of(&path)).and_then(|folder| folder.sync_all());
        Ok(())
    }

    fn io(&self, error: std::io::Error) -> Error {
        Error::io(&self.path, "write", error)
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if p != Path::new("") => p,
        _ => Path::new("."),
    }
}

fn temporary_beside(path: &Path) -> Result<NamedTempFile, Error> {
    match std::fs::metadata(path) {
        Ok(m) if m.is_dir() => return Err(Error::Directory { path: path.into() }),
        // Renaming over a device would replace it.
        Ok(m) if !m.is_file() => return Err(Error::NotRegular { path: path.into() }),
        _ => {}
    }
    let folder = folder_of(path);
    let mut builder = tempfile::Builder::new();
    builder.prefix(".aquatint-").suffix(".part");
    #[cfg(unix)]
    {
        // As any new file, by the user's umask; the crate's own default would hide it from others.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder
        .tempfile_in(folder)
        .map_err(|e| Error::io(folder, "create a file in", e))
}
