//! `train eval`: how good a text-to-image model is on the pictures it was trained on.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;

use aquatint_diffusion::training::Draw;
use aquatint_models::Checkpoint;
use aquatint_models::vae::AutoencoderKl;
use aquatint_ops::{Device, Params, Tensor};
use burn::tensor::TensorData;
use serde::Serialize;

use crate::TrainError;
use crate::config::SampleConfig;
use crate::data::picture::{self, Placement};
use crate::data::{Example, Folder, Size};
use crate::networks::{Router, TextNetwork, Told};
use crate::run::stop;
use crate::tasks::{Drawing, draw};

/// What is measured, and on how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EvalOptions {
    /// Captions that pictures are drawn for.
    pub captions: usize,
    /// Pictures of each caption.
    pub seeds: usize,
    /// Random prompts that must give finite pictures.
    pub random_prompts: usize,
    /// Every so-many-th picture was held out of training.
    pub holdout: usize,
}

impl Default for EvalOptions {
    fn default() -> Self {
        Self {
            captions: 200,
            seeds: 3,
            random_prompts: 1000,
            holdout: 20,
        }
    }
}

/// The figures of a model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Evaluation {
    /// Share of the pictures whose nearest training picture, among the autoencoder's latents, has the caption they
    /// were drawn for, or is of the same class.
    pub retrieval_top1: f64,
    /// Mean peak signal-to-noise ratio of held-out pictures after encoding and decoding, in dB.
    pub autoencoder_psnr_db: f64,
    /// Pictures with a value that is not finite.
    pub non_finite: usize,
    /// Pictures that were drawn.
    pub samples: usize,
}

/// Told how far the measurement is: what, done, total. [`ControlFlow::Break`] ends it.
pub type EvalObserver<'a> = dyn FnMut(&str, usize, usize) -> ControlFlow<()> + 'a;

/// Pictures that are computed at once.
const BATCH: usize = 10;
/// Seed of everything that is chosen.
const SEED: u64 = 0x6576_616c;

/// Measures a model on a folder of pictures with captions, with the sampler, steps and guidance that the model
/// recommends, at its own size.
///
/// # Errors
/// A folder without captions, a model that cannot be loaded, a sampler that it does not support.
pub fn evaluate(
    model: &Checkpoint,
    data: &Path,
    options: EvalOptions,
    observer: &mut EvalObserver<'_>,
) -> Result<Evaluation, TrainError> {
    let folder = Folder::scan(data)?;
    folder.require_captions()?;
    let (train, held) = folder.hold_out(options.holdout);
    let evaluator = Evaluator::new(model)?;
    let pictures = match held.examples.is_empty() {
        true => &train.examples,
        false => &held.examples,
    };
    let autoencoder_psnr_db = evaluator.psnr(pictures, observer)?;
    let references = evaluator.latents(&train.examples, observer)?;
    let chosen = choose(&train.examples, options);
    let prompts: Vec<&str> = chosen.iter().map(|(_, caption)| caption.as_str()).collect();
    let (drawn, mut non_finite) = evaluator.draw(&prompts, "retrieval", observer)?;
    let right = chosen
        .iter()
        .zip(&drawn)
        .filter(|((example, caption), latent)| {
            let nearest = nearest(&references, latent);
            nearest.is_some_and(|found| {
                let found = &train.examples[found];
                found.captions.contains(caption)
                    || (found.class.is_some() && found.class == train.examples[*example].class)
            })
        })
        .count();
    let random = random_prompts(&train.examples, options.random_prompts);
    let random: Vec<&str> = random.iter().map(String::as_str).collect();
    let (others, bad) = evaluator.draw(&random, "random prompts", observer)?;
    non_finite += bad;
    Ok(Evaluation {
        retrieval_top1: right as f64 / drawn.len().max(1) as f64,
        autoencoder_psnr_db,
        non_finite,
        samples: drawn.len() + others.len(),
    })
}

/// Examples and one of their captions, each as often as there are seeds.
fn choose(examples: &[Example], options: EvalOptions) -> Vec<(usize, String)> {
    let draw = Draw::new(SEED, 0);
    let mut chosen = Vec::new();
    for i in 0..options.captions {
        let example = (draw.choice(2 * i) * examples.len() as f64) as usize;
        let captions = &examples[example].captions;
        let caption = &captions[(draw.choice(2 * i + 1) * captions.len() as f64) as usize];
        chosen.extend(std::iter::repeat_n(
            (example, caption.clone()),
            options.seeds,
        ));
    }
    chosen
}

/// Words of the captions in any order, and now and then characters that no caption has.
fn random_prompts(examples: &[Example], count: usize) -> Vec<String> {
    let words: BTreeSet<&str> = examples
        .iter()
        .flat_map(|e| &e.captions)
        .flat_map(|caption| caption.split_whitespace())
        .collect();
    let words: Vec<&str> = words.into_iter().collect();
    let strange = [
        "日本",
        "ÿ",
        "{}[]()",
        "\u{1f34e}",
        "0123456789",
        "-",
        "ſ",
        "a\u{301}",
    ];
    (0..count)
        .map(|i| {
            let draw = Draw::new(SEED ^ 1, i as u64);
            let length = 1 + (draw.choice(0) * 8.0) as usize;
            let word = |at: usize| {
                let (kind, which) = (draw.choice(2 * at + 1), draw.choice(2 * at + 2));
                let from = if kind < 0.05 {
                    &strange[..]
                } else {
                    &words[..]
                };
                from[(which * from.len() as f64) as usize]
            };
            (0..length).map(word).collect::<Vec<_>>().join(" ")
        })
        .collect()
}

fn nearest(references: &[(usize, Vec<f32>)], latent: &[f32]) -> Option<usize> {
    let distance = |other: &[f32]| -> f64 {
        let pairs = latent.iter().zip(other);
        pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum()
    };
    references
        .iter()
        .map(|(index, other)| (distance(other), index))
        .filter(|(d, _)| d.is_finite())
        .min_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, &index)| index)
}

struct Evaluator<'a> {
    model: &'a Checkpoint,
    net: TextNetwork,
    vae: AutoencoderKl,
    tokenizer: std::sync::Arc<aquatint_models::text::ClipTokenizer>,
    size: Size,
    device: Device,
}

impl<'a> Evaluator<'a> {
    fn new(model: &'a Checkpoint) -> Result<Self, TrainError> {
        let device = Device::flex();
        let [text] = model.text.as_slice() else {
            let expected = "a model with one text encoder";
            return Err(TrainError::setting(
                "the model",
                "of another kind",
                expected,
            ));
        };
        let router = Router::default()
            .with("unet", &model.network.source)
            .with("text_encoder", &text.encoder.source);
        let params = Params::new(&router, &device);
        let net = TextNetwork::load(
            &params,
            model.network.config.unet()?,
            Some(&text.encoder.config),
        )?;
        let side = model.default_size() as usize;
        let tokenizer = text.load_tokenizer()?;
        Ok(Self {
            net,
            vae: model.load_vae(&device)?,
            tokenizer,
            size: Size {
                width: side,
                height: side,
            },
            model,
            device,
        })
    }

    fn load(&self, examples: &[Example]) -> (Vec<usize>, Tensor<4>) {
        let place = Placement {
            size: self.size,
            across: 0.5,
            down: 0.5,
            mirror: false,
        };
        let (mut good, mut values) = (Vec::new(), Vec::new());
        for (i, example) in examples.iter().enumerate() {
            // Pictures that cannot be read were not trained on either.
            if let Ok(pixels) = picture::load(&example.path, place) {
                values.extend(pixels);
                good.push(i);
            }
        }
        let shape = [good.len(), self.size.height, self.size.width, 3];
        (
            good,
            Tensor::from_data(TensorData::new(values, shape), &self.device),
        )
    }

    fn psnr(
        &self,
        examples: &[Example],
        observer: &mut EvalObserver<'_>,
    ) -> Result<f64, TrainError> {
        let (mut sum, mut count) = (0.0, 0);
        for (i, part) in examples.chunks(BATCH).enumerate() {
            stop(observer("autoencoder", i * BATCH, examples.len()))?;
            let (good, wanted) = self.load(part);
            if good.is_empty() {
                continue;
            }
            let found = self.vae.decode(self.vae.encode(wanted.clone())?.mean)?;
            let (found, wanted) = (bytes(found), bytes(wanted));
            let each = self.size.height * self.size.width * 3;
            for (a, b) in found.chunks_exact(each).zip(wanted.chunks_exact(each)) {
                let square: f64 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
                sum += 10.0 * (255.0f64.powi(2) * each as f64 / square.max(1e-9)).log10();
                count += 1;
            }
        }
        Ok(sum / f64::from(count.max(1)))
    }

    /// Means of the latents of all pictures that can be read.
    fn latents(
        &self,
        examples: &[Example],
        observer: &mut EvalObserver<'_>,
    ) -> Result<Vec<(usize, Vec<f32>)>, TrainError> {
        let mut latents = Vec::new();
        for (i, part) in examples.chunks(BATCH).enumerate() {
            stop(observer("latents", i * BATCH, examples.len()))?;
            let (good, pictures) = self.load(part);
            if good.is_empty() {
                continue;
            }
            let mean = self.model.vae.config.scale(self.vae.encode(pictures)?.mean);
            let each = mean.dims()[1..].iter().product();
            let values = mean.into_data().try_into_vec::<f32>().unwrap_or_default();
            let indices = good.iter().map(|g| i * BATCH + g);
            latents.extend(indices.zip(values.chunks_exact(each).map(<[f32]>::to_vec)));
        }
        Ok(latents)
    }

    /// Latents of prompts, and how many of their pictures are not finite.
    fn draw(
        &self,
        prompts: &[&str],
        what: &str,
        observer: &mut EvalObserver<'_>,
    ) -> Result<(Vec<Vec<f32>>, usize), TrainError> {
        let defaults = &self.model.spec.defaults;
        let config = SampleConfig {
            sampler: self.model.default_sampler().into(),
            steps: defaults.steps as usize,
            guidance: defaults.guidance,
            ..SampleConfig::default()
        };
        let vae = &self.model.vae.config;
        let side = self.size.width / vae.factor();
        let (mut latents, mut bad) = (Vec::new(), 0);
        for (i, part) in prompts.chunks(BATCH).enumerate() {
            stop(observer(what, i * BATCH, prompts.len()))?;
            let shape = [part.len(), side, side, vae.latent_channels];
            let drawing = Drawing {
                config: &config,
                scheduler: &self.model.spec.scheduler,
                shape,
                cond: self.told(part)?,
                uncond: Some(self.told(&vec![""; part.len()])?),
                seed: SEED + i as u64,
                seed_each: false,
            };
            let values = match draw(&self.net, drawing, &self.device) {
                Ok(values) => values,
                // The sampler stops at the first value that is not finite.
                Err(TrainError::Objective(aquatint_diffusion::Error::NotFinite { .. })) => {
                    bad += part.len();
                    latents.extend(part.iter().map(|_| vec![f32::NAN]));
                    continue;
                }
                Err(error) => return Err(error),
            };
            let latent =
                Tensor::<4>::from_data(TensorData::new(values.clone(), shape), &self.device);
            let pixels = self.vae.decode(vae.unscale(latent))?;
            let pixels = pixels.into_data().try_into_vec::<f32>().unwrap_or_default();
            for picture in pixels.chunks_exact(pixels.len() / part.len()) {
                bad += usize::from(picture.iter().any(|v| !v.is_finite()));
            }
            latents.extend(
                values
                    .chunks_exact(values.len() / part.len())
                    .map(<[f32]>::to_vec),
            );
        }
        Ok((latents, bad))
    }

    fn told(&self, prompts: &[&str]) -> Result<Told, TrainError> {
        let tokens = prompts
            .iter()
            .map(|prompt| Ok(self.tokenizer.tokens(prompt)?.ids))
            .collect::<Result<Vec<_>, TrainError>>()?;
        Ok(Told {
            // Once for all steps.
            context: Some(self.net.encode(&tokens)?),
            ..Told::default()
        })
    }
}

/// Values of 8-bit pixels.
fn bytes(pixels: Tensor<4>) -> Vec<f64> {
    let values = pixels.into_data().try_into_vec::<f32>().unwrap_or_default();
    values
        .into_iter()
        .map(|v| ((f64::from(v) * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round())
        .collect()
}
