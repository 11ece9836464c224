//! Trains diffusion models.
//!
//! [`data`] reads a folder of pictures with their captions, in an order that is a function of the seed and
//! the step alone, decoded ahead by worker threads; [`metrics`] writes what a run
//! tells.

pub mod config;
pub mod data;
mod error;
mod init;
pub mod metrics;
pub mod optim;

pub use error::TrainError;
pub use init::Init;
