//! Trains diffusion models.
//!
//! [`train_diffusion`] reads like the loop it is: examples come from [`data`] in an order that is a function of the
//! seed and the step alone, are noised by `aquatint_diffusion::training`, and the gradients of a
//! [network](networks) move its weights by [`optim`]. [`run`] keeps the state on the disk and tells an observer.

pub mod config;
pub mod data;
mod error;
mod eval;
mod export;
mod init;
mod latents;
mod lora;
pub mod metrics;
pub mod networks;
pub mod optim;
mod parts;
mod plot;
pub mod run;
mod supply;
mod tasks;
mod tokenizer;

pub use error::TrainError;
pub use eval::{EvalObserver, EvalOptions, Evaluation, evaluate};
pub use init::Init;
pub use tasks::{train_autoencoder, train_diffusion};
pub use tokenizer::train_tokenizer;
