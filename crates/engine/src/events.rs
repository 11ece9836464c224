//! What a run tells while it goes.

use std::ops::ControlFlow;
use std::time::Duration;

use serde::Serialize;

use crate::memory::Memory;

/// A part of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Opening files and building a component.
    Load,
    /// Prompts to embeddings.
    TextEncode,
    /// The denoising loop.
    Denoise,
    /// Latents to pixels.
    Decode,
    /// Pixels to a file.
    Save,
}

impl Stage {
    /// The stage in words.
    pub fn label(self) -> &'static str {
        match self {
            Stage::Load => "loading",
            Stage::TextEncode => "reading the prompt",
            Stage::Denoise => "denoising",
            Stage::Decode => "decoding",
            Stage::Save => "saving",
        }
    }
}

/// One thing that happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// A stage begins, with its number of steps (1 where it has none).
    Begin {
        /// Which.
        stage: Stage,
        /// How many steps it has.
        steps: usize,
    },
    /// A step of a stage ended.
    Step {
        /// Which stage.
        stage: Stage,
        /// Steps done.
        done: usize,
        /// Of how many.
        steps: usize,
        /// How long the step took.
        took: Duration,
        /// Expected time until the run ends, when it can be told.
        remaining: Option<Duration>,
        /// Memory now.
        memory: Memory,
        /// The clean latents as the network sees them now, in the denoising loop.
        preview: Option<Latents<'a>>,
        /// The latents as they are after the step, in the sampler's own scaling, in the denoising
        /// loop. After the last step they are what is decoded.
        latents: Option<Latents<'a>>,
    },
    /// A stage ended.
    End {
        /// Which.
        stage: Stage,
        /// How long it took.
        took: Duration,
    },
    /// Something that the user should know; the run goes on.
    Warning(String),
}

/// Latents of a batch, `[batch, channels, height, width]` in f32 (PyTorch's order).
#[derive(Debug, Clone, Copy)]
pub struct Latents<'a> {
    /// The values.
    pub values: &'a [f32],
    /// Batch, channels, height, width.
    pub shape: [usize; 4],
}

/// Receives events; `Break` stops the run within one step.
pub type Observer<'o> = dyn FnMut(Event<'_>) -> ControlFlow<()> + 'o;
