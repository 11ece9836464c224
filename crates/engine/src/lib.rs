//! The engine of Aquatint: from a request to events and an image.

mod error;
mod events;
pub mod memory;
pub mod metadata;
pub mod picture;
mod request;

pub use error::EngineError;
pub use events::{Event, Latents, Observer, Stage};
pub use request::{MAX_BATCH, MAX_STEPS, PromptSyntax, Request, SIDES, Tiling};
