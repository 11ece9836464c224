//! The tiny autoencoder (TAESD, Bohan 2023): a picture in a fraction of a second, for previews and
//! quick decodes. It takes the diffusion model's latent as it is, with no scaling.

use aquatint_ops::fused::{Activation, Conv2dShape};
use aquatint_ops::nn::Conv2d;
use aquatint_ops::{OpsError, Params, Tensor};
use burn::module::Module;
use burn::tensor::activation::relu;

use crate::ModelError;
use crate::config::{Config, config_error};

const COMPONENT: &str = "taesd";

/// The shape of an [`AutoencoderTiny`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TinyConfig {
    /// Channels of a picture.
    pub in_channels: usize,
    /// Channels of a decoded picture.
    pub out_channels: usize,
    /// Channels of a latent.
    pub latent_channels: usize,
    /// Channels inside the encoder.
    pub encoder_channels: usize,
    /// Channels inside the decoder.
    pub decoder_channels: usize,
    /// Residual blocks of each level of the encoder.
    pub encoder_blocks: Vec<usize>,
    /// Residual blocks of each level of the decoder.
    pub decoder_blocks: Vec<usize>,
}

impl Default for TinyConfig {
    /// The published ones for Stable Diffusion 1.x, 2.x and XL.
    fn default() -> Self {
        TinyConfig {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 4,
            encoder_channels: 64,
            decoder_channels: 64,
            encoder_blocks: vec![1, 3, 3, 3],
            decoder_blocks: vec![3, 3, 3, 1],
        }
    }
}

impl TinyConfig {
    /// Reads the text of a `config.json` (diffusers' `AutoencoderTiny`).
    ///
    /// # Errors
    /// [`ModelError::Config`] for a value that is malformed or that this version cannot run.
    pub fn from_json(json: &str) -> Result<Self, ModelError> {
        let c = Config::parse(COMPONENT, json)?;
        c.only("act_fn", &["relu"])?;
        c.only("upsample_fn", &["nearest"])?;
        if c.count("upsampling_scaling_factor", 2)? != 2 {
            return Err(c.error("upsampling_scaling_factor", "another", 2));
        }
        let channels = |key: &str, blocks: &[usize]| {
            let list = c.counts(key, &[64; 4])?;
            match list.len() == blocks.len() && list.iter().all(|n| *n == list[0]) {
                true => Ok(list[0]),
                false => {
                    let expected = format!("{} times the same count", blocks.len());
                    Err(c.error(key, format!("{list:?}"), expected))
                }
            }
        };
        let encoder_blocks = c.counts("num_encoder_blocks", &[1, 3, 3, 3])?;
        let decoder_blocks = c.counts("num_decoder_blocks", &[3, 3, 3, 1])?;
        Ok(TinyConfig {
            in_channels: c.count("in_channels", 3)?,
            out_channels: c.count("out_channels", 3)?,
            latent_channels: c.count("latent_channels", 4)?,
            encoder_channels: channels("encoder_block_out_channels", &encoder_blocks)?,
            decoder_channels: channels("decoder_block_out_channels", &decoder_blocks)?,
            encoder_blocks,
            decoder_blocks,
        })
    }
}

/// diffusers' `AutoencoderTiny`. A checkpoint of the decoder alone will do.
#[derive(Module, Debug)]
pub struct AutoencoderTiny {
    encoder: Option<TinyEncoder>,
    decoder: TinyDecoder,
    #[module(skip)]
    config: TinyConfig,
}

impl AutoencoderTiny {
    /// Reads the model at `p` in diffusers' layout (`decoder.layers.0.weight`, ...).
    ///
    /// # Errors
    /// When a tensor is missing or misshapen.
    pub fn load(p: &Params<'_>, config: &TinyConfig) -> Result<Self, ModelError> {
        let encoder = p
            .has("encoder.layers.0.weight")
            .then(|| p.at("encoder.layers"));
        Self::load_parts(&p.at("decoder.layers"), encoder.as_ref(), config)
    }

    /// Reads the original layout: the decoder's and the encoder's files, whose names begin with a
    /// number (`1.weight`, `3.conv.0.weight`, ...).
    ///
    /// # Errors
    /// When a tensor is missing or misshapen.
    pub fn load_parts(
        decoder: &Params<'_>,
        encoder: Option<&Params<'_>>,
        config: &TinyConfig,
    ) -> Result<Self, ModelError> {
        for (key, levels) in [
            ("num_encoder_blocks", &config.encoder_blocks),
            ("num_decoder_blocks", &config.decoder_blocks),
        ] {
            if levels.is_empty() {
                return Err(config_error(COMPONENT, key, "empty", "a level"));
            }
        }
        Ok(AutoencoderTiny {
            encoder: match encoder {
                Some(p) => Some(TinyEncoder::load(p, config)?),
                None => None,
            },
            decoder: TinyDecoder::load(decoder, config)?,
            config: config.clone(),
        })
    }

    /// The configuration it was built with.
    pub fn config(&self) -> &TinyConfig {
        &self.config
    }

    /// The picture of a diffusion model's latent `[batch, height, width, channels]`:
    /// `[batch, 8 height, 8 width, 3]`, from -1 to 1 but for overshoot.
    ///
    /// # Errors
    /// [`ModelError::Input`] for a latent of other channels.
    pub fn decode(&self, latent: Tensor<4>) -> Result<Tensor<4>, ModelError> {
        check("the latent", &latent, self.config.latent_channels, 1)?;
        // The original clamps softly to its range of +-3.
        let x = (latent / 3.0).tanh() * 3.0;
        Ok(self.decoder.forward(x) * 2.0 - 1.0)
    }

    /// The diffusion model's latent of a picture `[batch, height, width, 3]` from -1 to 1.
    ///
    /// # Errors
    /// [`ModelError::Input`] for a picture of other channels, or when the checkpoint has no
    /// encoder.
    pub fn encode(&self, image: Tensor<4>) -> Result<Tensor<4>, ModelError> {
        check("the picture", &image, self.config.in_channels, 1)?;
        match &self.encoder {
            Some(encoder) => Ok(encoder.forward((image + 1.0) / 2.0)),
            None => Err(ModelError::Input {
                component: COMPONENT,
                what: "the encoder",
                found: "absent".to_owned(),
                expected: "a checkpoint with encoder tensors".to_owned(),
            }),
        }
    }
}

fn check(
    what: &'static str,
    x: &Tensor<4>,
    channels: usize,
    smallest: usize,
) -> Result<(), ModelError> {
    let [batch, height, width, found] = x.dims();
    match found == channels && batch > 0 && height.min(width) >= smallest {
        true => Ok(()),
        false => Err(ModelError::Input {
            component: COMPONENT,
            what,
            found: format!("{:?}", x.dims()),
            expected: format!("[batch, height, width, {channels}]"),
        }),
    }
}

/// Three convolutions with ReLU between them and a residual.
#[derive(Module, Debug)]
pub struct TinyBlock {
    conv: Vec<Conv2d>,
}

impl TinyBlock {
    fn load(p: &Params<'_>, channels: usize) -> Result<Self, OpsError> {
        let conv = ["conv.0", "conv.2", "conv.4"]
            .into_iter()
            .map(|name| Conv2d::load(&p.at(name), channels, channels, 3, Conv2dShape::same(3)))
            .collect::<Result<_, _>>()?;
        Ok(TinyBlock { conv })
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let h = relu(self.conv[0].forward(x.clone()));
        let h = relu(self.conv[1].forward(h));
        relu(self.conv[2].forward_with(h, Activation::None, Some(x)))
    }
}

/// Blocks of one resolution, and the convolution that leads to it or away from it.
#[derive(Module, Debug)]
pub struct TinyLevel {
    conv: Conv2d,
    blocks: Vec<TinyBlock>,
}

/// Hands out the numbers of a `Sequential`'s layers.
struct Counter<'a> {
    p: &'a Params<'a>,
    next: usize,
}

impl<'a> Counter<'a> {
    fn at(&mut self) -> Params<'a> {
        self.next += 1;
        self.p.at((self.next - 1).to_string())
    }

    fn blocks(&mut self, count: usize, channels: usize) -> Result<Vec<TinyBlock>, OpsError> {
        (0..count)
            .map(|_| TinyBlock::load(&self.at(), channels))
            .collect()
    }
}

/// From a picture to a latent.
#[derive(Module, Debug)]
pub struct TinyEncoder {
    levels: Vec<TinyLevel>,
    conv_out: Conv2d,
}

impl TinyEncoder {
    fn load(p: &Params<'_>, config: &TinyConfig) -> Result<Self, OpsError> {
        let c = config.encoder_channels;
        let mut layers = Counter { p, next: 0 };
        let mut levels = vec![];
        for (i, &blocks) in config.encoder_blocks.iter().enumerate() {
            let (input, stride) = if i == 0 {
                (config.in_channels, 1)
            } else {
                (c, 2)
            };
            let shape = Conv2dShape {
                stride,
                ..Conv2dShape::same(3)
            };
            levels.push(TinyLevel {
                conv: Conv2d::load_with(&layers.at(), input, c, 3, shape, i == 0)?,
                blocks: layers.blocks(blocks, c)?,
            });
        }
        let same = Conv2dShape::same(3);
        Ok(TinyEncoder {
            levels,
            conv_out: Conv2d::load(&layers.at(), c, config.latent_channels, 3, same)?,
        })
    }

    fn forward(&self, mut x: Tensor<4>) -> Tensor<4> {
        for level in &self.levels {
            x = level.conv.forward(x);
            for block in &level.blocks {
                x = block.forward(x);
            }
        }
        self.conv_out.forward(x)
    }
}

/// From a latent to a picture.
#[derive(Module, Debug)]
pub struct TinyDecoder {
    conv_in: Conv2d,
    levels: Vec<TinyLevel>,
}

impl TinyDecoder {
    fn load(p: &Params<'_>, config: &TinyConfig) -> Result<Self, OpsError> {
        let c = config.decoder_channels;
        let same = Conv2dShape::same(3);
        // The original counts its clamp as layer 0.
        let first = if p.has("0.weight") { 0 } else { 1 };
        let mut layers = Counter { p, next: first };
        let conv_in = Conv2d::load(&layers.at(), config.latent_channels, c, 3, same)?;
        layers.next += 1; // ReLU
        let mut levels = vec![];
        for (i, &count) in config.decoder_blocks.iter().enumerate() {
            let last = i + 1 == config.decoder_blocks.len();
            let blocks = layers.blocks(count, c)?;
            let shape = Conv2dShape {
                upsample: !last,
                ..same
            };
            if !last {
                layers.next += 1; // the upsampling itself
            }
            let output = if last { config.out_channels } else { c };
            levels.push(TinyLevel {
                conv: Conv2d::load_with(&layers.at(), c, output, 3, shape, last)?,
                blocks,
            });
        }
        Ok(TinyDecoder { conv_in, levels })
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let mut x = relu(self.conv_in.forward(x));
        for level in &self.levels {
            for block in &level.blocks {
                x = block.forward(x);
            }
            x = level.conv.forward(x);
        }
        x
    }
}
