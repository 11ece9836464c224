//! The kinds of training.

mod autoencoder;
mod denoise;
mod diffusion;
mod plane;
mod text;

pub use autoencoder::train_autoencoder;
pub(crate) use denoise::{Drawing, draw};
pub use diffusion::train_diffusion;
