//! The encoder and the decoder of [`super::AutoencoderKl`].

use aquatint_ops::fused::Conv2dShape;
use aquatint_ops::nn::{Conv2d, GroupNorm};
use aquatint_ops::{OpsError, Params, Tensor};
use burn::module::Module;

use super::Trace;
use super::attention::{EPS, Global, PixelAttention};
use super::config::VaeConfig;
use crate::unet::resnet::{Downsample, ResnetBlock, ResnetShape, Upsample};

fn load_resnets(
    p: &Params<'_>,
    config: &VaeConfig,
    input: usize,
    output: usize,
    count: usize,
) -> Result<Vec<ResnetBlock>, OpsError> {
    (0..count)
        .map(|j| {
            let shape = ResnetShape {
                input: if j == 0 { input } else { output },
                output,
                time: None,
                groups: config.groups,
                eps: EPS,
                output_scale: 1.0,
                scale_shift: false,
            };
            ResnetBlock::load(&p.at(format!("resnets.{j}")), shape)
        })
        .collect()
}

fn conv3(p: &Params<'_>, name: &str, input: usize, output: usize) -> Result<Conv2d, OpsError> {
    Conv2d::load(&p.at(name), input, output, 3, Conv2dShape::same(3))
}

fn resnet(block: &ResnetBlock, x: Tensor<4>, global: &mut dyn Global) -> Tensor<4> {
    block.forward_with_norm(x, None, &mut |norm, x| global.norm_silu(norm, x))
}

/// Two residual blocks with an attention between them.
#[derive(Module, Debug)]
pub struct MidBlock {
    resnets: Vec<ResnetBlock>,
    attentions: Vec<PixelAttention>,
}

impl MidBlock {
    fn load(p: &Params<'_>, config: &VaeConfig, channels: usize) -> Result<Self, OpsError> {
        let attentions = match config.mid_attention {
            true => vec![PixelAttention::load(
                &p.at("attentions.0"),
                channels,
                config.groups,
            )?],
            false => vec![],
        };
        Ok(MidBlock {
            resnets: load_resnets(p, config, channels, channels, 2)?,
            attentions,
        })
    }

    fn forward(
        &self,
        mut x: Tensor<4>,
        global: &mut dyn Global,
        trace: &mut Trace<'_>,
        at: &str,
    ) -> Tensor<4> {
        for (j, block) in self.resnets.iter().enumerate() {
            x = resnet(block, x, global);
            if let Some(attention) = self.attentions.get(j) {
                x = attention.forward(x, global);
                trace(&format!("{at}.attentions.{j}"), &x);
            }
        }
        trace(at, &x);
        x
    }
}

/// A level of the encoder.
#[derive(Module, Debug)]
pub struct DownBlock {
    resnets: Vec<ResnetBlock>,
    downsamplers: Vec<Downsample>,
}

/// From a picture to the moments of a latent.
#[derive(Module, Debug)]
pub struct Encoder {
    conv_in: Conv2d,
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    /// Reads the encoder at `p`.
    pub fn load(p: &Params<'_>, config: &VaeConfig) -> Result<Self, OpsError> {
        let channels = &config.channels;
        let last = channels[channels.len() - 1];
        let down_blocks = (0..channels.len())
            .map(|i| {
                let p = p.at(format!("down_blocks.{i}"));
                let before = channels[i.saturating_sub(1)];
                let downsamplers = match i + 1 == channels.len() {
                    true => vec![],
                    false => vec![Downsample::load(&p.at("downsamplers.0"), channels[i], 0)?],
                };
                Ok(DownBlock {
                    resnets: load_resnets(&p, config, before, channels[i], config.layers)?,
                    downsamplers,
                })
            })
            .collect::<Result<_, OpsError>>()?;
        Ok(Encoder {
            conv_in: conv3(p, "conv_in", config.in_channels, channels[0])?,
            down_blocks,
            mid_block: MidBlock::load(&p.at("mid_block"), config, last)?,
            conv_norm_out: GroupNorm::load(&p.at("conv_norm_out"), config.groups, last, EPS)?,
            conv_out: conv3(p, "conv_out", last, 2 * config.latent_channels)?,
        })
    }

    /// `[batch, height, width, 3]` to `[batch, height / 8, width / 8, 2 latent channels]`.
    pub(crate) fn forward(
        &self,
        x: Tensor<4>,
        global: &mut dyn Global,
        trace: &mut Trace<'_>,
    ) -> Tensor<4> {
        let mut x = self.conv_in.forward(x);
        trace("encoder.conv_in", &x);
        for (i, block) in self.down_blocks.iter().enumerate() {
            for layer in &block.resnets {
                x = resnet(layer, x, global);
            }
            for down in &block.downsamplers {
                x = down.forward(x);
            }
            trace(&format!("encoder.down_blocks.{i}"), &x);
        }
        let x = self
            .mid_block
            .forward(x, global, trace, "encoder.mid_block");
        self.conv_out
            .forward(global.norm_silu(&self.conv_norm_out, x))
    }
}

/// A level of the decoder.
#[derive(Module, Debug)]
pub struct UpBlock {
    resnets: Vec<ResnetBlock>,
    upsamplers: Vec<Upsample>,
}

/// From a latent to a picture.
#[derive(Module, Debug)]
pub struct Decoder {
    conv_in: Conv2d,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    /// Reads the decoder at `p`.
    pub fn load(p: &Params<'_>, config: &VaeConfig) -> Result<Self, OpsError> {
        let channels: Vec<usize> = config.channels.iter().rev().copied().collect();
        let last = channels[channels.len() - 1];
        let up_blocks = (0..channels.len())
            .map(|i| {
                let p = p.at(format!("up_blocks.{i}"));
                let before = channels[i.saturating_sub(1)];
                let upsamplers = match i + 1 == channels.len() {
                    true => vec![],
                    false => vec![Upsample::load(&p.at("upsamplers.0"), channels[i])?],
                };
                Ok(UpBlock {
                    resnets: load_resnets(&p, config, before, channels[i], config.layers + 1)?,
                    upsamplers,
                })
            })
            .collect::<Result<_, OpsError>>()?;
        Ok(Decoder {
            conv_in: conv3(p, "conv_in", config.latent_channels, channels[0])?,
            mid_block: MidBlock::load(&p.at("mid_block"), config, channels[0])?,
            up_blocks,
            conv_norm_out: GroupNorm::load(&p.at("conv_norm_out"), config.groups, last, EPS)?,
            conv_out: conv3(p, "conv_out", last, config.out_channels)?,
        })
    }

    /// The part that works at the latent's size: `[batch, height, width, latent channels]` to
    /// `[batch, height, width, channels]`.
    pub(crate) fn lower(
        &self,
        z: Tensor<4>,
        global: &mut dyn Global,
        trace: &mut Trace<'_>,
    ) -> Tensor<4> {
        let x = self.conv_in.forward(z);
        trace("decoder.conv_in", &x);
        let x = self
            .mid_block
            .forward(x, global, trace, "decoder.mid_block");
        let first = self.up_blocks.first().into_iter();
        first
            .flat_map(|block| &block.resnets)
            .fold(x, |x, layer| resnet(layer, x, global))
    }

    /// The part that enlarges what the lower one gives, to `[batch, 8 height, 8 width, 3]`.
    pub(crate) fn upper(
        &self,
        mut x: Tensor<4>,
        global: &mut dyn Global,
        trace: &mut Trace<'_>,
    ) -> Tensor<4> {
        for (i, block) in self.up_blocks.iter().enumerate() {
            if i > 0 {
                for layer in &block.resnets {
                    x = resnet(layer, x, global);
                }
            }
            for up in &block.upsamplers {
                x = up.forward(x);
            }
            trace(&format!("decoder.up_blocks.{i}"), &x);
        }
        self.conv_out
            .forward(global.norm_silu(&self.conv_norm_out, x))
    }
}
