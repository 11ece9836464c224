//! T5's encoder (Raffel et al., 2020; version 1.1) and its tokenizer: what transformer families read prompts with.

mod config;
mod encoder;
mod gguf;
mod spiece;
mod tokenizer;

pub use config::T5Config;
pub use encoder::{T5Encoder, T5Mask};
pub(crate) use gguf::{shape_metadata, tokenizer_beside, tokenizer_file, tokenizer_metadata};
pub use tokenizer::{T5Tokenizer, T5Tokens};
