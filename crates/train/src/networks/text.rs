//! A UNet that is told captions.

use aquatint_models::ModelError;
use aquatint_models::text::{ClipSkip, ClipTextConfig, ClipTextEncoder};
use aquatint_models::unet::{Conditioning, UNet2DCondition, UNetConfig};
use aquatint_ops::{Params, Tensor};
use burn::module::Module;

use super::{Network, Told};
use crate::TrainError;

/// A UNet with cross-attention, and its text encoder where that is trained too.
#[derive(Module, Debug)]
pub struct TextNetwork {
    unet: UNet2DCondition,
    text_encoder: Option<ClipTextEncoder>,
}

impl TextNetwork {
    /// Reads `unet` and, with a configuration, `text_encoder` at `p`.
    ///
    /// # Errors
    /// When a configuration does not hold together, or a tensor is missing or misshapen.
    pub fn load(
        p: &Params<'_>,
        unet: &UNetConfig,
        text_encoder: Option<&ClipTextConfig>,
    ) -> Result<Self, ModelError> {
        Ok(Self {
            unet: UNet2DCondition::load(&p.at("unet"), unet)?,
            text_encoder: text_encoder
                .map(|config| ClipTextEncoder::load(&p.at("text_encoder"), config))
                .transpose()?,
        })
    }

    /// The context of token sequences, by the text encoder of the network.
    ///
    /// # Errors
    /// When the network has none, or the tokens do not fit it.
    pub fn encode(&self, tokens: &[Vec<u32>]) -> Result<Tensor<3>, ModelError> {
        match &self.text_encoder {
            Some(encoder) => Ok(encoder.forward(tokens, ClipSkip::LAST)?.last_hidden),
            None => Err(ModelError::Input {
                component: "text_encoder",
                what: "the encoder",
                found: "absent".into(),
                expected: "captions that are encoded already".into(),
            }),
        }
    }
}

impl Network for TextNetwork {
    fn predict(
        &self,
        input: Tensor<4>,
        timesteps: &[f64],
        told: &Told,
    ) -> Result<Tensor<4>, TrainError> {
        let context = match &told.context {
            Some(context) => context.clone(),
            None => self.encode(&told.tokens)?,
        };
        Ok(self
            .unet
            .forward(input, timesteps, &Conditioning::new(context))?)
    }
}
