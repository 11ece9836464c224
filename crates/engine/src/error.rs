//! The error of this crate.

use std::path::PathBuf;

/// Why a picture could not be made.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The request asks for what cannot be.
    #[error("{message}")]
    Usage {
        /// What was found and expected.
        message: String,
        /// What to do.
        hint: String,
    },
    /// The model cannot be read or is not one.
    #[error(transparent)]
    Model(#[from] aquatint_models::ModelError),
    /// The sampler could not run.
    #[error(transparent)]
    Sampling(#[from] aquatint_diffusion::Error),
    /// Numbers that are not finite appeared.
    #[error("{stage}: {found}, expected finite numbers")]
    NonFinite {
        /// Where.
        stage: String,
        /// What was found.
        found: String,
    },
    /// A run that no memory of this machine would hold.
    #[error("the run needs {:.1} GB of working memory, more than the {:.1} GB of this machine", *needed as f64 / 1e9, *total as f64 / 1e9)]
    TooLarge {
        /// Bytes of activations.
        needed: u64,
        /// Bytes of memory.
        total: u64,
    },
    /// The run was stopped by the caller.
    #[error("stopped")]
    Cancelled,
    /// A picture could not be read or written.
    #[error("{path}: {message}", path = path.display())]
    Picture {
        /// The file.
        path: PathBuf,
        /// What was found and expected.
        message: String,
        /// What to do.
        hint: String,
    },
}

impl EngineError {
    /// What the user can do about it, when there is something to say.
    pub fn hint(&self) -> Option<String> {
        match self {
            EngineError::Usage { hint, .. } | EngineError::Picture { hint, .. } => {
                (!hint.is_empty()).then(|| hint.clone())
            }
            EngineError::Model(error) => error.hint(),
            EngineError::NonFinite { .. } => Some(
                "the weights may be damaged or too coarse: try another file, or --dtype f32".into(),
            ),
            EngineError::TooLarge { .. } => {
                Some("take a smaller picture, or --vae-tiling on".into())
            }
            EngineError::Sampling(_) | EngineError::Cancelled => None,
        }
    }

    /// Whether numbers went wrong.
    pub(crate) fn is_numbers(&self) -> bool {
        matches!(
            self,
            EngineError::NonFinite { .. }
                | EngineError::Sampling(aquatint_diffusion::Error::NotFinite { .. })
        )
    }

    /// Whether the request, not the machine or a file, is at fault.
    pub fn is_usage(&self) -> bool {
        matches!(self, EngineError::Usage { .. })
    }
}
