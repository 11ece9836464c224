//! The autoencoder of Stable Diffusion (Kingma and Welling, 2014; Rombach et al., 2022).

use aquatint_ops::fused::Conv2dShape;
use aquatint_ops::nn::Conv2d;
use aquatint_ops::{OpsError, Params, Tensor};
use burn::module::Module;

use super::Trace;
use super::attention::{Global, Whole};
use super::coder::{Decoder, Encoder};
use super::config::VaeConfig;
use crate::ModelError;

/// diffusers' `AutoencoderKL`. A checkpoint of the decoder alone will do: it cannot encode then.
#[derive(Module, Debug)]
pub struct AutoencoderKl {
    encoder: Option<Encoder>,
    quant_conv: Option<Conv2d>,
    post_quant_conv: Option<Conv2d>,
    decoder: Decoder,
    #[module(skip)]
    config: VaeConfig,
}

/// A Gaussian over latents, `[batch, height, width, channels]`.
#[derive(Debug, Clone)]
pub struct Posterior {
    /// Its mean, which is also its mode.
    pub mean: Tensor<4>,
    /// The logarithm of its variance, held to -30..20.
    pub log_variance: Tensor<4>,
}

impl Posterior {
    /// A sample, from standard normal `noise` of the mean's shape.
    pub fn sample(&self, noise: Tensor<4>) -> Tensor<4> {
        self.mean.clone() + (self.log_variance.clone() * 0.5).exp() * noise
    }
}

impl AutoencoderKl {
    /// Reads the model at `p`, where diffusers' names begin (`decoder.conv_in.weight`, ...).
    ///
    /// # Errors
    /// When the configuration does not hold together, or a tensor is missing or misshapen.
    pub fn load(p: &Params<'_>, config: &VaeConfig) -> Result<Self, ModelError> {
        config.validate()?;
        let pointwise = |name: &str, channels| -> Result<Conv2d, OpsError> {
            Conv2d::load(&p.at(name), channels, channels, 1, Conv2dShape::same(1))
        };
        let z = config.latent_channels;
        let encoder = match p.has("encoder.conv_in.weight") {
            true => Some(Encoder::load(&p.at("encoder"), config)?),
            false => None,
        };
        let quant_conv = match encoder.is_some() && config.quant_conv {
            true => Some(pointwise("quant_conv", 2 * z)?),
            false => None,
        };
        Ok(AutoencoderKl {
            encoder,
            quant_conv,
            post_quant_conv: match config.post_quant_conv {
                true => Some(pointwise("post_quant_conv", z)?),
                false => None,
            },
            decoder: Decoder::load(&p.at("decoder"), config)?,
            config: config.clone(),
        })
    }

    /// The configuration it was built with.
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// The latent's distribution for a picture `[batch, height, width, 3]` from -1 to 1. The
    /// diffusion model takes [`VaeConfig::scale`] of a sample.
    ///
    /// # Errors
    /// [`ModelError::Input`] for a picture of other channels or smaller than a latent's position,
    /// or when the checkpoint has no encoder.
    pub fn encode(&self, image: Tensor<4>) -> Result<Posterior, ModelError> {
        self.encode_traced(image, &mut |_, _| {})
    }

    /// As [`AutoencoderKl::encode`]; `trace` is shown each stage.
    pub fn encode_traced(
        &self,
        image: Tensor<4>,
        trace: &mut Trace<'_>,
    ) -> Result<Posterior, ModelError> {
        let [_, height, width, channels] = image.dims();
        let factor = self.config.factor();
        if channels != self.config.in_channels || height.min(width) < factor {
            let expected = format!(
                "[batch, height, width, {}] of at least {factor}x{factor}",
                self.config.in_channels
            );
            return Err(input_error(
                "the picture",
                format!("{:?}", image.dims()),
                expected,
            ));
        }
        let Some(encoder) = &self.encoder else {
            let expected = "a checkpoint with encoder tensors".to_owned();
            return Err(input_error("the encoder", "absent".to_owned(), expected));
        };
        let mut moments = encoder.forward(image, &mut Whole, trace);
        if let Some(conv) = &self.quant_conv {
            moments = conv.forward(moments);
            trace("quant_conv", &moments);
        }
        let z = self.config.latent_channels;
        Ok(Posterior {
            mean: moments.clone().narrow(3, 0, z),
            log_variance: moments.narrow(3, z, z).clamp(-30.0, 20.0),
        })
    }

    /// The picture of `z`, `[batch, 8 height, 8 width, 3]`, from -1 to 1 but for overshoot. `z` is
    /// [`VaeConfig::unscale`] of the diffusion model's latent.
    ///
    /// # Errors
    /// [`ModelError::Input`] for a latent of other channels.
    pub fn decode(&self, z: Tensor<4>) -> Result<Tensor<4>, ModelError> {
        self.decode_traced(z, &mut |_, _| {})
    }

    /// As [`AutoencoderKl::decode`]; `trace` is shown each stage.
    pub fn decode_traced(
        &self,
        z: Tensor<4>,
        trace: &mut Trace<'_>,
    ) -> Result<Tensor<4>, ModelError> {
        self.check_latent(&z)?;
        Ok(self.decode_with(z, &mut Whole, trace))
    }

    pub(crate) fn check_latent(&self, z: &Tensor<4>) -> Result<(), ModelError> {
        let [batch, height, width, channels] = z.dims();
        match channels == self.config.latent_channels && batch * height * width > 0 {
            true => Ok(()),
            false => Err(input_error(
                "the latent",
                format!("{:?}", z.dims()),
                format!("[batch, height, width, {}]", self.config.latent_channels),
            )),
        }
    }

    fn decode_with(
        &self,
        z: Tensor<4>,
        global: &mut dyn Global,
        trace: &mut Trace<'_>,
    ) -> Tensor<4> {
        let x = self.lower(z, global, trace);
        self.decoder.upper(x, global, trace)
    }

    /// The part of a decode that works at the latent's size.
    pub(crate) fn lower(
        &self,
        z: Tensor<4>,
        global: &mut dyn Global,
        trace: &mut Trace<'_>,
    ) -> Tensor<4> {
        let z = match &self.post_quant_conv {
            Some(conv) => conv.forward(z),
            None => z,
        };
        trace("post_quant_conv", &z);
        self.decoder.lower(z, global, trace)
    }

    /// The part of a decode that enlarges what the lower one gives.
    pub(crate) fn upper(&self, x: Tensor<4>, global: &mut dyn Global) -> Tensor<4> {
        self.decoder.upper(x, global, &mut |_, _| {})
    }
}

fn input_error(what: &'static str, found: String, expected: String) -> ModelError {
    ModelError::Input {
        component: "vae",
        what,
        found,
        expected,
    }
}
