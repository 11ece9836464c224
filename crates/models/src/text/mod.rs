//! From a prompt to what the denoiser is conditioned on:
//! text, [pieces](prompt), chunks of tokens, [`Conditioning`].

mod chunks;
mod clip;
mod conditioning;
mod config;
mod joint;
mod learn;
pub mod prompt;
mod tokenizer;
mod vocabulary;

pub use clip::{ClipSkip, ClipTextEncoder, ClipTextOutput};
pub use conditioning::{
    Conditioner, Conditioning, EncodeOptions, Encoded, MAX_CHUNKS, Negative, TextEncoder,
};
pub use config::ClipTextConfig;
pub use joint::{JointConditioner, JointShape};
pub use learn::{LEAST_VOCABULARY, TokenizerFiles, learn_tokenizer};
pub use prompt::Syntax;
pub use tokenizer::{ClipTokenizer, Padding, Tokens};
