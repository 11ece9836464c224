//! What a run tells while it runs.

use std::path::Path;

use crate::data::Skipped;

/// One step, for people who wait.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Updates so far.
    pub step: u64,
    /// Updates of the whole run.
    pub steps: u64,
    /// Times that all examples were seen.
    pub epoch: f64,
    /// Loss of this step.
    pub loss: f64,
    /// Mean loss of the last hundred steps or so.
    pub smooth_loss: f64,
    /// Norm of the gradient before it was shortened.
    pub gradient_norm: f64,
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Examples a second, lately.
    pub samples_per_second: f64,
    /// Seconds that are left at that rate.
    pub remaining: f64,
}

/// What happens in a run.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The run is ready to begin or go on.
    Started {
        /// Updates that were done before.
        done: u64,
        /// Updates of the whole run.
        steps: u64,
        /// Trained parameters.
        parameters: usize,
        /// Pictures (or points) it learns from.
        examples: usize,
    },
    /// A part of the run begins that is a run in itself.
    Phase {
        /// What happens in it.
        what: &'a str,
    },
    /// Something that is done once before the steps.
    Preparing {
        /// What.
        what: &'a str,
        /// How many of them are done.
        done: usize,
        /// Of how many.
        total: usize,
    },
    /// An update was made.
    Step(StepReport),
    /// A picture could not be used.
    Skipped(&'a Skipped),
    /// The state was saved.
    Saved {
        /// Folder of the checkpoint.
        path: &'a Path,
        /// Updates it holds.
        step: u64,
    },
    /// Held-out pictures were measured.
    Validation {
        /// Their loss.
        loss: f64,
        /// Whether it is the lowest so far.
        best: bool,
    },
    /// Pictures were drawn.
    Samples {
        /// The file.
        path: &'a Path,
    },
    /// The disk is full; the run waits until there is room, or until the observer ends it.
    DiskFull {
        /// What could not be written, and why.
        message: &'a str,
    },
    /// The finished model was written.
    Finished {
        /// Its folder.
        path: &'a Path,
    },
}
