//! Latent diffusion that is told captions.

use std::path::Path;

use aquatint_diffusion::SchedulerConfig;
use aquatint_diffusion::training::{Draw, Objective};
use aquatint_models::text::{ClipSkip, ClipTextEncoder};
use aquatint_models::vae::AutoencoderKl;
use aquatint_ops::{Device, ParamSource, Params, Tensor, Trainable};
use burn::tensor::TensorData;

use super::denoise::{self, Drawing};
use crate::config::DiffusionConfig;
use crate::data::{Buckets, Example, Folder, Readable, Selection, SelectionOptions, Size};
use crate::export::{self, Storage};
use crate::latents::{self, LatentStore};
use crate::lora::{self, Adapted};
use crate::networks::{Network, Router, TextNetwork, Told, Trained};
use crate::parts::TextParts;
use crate::plot::{self, Drawn};
use crate::run::{Card, Event, Loss, Observer, RunOptions, Task, Weights, stop};
use crate::supply::{Examples, Supply};
use crate::{Init, TrainError};

/// Training on captions.
pub(crate) struct TextTask {
    config: DiffusionConfig,
    parts: TextParts,
    scheduler: SchedulerConfig,
    objective: Objective,
    supply: Supply,
    /// Held-out examples.
    held: Option<Supply>,
    vae: AutoencoderKl,
    /// The text encoder, when it is not trained.
    encoder: Option<ClipTextEncoder>,
    device: Device,
    training: Device,
}

impl TextTask {
    /// The task, its network, and which of its parameters are trained.
    pub fn new(
        config: &DiffusionConfig,
        options: &RunOptions,
        stored: Option<&Weights>,
        observer: &mut Observer<'_>,
    ) -> Result<(Self, TextNetwork, Trainable), TrainError> {
        let device = Device::flex();
        let training = device.clone().autodiff();
        let parts = TextParts::open(config)?;
        let trainable = match &config.lora {
            Some(_) => Trainable::new(lora::is_addition),
            None => Trainable::all(),
        };
        let none = Weights::new();
        let stored = stored.unwrap_or(&none);
        let net = load(config, &parts, stored, &training, Some(&trainable))?;
        if trainable.names().is_empty() {
            let targets = config.lora.as_ref().map(|l| l.targets.join(", "));
            let expected = "endings of the names of the model's linear layers, such as to_q";
            return Err(TrainError::setting(
                "lora.targets",
                targets.unwrap_or_default(),
                expected,
            ));
        }
        let encoder = match parts.text_in_network() {
            true => None,
            false => {
                let params = Params::new(&parts.text.source, &device);
                Some(ClipTextEncoder::load(&params, &parts.text.config)?)
            }
        };
        let vae = AutoencoderKl::load(&Params::new(&parts.vae.source, &device), &parts.vae.config)?;
        let (supply, held) = supplies(config, options, &parts, &vae, &device, observer)?;
        let base = parts.scheduler.as_ref();
        let task = Self {
            objective: config.objective.build(base)?,
            scheduler: config.objective.scheduler(base),
            config: config.clone(),
            parts,
            supply,
            held,
            vae,
            encoder,
            device,
            training,
        };
        Ok((task, net, trainable))
    }

    fn told(&self, captions: &[String], device: &Device) -> Result<Told, TrainError> {
        let tokens = captions
            .iter()
            .map(|caption| Ok(self.parts.tokenizer.tokens(caption)?.ids))
            .collect::<Result<Vec<_>, TrainError>>()?;
        let Some(encoder) = &self.encoder else {
            return Ok(Told {
                tokens,
                ..Told::default()
            });
        };
        let context = encoder.forward(&tokens, ClipSkip::LAST)?.last_hidden;
        let context = match device.is_autodiff() {
            true => Tensor::from_data(context.into_data(), device),
            false => context,
        };
        Ok(Told {
            context: Some(context),
            ..Told::default()
        })
    }

    fn batch_loss<N: Network>(
        &self,
        net: &N,
        examples: Examples,
        draw: &Draw,
        device: &Device,
    ) -> Result<Loss, TrainError> {
        if examples.clean.is_empty() {
            return Ok(denoise::nothing(examples));
        }
        let told = self.told(&examples.captions, device)?;
        let noised = denoise::noised(&self.objective, &examples, draw, device);
        denoise::loss(net, noised, &told, examples)
    }

    /// The network with other weights, for drawing and measuring.
    fn network(&self, weights: &Weights) -> Result<TextNetwork, TrainError> {
        load(&self.config, &self.parts, weights, &self.device, None)
    }

    fn picture(&self, net: &TextNetwork, prompt: &str, seed: u64) -> Result<Drawn, TrainError> {
        let side = self.config.data.resolution / self.parts.vae.config.factor();
        let channels = self.parts.vae.config.latent_channels;
        let shape = [1, side, side, channels];
        let drawing = Drawing {
            config: &self.config.samples,
            scheduler: &self.scheduler,
            shape,
            cond: self.told(&[prompt.to_owned()], &self.device)?,
            uncond: Some(self.told(&[String::new()], &self.device)?),
            seed,
        };
        let latent = denoise::draw(net, drawing, &self.device)?;
        let latent = Tensor::<4>::from_data(TensorData::new(latent, shape), &self.device);
        let pixels = self.vae.decode(self.parts.vae.config.unscale(latent))?;
        let [_, height, width, channels] = pixels.dims();
        Ok(Drawn {
            width,
            height,
            channels,
            pixels: pixels.into_data().try_into_vec::<f32>().unwrap_or_default(),
        })
    }
}

/// The network of these parts, with trained tensors where there are any.
fn load(
    config: &DiffusionConfig,
    parts: &TextParts,
    tensors: &Weights,
    device: &Device,
    trainable: Option<&Trainable>,
) -> Result<TextNetwork, TrainError> {
    let router = Router::default()
        .with("unet", &parts.unet.source)
        .with("text_encoder", &parts.text.source);
    let adapted = config.lora.as_ref().map(|lora| Adapted {
        base: &router,
        config: lora,
        init: Init::new(config.seed, "lora"),
    });
    let frozen: &dyn ParamSource = match &adapted {
        Some(adapted) => adapted,
        None => &router,
    };
    let source = Trained { tensors, frozen };
    let encoder = parts.text_in_network().then_some(&parts.text.config);
    let params = Params::new(&source, device);
    let params = match trainable {
        Some(trainable) => params.training(trainable),
        None => params,
    };
    Ok(TextNetwork::load(&params, &parts.unet.config, encoder)?)
}

/// The training and the held-out examples, as latents.
fn supplies(
    config: &DiffusionConfig,
    options: &RunOptions,
    parts: &TextParts,
    vae: &AutoencoderKl,
    device: &Device,
    observer: &mut Observer<'_>,
) -> Result<(Supply, Option<Supply>), TrainError> {
    let dir = config.data.dir.as_deref().unwrap_or(Path::new(""));
    let folder = Folder::scan(dir)?;
    folder.require_captions()?;
    let factor = vae.config().factor();
    let halvings = 1 << (parts.unet.config.levels.len() - 1);
    let buckets = config.buckets(factor * halvings)?;
    let (train, held) = folder.hold_out(config.data.holdout);
    let fingerprint = fingerprint(&parts.vae.source, &parts.vae.json);
    let mut open = |folder: &Folder, name: &str, options_of: &DiffusionConfig| {
        let cache = Cache {
            path: options.out.join("cache").join(name),
            vae,
            fingerprint,
            device,
        };
        cache.open(folder, &buckets, options_of, observer)
    };
    let supply = open(&train, "latents.safetensors", config)?;
    if held.examples.is_empty() {
        return Ok((supply, None));
    }
    // Held-out examples are seen as they are.
    let mut plain = config.clone();
    plain.data.flip = 0.0;
    plain.data.captions = crate::data::CaptionOptions {
        dropout: 0.0,
        ..crate::data::CaptionOptions::default()
    };
    let held = open(&held, "held_out.safetensors", &plain)?;
    Ok((supply, Some(held)))
}

/// Tells the weights of an autoencoder from others: its configuration and one of its tensors.
fn fingerprint(source: &dyn ParamSource, json: &serde_json::Map<String, serde_json::Value>) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    serde_json::Value::Object(json.clone())
        .to_string()
        .hash(&mut hasher);
    if let Some(shape) = json
        .get("block_out_channels")
        .and_then(|c| c.get(0))
        .and_then(serde_json::Value::as_u64)
        && let Ok(raw) = source.tensor("encoder.conv_in.weight", &[shape as usize, 3, 3, 3])
    {
        raw.bytes.hash(&mut hasher);
    }
    hasher.finish()
}

struct Cache<'a> {
    path: std::path::PathBuf,
    vae: &'a AutoencoderKl,
    fingerprint: u64,
    device: &'a Device,
}

impl Cache<'_> {
    fn open(
        &self,
        folder: &Folder,
        buckets: &Buckets,
        config: &DiffusionConfig,
        observer: &mut Observer<'_>,
    ) -> Result<Supply, TrainError> {
        let Readable {
            examples,
            bucket_of,
            skipped,
            ..
        } = Readable::of(folder, buckets)?;
        for skipped in &skipped {
            stop(observer(&Event::Skipped(skipped)))?;
        }
        let sizes: Vec<Size> = bucket_of.iter().map(|&b| buckets.sizes()[b]).collect();
        let request = latents::Request {
            examples: &examples,
            sizes,
            mirrored: config.data.flip > 0.0,
            vae: self.vae,
            fingerprint: self.fingerprint,
            device: self.device,
        };
        let mut told = |progress: latents::Progress<'_>| {
            let event = match progress {
                latents::Progress::Done(done, total) => Event::Preparing {
                    what: "latents",
                    done,
                    total,
                },
                latents::Progress::Skipped(skipped) => Event::Skipped(skipped),
            };
            stop(observer(&event))
        };
        let (store, places) = LatentStore::open(&self.path, &request, &mut told)?;
        if places.is_empty() {
            return Err(TrainError::AllCorrupt {
                path: folder.path.clone(),
                pictures: folder.examples.len(),
                first: "it cannot be decoded".into(),
            });
        }
        let bucket_of: Vec<usize> = places.iter().map(|&p| bucket_of[p]).collect();
        let examples: Vec<Example> = places.iter().map(|&p| examples[p].clone()).collect();
        let options = SelectionOptions {
            seed: config.seed,
            batch: config.batch_size,
            picture: config.picture_options(),
            captions: config.data.captions,
        };
        Ok(Supply::Latents {
            store,
            selection: Box::new(Selection::new(options, &bucket_of)),
            examples,
            places,
            seed: config.seed,
        })
    }
}

impl Task for TextTask {
    type Net = TextNetwork;

    fn batches_per_epoch(&self) -> usize {
        self.supply.batches_per_epoch()
    }

    fn examples(&self) -> usize {
        self.supply.len()
    }

    fn loss(&mut self, net: &TextNetwork, number: u64) -> Result<Loss, TrainError> {
        let examples = self.supply.batch(number)?;
        let draw = Draw::new(self.config.seed, number);
        self.batch_loss(net, examples, &draw, &self.training)
    }

    fn validate(&mut self, weights: &Weights) -> Result<Option<f64>, TrainError> {
        let Some(mut held) = self.held.take() else {
            return Ok(None);
        };
        let net = self.network(weights)?;
        let (mut sum, mut count) = (0.0, 0);
        for number in 0..held.batches_per_epoch() as u64 {
            let examples = held.batch(number)?;
            // The same levels and noise each time, so that only the weights make a difference.
            let draw = Draw::new(VALIDATION, number);
            let loss = self.batch_loss(&net, examples, &draw, &self.device)?;
            if let Some(tensor) = loss.tensor {
                let value = tensor.into_data().try_into_vec::<f32>().unwrap_or_default();
                sum += f64::from(value[0]) * loss.examples as f64;
                count += loss.examples;
            }
        }
        self.held = Some(held);
        Ok((count > 0).then(|| sum / count as f64))
    }

    fn samples(&mut self, weights: &Weights, path: &Path) -> Result<bool, TrainError> {
        let prompts = &self.config.samples.prompts;
        if prompts.is_empty() {
            return Ok(false);
        }
        let net = self.network(weights)?;
        let pictures = prompts
            .iter()
            .zip(self.config.samples.seed..)
            .map(|(prompt, seed)| self.picture(&net, prompt, seed))
            .collect::<Result<Vec<_>, _>>()?;
        let columns = (prompts.len() as f64).sqrt().ceil() as usize;
        plot::grid(path, &pictures, columns)?;
        Ok(true)
    }

    fn export(&mut self, weights: &Weights, folder: &Path, card: &Card) -> Result<(), TrainError> {
        let output = export::Folder::begin(folder)?;
        let dir = self.config.data.dir.as_deref().unwrap_or(Path::new(""));
        let data = format!("{} pictures of {}", self.supply.len(), dir.display());
        if let Some(lora) = &self.config.lora {
            let file = "pytorch_lora_weights.safetensors";
            output.tensors(file, &lora::tensors(weights, lora), "", Storage::F32)?;
            output.text("README.md", &export::card("LoRA", &data, card))?;
            return output.finish();
        }
        let parts = &self.parts;
        output.json("model_index.json", &export::stable_diffusion_index())?;
        output.json(
            "scheduler/scheduler_config.json",
            &export::scheduler(&self.scheduler),
        )?;
        output.json("unet/config.json", &parts.unet.json.clone().into())?;
        let storage = Storage::F16;
        output.tensors(
            "unet/diffusion_pytorch_model.safetensors",
            weights,
            "unet.",
            storage,
        )?;
        output.json("text_encoder/config.json", &parts.text.json.clone().into())?;
        match parts.train_text {
            true => {
                let file = "text_encoder/model.safetensors";
                output.tensors(file, weights, "text_encoder.", storage)?;
            }
            false => output.source("text_encoder/model.safetensors", &parts.text.source)?,
        }
        output.json("vae/config.json", &parts.vae.json.clone().into())?;
        output.source("vae/diffusion_pytorch_model.safetensors", &parts.vae.source)?;
        for file in TOKENIZER_FILES {
            let from = parts.tokenizer_folder.join(file);
            if from.exists() {
                output.copy(&from, &format!("tokenizer/{file}"))?;
            }
        }
        let data = format!(
            "{} pictures of {}",
            self.supply.len(),
            self.config
                .data
                .dir
                .as_deref()
                .unwrap_or(Path::new(""))
                .display()
        );
        output.text("README.md", &export::card("Text to image", &data, card))?;
        output.finish()
    }
}

/// Seed of the held-out examples' levels and noise.
const VALIDATION: u64 = 0x7661_6c69_6461_7465;

/// What a tokenizer's folder may hold.
const TOKENIZER_FILES: &[&str] = &[
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
];
