//! The models of Aquatint: text encoders, UNet, autoencoders, and their detection.

mod apart;
mod checkpoint;
mod config;
pub mod dit;
mod error;
pub mod exchange;
pub mod families;
mod find;
pub mod flux;
mod folder;
mod infer;
pub mod keys;
pub mod lora;
pub mod mmdit;
mod network;
mod open;
mod open_transformer;
mod own;
mod pixel;
mod single_file;
mod single_transformer;
mod source;
pub mod t5;
pub mod text;
pub mod unet;
pub mod vae;

pub use aquatint_ops::Storage;
pub use checkpoint::{
    Checkpoint, Location, OpenOptions, Part, T5Part, TextPart, load_tiny, recognise,
};
pub use error::ModelError;
pub use find::find_models;
pub use folder::EmbeddedFiles;
pub use network::NetworkConfig;
pub use pixel::{PixelDefaults, PixelModel};
pub use source::CheckpointSource;
