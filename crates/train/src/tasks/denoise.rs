//! The loss of a diffusion model on one batch, and drawing with one: what all its kinds share.

use std::ops::ControlFlow;

use aquatint_diffusion::rng::TorchCpu;
use aquatint_diffusion::training::{Draw, Objective};
use aquatint_diffusion::{
    BoxError, Branches, Guidance, GuidedDenoiser, NoiseSource, Outputs, Plan, SamplerOptions,
    SchedulerConfig, Sigmas, sample, sampler,
};
use aquatint_ops::{Device, Tensor};
use burn::tensor::TensorData;
use rayon::prelude::*;

use crate::TrainError;
use crate::config::SampleConfig;
use crate::networks::{Network, Told};
use crate::run::Loss;
use crate::supply::{Examples, Supply};

/// The device that gradients are computed on; see `gradient_checkpointing` of a configuration.
pub(crate) fn training_device(device: &Device, recompute: bool) -> Device {
    let training = device.clone().autodiff();
    match recompute {
        true => training.gradient_checkpointing(),
        false => training,
    }
}

/// A batch after the forward process.
pub(crate) struct Noised {
    /// `[batch, height, width, channels]`.
    pub input: Tensor<4>,
    pub target: Tensor<4>,
    pub timesteps: Vec<f64>,
    /// Of each example, `[batch, 1, 1, 1]`.
    pub weights: Tensor<4>,
    /// Share of the noise range of each example.
    pub times: Vec<f64>,
}

/// Noises a batch.
pub(crate) fn noised(
    objective: &Objective,
    examples: &Examples,
    draw: &Draw,
    device: &Device,
) -> Noised {
    let batch = examples.clean.len();
    let [height, width, channels] = examples.shape;
    let levels = objective.levels(draw, batch);
    let parts: Vec<_> = examples
        .clean
        .par_iter()
        .zip(&levels.levels)
        .enumerate()
        .map(|(i, (clean, &level))| {
            objective.noised(draw, i, clean, channels, |at| at % channels, level)
        })
        .collect();
    let join = |of: fn(&aquatint_diffusion::training::Noised) -> &[f32]| {
        let values: Vec<f32> = parts.iter().flat_map(|p| of(p).iter().copied()).collect();
        Tensor::from_data(
            TensorData::new(values, [batch, height, width, channels]),
            device,
        )
    };
    let weights: Vec<f32> = levels.weights.iter().map(|&w| w as f32).collect();
    let steps = objective.steps() as f64;
    let timesteps: Vec<f64> = levels.levels.iter().map(|l| l.timestep).collect();
    Noised {
        input: join(|p| &p.input),
        target: join(|p| &p.target),
        times: timesteps.iter().map(|t| t / steps).collect(),
        timesteps,
        weights: Tensor::from_data(TensorData::new(weights, [batch, 1, 1, 1]), device),
    }
}

/// The loss of a network on a batch: the mean over examples of `weight · mean |prediction - target|²`.
pub(crate) fn loss<N: Network>(
    net: &N,
    noised: Noised,
    told: &Told,
    examples: Examples,
) -> Result<Loss, TrainError> {
    let Noised {
        input,
        target,
        timesteps,
        weights,
        times,
    } = noised;
    let batch = timesteps.len();
    let difference = net.predict(input, &timesteps, told)? - target;
    let squared = difference.powi_scalar(2);
    let [_, h, w, c] = squared.dims();
    let each = squared
        .clone()
        .without_autodiff()
        .reshape([batch, h * w * c])
        .mean_dim(1);
    let each = each.into_data().try_into_vec::<f32>().unwrap_or_default();
    let by_time = times.into_iter().zip(each.into_iter().map(f64::from));
    Ok(Loss {
        tensor: Some((squared * weights).mean()),
        examples: batch,
        files: examples.files,
        skipped: examples.skipped,
        by_time: by_time.collect(),
    })
}

/// A batch of which no picture could be used.
pub(crate) fn nothing(examples: Examples) -> Loss {
    Loss {
        tensor: None,
        examples: 0,
        files: examples.files,
        skipped: examples.skipped,
        by_time: Vec::new(),
    }
}

/// The mean loss of held-out examples. Their levels and noise are the same each time, so that only the weights make a
/// difference.
pub(crate) fn measure(
    held: &mut Supply,
    loss: impl Fn(Examples, &Draw) -> Result<Loss, TrainError>,
) -> Result<Option<f64>, TrainError> {
    let (mut sum, mut count) = (0.0, 0);
    for number in 0..held.batches_per_epoch() as u64 {
        let loss = loss(held.batch(number)?, &Draw::new(VALIDATION, number))?;
        if let Some(tensor) = loss.tensor {
            let value = tensor.into_data().try_into_vec::<f32>().unwrap_or_default();
            sum += f64::from(value[0]) * loss.examples as f64;
            count += loss.examples;
        }
    }
    Ok((count > 0).then(|| sum / count as f64))
}

/// Seed of the held-out examples' levels and noise.
const VALIDATION: u64 = 0x7661_6c69_6461_7465;

/// A network behind the samplers' contract: one example, channels last on both sides.
struct Sampled<'a, N> {
    net: &'a N,
    shape: [usize; 4],
    cond: Told,
    uncond: Option<Told>,
    device: &'a Device,
}

impl<N: Network> Sampled<'_, N> {
    fn call(&self, input: &[f32], timestep: f64, told: &Told) -> Result<Vec<f32>, BoxError> {
        let data = TensorData::new(input.to_vec(), self.shape);
        let input = Tensor::from_data(data, self.device);
        let timesteps = vec![timestep; self.shape[0]];
        let output = self.net.predict(input, &timesteps, told)?;
        Ok(output.into_data().try_into_vec::<f32>().unwrap_or_default())
    }
}

impl<N: Network> aquatint_diffusion::Network for Sampled<'_, N> {
    fn run(
        &mut self,
        input: &[f32],
        timestep: f64,
        branches: Branches,
    ) -> Result<Outputs, BoxError> {
        let uncond = self
            .uncond
            .as_ref()
            .filter(|_| branches == Branches::CondAndUncond)
            .map(|told| self.call(input, timestep, told))
            .transpose()?;
        Ok(Outputs {
            cond: self.call(input, timestep, &self.cond)?,
            uncond,
        })
    }
}

/// Whether pictures can be drawn as the configuration asks: told before the run, not at its first pictures.
///
/// # Errors
/// A sampler that is not known, or cannot draw with such a model.
pub(crate) fn check_drawing(
    config: &SampleConfig,
    scheduler: &SchedulerConfig,
) -> Result<(), TrainError> {
    let info = sampler::find(&config.sampler)?;
    Plan::new(info, scheduler, config.steps, Sigmas::Config)?;
    Ok(())
}

/// How a picture is drawn.
pub(crate) struct Drawing<'a> {
    pub config: &'a SampleConfig,
    pub scheduler: &'a SchedulerConfig,
    /// Batch, height, width, channels.
    pub shape: [usize; 4],
    pub cond: Told,
    pub uncond: Option<Told>,
    pub seed: u64,
    /// Each example has a generator of its own, the first with `seed`, the others following; else one draws for all.
    pub seed_each: bool,
}

/// Draws examples, `[batch, height, width, channels]`.
///
/// The noise has PyTorch's order (channels first), so that the same seed gives what `generate` draws.
pub(crate) fn draw<N: Network>(
    net: &N,
    drawing: Drawing<'_>,
    device: &Device,
) -> Result<Vec<f32>, TrainError> {
    let Drawing {
        config,
        scheduler,
        shape,
        cond,
        uncond,
        seed,
        seed_each,
    } = drawing;
    let info = sampler::find(&config.sampler)?;
    let plan = Plan::new(info, scheduler, config.steps, Sigmas::Config)?;
    let mut noise = ChannelsLast {
        inner: match seed_each {
            true => (seed..).take(shape[0]).map(TorchCpu::from_seed).collect(),
            false => vec![TorchCpu::from_seed(seed)],
        },
        shape,
    };
    let mut latent = vec![0.0; shape.iter().product()];
    noise.normal(&mut latent);
    let guided = uncond.is_some();
    let mut denoiser = GuidedDenoiser {
        network: Sampled {
            net,
            shape,
            cond,
            uncond,
            device,
        },
        prediction: plan.prediction,
        guidance: Guidance::new(if guided { config.guidance } else { 1.0 }),
        images: shape[0],
        keep_uncond: plan.info.needs_uncond && guided,
    };
    let options = SamplerOptions::default();
    let begin = plan.initial(&latent);
    let go_on = &mut |_: &aquatint_diffusion::Progress<'_>| ControlFlow::Continue(());
    Ok(sample(
        &plan,
        &options,
        begin,
        &mut denoiser,
        &mut noise,
        go_on,
    )?)
}

/// PyTorch's noise, turned to channels last.
struct ChannelsLast {
    /// For equal parts of the batch.
    inner: Vec<TorchCpu>,
    shape: [usize; 4],
}

impl NoiseSource for ChannelsLast {
    fn normal(&mut self, out: &mut [f32]) {
        let [batch, height, width, channels] = self.shape;
        let mut drawn = vec![0.0; out.len()];
        let part = out.len() / self.inner.len();
        for (generator, part) in self.inner.iter_mut().zip(drawn.chunks_exact_mut(part)) {
            generator.normal(part);
        }
        for b in 0..batch {
            for c in 0..channels {
                for p in 0..height * width {
                    out[(b * height * width + p) * channels + c] =
                        drawn[(b * channels + c) * height * width + p];
                }
            }
        }
    }
}
