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
    /// A call with inputs that do not fit the model.
    #[error("{component}: {what} is {found}, expected {expected}")]
    Input {
        /// The part of the model, such as `unet`.
        component: &'static str,
        /// Which input.
        what: &'static str,
        /// What was given.
        found: String,
        /// What the model needs.
        expected: String,
    },
    /// A weight file is missing, damaged, or does not hold what the model needs.
    #[error(transparent)]
    Weights(#[from] aquatint_weights::Error),
    /// A model that this version cannot run.
    #[error("found {found}, which is not supported")]
    Unsupported {
        /// What it is.
        found: String,
        /// What to do.
        hint: String,
    },
    /// A file or folder that is no model.
    #[error("{path}: found {found}, expected a text-to-image model", path = path.display())]
    NotAModel {
        /// The file or folder.
        path: PathBuf,
        /// What it is.
        found: String,
    },
    /// A file given for one part holds another.
    #[error("{path}: found {found}, expected {expected}", path = path.display())]
    NotThePart {
        /// The file.
        path: PathBuf,
        /// What the option expects.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// A file of a low-rank addition that cannot be used with the model, or at all.
    #[error("{path}: found {found}, expected {expected}", path = path.display())]
    Lora {
        /// The file.
        path: PathBuf,
        /// What was found.
        found: String,
        /// What was expected.
        expected: String,
        /// What to do; may be empty.
        hint: String,
    },
    /// A place that cannot be written to.
    #[error("{path}: found {found}, expected {expected}", path = path.display())]
    Target {
        /// The place.
        path: PathBuf,
        /// What was found.
        found: String,
        /// What was expected.
        expected: String,
        /// What to do.
        hint: String,
    },
    /// A single file without one of its parts.
    #[error("{path}: the file holds no {what}", path = path.display())]
    Apart {
        /// The file.
        path: PathBuf,
        /// The part.
        what: &'static str,
        /// The option that gives it.
        option: &'static str,
    },
    /// A tensor that tells the model's shape is not there.
    #[error("{path}: tensor {name} is missing, which tells the shape of the model", path = path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
}

impl ModelError {
    /// What the user can do about it, when there is something to say.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            ModelError::Weights(error) => return error.hint().map(str::to_owned),
            ModelError::Ops(aquatint_ops::OpsError::Source(source)) => {
                let error = source.downcast_ref::<aquatint_weights::Error>()?;
                return error.hint().map(str::to_owned);
            }
            ModelError::Unsupported { hint, .. } | ModelError::Target { hint, .. } => {
                return Some(hint.clone());
            }
            ModelError::Lora { hint, .. } if hint.is_empty() => {
                "`aquatint inspect FILE` shows what a file holds"
            }
            ModelError::Lora { hint, .. } => return Some(hint.clone()),
            ModelError::NotAModel { .. } => {
                "give a diffusers folder, or a .safetensors file with a whole model"
            }
            ModelError::NotThePart { .. } => "`aquatint inspect FILE` shows what a file holds",
            ModelError::Apart { option, .. } => {
                return Some(format!("give it apart with {option} PATH"));
            }
            ModelError::Io { .. } => "check that the model folder is complete",
            ModelError::Json { .. } | ModelError::Config { .. } => {
                "the model folder is damaged or of a newer kind; get another copy"
            }
            ModelError::Missing { .. } => "the file is incomplete; get another copy",
            ModelError::Tokenizer(_) => {
                "give the folder of the tokenizer that the text encoder was trained with, with --tokenizer PATH (T5's after those of the CLIP encoders)"
            }
            ModelError::Ops(_) | ModelError::Prompt(_) | ModelError::Input { .. } => return None,
        };
        Some(text.to_owned())
    }
}
