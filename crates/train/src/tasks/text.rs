//! Latent diffusion that is told captions.

use std::path::Path;

use aquatint_diffusion::SchedulerConfig;
use aquatint_diffusion::training::{Draw, Objective};
use aquatint_models::text::{ClipSkip, ClipTextEncoder};
use aquatint_models::vae::AutoencoderKl;
use aquatint_ops::{Device, ParamSource, Params, Tensor, Trainable};
use burn::tensor::TensorData;

use super::denoise::{self, Drawing, training_device};
use super::latents::supplies;
use crate::config::DiffusionConfig;
use crate::data::Folder;
use crate::export::{self, Storage};
use crate::lora::{self, Adapted};
use crate::networks::{Network, Router, TextNetwork, Told, Trained};
use crate::parts::TextParts;
use crate::plot::{self, Drawn};
use crate::run::{Card, Loss, Observer, RunOptions, Task, Weights};
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
        let training = training_device(&device, config.gradient_checkpointing);
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
        let encoding = parts.encoding(&vae, &device);
        let folder = captioned(config)?;
        let (supply, held) = supplies(config, options, folder, &encoding, observer)?;
        let base = parts.scheduler.as_ref();
        let scheduler = config.objective.scheduler(base);
        denoise::check_drawing(&config.samples, &scheduler)?;
        let task = Self {
            objective: config.objective.build(base)?,
            scheduler,
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
            seed_each: false,
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

/// The pictures of a run, all with captions.
pub(super) fn captioned(config: &DiffusionConfig) -> Result<Folder, TrainError> {
    let folder = config.data.folder()?;
    folder.require_captions()?;
    Ok(folder)
}

impl Task for TextTask {
    type Net = TextNetwork;

    fn supply(&self) -> &Supply {
        &self.supply
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
        let found = denoise::measure(&mut held, |examples, draw| {
            self.batch_loss(&net, examples, draw, &self.device)
        })?;
        self.held = Some(held);
        Ok(found)
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
        let data = export::pictures(self.supply.len(), &self.config);
        if let Some(lora) = &self.config.lora {
            let file = "pytorch_lora_weights.safetensors";
            let additions = lora::tensors(weights, lora, self.parts.unet.config.linear_projection);
            output.tensors(file, &additions, "", Storage::F32)?;
            output.text("README.md", &export::card("LoRA", &data, card, ""))?;
            return output.finish();
        }
        let parts = &self.parts;
        let class = export::scheduler_class(&self.scheduler, export::Use::Latents);
        let index = export::stable_diffusion_index(class);
        output.json("model_index.json", &index)?;
        output.json(
            "scheduler/scheduler_config.json",
            &export::scheduler(&self.scheduler, class),
        )?;
        output.json("unet/config.json", &parts.unet.json.clone().into())?;
        let storage = Storage::F16;
        output.tensors(
            "unet/diffusion_pytorch_model.safetensors",
            weights,
            "unet.",
            storage,
        )?;
        let mut text = parts.text.json.clone();
        // transformers runs a model in the type of this key or else of its file, diffusers runs the others in f32: one
        // pipeline, one type.
        text.remove("torch_dtype");
        text.insert("dtype".into(), "float32".into());
        output.json("text_encoder/config.json", &text.into())?;
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
        output.json("aquatint.json", &export::defaults(&self.config))?;
        let how = export::text_use(&self.config);
        output.text(
            "README.md",
            &export::card("Text to image", &data, card, &how),
        )?;
        output.finish()
    }
}

/// What a tokenizer's folder may hold.
const TOKENIZER_FILES: &[&str] = &[
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
];
