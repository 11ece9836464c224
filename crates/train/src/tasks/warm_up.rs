//! Before a network learns to draw from captions, its text encoder learns to tell them apart.
//!
//! A text encoder that begins at random says next to nothing, so the UNet learns to remove noise without it, and for a
//! long time hardly a gradient reaches it. Here it first guesses a coarse latent of each caption's picture through a
//! linear layer that is thrown away. It is a run of its own in `warm_up/` of the run's folder, with checkpoints and
//! metrics as any other; its loss is the share of the pictures' variance that stays unexplained.

use std::ops::ControlFlow;
use std::path::Path;

use aquatint_diffusion::training::Draw;
use aquatint_models::text::{ClipSkip, ClipTextEncoder};
use aquatint_models::vae::AutoencoderKl;
use aquatint_ops::nn::Linear;
use aquatint_ops::{Device, Params, Tensor, Trainable};
use burn::module::Module;
use burn::tensor::{DType, Int, TensorData};

use super::denoise::training_device;
use super::diffusion::settings;
use super::latents::supplies;
use super::text::captioned;
use crate::config::{DiffusionConfig, WarmUpConfig};
use crate::networks::{Router, Trained};
use crate::parts::TextParts;
use crate::run::{
    self, Card, Event, Loss, Observer, Outcome, RunOptions, State, Task, Weights, newest,
};
use crate::supply::{Examples, Supply};
use crate::{Init, TrainError};

/// The trained text encoder, under the names it has in the network, and the seconds that it took; nothing when the
/// observer ended the run.
pub(crate) fn warm_up(
    config: &DiffusionConfig,
    warm: &WarmUpConfig,
    options: &RunOptions,
    observer: &mut Observer<'_>,
) -> Result<Option<(Weights, f64)>, TrainError> {
    let own = warm.run_of(config);
    let folder = RunOptions {
        out: options.out.join("warm_up"),
        resume: options.resume,
        max_steps: None,
    };
    let settings = settings(&own)?;
    let (keep, steps) = (settings.checkpoint.keep, settings.steps);
    let mut state = run::begin(&folder, &settings)?;
    if state.as_ref().is_none_or(|s| s.progress.step < steps) {
        run::stop(observer(&Event::Phase {
            what: "the text encoder learns to guess pictures from captions",
        }))?;
        let trainable = Trainable::all();
        let stored = state.as_ref().map(|s| &s.weights);
        let (task, net) = WarmUpTask::new(&own, warm.grid, options, stored, &trainable, observer)?;
        // The run is not at its end here.
        let told = &mut |event: &Event<'_>| match event {
            Event::Finished { .. } => ControlFlow::Continue(()),
            event => observer(event),
        };
        match run::run(task, net, trainable, settings, &folder, state, told)? {
            Outcome::Finished => state = newest(&folder.out, keep)?,
            Outcome::Stopped => return Ok(None),
        }
    }
    let State {
        mut ema, progress, ..
    } = state.ok_or(TrainError::Internal("a warm-up without an end"))?;
    ema.retain(|name, _| name.starts_with("text_encoder."));
    Ok(Some((ema, progress.seconds)))
}

/// A text encoder and what guesses from it.
#[derive(Module, Debug)]
pub(crate) struct WarmUpNetwork {
    text_encoder: ClipTextEncoder,
    head: Linear,
}

struct WarmUpTask {
    parts: TextParts,
    supply: Supply,
    seed: u64,
    grid: usize,
    guessed: Standard,
    device: Device,
}

/// Places after the end of a caption that are looked at: padding is most of what a UNet reads.
const AFTER: usize = 6;
/// Examples that mean and deviation are taken of.
const MEASURED: usize = 4096;
/// Sets the choice of a place apart from the other choices.
const PLACES: u64 = 0x7761_726d_2075_7021;

impl WarmUpTask {
    fn new(
        config: &DiffusionConfig,
        grid: usize,
        options: &RunOptions,
        stored: Option<&Weights>,
        trainable: &Trainable,
        observer: &mut Observer<'_>,
    ) -> Result<(Self, WarmUpNetwork), TrainError> {
        let plain = Device::flex();
        let device = training_device(&plain, config.gradient_checkpointing);
        let parts = TextParts::open(config)?;
        let vae = AutoencoderKl::load(&Params::new(&parts.vae.source, &plain), &parts.vae.config)?;
        let encoding = parts.encoding(&vae, &plain);
        let (supply, _) = supplies(config, options, captioned(config)?, &encoding, observer)?;
        let mut supply = supply.without_noise();
        let guessed = Standard::of(&mut supply, grid)?;
        let head = Init::new(config.seed, "warm_up");
        let router = Router::default()
            .with("text_encoder", &parts.text.source)
            .with("head", &head);
        let none = Weights::new();
        let source = Trained {
            tensors: stored.unwrap_or(&none),
            frozen: &router,
        };
        let params = Params::new(&source, &device).training(trainable);
        let width = parts.text.config.hidden_size;
        let net = WarmUpNetwork {
            text_encoder: ClipTextEncoder::load(&params.at("text_encoder"), &parts.text.config)?,
            head: Linear::load(&params.at("head"), width, guessed.mean.len(), true)?,
        };
        let seed = config.seed;
        let task = Self {
            parts,
            supply,
            seed,
            grid,
            guessed,
            device,
        };
        Ok((task, net))
    }

    /// Tokens without most of the padding, and in each row the place of its end and one after it, both as places in
    /// `[batch * tokens]`.
    fn tokens(
        &self,
        captions: &[String],
        number: u64,
    ) -> Result<(Vec<Vec<u32>>, Vec<i32>), TrainError> {
        let tokenizer = &self.parts.tokenizer;
        let mut rows = captions
            .iter()
            .map(|caption| Ok(tokenizer.tokens(caption)?.ids))
            .collect::<Result<Vec<_>, TrainError>>()?;
        let end_of = |row: &Vec<u32>| row.iter().position(|&id| id == tokenizer.eos());
        let ends: Vec<usize> = rows.iter().map(|r| end_of(r).unwrap_or(0)).collect();
        let longest = ends.iter().max().map_or(0, |&end| end + 1 + AFTER);
        let draw = Draw::new(self.seed ^ PLACES, number);
        let (mut first, mut later) = (Vec::new(), Vec::new());
        for (slot, row) in rows.iter_mut().enumerate() {
            row.truncate(longest);
            let after = 1 + (draw.choice(slot) * AFTER as f64) as usize;
            let begin = slot * row.len();
            first.push((begin + ends[slot]) as i32);
            later.push((begin + (ends[slot] + after).min(row.len() - 1)) as i32);
        }
        first.extend(later);
        Ok((rows, first))
    }
}

impl Task for WarmUpTask {
    type Net = WarmUpNetwork;

    fn supply(&self) -> &Supply {
        &self.supply
    }

    fn loss(&mut self, net: &WarmUpNetwork, number: u64) -> Result<Loss, TrainError> {
        let examples = self.supply.batch(number)?;
        if examples.clean.is_empty() {
            return Ok(super::denoise::nothing(examples));
        }
        let (tokens, places) = self.tokens(&examples.captions, number)?;
        let wanted = self.guessed.targets(&examples, self.grid);
        let (batch, size) = (tokens.len(), self.guessed.mean.len());
        let wanted = Tensor::<2>::from_data(TensorData::new(wanted, [batch, size]), &self.device);
        let hidden = net
            .text_encoder
            .forward(&tokens, ClipSkip::LAST)?
            .last_hidden;
        let [_, length, width] = hidden.dims();
        let data = TensorData::new(places, [2 * batch]);
        let places = Tensor::<1, Int>::from_data(data, (&self.device, DType::I32));
        let said = hidden.reshape([batch * length, width]).select(0, places);
        let wanted = Tensor::cat(vec![wanted.clone(), wanted], 0);
        let error = net.head.forward(said) - wanted;
        Ok(Loss {
            tensor: Some(error.powi_scalar(2).mean()),
            examples: batch,
            files: examples.files,
            skipped: examples.skipped,
            by_time: Vec::new(),
        })
    }

    fn validate(&mut self, _: &Weights) -> Result<Option<f64>, TrainError> {
        Ok(None)
    }

    fn samples(&mut self, _: &Weights, _: &Path) -> Result<bool, TrainError> {
        Ok(false)
    }

    fn export(&mut self, _: &Weights, _: &Path, _: &Card) -> Result<(), TrainError> {
        // The network that comes after it holds its weights.
        Ok(())
    }
}

/// What brings coarse latents to a variance of 1 around 0.
struct Standard {
    mean: Vec<f32>,
    /// One over the deviation, over all values together.
    scale: f32,
}

impl Standard {
    fn of(supply: &mut Supply, grid: usize) -> Result<Self, TrainError> {
        let (mut sum, mut squares, mut count) = (Vec::new(), 0.0, 0.0);
        for number in 0..supply.batches_per_epoch() as u64 {
            let examples = supply.batch(number)?;
            for clean in &examples.clean {
                let values = coarse(clean, examples.shape, grid);
                sum.resize(values.len(), 0.0);
                for (sum, &value) in sum.iter_mut().zip(&values) {
                    *sum += f64::from(value);
                    squares += f64::from(value).powi(2);
                }
                count += 1.0;
            }
            if count >= MEASURED as f64 {
                break;
            }
        }
        let mean: Vec<f64> = sum.iter().map(|s| s / f64::max(count, 1.0)).collect();
        let of_means = mean.iter().map(|m| m * m).sum::<f64>();
        let variance = (squares / f64::max(count, 1.0) - of_means) / mean.len().max(1) as f64;
        Ok(Self {
            mean: mean.iter().map(|&m| m as f32).collect(),
            // One picture alone varies by its own noise at most.
            scale: 1.0 / variance.max(1e-6).sqrt() as f32,
        })
    }

    fn targets(&self, examples: &Examples, grid: usize) -> Vec<f32> {
        let of = |clean: &Vec<f32>| {
            let values = coarse(clean, examples.shape, grid);
            let values = values.into_iter().zip(&self.mean);
            values.map(|(v, m)| (v - m) * self.scale).collect()
        };
        let targets: Vec<Vec<f32>> = examples.clean.iter().map(of).collect();
        targets.concat()
    }
}

/// Averages `[height, width, channels]` to `[grid, grid, channels]`, as PyTorch's `adaptive_avg_pool2d`.
fn coarse(values: &[f32], [height, width, channels]: [usize; 3], grid: usize) -> Vec<f32> {
    let part = |i: usize, side: usize| i * side / grid..((i + 1) * side).div_ceil(grid);
    let mut found = Vec::with_capacity(grid * grid * channels);
    for y in 0..grid {
        for x in 0..grid {
            let (rows, columns) = (part(y, height), part(x, width));
            let share = 1.0 / (rows.len() * columns.len()) as f32;
            for c in 0..channels {
                let row = |row: usize| columns.clone().map(move |x| (row * width + x) * channels);
                let sum: f32 = rows.clone().flat_map(row).map(|at| values[at + c]).sum();
                found.push(sum * share);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coarse_latent_has_the_means_of_its_parts() {
        let values: Vec<f32> = (0..4 * 2 * 2).map(|i| i as f32).collect();
        // Two rows of two columns each; the channels stay apart.
        assert_eq!(
            coarse(&values, [4, 2, 2], 2),
            [2., 3., 4., 5., 10., 11., 12., 13.]
        );
        assert_eq!(coarse(&values, [4, 2, 2], 1), [7., 8.]);
        // Parts overlap where the sides do not divide, and repeat where there are too few.
        let row: Vec<f32> = (0..3).map(|i| i as f32).collect();
        assert_eq!(coarse(&row, [1, 3, 1], 2), [0.5, 1.5, 0.5, 1.5]);
    }
}
