//! The models of Aquatint: text encoders, UNet, autoencoders, and their detection.

mod error;
pub mod text;
pub mod unet;
pub mod vae;

pub use error::ModelError;
