//! The toy: points in the plane.

use std::path::Path;

use aquatint_diffusion::SchedulerConfig;
use aquatint_diffusion::training::{Draw, Objective};
use aquatint_ops::{Device, Params, Trainable};

use super::denoise::{self, Drawing, training_device};
use crate::config::{DiffusionConfig, Points};
use crate::export;
use crate::networks::{PlaneConfig, PlaneNetwork, Told, Trained};
use crate::run::{Card, Loss, Task, Weights};
use crate::supply::Supply;
use crate::{Init, TrainError, plot};

/// Training on points.
pub(crate) struct PlaneTask {
    config: DiffusionConfig,
    network: PlaneConfig,
    objective: Objective,
    supply: Supply,
    scheduler: SchedulerConfig,
    device: Device,
    training: Device,
}

impl PlaneTask {
    /// The task and its network, with new weights or those of a checkpoint.
    pub fn new(
        config: &DiffusionConfig,
        stored: Option<&Weights>,
        trainable: &Trainable,
    ) -> Result<(Self, PlaneNetwork), TrainError> {
        let network: PlaneConfig =
            config
                .model
                .points
                .clone()
                .try_into()
                .map_err(|e: toml::de::Error| {
                    TrainError::setting(
                        "model.points",
                        e.message().replace('\n', "; "),
                        "width and depth",
                    )
                })?;
        for (key, found) in [
            ("model.points.width", network.width),
            ("model.points.depth", network.depth),
        ] {
            if !(2..=4096).contains(&found) {
                return Err(TrainError::setting(key, found, "2 to 4096"));
            }
        }
        let device = Device::flex();
        let init = Init::new(config.seed, "plane");
        let none = Weights::new();
        let source = Trained {
            tensors: stored.unwrap_or(&none),
            frozen: &init,
        };
        let training = training_device(&device, config.gradient_checkpointing);
        let params = Params::new(&source, &training).training(trainable);
        let net = PlaneNetwork::load(&params, network)?;
        let scheduler = config.objective.scheduler(None);
        denoise::check_drawing(&config.samples, &scheduler)?;
        let task = Self {
            objective: config.objective.build(None)?,
            scheduler,
            supply: Supply::Points {
                kind: config.data.points.unwrap_or(Points::SwissRoll),
                seed: config.seed,
                batch: config.batch_size,
            },
            network,
            config: config.clone(),
            device,
            training,
        };
        Ok((task, net))
    }

    /// Points drawn with the given weights.
    fn points(&self, weights: &Weights) -> Result<Vec<[f32; 2]>, TrainError> {
        let init = Init::new(self.config.seed, "plane");
        let source = Trained {
            tensors: weights,
            frozen: &init,
        };
        let net = PlaneNetwork::load(&Params::new(&source, &self.device), self.network)?;
        let samples = &self.config.samples;
        let drawing = Drawing {
            config: samples,
            scheduler: &self.scheduler,
            shape: [samples.count * 100, 1, 1, 2],
            cond: Told::default(),
            uncond: None,
            seed: samples.seed,
            seed_each: false,
        };
        let values = denoise::draw(&net, drawing, &self.device)?;
        Ok(values.chunks_exact(2).map(|p| [p[0], p[1]]).collect())
    }
}

impl Task for PlaneTask {
    type Net = PlaneNetwork;

    fn supply(&self) -> &Supply {
        &self.supply
    }

    fn loss(&mut self, net: &PlaneNetwork, number: u64) -> Result<Loss, TrainError> {
        let examples = self.supply.batch(number)?;
        let draw = Draw::new(self.config.seed, number);
        let noised = denoise::noised(&self.objective, &examples, &draw, &self.training);
        denoise::loss(net, noised, &Told::default(), examples)
    }

    fn validate(&mut self, _: &Weights) -> Result<Option<f64>, TrainError> {
        Ok(None)
    }

    fn samples(&mut self, weights: &Weights, path: &Path) -> Result<bool, TrainError> {
        plot::scatter(path, &self.points(weights)?)?;
        Ok(true)
    }

    fn export(&mut self, weights: &Weights, folder: &Path, card: &Card) -> Result<(), TrainError> {
        let points = self.points(weights)?;
        let mut text = String::from("x,y\n");
        for [x, y] in &points {
            text += &format!("{x},{y}\n");
        }
        let output = export::Folder::begin(folder)?;
        let config = serde_json::json!({
            "_class_name": "AquatintPlaneNetwork",
            "width": self.network.width,
            "depth": self.network.depth,
        });
        output.json("config.json", &config)?;
        let class = export::scheduler_class(&self.scheduler, export::Use::Parts);
        output.json(
            "scheduler_config.json",
            &export::scheduler(&self.scheduler, class),
        )?;
        output.tensors("model.safetensors", weights, "", export::Storage::F32)?;
        output.text("samples.csv", &text)?;
        plot::scatter(&output.path("samples.png"), &points)?;
        output.text(
            "README.md",
            &export::card(
                "Points in the plane",
                "none: the points are computed",
                card,
                "",
            ),
        )?;
        output.finish()
    }
}
