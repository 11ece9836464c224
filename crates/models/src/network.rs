//! The network of a model: which one it is, and what the rest must know of it.

use crate::ModelError;
use crate::unet::{Cost, UNetConfig};

/// The configuration of the network that denoises.
#[derive(Debug, Clone, PartialEq)]
pub enum NetworkConfig {
    /// A UNet with attention to the text.
    UNet(UNetConfig),
}

impl NetworkConfig {
    /// What the network is called in messages and lists.
    pub fn title(&self) -> &'static str {
        match self {
            NetworkConfig::UNet(_) => "UNet",
        }
    }

    /// Channels of the latents that it gives.
    pub fn out_channels(&self) -> usize {
        match self {
            NetworkConfig::UNet(unet) => unet.out_channels,
        }
    }

    /// Height and width of the latents that it was trained on, when the configuration says.
    pub fn sample_size(&self) -> Option<[usize; 2]> {
        match self {
            NetworkConfig::UNet(unet) => unet.sample_size,
        }
    }

    /// The cost of a pass over latents of `height` by `width` and a text of `tokens`.
    pub fn cost(&self, batch: usize, height: usize, width: usize, tokens: usize) -> Cost {
        match self {
            NetworkConfig::UNet(unet) => unet.cost(batch, height, width, tokens),
        }
    }

    /// The UNet, for what only UNets can do.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`] for another network.
    pub fn unet(&self) -> Result<&UNetConfig, ModelError> {
        match self {
            NetworkConfig::UNet(unet) => Ok(unet),
        }
    }
}
