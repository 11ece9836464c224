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
    /// A folder of training data is not there.
    #[error(
        "{path}: the folder of pictures (data.dir) is not there; {how}",
        path = path.display(),
        how = from(said)
    )]
    NoFolder {
        /// The folder.
        path: PathBuf,
        /// Where its pictures come from, as the configuration says.
        said: String,
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
    /// A class-conditional model without classes.
    #[error(
        "{path}: {missing} of {pictures} pictures have no class, such as {example}; sort the pictures into subfolders \
         named after their classes, or give each a \"label\" in metadata.jsonl",
        path = path.display()
    )]
    NoClasses {
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
    /// A run's state that cannot be read or written.
    #[error("{path}: {message}; remove this checkpoint to go on from the one before", path = path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A folder that holds a run already.
    #[error(
        "{path}: a run of {step} steps is here already; add --resume to go on with it, or choose another --out",
        path = path.display()
    )]
    Occupied {
        /// The folder.
        path: PathBuf,
        /// Steps of its newest checkpoint.
        step: u64,
    },
    /// A run is to go on with another configuration.
    #[error(
        "{key} was {before} when this run began and is {now} now; a run goes on with its own configuration: set it \
         back, or begin another run with another --out"
    )]
    Changed {
        /// The setting.
        key: String,
        /// Its value in the checkpoint.
        before: String,
        /// Its value now.
        now: String,
    },
    /// The loss is not a number.
    #[error(
        "the loss of step {step} is not finite; the batch was {}; {}; try a smaller learning_rate.peak or clip_norm",
        names(files),
        good(checkpoint)
    )]
    NotFinite {
        /// The update, from 1.
        step: u64,
        /// Files of the batch.
        files: Vec<PathBuf>,
        /// The last checkpoint before it.
        checkpoint: Option<PathBuf>,
    },
    /// A part of a model refused its inputs, configuration or weights.
    #[error(transparent)]
    Model(#[from] aquatint_models::ModelError),
    /// A weight file could not be read or written.
    #[error(transparent)]
    Weights(#[from] aquatint_weights::Error),
    /// A layer could not be built.
    #[error(transparent)]
    Ops(#[from] aquatint_ops::OpsError),
    /// An autoencoder whose latents say nothing.
    #[error(
        "all latents of the autoencoder are the same, so they have no scaling factor; lower loss.kl or train longer"
    )]
    Collapsed,
    /// The observer ended the run before its first step.
    #[error("stopped before the first step; what was prepared is kept")]
    Interrupted,
    /// A defect of this program.
    #[error("{0}; this is a defect of aquatint: please report it")]
    Internal(&'static str),
    /// The objective of the training is not valid.
    #[error(transparent)]
    Objective(#[from] aquatint_diffusion::Error),
}

fn from(source: &str) -> String {
    match source {
        "" => {
            "give a folder that holds pictures, relative to the configuration's own folder".into()
        }
        source => format!("this is how it is made: {source}"),
    }
}

fn names(files: &[PathBuf]) -> String {
    let names: Vec<String> = files.iter().map(|f| f.display().to_string()).collect();
    match names.as_slice() {
        [] => "not of files".into(),
        names => names.join(", "),
    }
}

fn good(checkpoint: &Option<PathBuf>) -> String {
    match checkpoint {
        Some(path) => format!("the last good checkpoint is {}", path.display()),
        None => "no checkpoint was saved yet".into(),
    }
}

impl TrainError {
    /// Whether the disk has no room left.
    pub fn is_disk_full(&self) -> bool {
        let mut source: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = source {
            if let Some(io) = error.downcast_ref::<std::io::Error>() {
                return io.kind() == std::io::ErrorKind::StorageFull
                    || io.kind() == std::io::ErrorKind::QuotaExceeded;
            }
            // A transparent error hides itself from its own chain.
            source = match error.downcast_ref::<Self>() {
                Some(Self::Weights(aquatint_weights::Error::Io { source, .. })) => Some(source),
                _ => error.source(),
            };
        }
        false
    }

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
