//! The training side of diffusion: which noise level an example gets, what the network should say, and how
//! much its error counts.
//!
//! A loss is three independent choices (Karras et al. 2022): the distribution of the noise levels
//! ([`TimestepSampling`]), the target ([`Prediction`]) and the weight ([`LossWeight`]). [`Objective`] holds
//! them together with the forward process: a chain of noising steps, or a straight flow.
//!
//! Everything random is a function of `(seed, step)` by [`Draw`], so that a run that was interrupted goes on
//! with the same numbers, and no generator's state has to be saved.

mod draw;
mod timesteps;
mod weight;

pub use draw::Draw;
pub use timesteps::TimestepSampling;
pub use weight::LossWeight;

use crate::beta::NoiseSchedule;
use crate::config::SchedulerConfig;
use crate::error::Error;
use crate::flow::FlowSchedule;
use crate::level::Level;
use crate::prediction::Prediction;

/// What a diffusion model is trained for: minimise `weight(t) · mean |network(x_t, t) - target|²` over
/// levels `t` drawn from `timesteps`, with `x_t = alpha_t · x0 + sigma_t · noise`.
#[derive(Debug, Clone)]
pub struct Objective {
    process: Process,
    prediction: Prediction,
    timesteps: TimestepSampling,
    weight: LossWeight,
    offset_noise: f64,
}

/// How examples become noise.
#[derive(Debug, Clone)]
enum Process {
    /// Step by step (Ho et al. 2020).
    Chain(NoiseSchedule),
    /// Along a straight line (Liu et al. 2022).
    Flow(FlowSchedule),
}

/// The noise levels of one batch, with what each example's error counts.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchLevels {
    /// One level an example; `timestep` is a whole number of training steps, of a shifted flow a fraction.
    pub levels: Vec<Level>,
    /// One factor an example.
    pub weights: Vec<f64>,
}

/// One example, noised.
#[derive(Debug, Clone, PartialEq)]
pub struct Noised {
    /// The network's input, as long as the clean latent.
    pub input: Vec<f32>,
    /// What the network should say, as long as the clean latent.
    pub target: Vec<f32>,
}

impl Objective {
    /// The objective of a scheduler's forward process and prediction.
    ///
    /// `offset_noise` adds a normal value for each channel of each example, times this, to the noise
    /// (Guttenberg 2023), so that a model learns to move the mean; 0 for none, 0.05 to 0.1 is usual.
    ///
    /// # Errors
    /// A scheduler without a valid schedule; a schedule that ends without signal together with the
    /// prediction of noise, which says nothing there; options outside of their ranges.
    pub fn new(
        scheduler: &SchedulerConfig,
        timesteps: TimestepSampling,
        weight: LossWeight,
        offset_noise: f64,
    ) -> Result<Self, Error> {
        let prediction = scheduler.prediction();
        let process = match scheduler.is_flow() {
            true => Process::Flow(FlowSchedule::from_config(scheduler)?),
            false => Process::Chain(NoiseSchedule::from_config(scheduler)?),
        };
        let silent = match &process {
            Process::Chain(schedule) => schedule.alphas_cumprod().last().is_some_and(|a| *a <= 0.0),
            Process::Flow(_) => true,
        };
        if silent && prediction == Prediction::Epsilon {
            return Err(Error::Config {
                found: "zero terminal SNR with prediction_type epsilon".into(),
                expected: "v_prediction or sample: without signal, the noise is the input itself",
            });
        }
        timesteps.check()?;
        weight.check()?;
        if !(0.0..=1.0).contains(&offset_noise) {
            return Err(Error::Option {
                option: "offset_noise",
                found: offset_noise,
                expected: "0 to 1",
            });
        }
        Ok(Self {
            process,
            prediction,
            timesteps,
            weight,
            offset_noise,
        })
    }

    /// Training steps of the forward process.
    pub fn steps(&self) -> usize {
        match &self.process {
            Process::Chain(schedule) => schedule.len(),
            Process::Flow(flow) => flow.train(),
        }
    }

    /// The level of a training step, counted from 0, the one with the least noise.
    ///
    /// # Panics
    /// When there are not so many steps.
    pub fn level(&self, step: usize) -> Level {
        assert!(step < self.steps(), "a training step");
        match &self.process {
            Process::Chain(schedule) => schedule.level(step),
            Process::Flow(flow) => {
                let sigma = flow.sigma((step + 1) as f64 / flow.train() as f64);
                Level::straight(sigma, flow.timestep(sigma))
            }
        }
    }

    /// What the network predicts.
    pub fn prediction(&self) -> Prediction {
        self.prediction
    }

    /// Levels and weights for the `batch` examples of a step.
    pub fn levels(&self, draw: &Draw, batch: usize) -> BatchLevels {
        let steps = self.steps();
        let levels: Vec<Level> = self
            .timesteps
            .times(draw, batch)
            .into_iter()
            .map(|time| self.level(((time * steps as f64) as usize).min(steps - 1)))
            .collect();
        let weights = levels
            .iter()
            .map(|&level| self.weight.of(self.prediction, level))
            .collect();
        BatchLevels { levels, weights }
    }

    /// The weight of an example at a level.
    pub fn weight(&self, level: Level) -> f64 {
        self.weight.of(self.prediction, level)
    }

    /// Noises one example.
    ///
    /// # Shapes
    /// `clean`: `[height, width, channels]` or `[channels, height, width]`, flat; `channel_of` gives the
    /// channel of a flat index, for the offset noise.
    pub fn noised(
        &self,
        draw: &Draw,
        example: usize,
        clean: &[f32],
        channels: usize,
        channel_of: impl Fn(usize) -> usize,
        level: Level,
    ) -> Noised {
        let mut noise = vec![0.0; clean.len()];
        draw.normal(example, &mut noise);
        if self.offset_noise > 0.0 {
            let mut offsets = vec![0.0; channels];
            draw.offsets(example, &mut offsets);
            for (i, value) in noise.iter_mut().enumerate() {
                *value += self.offset_noise as f32 * offsets[channel_of(i)];
            }
        }
        Noised {
            input: level.add_noise(clean, &noise),
            target: self.prediction.target(clean, &noise, level),
        }
    }
}

#[cfg(test)]
mod tests;
