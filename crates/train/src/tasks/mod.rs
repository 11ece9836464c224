//! The kinds of training.

mod denoise;
mod diffusion;
mod plane;
mod text;

pub use diffusion::train_diffusion;
