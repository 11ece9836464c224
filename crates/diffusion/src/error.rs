//! The one error type of this crate.

use std::error::Error as StdError;

/// An error of the caller's own (a network, a device), carried through the sampling loop unchanged.
pub type BoxError = Box<dyn StdError + Send + Sync + 'static>;

/// What can go wrong while a run is planned or sampled.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No row of [`SAMPLERS`](crate::sampler::SAMPLERS) has this name or alias.
    #[error("there is no sampler named `{name}`; the samplers are: {known}")]
    UnknownSampler {
        /// What was asked for.
        name: String,
        /// Every name there is, separated by commas.
        known: String,
    },
    /// The number of steps is out of range for this sampler and configuration.
    #[error("{steps} steps asked of {sampler}, which takes 1 to {most} here; {hint}")]
    Steps {
        /// Steps asked for.
        steps: usize,
        /// The sampler's name.
        sampler: &'static str,
        /// The most that it can do with this configuration.
        most: usize,
        /// What to do about it.
        hint: &'static str,
    },
    /// A scheduler configuration asks for something that is not implemented.
    #[error("the scheduler configuration has {found}, which {sampler} cannot do; {hint}")]
    Unsupported {
        /// The field and its value.
        found: String,
        /// The sampler's name, or the part that reads the field.
        sampler: &'static str,
        /// What to do about it.
        hint: &'static str,
    },
    /// A sampler that has no meaning for flow models.
    #[error("the sampler {sampler} is not for flow models: {why}; those that are: {fitting}")]
    NotForFlows {
        /// The sampler's name.
        sampler: &'static str,
        /// What stands against it.
        why: &'static str,
        /// The names of the samplers for flow models.
        fitting: String,
    },
    /// A scheduler configuration holds numbers that make no noise schedule.
    #[error("the scheduler configuration has {found}; expected {expected}")]
    Config {
        /// The field and its value.
        found: String,
        /// What would be valid.
        expected: &'static str,
    },
    /// A scheduler configuration is not JSON, or a field has the wrong type.
    #[error(
        "the scheduler configuration cannot be read: {0}; expected the JSON of a diffusers scheduler_config.json"
    )]
    ConfigJson(#[from] serde_json::Error),
    /// The schedule cannot lay the run.
    #[error(transparent)]
    Schedule(#[from] crate::schedule::ScheduleError),
    /// A list of sigmas given by the caller is no decreasing schedule.
    #[error(
        "the schedule has {found}; expected finite sigmas that fall from step to step, the last one 0 or more"
    )]
    Sigmas {
        /// What is wrong, and where.
        found: String,
    },
    /// An option is outside of its range.
    #[error("{option} is {found}; expected {expected}")]
    Option {
        /// The option's name.
        option: &'static str,
        /// The value given.
        found: f64,
        /// The valid range.
        expected: &'static str,
    },
    /// Two slices that must agree in length do not.
    #[error("{what} has {found} values; expected {expected}")]
    Length {
        /// Which slice.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The length that was due.
        expected: usize,
    },
    /// The network gave NaN or infinity.
    #[error(
        "the network's output at step {step} (sigma {sigma:.4}) is not finite; the weights may hold NaN, or overflow in a half-precision type: try --dtype f32"
    )]
    NotFinite {
        /// Step index from 0.
        step: usize,
        /// Noise level of the call, as noise over signal.
        sigma: f64,
    },
    /// An adaptive sampler would not come to an end.
    #[error(
        "{sampler} has not reached the last noise level after {calls} network calls; use a sampler of fixed steps"
    )]
    NoConvergence {
        /// The sampler's name.
        sampler: &'static str,
        /// Calls made.
        calls: usize,
    },
    /// The observer asked to stop.
    #[error("stopped after step {done} of {steps}")]
    Cancelled {
        /// Steps that were completed.
        done: usize,
        /// Steps of the plan.
        steps: usize,
    },
    /// The network failed; the source is the caller's own error.
    #[error("the network failed at step {step}")]
    Network {
        /// Step index from 0.
        step: usize,
        /// The caller's error.
        #[source]
        source: BoxError,
    },
}
