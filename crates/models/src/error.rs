//! The error of this crate.

use std::path::PathBuf;

/// Why a model could not be read or run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A layer could not be built from its parameters.
    #[error(transparent)]
    Ops(#[from] aquatint_ops::OpsError),
    /// A file of the model folder could not be read.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A JSON file of the model folder is not what it should be.
    #[error("{path}: {message}", path = path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What was found and expected.
        message: String,
    },
    /// A configuration value that this version cannot use.
    #[error("{component}: {key} is {found}, expected {expected}")]
    Config {
        /// The part of the model, such as `unet`.
        component: &'static str,
        /// The configuration key.
        key: String,
        /// What was found.
        found: String,
        /// What can be used.
        expected: String,
    },
    /// The tokenizer's files cannot be used.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A prompt that cannot be parsed or encoded.
    #[error("prompt: {0}")]
    Prompt(String),
}
