//! The models of Aquatint: text encoders, UNet, autoencoders, and their detection.

mod apart;
mod checkpoint;
mod config;
mod error;
pub mod families;
mod find;
mod folder;
mod infer;
pub mod keys;
pub mod lora;
mod open;
mod own;
mod pixel;
mod single_file;
mod source;
pub mod text;
pub mod unet;
pub mod vae;

pub use aquatint_ops::Storage;
pub use checkpoint::{Checkpoint, Location, OpenOptions, Part, TextPart, load_tiny, recognise};
pub use error::ModelError;
pub use find::find_models;
pub use folder::EmbeddedFiles;
pub use pixel::{PixelDefaults, PixelModel};
pub use source::CheckpointSource;
