//! The error of this crate.

/// Why a layer could not be built.
#[derive(Debug, thiserror::Error)]
pub enum OpsError {
    /// The parameter source could not give a tensor; the source's own message says why.
    #[error("{0}")]
    Source(Box<dyn std::error::Error + Send + Sync>),
    /// A tensor came with another shape than the layer needs.
    #[error("tensor `{name}`: found shape {found:?}, expected {expected:?}")]
    Shape {
        /// Full name of the tensor.
        name: String,
        /// Shape that was found.
        found: Vec<usize>,
        /// Shape that the layer needs.
        expected: Vec<usize>,
    },
    /// A tensor's bytes do not fit its shape and storage type.
    #[error("tensor `{name}`: found {found} bytes, expected {expected} for its shape")]
    Length {
        /// Full name of the tensor.
        name: String,
        /// Bytes found.
        found: usize,
        /// Bytes expected.
        expected: usize,
    },
    /// Sizes that do not divide.
    #[error("{what}: {value} is not divisible by {by}")]
    NotDivisible {
        /// What was to be divided.
        what: &'static str,
        /// Its value.
        value: usize,
        /// The divisor.
        by: usize,
    },
}
