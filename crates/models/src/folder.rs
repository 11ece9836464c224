//! A model folder: on the disk, or embedded in the program.

use std::path::{Path, PathBuf};

use aquatint_weights::{Error, WeightFile, WeightSet};

use crate::ModelError;

/// Files by their path in the folder, with `/` between parts.
pub type EmbeddedFiles = &'static [(&'static str, &'static [u8])];

/// Where a model's files are.
#[derive(Debug, Clone)]
pub enum Folder {
    /// A folder of the file system.
    Disk(PathBuf),
    /// Files in the program itself.
    Embedded {
        /// What the model is called.
        name: &'static str,
        /// Its files.
        files: EmbeddedFiles,
    },
}

impl Folder {
    /// The folder, or a name in angle brackets for an embedded one, for messages.
    pub fn path(&self) -> PathBuf {
        match self {
            Folder::Disk(path) => path.clone(),
            Folder::Embedded { name, .. } => PathBuf::from(format!("<{name}>")),
        }
    }

    /// Whether a file is there.
    pub fn has(&self, file: &str) -> bool {
        match self {
            Folder::Disk(path) => path.join(file).is_file(),
            Folder::Embedded { files, .. } => files.iter().any(|(name, _)| *name == file),
        }
    }

    /// Whether a folder of that name is there.
    pub fn has_folder(&self, part: &str) -> bool {
        match self {
            Folder::Disk(path) => path.join(part).is_dir(),
            Folder::Embedded { files, .. } => files
                .iter()
                .any(|(name, _)| name.split_once('/').is_some_and(|(head, _)| head == part)),
        }
    }

    /// The bytes of a file, or `None` when it is not there.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn bytes(&self, file: &str) -> Result<Option<Vec<u8>>, ModelError> {
        match self {
            Folder::Disk(path) => {
                let path = path.join(file);
                match std::fs::read(&path) {
                    Ok(bytes) => Ok(Some(bytes)),
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
                    Err(source) => Err(ModelError::Io { path, source }),
                }
            }
            Folder::Embedded { files, .. } => {
                let found = files.iter().find(|(name, _)| *name == file);
                Ok(found.map(|(_, bytes)| bytes.to_vec()))
            }
        }
    }

    /// The text of a file, or `None` when it is not there.
    ///
    /// # Errors
    /// When the file cannot be read or is not UTF-8.
    pub fn text(&self, file: &str) -> Result<Option<String>, ModelError> {
        match self {
            Folder::Disk(path) => {
                let path = path.join(file);
                match std::fs::read_to_string(&path) {
                    Ok(text) => Ok(Some(text)),
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
                    Err(source) => Err(ModelError::Io { path, source }),
                }
            }
            Folder::Embedded { files, .. } => {
                let found = files.iter().find(|(name, _)| *name == file);
                found
                    .map(|(_, bytes)| String::from_utf8(bytes.to_vec()))
                    .transpose()
                    .map_err(|e| ModelError::Json {
                        path: self.path().join(file),
                        message: format!("found bytes that are not text ({e}), expected UTF-8"),
                    })
            }
        }
    }

    /// The weights of a component: the first of the stems that has a file or shards.
    ///
    /// # Errors
    /// When there are none, or they are damaged.
    pub fn weights(
        &self,
        part: &str,
        stems: &[&str],
        variant: Option<&str>,
    ) -> Result<WeightSet, Error> {
        match self {
            Folder::Disk(path) => WeightSet::open_component(path.join(part), stems, variant),
            Folder::Embedded { files, .. } => {
                let wanted: Vec<String> = stems
                    .iter()
                    .map(|stem| format!("{part}/{stem}.safetensors"))
                    .collect();
                let found = files
                    .iter()
                    .find(|(name, _)| wanted.iter().any(|w| w == name));
                let Some((name, bytes)) = found else {
                    return Err(Error::NoWeights {
                        folder: self.path().join(part),
                        expected: wanted.join(" or "),
                        found: Vec::new(),
                    });
                };
                let path = self.path().join(name);
                Ok(WeightFile::from_bytes(path, bytes::Bytes::from_static(bytes))?.into())
            }
        }
    }

    /// Every file, as its path in the folder; hidden ones are left out.
    ///
    /// # Errors
    /// When a folder cannot be listed.
    pub fn files(&self) -> Result<Vec<String>, ModelError> {
        match self {
            Folder::Embedded { files, .. } => {
                Ok(files.iter().map(|(name, _)| (*name).to_owned()).collect())
            }
            Folder::Disk(path) => {
                let mut names = Vec::new();
                list(path, "", &mut names).map_err(|source| ModelError::Io {
                    path: path.clone(),
                    source,
                })?;
                names.sort();
                Ok(names)
            }
        }
    }

    /// Copies a file of the folder.
    ///
    /// # Errors
    /// When it is not there, or cannot be written.
    pub fn copy(&self, file: &str, to: &Path) -> Result<(), ModelError> {
        let copied = match self {
            Folder::Disk(path) => std::fs::copy(path.join(file), to).map(|_| ()),
            Folder::Embedded { files, .. } => match files.iter().find(|(name, _)| *name == file) {
                Some((_, bytes)) => std::fs::write(to, bytes),
                None => Err(std::io::ErrorKind::NotFound.into()),
            },
        };
        copied.map_err(|source| ModelError::Io {
            path: to.to_owned(),
            source,
        })
    }

    /// Name of the model: the last part of the path.
    pub fn name(&self) -> String {
        match self {
            Folder::Disk(path) => name_of(path),
            Folder::Embedded { name, .. } => (*name).to_owned(),
        }
    }
}

fn list(folder: &Path, prefix: &str, names: &mut Vec<String>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        let inside = format!("{prefix}{name}");
        // The hub's cache holds links to files.
        match entry.path().is_dir() {
            true => list(&entry.path(), &format!("{inside}/"), names)?,
            false => names.push(inside),
        }
    }
    Ok(())
}

/// The last part of a path without its weight-file extension. A link's own name, not that of what it
/// leads to: the hub's cache links names to hashes.
pub(crate) fn name_of(path: &Path) -> String {
    let full = match path.file_name() {
        Some(_) => path.to_owned(),
        // `.` and `..` have no name of their own.
        None => path.canonicalize().unwrap_or_else(|_| path.to_owned()),
    };
    let name = full.file_name().unwrap_or(full.as_os_str());
    let name = name.to_string_lossy().into_owned();
    let stem = [".safetensors", ".gguf"]
        .iter()
        .find_map(|extension| name.strip_suffix(extension));
    match stem {
        Some(stem) => stem.to_owned(),
        None => name,
    }
}
