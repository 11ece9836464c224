//! A model of either kind.

use aquatint_models::lora::Added;
use aquatint_models::{
    Checkpoint, CheckpointSource, Location, ModelError, OpenOptions, PixelModel,
};
use aquatint_ops::Device;

use crate::events::Observer;
use crate::pipeline::{Run, RunOptions, generate};
use crate::plan::{Estimate, estimate};
use crate::request::Request;
use crate::{EngineError, estimate_pixels, generate_pixels};

/// A model that is told a text, or one that is not.
#[derive(Debug)]
pub enum Model {
    /// Text to pictures.
    Text(Box<Checkpoint>),
    /// Told nothing, or a class.
    Pixel(Box<PixelModel>),
}

impl Model {
    /// Opens whatever is at a location.
    ///
    /// # Errors
    /// As [`Checkpoint::open`] and [`PixelModel::open`].
    pub fn open(location: &Location, options: &OpenOptions) -> Result<Self, ModelError> {
        match PixelModel::is_at(location) {
            true => Ok(Model::Pixel(Box::new(PixelModel::open(location, options)?))),
            false => Ok(Model::Text(Box::new(Checkpoint::open(location, options)?))),
        }
    }

    /// [`generate`] or [`generate_pixels`].
    ///
    /// # Errors
    /// As those.
    pub fn generate(
        &self,
        request: &Request,
        options: &RunOptions,
        device: &Device,
        observer: &mut Observer<'_>,
    ) -> Result<Run, EngineError> {
        match self {
            Model::Text(model) => generate(model, request, options, device, observer),
            Model::Pixel(model) => generate_pixels(model, request, device, observer),
        }
    }

    /// [`estimate`] or [`estimate_pixels`].
    ///
    /// # Errors
    /// As those.
    pub fn estimate(&self, request: &Request) -> Result<Estimate, EngineError> {
        match self {
            Model::Text(model) => estimate(model, request),
            Model::Pixel(model) => estimate_pixels(model, request),
        }
    }

    /// The request that the model is for when nothing is said.
    pub fn defaults(&self) -> Request {
        match self {
            Model::Text(model) => {
                let [width, height] = model.default_sides();
                Request {
                    width,
                    height,
                    steps: model.spec.defaults.steps,
                    guidance: model.spec.defaults.guidance,
                    sampler: model.default_sampler().to_owned(),
                    ..Request::default()
                }
            }
            Model::Pixel(model) => Request {
                width: model.defaults.width,
                height: model.defaults.height,
                steps: model.defaults.steps,
                guidance: model.defaults.guidance,
                sampler: model.defaults.sampler.to_owned(),
                ..Request::default()
            },
        }
    }

    /// What the model is called.
    pub fn name(&self) -> &str {
        match self {
            Model::Text(model) => &model.name,
            Model::Pixel(model) => &model.name,
        }
    }

    /// Its family in a word: `sd1`, ..., or `pixels`.
    pub fn family(&self) -> &'static str {
        match self {
            Model::Text(model) => model.family.id,
            Model::Pixel(_) => "pixels",
        }
    }

    /// Its family for people.
    pub fn title(&self) -> &'static str {
        match self {
            Model::Text(model) => model.family.title,
            Model::Pixel(model) => model.title(),
        }
    }

    /// What it was recognised by.
    pub fn why(&self) -> &str {
        match self {
            Model::Text(model) => &model.spec.why,
            Model::Pixel(_) => "a UNet2DModel",
        }
    }

    /// What the network predicts.
    pub fn prediction(&self) -> aquatint_diffusion::Prediction {
        match self {
            Model::Text(model) => model.spec.prediction,
            Model::Pixel(model) => model.scheduler.prediction(),
        }
    }

    /// What was added to it.
    pub fn loras(&self) -> &[Added] {
        match self {
            Model::Text(model) => &model.loras,
            Model::Pixel(_) => &[],
        }
    }

    /// Each part's name and source.
    pub fn sources(&self) -> Vec<(String, &CheckpointSource)> {
        match self {
            Model::Text(model) => model.sources(),
            Model::Pixel(model) => model.sources(),
        }
    }
}
