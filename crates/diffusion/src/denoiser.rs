//! The one contract between samplers and networks: `denoised = D(x, level)`.

use crate::error::BoxError;
use crate::guidance::Guidance;
use crate::level::Level;
use crate::prediction::Prediction;

/// What a denoiser gives back.
#[derive(Debug, Clone, PartialEq)]
pub struct Denoised {
    /// The expected clean latent, guidance included.
    pub denoised: Vec<f32>,
    /// The expected clean latent without the prompt, for samplers that need it
    /// ([`SamplerInfo::needs_uncond`](crate::sampler::SamplerInfo::needs_uncond)).
    pub uncond_denoised: Option<Vec<f32>>,
}

/// The expected clean latent of a noisy one. Samplers know nothing else of a network.
pub trait Denoiser {
    /// `x = alpha · x0 + sigma · noise` at `level`; gives E\[x0 | x\], of the length of `x`.
    ///
    /// # Errors
    /// The implementor's own; the sampling loop hands it on as [`Error::Network`](crate::Error::Network).
    fn denoise(&mut self, x: &[f32], level: Level) -> Result<Denoised, BoxError>;
}

/// Which outputs of a network a step needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Branches {
    /// Only with the prompt.
    Cond,
    /// With the prompt and with the negative (or empty) prompt.
    CondAndUncond,
}

/// The outputs of a network for one input.
#[derive(Debug, Clone, PartialEq)]
pub struct Outputs {
    /// With the prompt.
    pub cond: Vec<f32>,
    /// With the negative prompt, if [`Branches::CondAndUncond`] asked for it.
    pub uncond: Option<Vec<f32>>,
}

/// A network behind its text conditioning: what an engine implements.
pub trait Network {
    /// Runs the network on `input` (the latent in unit variance) at `timestep`.
    ///
    /// # Errors
    /// The implementor's own.
    fn run(
        &mut self,
        input: &[f32],
        timestep: f64,
        branches: Branches,
    ) -> Result<Outputs, BoxError>;

    /// Runs the network with the prompt and some of its layers left out, for skip-layer guidance.
    ///
    /// # Errors
    /// The implementor's own; here that the network has no such layers.
    fn run_skipping(&mut self, input: &[f32], timestep: f64) -> Result<Vec<f32>, BoxError> {
        let _ = (input, timestep);
        Err("this network cannot leave layers out; take no skip-layer guidance".into())
    }
}

/// Network, then prediction, then guidance: the denoiser of a run.
#[derive(Debug)]
pub struct GuidedDenoiser<N> {
    /// The network.
    pub network: N,
    /// What it predicts.
    pub prediction: Prediction,
    /// How strongly it follows the prompt.
    pub guidance: Guidance,
    /// Number of images in a latent slice, for guidance that looks at each image.
    pub images: usize,
    /// Whether the unguided result is handed on, for samplers that need it.
    pub keep_uncond: bool,
}

impl<N: Network> Denoiser for GuidedDenoiser<N> {
    fn denoise(&mut self, x: &[f32], level: Level) -> Result<Denoised, BoxError> {
        let guided = self.guidance.acts_at(level.ratio());
        let branches = if guided || self.keep_uncond {
            Branches::CondAndUncond
        } else {
            Branches::Cond
        };
        let input = self.prediction.network_input(x, level);
        let Outputs { cond, uncond } = self.network.run(&input, level.timestep, branches)?;
        check("the network's output", &cond, x.len())?;
        if let Some(uncond) = &uncond {
            check(
                "the network's output for the negative prompt",
                uncond,
                x.len(),
            )?;
        }
        // Guidance acts on the network's output, as in diffusers: the same as on the clean latent in
        // exact arithmetic, and the same bits here.
        let skip = self.guidance.skip_at(level.ratio());
        let output = match &uncond {
            Some(uncond) if guided => {
                let mut output = self.guidance.apply(&cond, uncond, self.images);
                if let Some(skip) = skip {
                    let skipped = self.network.run_skipping(&input, level.timestep)?;
                    check(
                        "the network's output without some layers",
                        &skipped,
                        x.len(),
                    )?;
                    skip.apply(&mut output, &cond, &skipped);
                }
                output
            }
            _ => cond,
        };
        let uncond_denoised = match uncond {
            Some(uncond) if self.keep_uncond => Some(self.prediction.denoised(&uncond, x, level)),
            _ => None,
        };
        Ok(Denoised {
            denoised: self.prediction.denoised(&output, x, level),
            uncond_denoised,
        })
    }
}

fn check(what: &'static str, slice: &[f32], expected: usize) -> Result<(), BoxError> {
    if slice.len() == expected {
        return Ok(());
    }
    Err(Box::new(crate::Error::Length {
        what,
        found: slice.len(),
        expected,
    }))
}
