//! The blocks of the way down, the middle and the way up.

use aquatint_ops::fused::join_channels;
use aquatint_ops::{OpsError, Params, Tensor};
use burn::module::Module;

use super::attention::SelfAttention;
use super::config::UNet2DConfig;
use crate::unet::Trace;
use crate::unet::blocks::joined_inputs;
use crate::unet::resnet::{Downsample, ResnetBlock, ResnetShape, Upsample};

/// What a pass carries from block to block.
pub(crate) struct Pass<'a> {
    /// The activated time embedding, `[1 or batch, channels]`.
    pub time: Tensor<2>,
    /// Is shown each stage.
    pub trace: &'a mut Trace<'a>,
}

/// A block: residual blocks, each followed by an attention where the block has them, and a change
/// of size at the end.
#[derive(Module, Debug)]
pub struct Block {
    resnets: Vec<ResnetBlock>,
    attentions: Vec<SelfAttention>,
    downsamplers: Vec<Downsample>,
    upsamplers: Vec<Upsample>,
}

/// Input channels of the residual blocks of level `i` on the way down.
pub(crate) fn down_inputs(config: &UNet2DConfig, i: usize) -> Vec<usize> {
    let mut inputs = vec![config.channels(i); config.layers];
    inputs[0] = config.channels(i.saturating_sub(1));
    inputs
}

/// Input channels of the residual blocks of level `i` on the way up.
pub(crate) fn up_inputs(config: &UNet2DConfig, i: usize) -> Vec<usize> {
    joined_inputs(|i| config.channels(i), config.layers, i)
}

fn resnets(
    p: &Params<'_>,
    config: &UNet2DConfig,
    inputs: &[usize],
    output: usize,
    output_scale: f64,
) -> Result<Vec<ResnetBlock>, OpsError> {
    let load = |(j, &input)| {
        let shape = ResnetShape {
            input,
            output,
            time: Some(config.time_embed_dim),
            groups: config.groups,
            eps: config.eps,
            output_scale,
            scale_shift: config.scale_shift,
        };
        ResnetBlock::load(&p.at(format!("resnets.{j}")), shape)
    };
    inputs.iter().enumerate().map(load).collect()
}

fn attentions(
    p: &Params<'_>,
    config: &UNet2DConfig,
    channels: usize,
    count: usize,
) -> Result<Vec<SelfAttention>, OpsError> {
    let groups = Some(config.groups);
    (0..count)
        .map(|j| {
            let p = p.at(format!("attentions.{j}"));
            SelfAttention::load(&p, config, channels, groups, 1.0)
        })
        .collect()
}

impl Block {
    /// Reads the block of level `i` on the way down.
    pub fn load_down(p: &Params<'_>, config: &UNet2DConfig, i: usize) -> Result<Self, OpsError> {
        let level = config.levels[i];
        let inputs = down_inputs(config, i);
        let count = if level.down_attention {
            inputs.len()
        } else {
            0
        };
        let last = i + 1 == config.levels.len();
        let sampler =
            |p: &Params<'_>| Downsample::load(p, level.channels, config.downsample_padding);
        Ok(Block {
            resnets: resnets(p, config, &inputs, level.channels, 1.0)?,
            attentions: attentions(p, config, level.channels, count)?,
            downsamplers: match last {
                true => vec![],
                false => vec![sampler(&p.at("downsamplers.0"))?],
            },
            upsamplers: vec![],
        })
    }

    /// Reads the middle.
    pub fn load_mid(p: &Params<'_>, config: &UNet2DConfig) -> Result<Self, OpsError> {
        let channels = config.channels(config.levels.len());
        let scale = config.mid_scale;
        let groups = match (config.mid_attention_groups, config.scale_shift) {
            (None, true) => None,
            (None, false) => Some(config.groups),
            (groups, _) => groups,
        };
        let p_attention = p.at("attentions.0");
        Ok(Block {
            resnets: resnets(p, config, &[channels; 2], channels, scale)?,
            attentions: match config.has_mid_attention() {
                true => vec![SelfAttention::load(
                    &p_attention,
                    config,
                    channels,
                    groups,
                    scale,
                )?],
                false => vec![],
            },
            downsamplers: vec![],
            upsamplers: vec![],
        })
    }

    /// Reads the block of level `i` on the way up.
    pub fn load_up(p: &Params<'_>, config: &UNet2DConfig, i: usize) -> Result<Self, OpsError> {
        let level = config.levels[i];
        let inputs = up_inputs(config, i);
        let count = if level.up_attention { inputs.len() } else { 0 };
        Ok(Block {
            resnets: resnets(p, config, &inputs, level.channels, 1.0)?,
            attentions: attentions(p, config, level.channels, count)?,
            downsamplers: vec![],
            upsamplers: match i {
                0 => vec![],
                _ => vec![Upsample::load(&p.at("upsamplers.0"), level.channels)?],
            },
        })
    }

    /// Residual block `j` and the attention that follows it.
    fn layer(&self, mut x: Tensor<4>, pass: &mut Pass<'_>, at: &str, j: usize) -> Tensor<4> {
        x = self.resnets[j].forward(x, Some(&pass.time));
        (pass.trace)(&format!("{at}.resnets.{j}"), &x);
        if let Some(attention) = self.attentions.get(j) {
            x = attention.forward(x);
            (pass.trace)(&format!("{at}.attentions.{j}"), &x);
        }
        x
    }

    /// The way down: gives the output, and pushes what the way up will take to `skips`.
    pub(crate) fn down(
        &self,
        mut x: Tensor<4>,
        skips: &mut Vec<Tensor<4>>,
        pass: &mut Pass<'_>,
        at: &str,
    ) -> Tensor<4> {
        for j in 0..self.resnets.len() {
            x = self.layer(x, pass, at, j);
            skips.push(x.clone());
        }
        for (j, down) in self.downsamplers.iter().enumerate() {
            x = down.forward(x);
            (pass.trace)(&format!("{at}.downsamplers.{j}"), &x);
            skips.push(x.clone());
        }
        x
    }

    /// The middle.
    pub(crate) fn mid(&self, mut x: Tensor<4>, pass: &mut Pass<'_>, at: &str) -> Tensor<4> {
        for j in 0..self.resnets.len() {
            x = self.layer(x, pass, at, j);
        }
        x
    }

    /// The way up: takes its skips from the end of `skips`, and enlarges to the size of the next one.
    pub(crate) fn up(
        &self,
        mut x: Tensor<4>,
        skips: &mut Vec<Tensor<4>>,
        pass: &mut Pass<'_>,
        at: &str,
    ) -> Tensor<4> {
        for j in 0..self.resnets.len() {
            if let Some(skip) = skips.pop() {
                x = join_channels(x, skip);
            }
            x = self.layer(x, pass, at, j);
        }
        for (j, up) in self.upsamplers.iter().enumerate() {
            x = match skips.last().map(Tensor::dims) {
                Some([_, height, width, _]) => up.forward_to(x, [height, width]),
                None => up.forward(x),
            };
            (pass.trace)(&format!("{at}.upsamplers.{j}"), &x);
        }
        x
    }
}
