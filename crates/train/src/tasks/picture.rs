//! Diffusion without text: of pixels or latents, told a class or nothing.

use std::path::Path;

use aquatint_diffusion::SchedulerConfig;
use aquatint_diffusion::training::{Draw, Objective};
use aquatint_models::vae::AutoencoderKl;
use aquatint_ops::{Device, Params, Tensor, Trainable};
use burn::tensor::TensorData;

use super::denoise::{self, Drawing, training_device};
use super::latents::{self, Encoding, plain, selection};
use crate::TrainError;
use crate::config::{DiffusionConfig, ModelKind};
use crate::data::{Buckets, Folder, Loader, LoaderOptions};
use crate::export::{self, Storage};
use crate::networks::{Network, PictureNetwork, Router, Told, Trained};
use crate::parts::PictureParts;
use crate::plot::{self, Drawn};
use crate::run::{Card, Event, Loss, Observer, RunOptions, Task, Weights, stop};
use crate::supply::{Examples, Supply};

/// Training on pictures.
pub(crate) struct PictureTask {
    config: DiffusionConfig,
    parts: PictureParts,
    scheduler: SchedulerConfig,
    objective: Objective,
    /// Names of the classes, for a network that is told them.
    classes: Vec<String>,
    supply: Supply,
    held: Option<HeldOut>,
    vae: Option<AutoencoderKl>,
    device: Device,
    training: Device,
}

/// Held-out examples.
enum HeldOut {
    Latents(Supply),
    Pictures(Folder, Buckets),
}

impl PictureTask {
    /// The task and its network, which goes on at step `start`.
    pub fn new(
        config: &DiffusionConfig,
        options: &RunOptions,
        stored: Option<&Weights>,
        start: u64,
        trainable: &Trainable,
        observer: &mut Observer<'_>,
    ) -> Result<(Self, PictureNetwork), TrainError> {
        let device = Device::flex();
        let training = training_device(&device, config.gradient_checkpointing);
        let folder = config.data.folder()?;
        let classes = match config.model.kind {
            ModelKind::Class => folder.require_classes()?.to_vec(),
            _ => Vec::new(),
        };
        let parts = PictureParts::open(config, classes.len())?;
        let none = Weights::new();
        let net = load(&parts, stored.unwrap_or(&none), &training, Some(trainable))?;
        let vae = parts.vae(&device)?;
        let halvings = 1 << (parts.unet.config.levels.len() - 1);
        let (supply, held) = match (&parts.vae, &vae) {
            (Some(part), Some(vae)) => {
                let encoding = Encoding {
                    part,
                    vae,
                    halvings,
                    device: &device,
                };
                let (supply, held) =
                    latents::supplies(config, options, folder, &encoding, observer)?;
                (supply, held.map(HeldOut::Latents))
            }
            _ => {
                let buckets = config.buckets(halvings)?;
                let (train, held) = folder.hold_out(config.data.holdout);
                let channels = parts.unet.config.in_channels;
                let supply = pictures(config, &train, &buckets, channels, start)?;
                for skipped in supply.skipped_at_start() {
                    stop(observer(&Event::Skipped(skipped)))?;
                }
                let held = (!held.examples.is_empty()).then(|| HeldOut::Pictures(held, buckets));
                (supply, held)
            }
        };
        let base = parts.base_scheduler();
        let scheduler = config.objective.scheduler(base.as_ref());
        denoise::check_drawing(&config.samples, &scheduler)?;
        let task = Self {
            objective: config.objective.build(base.as_ref())?,
            scheduler,
            config: config.clone(),
            parts,
            classes,
            supply,
            held,
            vae,
            device,
            training,
        };
        // A class that is not there is told now, not when it is drawn.
        task.drawn_classes()?;
        Ok((task, net))
    }

    /// What the network is told: the row after the last class stands for none.
    fn told(&self, classes: &[Option<usize>]) -> Told {
        let row = |class: &Option<usize>| class.unwrap_or(self.classes.len());
        Told {
            classes: match self.classes.is_empty() {
                true => Vec::new(),
                false => classes.iter().map(row).collect(),
            },
            ..Told::default()
        }
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
        let told = self.told(&examples.classes);
        let noised = denoise::noised(&self.objective, &examples, draw, device);
        denoise::loss(net, noised, &told, examples)
    }

    /// The classes that are drawn: those of `samples.prompts`, or `samples.count` pictures of all in turn.
    fn drawn_classes(&self) -> Result<Vec<Option<usize>>, TrainError> {
        let samples = &self.config.samples;
        let count = self.classes.len();
        if count == 0 {
            return Ok(vec![None; samples.count]);
        }
        if samples.prompts.is_empty() {
            return Ok((0..samples.count).map(|i| Some(i % count)).collect());
        }
        let find = |name: &String| {
            let found = self.classes.binary_search(name).map_err(|_| {
                let expected = format!("names of classes: {}", self.classes.join(", "));
                TrainError::setting("samples.prompts", name, expected)
            });
            found.map(Some)
        };
        samples.prompts.iter().map(find).collect()
    }

    fn pictures(&self, weights: &Weights) -> Result<Vec<Drawn>, TrainError> {
        let net = load(&self.parts, weights, &self.device, None)?;
        let classes = self.drawn_classes()?;
        let mut drawn = Vec::with_capacity(classes.len());
        for (part, seed) in classes
            .chunks(TOGETHER)
            .zip((self.config.samples.seed..).step_by(TOGETHER))
        {
            drawn.extend(self.draw(&net, part, seed)?);
        }
        Ok(drawn)
    }

    fn draw(
        &self,
        net: &PictureNetwork,
        classes: &[Option<usize>],
        seed: u64,
    ) -> Result<Vec<Drawn>, TrainError> {
        let factor = self.vae.as_ref().map_or(1, |vae| vae.config().factor());
        let side = self.config.data.resolution / factor;
        let shape = [
            classes.len(),
            side,
            side,
            self.parts.unet.config.in_channels,
        ];
        // A network that never went without its class has nothing to be guided away from.
        let guided = !self.classes.is_empty() && self.config.data.captions.dropout > 0.0;
        let drawing = Drawing {
            config: &self.config.samples,
            scheduler: &self.scheduler,
            shape,
            cond: self.told(classes),
            uncond: guided.then(|| self.told(&[None])),
            seed,
            seed_each: true,
        };
        let values = denoise::draw(net, drawing, &self.device)?;
        let (values, [_, height, width, channels]) = match &self.vae {
            None => (values, shape),
            Some(vae) => {
                let latent = Tensor::<4>::from_data(TensorData::new(values, shape), &self.device);
                let pixels = vae.decode(vae.config().unscale(latent))?;
                let shape = pixels.dims();
                let values = pixels.into_data().try_into_vec::<f32>().unwrap_or_default();
                (values, shape)
            }
        };
        let pictures = values.chunks_exact(height * width * channels);
        Ok(pictures
            .map(|pixels| Drawn {
                width,
                height,
                channels,
                pixels: pixels.to_vec(),
            })
            .collect())
    }
}

/// Pictures that are drawn at once.
const TOGETHER: usize = 16;

/// The network of these parts, with trained tensors where there are any.
fn load(
    parts: &PictureParts,
    tensors: &Weights,
    device: &Device,
    trainable: Option<&Trainable>,
) -> Result<PictureNetwork, TrainError> {
    let router = Router::default().with("unet", &parts.unet.source);
    let source = Trained {
        tensors,
        frozen: &router,
    };
    let params = Params::new(&source, device);
    let params = match trainable {
        Some(trainable) => params.training(trainable),
        None => params,
    };
    Ok(PictureNetwork::load(&params, &parts.unet.config)?)
}

/// Pictures of a folder from a step on.
fn pictures(
    config: &DiffusionConfig,
    folder: &Folder,
    buckets: &Buckets,
    channels: usize,
    start: u64,
) -> Result<Supply, TrainError> {
    let options = LoaderOptions {
        selection: selection(config),
        workers: config.data.workers,
    };
    let batches = config.accumulate as u64;
    let (from, end) = (start * batches, config.steps * batches);
    Ok(Supply::Pictures {
        loader: Box::new(Loader::new(folder, buckets, options, from, end)?),
        examples: folder.examples.clone(),
        channels,
    })
}

impl Task for PictureTask {
    type Net = PictureNetwork;

    fn supply(&self) -> &Supply {
        &self.supply
    }

    fn loss(&mut self, net: &PictureNetwork, number: u64) -> Result<Loss, TrainError> {
        let examples = self.supply.batch(number)?;
        let draw = Draw::new(self.config.seed, number);
        self.batch_loss(net, examples, &draw, &self.training)
    }

    fn validate(&mut self, weights: &Weights) -> Result<Option<f64>, TrainError> {
        let Some(mut held) = self.held.take() else {
            return Ok(None);
        };
        let net = load(&self.parts, weights, &self.device, None)?;
        let loss = |examples, draw: &Draw| self.batch_loss(&net, examples, draw, &self.device);
        let found = match &mut held {
            HeldOut::Latents(supply) => denoise::measure(supply, loss)?,
            HeldOut::Pictures(folder, buckets) => {
                let config = plain(&self.config);
                let channels = self.parts.unet.config.in_channels;
                denoise::measure(&mut pictures(&config, folder, buckets, channels, 0)?, loss)?
            }
        };
        self.held = Some(held);
        Ok(found)
    }

    fn samples(&mut self, weights: &Weights, path: &Path) -> Result<bool, TrainError> {
        let pictures = self.pictures(weights)?;
        let columns = match self.classes.len() {
            count @ 1..=16 if self.config.samples.prompts.is_empty() => count,
            _ => (pictures.len() as f64).sqrt().ceil() as usize,
        };
        plot::grid(path, &pictures, columns)?;
        Ok(true)
    }

    fn export(&mut self, weights: &Weights, folder: &Path, card: &Card) -> Result<(), TrainError> {
        let output = export::Folder::begin(folder)?;
        let latent = self.parts.vae.is_some();
        let class = export::scheduler_class(
            &self.scheduler,
            match (self.classes.is_empty(), latent) {
                (true, true) => export::Use::Latents,
                (true, false) => export::Use::Pixels,
                (false, _) => export::Use::Parts,
            },
        );
        if self.classes.is_empty() {
            let index = export::unconditional_index(class, latent);
            output.json("model_index.json", &index)?;
        } else {
            output.json("classes.json", &serde_json::json!(self.classes))?;
        }
        output.json(
            "scheduler/scheduler_config.json",
            &export::scheduler(&self.scheduler, class),
        )?;
        output.json("unet/config.json", &self.parts.unet.config.to_json())?;
        let file = "unet/diffusion_pytorch_model.safetensors";
        output.tensors(file, weights, "unet.", Storage::F16)?;
        if let Some(vae) = &self.parts.vae {
            // The name that LDMPipeline has for it.
            output.json("vqvae/config.json", &vae.json.clone().into())?;
            let file = "vqvae/diffusion_pytorch_model.safetensors";
            output.source(file, &vae.source)?;
        }
        output.json("aquatint.json", &export::defaults(&self.config))?;
        let data = export::pictures(self.supply.len(), &self.config);
        let text = match self.classes.is_empty() {
            true => export::card(
                "Pictures without a prompt",
                &data,
                card,
                &export::unconditional_use(latent),
            ),
            false => {
                let shown = export::class_use(class, &self.parts.unet.config, &self.classes[0]);
                export::card("Pictures by class", &data, card, &shown)
            }
        };
        output.text("README.md", &text)?;
        output.finish()
    }
}
