//! The network of a model: which one it is, and what the rest must know of it.

use crate::ModelError;
use crate::flux::{self, FluxConfig};
use crate::mmdit::MmditConfig;
use crate::unet::{Cost, UNetConfig};

/// The configuration of the network that denoises.
#[derive(Debug, Clone, PartialEq)]
pub enum NetworkConfig {
    /// A UNet with attention to the text.
    UNet(UNetConfig),
    /// The transformer of Stable Diffusion 3 and 3.5.
    Mmdit(MmditConfig),
    /// The transformer of FLUX.1.
    Flux(FluxConfig),
}

impl NetworkConfig {
    /// What the network is called in messages and lists.
    pub fn title(&self) -> &'static str {
        match self {
            NetworkConfig::UNet(_) => "UNet",
            NetworkConfig::Mmdit(_) | NetworkConfig::Flux(_) => "transformer",
        }
    }

    /// Channels of the latents that it gives.
    pub fn out_channels(&self) -> usize {
        match self {
            NetworkConfig::UNet(unet) => unet.out_channels,
            NetworkConfig::Mmdit(mmdit) => mmdit.out_channels,
            NetworkConfig::Flux(flux) => flux.latent_channels(),
        }
    }

    /// Height and width of the latents that it was trained on, when the configuration says.
    pub fn sample_size(&self) -> Option<[usize; 2]> {
        match self {
            NetworkConfig::UNet(unet) => unet.sample_size,
            NetworkConfig::Mmdit(mmdit) => mmdit.sample_size.map(|side| [side; 2]),
            NetworkConfig::Flux(_) => None,
        }
    }

    /// Side of the square of latent positions that the network sees as one; sides of a latent are multiples of it.
    pub fn patch_size(&self) -> usize {
        match self {
            NetworkConfig::UNet(_) => 1,
            NetworkConfig::Mmdit(mmdit) => mmdit.patch_size,
            NetworkConfig::Flux(_) => flux::PATCH,
        }
    }

    /// The longest side of a latent, where the network has one.
    pub fn longest_side(&self) -> Option<usize> {
        match self {
            NetworkConfig::Mmdit(mmdit) => Some(mmdit.max_positions * mmdit.patch_size),
            NetworkConfig::UNet(_) | NetworkConfig::Flux(_) => None,
        }
    }

    /// Width of the text embeddings; `None` without attention to a text.
    pub fn context_dim(&self) -> Option<usize> {
        match self {
            NetworkConfig::UNet(unet) => unet.context_dim(),
            NetworkConfig::Mmdit(mmdit) => Some(mmdit.context_dim),
            NetworkConfig::Flux(flux) => Some(flux.context_dim),
        }
    }

    /// The cost of a pass over latents of `height` by `width` and a text of `tokens`.
    pub fn cost(&self, batch: usize, height: usize, width: usize, tokens: usize) -> Cost {
        match self {
            NetworkConfig::UNet(unet) => unet.cost(batch, height, width, tokens),
            NetworkConfig::Mmdit(mmdit) => mmdit.cost(batch, height, width, tokens),
            NetworkConfig::Flux(flux) => flux.cost(batch, height, width, tokens),
        }
    }

    /// The UNet, for what only UNets can do.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`] for another network.
    pub fn unet(&self) -> Result<&UNetConfig, ModelError> {
        match self {
            NetworkConfig::UNet(unet) => Ok(unet),
            other => Err(ModelError::Unsupported {
                found: format!("a {} where only a UNet will do", other.title()),
                hint: "give a model with a UNet: Stable Diffusion 1.x, 2.x or XL".into(),
            }),
        }
    }
}
