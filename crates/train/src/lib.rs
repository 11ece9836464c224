//! Trains diffusion models.
//!
//! [`data`] reads a folder of pictures with their captions, in an order that is a function of the seed and
//! the step alone, decoded ahead by worker threads.

pub mod data;
mod error;

pub use error::TrainError;
