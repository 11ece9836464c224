//! Models without text: a `UNet2DModel` over pixels (diffusers' `DDPMPipeline`, `DDIMPipeline`), or over latents with an
//! autoencoder beside it (`LDMPipeline`), told nothing or a class.

use std::path::{Path, PathBuf};

use aquatint_diffusion::{SchedulerConfig, sampler};
use aquatint_ops::{Device, Params};
use serde_json::Value;

use crate::ModelError;
use crate::checkpoint::{Location, OpenOptions, Part, part};
use crate::folder::Folder;
use crate::keys::Layout;
use crate::open::{UNET_STEMS, component, read_config, scheduler};
use crate::own::Own;
use crate::unet::{ClassKind, UNet2D, UNet2DConfig};
use crate::vae::{AutoencoderKl, VaeConfig};

/// A model without text whose files are open and whose tensors are not read yet.
#[derive(Debug)]
pub struct PixelModel {
    /// What the model is called.
    pub name: String,
    /// The folder.
    pub path: PathBuf,
    /// The network.
    pub unet: Part<UNet2DConfig>,
    /// What turns latents into pixels, where the network is over latents.
    pub vae: Option<Part<VaeConfig>>,
    /// The folder's scheduler.
    pub scheduler: SchedulerConfig,
    /// What a picture is made with when nothing is said.
    pub defaults: PixelDefaults,
    /// Names of the classes, by their number; empty where the folder names none.
    pub classes: Vec<String>,
    /// Number of classes that can be told; 0 for a model that is told nothing.
    pub class_count: usize,
    /// The class that stands for none, which guidance leads away from.
    pub null_class: Option<usize>,
}

/// Defaults of a request to a [`PixelModel`].
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct PixelDefaults {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Sampler steps.
    pub steps: u32,
    /// Guidance scale; at most 1 is off.
    pub guidance: f64,
    /// Sampler.
    pub sampler: &'static str,
}

impl PixelModel {
    /// Whether a model without text is at a location: a folder with a `UNet2DModel`.
    pub fn is_at(location: &Location) -> bool {
        folder_of(location).is_some_and(|folder| is_one(&folder))
    }

    /// Opens a folder.
    ///
    /// # Errors
    /// What is missing, damaged, or cannot be run.
    pub fn open(location: &Location, options: &OpenOptions) -> Result<Self, ModelError> {
        let Some(folder) = folder_of(location) else {
            return Err(ModelError::Unsupported {
                found: "a model without text as a single file".into(),
                hint: "give its folder, with unet/config.json".into(),
            });
        };
        let config: UNet2DConfig = read_config(&folder, "unet", UNet2DConfig::from_json)?;
        let mut scheduler = scheduler(&folder)?.unwrap_or_default();
        if let Some(prediction) = options.prediction {
            scheduler.prediction_type = Some(prediction);
        }
        let vae = ["vqvae", "vae"]
            .into_iter()
            .find(|name| folder.has(&format!("{name}/config.json")))
            .map(|name| {
                let config = read_config(&folder, name, VaeConfig::from_json)?;
                let set = component(&folder, name, UNET_STEMS, options)?;
                Ok::<_, ModelError>(part(config, set, Layout::diffusers(), options))
            })
            .transpose()?;
        check_channels(&config, vae.as_ref().map(|v| &v.config))?;
        let classes = class_names(&folder)?;
        let (class_count, null_class) = match config.classes {
            None => (0, None),
            Some(ClassKind::Table(n)) if classes.is_empty() => (n, None),
            Some(ClassKind::Table(n)) if classes.len() == n => (n, None),
            Some(ClassKind::Table(n)) if classes.len() + 1 == n => (n - 1, Some(n - 1)),
            Some(ClassKind::Table(n)) => {
                return Err(ModelError::Json {
                    path: folder.path().join(CLASSES),
                    message: format!(
                        "found {} classes, expected {n} as the UNet has, or one less",
                        classes.len()
                    ),
                });
            }
            Some(ClassKind::Timestep | ClassKind::Identity) => {
                return Err(ModelError::Config {
                    component: "unet",
                    key: "class_embed_type".into(),
                    found: "not null".into(),
                    expected: "null: classes told by their number".into(),
                });
            }
        };
        let defaults = defaults(&folder, &config, vae.as_ref(), &scheduler)?;
        Ok(PixelModel {
            name: folder.name(),
            path: folder.path(),
            unet: part(
                config,
                component(&folder, "unet", UNET_STEMS, options)?,
                Layout::diffusers(),
                options,
            ),
            vae,
            scheduler,
            defaults,
            classes,
            class_count,
            null_class,
        })
    }

    /// Loads the network.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape.
    pub fn load_unet(&self, device: &Device) -> Result<UNet2D, ModelError> {
        UNet2D::load(&Params::new(&self.unet.source, device), &self.unet.config)
    }

    /// Loads the autoencoder, where there is one.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape.
    pub fn load_vae(&self, device: &Device) -> Result<Option<AutoencoderKl>, ModelError> {
        let load = |part: &Part<VaeConfig>| {
            AutoencoderKl::load(&Params::new(&part.source, device), &part.config)
        };
        self.vae.as_ref().map(load).transpose()
    }

    /// Pixels that a position of the network's input stands for, along each axis.
    pub fn factor(&self) -> usize {
        self.vae.as_ref().map_or(1, |vae| vae.config.factor())
    }

    /// What a side of the picture must be a multiple of: each level halves it evenly.
    pub fn side_step(&self) -> usize {
        let halvings = self.unet.config.levels.len().saturating_sub(1).min(16);
        self.factor() << halvings
    }

    /// The number of a class by its name, or by its number.
    pub fn find_class(&self, text: &str) -> Option<usize> {
        let named = self.classes.iter().position(|name| name == text);
        named.or_else(|| text.parse().ok().filter(|n| *n < self.class_count))
    }

    /// What the model is, for people.
    pub fn title(&self) -> &'static str {
        match (self.class_count, &self.vae) {
            (0, None) => "pixels without text",
            (0, Some(_)) => "latents without text",
            (_, None) => "pixels by class",
            (_, Some(_)) => "latents by class",
        }
    }

    /// Each part's name and source.
    pub fn sources(&self) -> Vec<(String, &crate::CheckpointSource)> {
        let unet = ("UNet".to_owned(), &self.unet.source);
        let vae = self
            .vae
            .as_ref()
            .map(|v| ("autoencoder".to_owned(), &v.source));
        [unet].into_iter().chain(vae).collect()
    }
}

const CLASSES: &str = "classes.json";

fn folder_of(location: &Location) -> Option<Folder> {
    match location {
        Location::Embedded { name, files } => Some(Folder::Embedded { name, files }),
        Location::Path(path) if path.is_dir() => Some(Folder::Disk(path.clone())),
        Location::Path(_) => None,
    }
}

/// Whether a folder's network is a `UNet2DModel`.
pub(crate) fn is_one(folder: &Folder) -> bool {
    let text = folder.text("unet/config.json").ok().flatten();
    let config = text.and_then(|t| serde_json::from_str::<Value>(&t).ok());
    config.is_some_and(|c| c["_class_name"] == "UNet2DModel")
}

fn class_names(folder: &Folder) -> Result<Vec<String>, ModelError> {
    let Some(text) = folder.text(CLASSES)? else {
        return Ok(Vec::new());
    };
    serde_json::from_str(&text).map_err(|e| ModelError::Json {
        path: folder.path().join(CLASSES),
        message: format!("not readable ({e}), expected a list of names"),
    })
}

fn check_channels(unet: &UNet2DConfig, vae: Option<&VaeConfig>) -> Result<(), ModelError> {
    let wrong = |key: &str, found: usize, expected: String| {
        Err(ModelError::Config {
            component: "unet",
            key: key.into(),
            found: found.to_string(),
            expected,
        })
    };
    if unet.out_channels != unet.in_channels {
        // Variances that are learned beside the prediction.
        let expected = format!("{}, as in_channels", unet.in_channels);
        return wrong("out_channels", unet.out_channels, expected);
    }
    match vae {
        Some(vae) if vae.latent_channels != unet.in_channels => {
            let expected = format!("{}, the autoencoder's", vae.latent_channels);
            wrong("in_channels", unet.in_channels, expected)
        }
        None if !matches!(unet.in_channels, 1 | 3) => {
            wrong("in_channels", unet.in_channels, "1 (grey) or 3".into())
        }
        _ => Ok(()),
    }
}

/// The folder's own words over what diffusers' pipeline does.
fn defaults(
    folder: &Folder,
    unet: &UNet2DConfig,
    vae: Option<&Part<VaeConfig>>,
    scheduler: &SchedulerConfig,
) -> Result<PixelDefaults, ModelError> {
    let own = Own::read(folder)?;
    let factor = vae.map_or(1, |v| v.config.factor());
    let [height, width] = unet
        .sample_size
        .unwrap_or([64, 64])
        .map(|n| (n * factor) as u32);
    let [width, height] = own.size.unwrap_or([width, height]);
    let class = sampler::of_config(scheduler).map_or("ddpm", |s| s.name);
    let sampler = own.sampler.unwrap_or(class);
    // DDPMPipeline takes a thousand steps, DDIMPipeline and LDMPipeline fifty.
    let usual = if sampler == "ddpm" { 1000 } else { 50 };
    Ok(PixelDefaults {
        width,
        height,
        steps: own
            .steps
            .unwrap_or(usual)
            .min(scheduler.num_train_timesteps() as u32),
        guidance: own.guidance.unwrap_or(1.0),
        sampler,
    })
}

/// What a model without text says where one with text is expected.
pub(crate) fn refused(path: &Path) -> ModelError {
    ModelError::NotAModel {
        path: path.to_owned(),
        found: "a model without text (a UNet2DModel)".into(),
    }
}
