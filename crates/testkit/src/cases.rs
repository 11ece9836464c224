//! The manifest of reference pipelines: `golden/<generation>/cases.json`.

use std::path::Path;

use serde::Deserialize;

use crate::Error;

/// One reference run of a whole pipeline. Its tensors are `<name>/noise`, `<name>/step00`, ...
/// (latents after each step, NCHW) and `<name>/image` (u8, `[height, width, 3]`).
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Case {
    /// The prefix of its tensors, e.g. `pipe/dpmpp_2m_karras/g7.5/seed831`.
    pub name: String,
    /// The `.safetensors` file that holds them, beside the manifest.
    pub file: String,
    /// The folder of the model, relative to `golden/`.
    pub model: String,
    /// Aquatint's name of the sampler.
    pub sampler: String,
    /// Aquatint's name of the schedule.
    pub schedule: String,
    /// The options given to the diffusers scheduler, for the record.
    pub diffusers: serde_json::Value,
    /// Number of steps asked for.
    pub steps: usize,
    /// Number of latents recorded (solvers of two stages record each call of the scheduler).
    pub recorded: usize,
    /// Guidance scale; 1.0 is off.
    pub guidance: f64,
    /// DDIM's eta, TCD's gamma, 0 elsewhere.
    pub eta: f64,
    /// Seed of `torch.Generator("cpu")`.
    pub seed: u64,
    /// The prompt.
    pub prompt: String,
    /// The negative prompt, `None` when not given (SDXL then uses zeros).
    pub negative: Option<String>,
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Largest difference of the final latents between an f32 and an f64 run of diffusers,
    /// relative to their largest value: what rounding alone does to this case.
    pub rounding: f64,
}

/// The cases of one manifest.
#[derive(Debug, Clone, Deserialize)]
pub struct Cases {
    /// The cases, in the order they were made.
    pub cases: Vec<Case>,
}

impl Cases {
    /// Reads a manifest.
    ///
    /// # Errors
    /// When the file is missing or not such a manifest.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref().to_path_buf();
        let text = std::fs::read_to_string(&path).map_err(|source| Error::Io {
            path: path.clone(),
            source,
        })?;
        serde_json::from_str(&text).map_err(|e| Error::Format {
            path,
            what: e.to_string(),
        })
    }
}
