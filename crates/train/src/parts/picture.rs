//! The parts of a model without text.

use aquatint_diffusion::{BetaSchedule, SchedulerConfig, TimestepSpacing};
use aquatint_models::unet::{ClassKind, UNet2DConfig};
use aquatint_models::vae::{AutoencoderKl, VaeConfig};
use aquatint_ops::{Device, Params};

use super::{DIFFUSERS, Part, default, json, read_scheduler};
use crate::config::DiffusionConfig;
use crate::{Init, TrainError};

/// The parts of a model that is told a class, or nothing.
#[derive(Debug)]
pub(crate) struct PictureParts {
    pub unet: Part<UNet2DConfig>,
    /// None for a model of pixels.
    pub vae: Option<Part<VaeConfig>>,
    /// `scheduler_config.json` of the folder that the run starts from.
    scheduler: Option<SchedulerConfig>,
}

impl PictureParts {
    /// As the configuration says; `classes` is 0 for a model that is told nothing.
    pub fn open(config: &DiffusionConfig, classes: usize) -> Result<Self, TrainError> {
        let model = &config.model;
        let from = model.from.as_deref();
        let inside = from.map(|from| from.join("vqvae")).filter(|f| f.exists());
        let vae = match model.autoencoder.clone().or(inside) {
            Some(folder) => Some(Part::open(&folder, DIFFUSERS, VaeConfig::from_json)?),
            None => None,
        };
        let unet = match from.filter(|_| model.unet.is_empty()) {
            Some(from) => Part::open(&from.join("unet"), DIFFUSERS, UNet2DConfig::from_json)?,
            None => {
                let mut keys = json("model.unet", &model.unet)?;
                let (channels, factor) = match &vae {
                    Some(vae) => (vae.config.latent_channels, vae.config.factor()),
                    None => (3, 1),
                };
                default(&mut keys, "in_channels", channels);
                let channels = keys["in_channels"].clone();
                default(&mut keys, "out_channels", channels);
                default(&mut keys, "sample_size", config.data.resolution / factor);
                if classes > 0 {
                    default(&mut keys, "num_class_embeds", classes + 1);
                }
                let init = Init::new(config.seed, "unet");
                Part::new(keys, init, UNet2DConfig::from_json)?
            }
        };
        let parts = Self {
            scheduler: from.map(read_scheduler).transpose()?,
            unet,
            vae,
        };
        parts.check(classes)?;
        Ok(parts)
    }

    /// The autoencoder itself.
    pub fn vae(&self, device: &Device) -> Result<Option<AutoencoderKl>, TrainError> {
        let load = |part: &Part<VaeConfig>| {
            AutoencoderKl::load(&Params::new(&part.source, device), &part.config)
        };
        Ok(self.vae.as_ref().map(load).transpose()?)
    }

    /// What a run begins with where the configuration does not say; none for Stable Diffusion's.
    pub fn base_scheduler(&self) -> Option<SchedulerConfig> {
        // Pixels: Ho et al. 2020.
        let pixels = || SchedulerConfig {
            timestep_spacing: Some(TimestepSpacing::Leading),
            clip_sample: Some(true),
            num_train_timesteps: Some(1000),
            beta_start: Some(1e-4),
            beta_end: Some(0.02),
            beta_schedule: Some(BetaSchedule::Linear),
            prediction_type: Some(aquatint_diffusion::Prediction::Epsilon),
            ..SchedulerConfig::default()
        };
        let new = self.vae.is_none().then(pixels);
        self.scheduler.clone().or(new)
    }

    fn check(&self, classes: usize) -> Result<(), TrainError> {
        let unet = &self.unet.config;
        let (known, expected) = match &self.vae {
            Some(vae) => {
                let channels = vae.config.latent_channels;
                let expected = format!("{channels}, as the autoencoder's latents have");
                (vec![channels], expected)
            }
            None => (vec![1, 3], "1 (grey) or 3 (colours)".into()),
        };
        if !known.contains(&unet.in_channels) {
            let key = "model.unet.in_channels";
            return Err(TrainError::setting(key, unet.in_channels, expected));
        }
        if unet.out_channels != unet.in_channels {
            let expected = format!("{}, as in_channels", unet.in_channels);
            let key = "model.unet.out_channels";
            return Err(TrainError::setting(key, unet.out_channels, expected));
        }
        let wanted = (classes > 0).then(|| ClassKind::Table(classes + 1));
        if unet.classes != wanted {
            let found = match unet.classes {
                Some(ClassKind::Table(n)) => n.to_string(),
                Some(_) => "another class_embed_type".into(),
                None => "absent".into(),
            };
            let expected = match classes {
                0 => "absent: the model is told nothing (model.kind)".into(),
                n => format!("{}: the {n} classes of the data and one for none", n + 1),
            };
            let key = "model.unet.num_class_embeds";
            return Err(TrainError::setting(key, found, expected));
        }
        Ok(())
    }
}
