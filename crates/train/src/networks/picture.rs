//! A UNet over pixels or latents that is told a class, or nothing.

use aquatint_models::ModelError;
use aquatint_models::unet::{Classes, UNet2D, UNet2DConfig};
use aquatint_ops::{Params, Tensor};
use burn::module::Module;

use super::{Network, Told};
use crate::TrainError;

/// A UNet without text.
#[derive(Module, Debug)]
pub struct PictureNetwork {
    unet: UNet2D,
}

impl PictureNetwork {
    /// Reads `unet` at `p`.
    ///
    /// # Errors
    /// When the configuration does not hold together, or a tensor is missing or misshapen.
    pub fn load(p: &Params<'_>, config: &UNet2DConfig) -> Result<Self, ModelError> {
        Ok(Self {
            unet: UNet2D::load(&p.at("unet"), config)?,
        })
    }
}

impl Network for PictureNetwork {
    fn predict(
        &self,
        input: Tensor<4>,
        timesteps: &[f64],
        told: &Told,
    ) -> Result<Tensor<4>, TrainError> {
        let classes = match told.classes.as_slice() {
            [] => None,
            // One is told for all of a batch that is drawn together.
            [one] => Some(Classes::Rows(vec![*one; timesteps.len()])),
            each => Some(Classes::Rows(each.to_vec())),
        };
        Ok(self.unet.forward(input, timesteps, classes.as_ref())?)
    }
}
