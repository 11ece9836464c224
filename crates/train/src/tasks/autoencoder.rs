//! `train autoencoder`: a KL autoencoder (Kingma and Welling 2014; Rombach et al. 2022, without their discriminator).

use std::path::Path;

use aquatint_diffusion::training::Draw;
use aquatint_models::vae::{AutoencoderKl, VaeConfig};
use aquatint_ops::{Device, Params, Tensor, Trainable};
use burn::tensor::TensorData;
use serde_json::Value;

use super::denoise::training_device;
use crate::config::{AutoencoderConfig, AutoencoderLoss};
use crate::data::picture::{self, Placement};
use crate::data::{Buckets, Folder, Loader, LoaderOptions, PictureOptions, SelectionOptions, Size};
use crate::export::{self, Storage};
use crate::networks::Trained;
use crate::parts::{DIFFUSERS, Part, default, json};
use crate::plot::{self, Drawn};
use crate::run::{self, Card, Event, Loss, Observer, Outcome, RunOptions, Settings, Task, Weights};
use crate::supply::{Examples, Supply};
use crate::{Init, TrainError};

/// Trains an autoencoder as a configuration says; see [`train_diffusion`](crate::train_diffusion) for what is written.
/// The model's `config.json` holds the scaling factor that brings its latents to unit variance.
///
/// # Errors
/// As [`train_diffusion`](crate::train_diffusion).
pub fn train_autoencoder<'a>(
    config: &AutoencoderConfig,
    options: &'a RunOptions,
    observer: &'a mut Observer<'a>,
) -> Result<Outcome, TrainError> {
    config.check()?;
    let text = toml::to_string(config)
        .map_err(|_| TrainError::Internal("the configuration cannot be written as TOML"))?;
    let settings = Settings {
        steps: config.steps,
        accumulate: config.accumulate,
        clip: config.clip(),
        optimizer: config.optimizer,
        rate: config.learning_rate,
        ema: config.ema,
        checkpoint: config.checkpoint,
        samples_every: config.samples_every,
        seconds_before: 0.0,
        config: text,
    };
    let state = run::begin(options, &settings)?;
    let start = state.as_ref().map_or(0, |s| s.progress.step);
    let stored = state.as_ref().map(|s| &s.weights);
    let trainable = Trainable::all();
    let (task, net) = AutoencoderTask::new(config, stored, &trainable, start, observer)?;
    run::run(task, net, trainable, settings, options, state, observer)
}

struct AutoencoderTask {
    config: AutoencoderConfig,
    part: Part<VaeConfig>,
    supply: Supply,
    /// Held-out pictures, or some of the others when none are held out.
    shown: Vec<Vec<f32>>,
    held_out: bool,
    size: Size,
    device: Device,
    training: Device,
}

/// Pictures that are shown beside their reconstructions.
const SHOWN: usize = 16;
/// Held-out pictures that measure the loss.
const MEASURED: usize = 256;

impl AutoencoderTask {
    fn new(
        config: &AutoencoderConfig,
        stored: Option<&Weights>,
        trainable: &Trainable,
        start: u64,
        observer: &mut Observer<'_>,
    ) -> Result<(Self, AutoencoderKl), TrainError> {
        let device = Device::flex();
        let training = training_device(&device, config.gradient_checkpointing);
        let part = match &config.from {
            Some(folder) => Part::open(folder, DIFFUSERS, VaeConfig::from_json)?,
            None => {
                let mut keys = json("model", &config.model)?;
                default(&mut keys, "sample_size", config.data.resolution);
                keys.insert("_class_name".into(), "AutoencoderKL".into());
                Part::new(keys, Init::new(config.seed, "vae"), VaeConfig::from_json)?
            }
        };
        if part.config.in_channels != 3 || part.config.out_channels != 3 {
            let found = part.config.in_channels;
            return Err(TrainError::setting(
                "model.in_channels",
                found,
                "3: red, green and blue",
            ));
        }
        let none = Weights::new();
        let source = Trained {
            tensors: stored.unwrap_or(&none),
            frozen: &part.source,
        };
        let net = AutoencoderKl::load(
            &Params::new(&source, &training).training(trainable),
            &part.config,
        )?;
        let side = config.data.resolution;
        let size = Size {
            width: side,
            height: side,
        };
        let buckets = Buckets::one(size, part.config.factor())?;
        let (train, held) = config.data.folder()?.hold_out(config.data.holdout);
        let held_out = !held.examples.is_empty();
        let shown = match held_out {
            true => some_pictures(&held, size, MEASURED),
            false => some_pictures(&train, size, SHOWN),
        };
        let loader = loader(config, &train, &buckets, start)?;
        for skipped in loader.skipped_at_start() {
            let _ = observer(&Event::Skipped(skipped));
        }
        let task = Self {
            config: config.clone(),
            part,
            supply: Supply::Pictures {
                loader: Box::new(loader),
                examples: train.examples,
                channels: 3,
            },
            shown,
            held_out,
            size,
            device,
            training,
        };
        Ok((task, net))
    }

    fn network(&self, weights: &Weights) -> Result<AutoencoderKl, TrainError> {
        let source = Trained {
            tensors: weights,
            frozen: &self.part.source,
        };
        let params = Params::new(&source, &self.device);
        Ok(AutoencoderKl::load(&params, &self.part.config)?)
    }

    fn tensor(&self, pictures: &[Vec<f32>], device: &Device) -> Tensor<4> {
        let shape = [pictures.len(), self.size.height, self.size.width, 3];
        let values: Vec<f32> = pictures.iter().flatten().copied().collect();
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    /// One over the deviation of the latents of the shown pictures.
    fn scaling_factor(&self, net: &AutoencoderKl) -> Result<f64, TrainError> {
        let (mut sum, mut square, mut count) = (0.0, 0.0, 0.0);
        for pictures in self.shown.chunks(8) {
            let posterior = net.encode(self.tensor(pictures, &self.device))?;
            let noise_variance = posterior.log_variance.exp();
            let values = |t: Tensor<4>| t.into_data().try_into_vec::<f32>().unwrap_or_default();
            for (m, v) in values(posterior.mean).iter().zip(values(noise_variance)) {
                sum += f64::from(*m);
                square += f64::from(*m).powi(2) + f64::from(v);
                count += 1.0;
            }
        }
        let mean = sum / f64::max(count, 1.0);
        let variance = square / f64::max(count, 1.0) - mean * mean;
        match variance > 1e-12 && variance.is_finite() {
            true => Ok(1.0 / variance.sqrt()),
            false => Err(TrainError::Collapsed),
        }
    }
}

fn loader(
    config: &AutoencoderConfig,
    train: &Folder,
    buckets: &Buckets,
    start: u64,
) -> Result<Loader, TrainError> {
    let batches = config.accumulate as u64;
    let options = LoaderOptions {
        selection: SelectionOptions {
            seed: config.seed,
            batch: config.batch_size,
            picture: PictureOptions {
                crop: config.data.crop,
                flip: config.data.flip,
            },
            captions: config.data.captions,
        },
        workers: config.data.workers,
    };
    Loader::new(
        train,
        buckets,
        options,
        start * batches,
        config.steps * batches,
    )
}

/// The first pictures that can be read.
fn some_pictures(folder: &Folder, size: Size, most: usize) -> Vec<Vec<f32>> {
    let place = Placement {
        size,
        across: 0.5,
        down: 0.5,
        mirror: false,
    };
    let examples = folder.examples.iter();
    examples
        .filter_map(|e| picture::load(&e.path, place).ok())
        .take(most)
        .collect()
}

/// The parts of the loss, as means over pixels or latent values.
fn total(
    loss: &AutoencoderLoss,
    found: Tensor<4>,
    wanted: Tensor<4>,
    mean: Tensor<4>,
    log_variance: Tensor<4>,
) -> Tensor<1> {
    let difference = found - wanted;
    let mut parts: Vec<Tensor<1>> = Vec::new();
    let mut add = |factor: f64, part: &dyn Fn() -> Tensor<1>| {
        if factor > 0.0 {
            parts.push(part() * factor);
        }
    };
    add(loss.l1, &|| difference.clone().abs().mean());
    add(loss.l2, &|| difference.clone().powi_scalar(2).mean());
    add(loss.edge, &|| edges(&difference));
    add(loss.multi_scale, &|| {
        let mut small = difference.clone();
        let mut sum: Option<Tensor<1>> = None;
        for _ in 0..3 {
            let Some(half) = halved(small.clone()) else {
                break;
            };
            small = half;
            let part = small.clone().abs().mean() / 3.0;
            sum = Some(match sum {
                Some(sum) => sum + part,
                None => part,
            });
        }
        sum.unwrap_or_else(|| small.abs().mean())
    });
    add(loss.kl, &|| {
        let variance = log_variance.clone().exp();
        (mean.clone().powi_scalar(2) + variance - log_variance.clone() - 1.0).mean() * 0.5
    });
    let mut parts = parts.into_iter();
    let first = parts.next().unwrap_or_else(|| difference.mean() * 0.0);
    parts.fold(first, |sum, part| sum + part)
}

/// Mean absolute difference between neighbours, down and across.
fn edges(x: &Tensor<4>) -> Tensor<1> {
    let [_, h, w, _] = x.dims();
    let along = |axis: usize, n: usize| {
        let next = x.clone().narrow(axis, 1, n - 1);
        (next - x.clone().narrow(axis, 0, n - 1)).abs().mean()
    };
    (along(1, h) + along(2, w)) * 0.5
}

/// Means of 2 x 2 pixels; `None` for pictures that cannot be halved.
fn halved(x: Tensor<4>) -> Option<Tensor<4>> {
    let [b, h, w, c] = x.dims();
    if !h.is_multiple_of(2) || !w.is_multiple_of(2) {
        return None;
    }
    let x = x.reshape([b, h / 2, 2, w / 2, 2 * c]);
    let rows: Tensor<4> =
        (x.clone().narrow(2, 0, 1) + x.narrow(2, 1, 1)).reshape([b, h / 2, w / 2, 2 * c]);
    Some((rows.clone().narrow(3, 0, c) + rows.narrow(3, c, c)) * 0.25)
}

impl Task for AutoencoderTask {
    type Net = AutoencoderKl;

    fn supply(&self) -> &Supply {
        &self.supply
    }

    fn loss(&mut self, net: &AutoencoderKl, number: u64) -> Result<Loss, TrainError> {
        let Examples {
            clean,
            files,
            skipped,
            ..
        } = self.supply.batch(number)?;
        let mut loss = Loss {
            tensor: None,
            examples: clean.len(),
            files,
            skipped,
            by_time: Vec::new(),
        };
        if clean.is_empty() {
            return Ok(loss);
        }
        let pictures = self.tensor(&clean, &self.training);
        let posterior = net.encode(pictures.clone())?;
        let shape = posterior.mean.dims();
        let each = shape[1] * shape[2] * shape[3];
        let draw = Draw::new(self.config.seed, number);
        let mut noise = vec![0.0; shape.iter().product()];
        for (i, noise) in noise.chunks_exact_mut(each).enumerate() {
            draw.normal(i, noise);
        }
        let noise = Tensor::from_data(TensorData::new(noise, shape), &self.training);
        let found = net.decode(posterior.sample(noise))?;
        let (mean, log_variance) = (posterior.mean, posterior.log_variance);
        loss.tensor = Some(total(
            &self.config.loss,
            found,
            pictures,
            mean,
            log_variance,
        ));
        Ok(loss)
    }

    /// Mean squared error of held-out pictures.
    fn validate(&mut self, weights: &Weights) -> Result<Option<f64>, TrainError> {
        if !self.held_out || self.shown.is_empty() {
            return Ok(None);
        }
        let net = self.network(weights)?;
        let mut sum = 0.0;
        for pictures in self.shown.chunks(8) {
            let wanted = self.tensor(pictures, &self.device);
            let found = net
                .decode(net.encode(wanted.clone())?.mean)?
                .clamp(-1.0, 1.0);
            let error = (found - wanted).powi_scalar(2).mean();
            let value = error.into_data().try_into_vec::<f32>().unwrap_or_default();
            sum += f64::from(value[0]) * pictures.len() as f64;
        }
        Ok(Some(sum / self.shown.len() as f64))
    }

    fn samples(&mut self, weights: &Weights, path: &Path) -> Result<bool, TrainError> {
        let net = self.network(weights)?;
        let drawn = |pixels: Vec<f32>| Drawn {
            width: self.size.width,
            height: self.size.height,
            channels: 3,
            pixels,
        };
        let mut pictures = Vec::new();
        for picture in self.shown.iter().take(SHOWN) {
            let wanted = self.tensor(std::slice::from_ref(picture), &self.device);
            let found = net.decode(net.encode(wanted)?.mean)?;
            pictures.push(drawn(picture.clone()));
            pictures.push(drawn(
                found.into_data().try_into_vec::<f32>().unwrap_or_default(),
            ));
        }
        plot::grid(path, &pictures, 8)?;
        Ok(true)
    }

    fn export(&mut self, weights: &Weights, folder: &Path, card: &Card) -> Result<(), TrainError> {
        let net = self.network(weights)?;
        let factor = self.scaling_factor(&net)?;
        let mut keys = self.part.json.clone();
        // Five digits say it; the deviation itself is known to no more.
        let rounded = (factor * 1e5).round() / 1e5;
        keys.insert("scaling_factor".into(), rounded.into());
        let output = export::Folder::begin(folder)?;
        output.json("config.json", &Value::Object(keys))?;
        output.tensors(
            "diffusion_pytorch_model.safetensors",
            weights,
            "",
            Storage::F16,
        )?;
        let dir = self.config.data.dir.as_deref().unwrap_or(Path::new(""));
        let data = format!("{} pictures of {}", self.supply.len(), dir.display());
        let text = export::card("Autoencoder", &data, card, "");
        output.text(
            "README.md",
            &format!("{text}\nScaling factor of the latents: {rounded}\n"),
        )?;
        output.finish()
    }
}
