//! What `vae/config.json` says.

use aquatint_ops::Tensor;

use crate::ModelError;
use crate::config::{Config, config_error};

const COMPONENT: &str = "vae";

/// The shape of an [`super::AutoencoderKl`].
#[derive(Debug, Clone, PartialEq)]
pub struct VaeConfig {
    /// Channels of a picture.
    pub in_channels: usize,
    /// Channels of a decoded picture.
    pub out_channels: usize,
    /// Channels of the levels, from full resolution down.
    pub channels: Vec<usize>,
    /// Residual blocks a level of the encoder; the decoder has one more.
    pub layers: usize,
    /// Channels of a latent.
    pub latent_channels: usize,
    /// Groups of every group normalisation.
    pub groups: usize,
    /// Whether the middle has an attention.
    pub mid_attention: bool,
    /// Whether there is a convolution after the encoder.
    pub quant_conv: bool,
    /// Whether there is a convolution before the decoder.
    pub post_quant_conv: bool,
    /// A latent of the diffusion model is `(z - shift) * scale`.
    pub scale: f64,
    /// See [`VaeConfig::scale`].
    pub shift: f64,
    /// Mean and deviation of each latent channel, for models that normalise by them.
    pub latent_stats: Option<(Vec<f64>, Vec<f64>)>,
}

impl VaeConfig {
    /// Reads the text of a `config.json`. Absent keys have diffusers' defaults, unknown ones are
    /// ignored.
    ///
    /// # Errors
    /// [`ModelError::Config`] for a value that is malformed or that this version cannot run.
    pub fn from_json(json: &str) -> Result<Self, ModelError> {
        let c = Config::parse(COMPONENT, json)?;
        c.only("act_fn", &["silu", "swish"])?;
        let channels = c.counts("block_out_channels", &[64])?;
        for (key, kind) in [
            ("down_block_types", "DownEncoderBlock2D"),
            ("up_block_types", "UpDecoderBlock2D"),
        ] {
            let names = c.names(key, &[kind])?;
            if let Some(other) = names.iter().find(|name| *name != kind) {
                return Err(c.error(key, other, kind));
            }
            if names.len() != channels.len() {
                let expected = format!("{}, as block_out_channels has", channels.len());
                return Err(c.error(key, format!("{} entries", names.len()), expected));
            }
        }
        let mean = c.maybe_numbers("latents_mean")?;
        let std = c.maybe_numbers("latents_std")?;
        let config = VaeConfig {
            in_channels: c.count("in_channels", 3)?,
            out_channels: c.count("out_channels", 3)?,
            channels,
            layers: c.count("layers_per_block", 1)?,
            latent_channels: c.count("latent_channels", 4)?,
            groups: c.count("norm_num_groups", 32)?,
            mid_attention: c.flag("mid_block_add_attention", true)?,
            quant_conv: c.flag("use_quant_conv", true)?,
            post_quant_conv: c.flag("use_post_quant_conv", true)?,
            scale: c.number("scaling_factor", 0.18215)?,
            shift: c.number("shift_factor", 0.0)?,
            latent_stats: mean.zip(std),
        };
        config.validate()?;
        Ok(config)
    }

    /// The autoencoder of Stable Diffusion 1.x and 2.x, for files with no `config.json`.
    pub fn sd1() -> Self {
        VaeConfig {
            in_channels: 3,
            out_channels: 3,
            channels: vec![128, 256, 512, 512],
            layers: 2,
            latent_channels: 4,
            groups: 32,
            mid_attention: true,
            quant_conv: true,
            post_quant_conv: true,
            scale: 0.18215,
            shift: 0.0,
            latent_stats: None,
        }
    }

    /// The autoencoder of Stable Diffusion XL.
    pub fn sdxl() -> Self {
        VaeConfig {
            scale: 0.13025,
            ..Self::sd1()
        }
    }

    /// The autoencoder of Stable Diffusion 3 and 3.5: 16 channels, shifted.
    pub fn sd3() -> Self {
        VaeConfig {
            latent_channels: 16,
            quant_conv: false,
            post_quant_conv: false,
            scale: 1.5305,
            shift: 0.0609,
            ..Self::sd1()
        }
    }

    /// The autoencoder of FLUX.1.
    pub fn flux() -> Self {
        VaeConfig {
            scale: 0.3611,
            shift: 0.1159,
            ..Self::sd3()
        }
    }

    /// Whether the sizes fit together, so that the model can be built and run.
    ///
    /// # Errors
    /// [`ModelError::Config`] that names the first key that does not fit.
    pub fn validate(&self) -> Result<(), ModelError> {
        let wrong = |key: &str, found: String, expected: String| {
            Err(config_error(COMPONENT, key, found, expected))
        };
        if self.channels.is_empty() {
            return wrong("block_out_channels", "empty".into(), "a level".into());
        }
        for channels in &self.channels {
            if self.groups == 0 || channels % self.groups != 0 {
                let expected = format!("multiples of norm_num_groups ({})", self.groups);
                return wrong("block_out_channels", channels.to_string(), expected);
            }
        }
        if self.scale == 0.0 {
            return wrong("scaling_factor", "0".into(), "not zero".into());
        }
        if let Some((mean, std)) = &self.latent_stats {
            let n = self.latent_channels;
            if mean.len() != n || std.len() != n || std.contains(&0.0) {
                let found = format!("{} and {} values", mean.len(), std.len());
                let expected = format!("{n} each, deviations not zero");
                return wrong("latents_mean and latents_std", found, expected);
            }
        }
        Ok(())
    }

    /// How many pixels a latent position is wide and high.
    pub fn factor(&self) -> usize {
        1 << (self.channels.len() - 1)
    }

    /// What the autoencoder calls `z`, from a latent of the diffusion model.
    pub fn unscale(&self, latent: Tensor<4>) -> Tensor<4> {
        match &self.latent_stats {
            Some((mean, std)) => {
                let device = latent.device();
                latent * row(std, &device) / self.scale + row(mean, &device)
            }
            None => latent / self.scale + self.shift,
        }
    }

    /// The inverse of [`VaeConfig::unscale`].
    pub fn scale(&self, z: Tensor<4>) -> Tensor<4> {
        match &self.latent_stats {
            Some((mean, std)) => {
                let device = z.device();
                (z - row(mean, &device)) * self.scale / row(std, &device)
            }
            None => (z - self.shift) * self.scale,
        }
    }
}

fn row(values: &[f64], device: &aquatint_ops::Device) -> Tensor<4> {
    let values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
    let shape = [1, 1, 1, values.len()];
    let data = burn::tensor::TensorData::new(values, shape);
    Tensor::from_data(data, (device, burn::tensor::DType::F32))
}
