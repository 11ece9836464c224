//! The kinds of training.

mod autoencoder;
mod denoise;
mod diffusion;
mod latents;
mod picture;
mod plane;
mod text;
mod warm_up;

pub use autoencoder::train_autoencoder;
pub(crate) use denoise::{Drawing, draw};
pub use diffusion::train_diffusion;
pub(crate) use latents::Encoding;
