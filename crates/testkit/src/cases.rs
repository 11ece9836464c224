//! The manifest of reference pipelines: `golden/<generation>/cases.json`.

use std::path::Path;

use serde::Deserialize;

use crate::Error;

/// One reference run of a whole pipeline. Its tensors are `<name>/noise`, `<name>/step00`, ...
/// (latents after each step, NCHW) and `<name>/image` (u8, `[height, width, 3]`).
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Case {
    /// The prefix of its tensors, e.g. `pipe/dpmpp_2m_karras/g7.5/seed1046764073`.
    pub name: String,
    /// The `.safetensors` file that holds them, beside the manifest.
    pub file: String,
    /// The folder of the model, relative to `golden/`.
    pub model: String,
    /// The folder in the model that holds the scheduler's config: `scheduler`, or `scheduler_turbo`
    /// where SDXL's weights stand for a distilled model's.
    pub scheduler: String,
    /// Aquatint's name of the sampler.
    pub sampler: String,
    /// Aquatint's name of the schedule.
    pub schedule: String,
    /// How the timesteps are spread: `leading`, `trailing` or `linspace`.
    pub spacing: String,
    /// The whole config of the diffusers scheduler, and its class as `class_name`.
    pub diffusers: serde_json::Value,
    /// The scheduler's timesteps, one for each latent recorded.
    pub timesteps: Vec<f64>,
    /// The scheduler's sigmas where it has them.
    pub sigmas: Option<Vec<f64>>,
    /// Number of steps asked for.
    pub steps: usize,
    /// Number of latents recorded (solvers of two stages record each call of the scheduler).
    pub recorded: usize,
    /// Guidance scale; 1.0 and below is off.
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
    /// Guidance rescale, 0 is off.
    pub guidance_rescale: f64,
    /// Which layer of the text encoder, from the end: 1 is the family's usual one, 2 the one before
    /// it (`clip_skip=1` in diffusers).
    pub clip_skip: usize,
    /// Tokens that T5 reads, where they are not the family's own number.
    #[serde(default)]
    pub t5_tokens: Option<u32>,
    /// Scale of classifier-free guidance beside the embedded one (`true_cfg_scale`).
    #[serde(default)]
    pub true_guidance: Option<f64>,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Tensors, golden};

    #[test]
    fn every_case_has_its_tensors() {
        for family in ["sd1", "sd2", "sdxl"] {
            let cases = Cases::read(golden(family).join("cases.json"))
                .unwrap()
                .cases;
            assert!(cases.len() >= 28, "{family} has {} cases", cases.len());
            let tensors = Tensors::read(golden(family).join(&cases[0].file)).unwrap();
            for case in cases {
                let latent = [1, 4, case.height / 8, case.width / 8];
                assert_eq!(tensors.get(&format!("{}/noise", case.name)).shape(), latent);
                for step in 0..case.recorded {
                    let name = format!("{}/step{step:02}", case.name);
                    assert_eq!(tensors.get(&name).shape(), latent);
                }
                let image = tensors.get(&format!("{}/image", case.name));
                assert_eq!(image.shape(), [case.height, case.width, 3]);
                assert_eq!(case.timesteps.len(), case.recorded);
                // Half of the project's tolerance must be left to Aquatint.
                assert!(case.rounding < 5e-5, "{}: {}", case.name, case.rounding);
            }
        }
    }
}
