//! The forward process: how much noise each training step adds.

use serde::{Deserialize, Serialize};

use crate::config::SchedulerConfig;
use crate::error::Error;
use crate::level::Level;

/// How the betas run from `beta_start` to `beta_end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Evenly (Ho et al. 2020).
    #[default]
    Linear,
    /// Evenly in their square roots (latent diffusion, Rombach et al. 2022).
    ScaledLinear,
    /// From a squared cosine, each beta at most 0.999 (Nichol and Dhariwal 2021).
    #[serde(rename = "squaredcos_cap_v2")]
    SquaredCosCapV2,
}

impl BetaSchedule {
    /// The betas of `count` training steps, in f32 as torch computes them.
    pub fn betas(self, start: f64, end: f64, count: usize) -> Vec<f32> {
        match self {
            Self::Linear => torch_linspace(start as f32, end as f32, count),
            Self::ScaledLinear => torch_linspace(start.sqrt() as f32, end.sqrt() as f32, count)
                .iter()
                .map(|root| root * root)
                .collect(),
            Self::SquaredCosCapV2 => {
                let alpha_bar = |t: f64| {
                    ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2)
                        .cos()
                        .powi(2)
                };
                let at = |i: usize| alpha_bar(i as f64 / count as f64);
                (0..count)
                    .map(|i| (1.0 - at(i + 1) / at(i)).min(0.999) as f32)
                    .collect()
            }
        }
    }
}

/// `torch.linspace` in f32: from both ends towards the middle.
fn torch_linspace(start: f32, end: f32, count: usize) -> Vec<f32> {
    if count == 1 {
        return vec![start];
    }
    let step = (end - start) / (count - 1) as f32;
    (0..count)
        .map(|i| {
            if i < count / 2 {
                step.mul_add(i as f32, start)
            } else {
                (-step).mul_add((count - i - 1) as f32, end)
            }
        })
        .collect()
}

/// `torch.cumprod` of an f32 tensor on the CPU: the product runs in f64, each value is rounded to f32.
fn torch_cumprod(factors: impl Iterator<Item = f32>) -> Vec<f32> {
    let mut product = 1.0_f64;
    factors
        .map(|factor| {
            product *= f64::from(factor);
            product as f32
        })
        .collect()
}

/// Shifts and scales the betas so that the last step holds no signal (Lin et al. 2023, algorithm 1).
pub fn rescale_zero_terminal_snr(betas: &[f32]) -> Vec<f32> {
    let mut roots: Vec<f32> = torch_cumprod(betas.iter().map(|b| 1.0 - b))
        .iter()
        .map(|a| a.sqrt())
        .collect();
    let (Some(&first), Some(&last)) = (roots.first(), roots.last()) else {
        return Vec::new();
    };
    let scale = first / (first - last);
    roots
        .iter_mut()
        .for_each(|root| *root = (*root - last) * scale);
    let bars: Vec<f32> = roots.iter().map(|root| root * root).collect();
    (0..bars.len())
        .map(|i| {
            1.0 - if i == 0 {
                bars[0]
            } else {
                bars[i] / bars[i - 1]
            }
        })
        .collect()
}

/// The discrete noise schedule that a network was trained with.
///
/// The cumulative products are computed in f32 exactly as torch does, because a picture's parity with
/// diffusers rests on them; everything derived from them is f64.
#[derive(Debug, Clone, PartialEq)]
pub struct NoiseSchedule {
    alphas_cumprod: Vec<f64>,
    sigmas: Vec<f64>,
    log_sigmas: Vec<f64>,
}

/// The sigma of a step without signal where a sampler divides by it: diffusers puts a cumulative
/// product of 2^-24 in place of zero, and the root of 2^24 - 1 rounds to this in torch.
const LARGEST_SIGMA: f32 = 4096.0;

impl NoiseSchedule {
    /// The schedule of a scheduler configuration, with `beta_start` and `beta_end` defaulting to
    /// 0.00085 and 0.012 (those of Stable Diffusion).
    ///
    /// # Errors
    /// A configuration whose betas are none, not finite, or outside of 0 to 1.
    pub fn from_config(config: &SchedulerConfig) -> Result<Self, Error> {
        Self::with_defaults(config, BetaSchedule::ScaledLinear, 0.00085, 0.012)
    }

    /// As [`from_config`](Self::from_config), with a scheduler class's own defaults for absent fields.
    pub(crate) fn with_defaults(
        config: &SchedulerConfig,
        kind: BetaSchedule,
        start: f64,
        end: f64,
    ) -> Result<Self, Error> {
        let betas = match &config.trained_betas {
            Some(betas) => betas.clone(),
            None => {
                let count = config.num_train_timesteps();
                if !(1..=100_000).contains(&count) {
                    return Err(Error::Config {
                        found: format!("num_train_timesteps {count}"),
                        expected: "1 to 100000",
                    });
                }
                let (start, end) = (
                    config.beta_start.unwrap_or(start),
                    config.beta_end.unwrap_or(end),
                );
                config
                    .beta_schedule
                    .unwrap_or(kind)
                    .betas(start, end, count)
            }
        };
        Self::from_betas(&betas, config.rescale_betas_zero_snr.unwrap_or(false))
    }

    /// The schedule of given betas, rescaled to zero terminal SNR if asked.
    ///
    /// # Errors
    /// No betas, or one that is not finite or outside of 0 to 1.
    pub fn from_betas(betas: &[f32], zero_terminal_snr: bool) -> Result<Self, Error> {
        if betas.len() < 2 {
            return Err(Error::Config {
                found: format!("{} betas", betas.len()),
                expected: "two or more",
            });
        }
        if let Some(i) = betas.iter().position(|b| !(*b > 0.0 && *b < 1.0)) {
            return Err(Error::Config {
                found: format!("beta {} at training step {i}", betas[i]),
                expected: "betas between 0 and 1, both excluded",
            });
        }
        let alphas_cumprod = if zero_terminal_snr {
            torch_cumprod(rescale_zero_terminal_snr(betas).iter().map(|b| 1.0 - b))
        } else {
            torch_cumprod(betas.iter().map(|b| 1.0 - b))
        };
        if alphas_cumprod.iter().rev().skip(1).any(|&a| a <= 0.0) {
            return Err(Error::Config {
                found: "betas whose signal vanishes before the last training step".into(),
                expected: "betas that leave some signal",
            });
        }
        // The sigmas are those of the samplers that divide by alpha; the product itself stays exact.
        let ratio = |&a: &f32| {
            if a > 0.0 {
                ((1.0 - a) / a).sqrt()
            } else {
                LARGEST_SIGMA
            }
        };
        let sigmas: Vec<f32> = alphas_cumprod.iter().map(ratio).collect();
        Ok(Self {
            log_sigmas: sigmas.iter().map(|s| f64::from(s.ln())).collect(),
            sigmas: sigmas.iter().map(|&s| f64::from(s)).collect(),
            alphas_cumprod: alphas_cumprod.iter().map(|&a| f64::from(a)).collect(),
        })
    }

    /// The schedule of a straight flow: rising shares of noise, of which the last may be 1.
    pub(crate) fn straight(shares: &[f64]) -> Self {
        let ratio = |&s: &f64| (s / (1.0 - s)).min(f64::from(LARGEST_SIGMA));
        let sigmas: Vec<f64> = shares.iter().map(ratio).collect();
        Self {
            alphas_cumprod: sigmas.iter().map(|s| 1.0 / (s * s + 1.0)).collect(),
            log_sigmas: sigmas.iter().map(|s| s.ln()).collect(),
            sigmas,
        }
    }

    /// Number of training steps.
    pub fn len(&self) -> usize {
        self.sigmas.len()
    }

    /// Never true: a schedule has at least two steps.
    pub fn is_empty(&self) -> bool {
        self.sigmas.is_empty()
    }

    /// The cumulative products of `1 - beta`, one a training step, falling. The last is 0 after
    /// rescaling to zero terminal SNR.
    pub fn alphas_cumprod(&self) -> &[f64] {
        &self.alphas_cumprod
    }

    /// Noise over signal at each training step, rising. A last step without signal counts as
    /// 2^-24 of it (sigma 4096), as in diffusers.
    pub fn sigmas(&self) -> &[f64] {
        &self.sigmas
    }

    /// The smallest sigma, that of training step 0.
    pub fn sigma_min(&self) -> f64 {
        self.sigmas[0]
    }

    /// The largest sigma, that of the last training step.
    pub fn sigma_max(&self) -> f64 {
        self.sigmas[self.sigmas.len() - 1]
    }

    /// The (fractional) training step of a sigma, linear in its logarithm, clamped to the ends.
    pub fn sigma_to_timestep(&self, sigma: f64) -> f64 {
        let log = sigma.max(1e-10).ln();
        let last = self.log_sigmas.len() - 2;
        let low = self
            .log_sigmas
            .partition_point(|&s| s <= log)
            .saturating_sub(1)
            .min(last);
        let (a, b) = (self.log_sigmas[low], self.log_sigmas[low + 1]);
        let weight = ((a - log) / (a - b)).clamp(0.0, 1.0);
        (1.0 - weight) * low as f64 + weight * (low + 1) as f64
    }

    /// The sigma at a (fractional) training step, linear in its logarithm, clamped to the ends.
    pub fn timestep_to_sigma(&self, timestep: f64) -> f64 {
        crate::math::interpolate(&self.log_sigmas, timestep).exp()
    }

    /// The variance-preserving level of a training step; `timestep` is clamped to the last.
    pub fn level(&self, timestep: usize) -> Level {
        let index = timestep.min(self.len() - 1);
        Level::preserving(self.alphas_cumprod[index], index as f64)
    }

    /// The forward process q(x_t | x_0) in variance-preserving form: `alpha · x0 + sigma · noise`.
    pub fn add_noise(&self, clean: &[f32], noise: &[f32], timestep: usize) -> Vec<f32> {
        self.level(timestep).add_noise(clean, noise)
    }

    /// The velocity `alpha · noise - sigma · x0`, the target of v-prediction.
    pub fn velocity(&self, clean: &[f32], noise: &[f32], timestep: usize) -> Vec<f32> {
        let level = self.level(timestep);
        crate::math::combine([(level.alpha, noise), (-level.sigma, clean)])
    }
}
