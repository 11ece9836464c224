//! The error of this crate.

use std::path::PathBuf;

/// Why a training run cannot begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A file or folder could not be read.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A folder of training data holds no pictures.
    #[error(
        "{path}: no pictures were found (files ending in {endings}); give the folder that holds them, \
         directly or in subfolders",
        path = path.display()
    )]
    NoPictures {
        /// The folder.
        path: PathBuf,
        /// Endings that were looked for.
        endings: String,
    },
    /// Captions whose pictures are not there.
    #[error(
        "{path}: {count} captions have no picture beside them, such as {example}; add the pictures or \
         remove the captions",
        path = path.display()
    )]
    CaptionsAlone {
        /// The folder.
        path: PathBuf,
        /// How many.
        count: usize,
        /// The first of them.
        example: String,
    },
    /// A metadata file that cannot be understood.
    #[error("{path}, line {line}: {message}", path = path.display())]
    Metadata {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What was found and expected.
        message: String,
    },
    /// A text-conditional model without any captions.
    #[error(
        "{path}: {missing} of {pictures} pictures have no caption, such as {example}; write one into a \
         .txt file beside each picture, or list them in metadata.jsonl",
        path = path.display()
    )]
    NoCaptions {
        /// The folder.
        path: PathBuf,
        /// Pictures without one.
        missing: usize,
        /// All pictures.
        pictures: usize,
        /// The first without one.
        example: String,
    },
    /// A setting that cannot be used.
    #[error("{key} is {found}; expected {expected}")]
    Setting {
        /// The setting, as it is spelled in the configuration.
        key: String,
        /// Its value.
        found: String,
        /// What would be valid.
        expected: String,
    },
    /// A configuration that cannot be understood.
    #[error("{path}{line}: {message}", path = path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// `, line N` where it is known.
        line: String,
        /// What was found and expected.
        message: String,
    },
    /// No picture of the data could be decoded.
    #[error(
        "{path}: none of its {pictures} pictures could be read; the first said: {first}",
        path = path.display()
    )]
    AllCorrupt {
        /// The folder.
        path: PathBuf,
        /// How many pictures.
        pictures: usize,
        /// The first failure.
        first: String,
    },
    /// The objective of the training is not valid.
    #[error(transparent)]
    Objective(#[from] aquatint_diffusion::Error),
}

impl TrainError {
    pub(crate) fn io(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn setting(
        key: &str,
        found: impl std::fmt::Display,
        expected: impl Into<String>,
    ) -> Self {
        Self::Setting {
            key: key.into(),
            found: found.to_string(),
            expected: expected.into(),
        }
    }
}
