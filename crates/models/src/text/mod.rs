//! From a prompt to what the denoiser is conditioned on.

mod clip;
mod config;
pub mod prompt;
mod tokenizer;
mod vocabulary;

pub use clip::{ClipSkip, ClipTextEncoder, ClipTextOutput};
pub use config::ClipTextConfig;
pub use tokenizer::{ClipTokenizer, Padding, Tokens};
