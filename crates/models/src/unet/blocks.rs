//! The blocks of the way down, the middle and the way up.

use aquatint_ops::fused::join_channels;
use aquatint_ops::{OpsError, Params, Tensor};
use burn::module::Module;

use super::Trace;
use super::conditioning::ContextCursor;
use super::config::{MidKind, UNetConfig, UNetLevel};
use super::resnet::{Downsample, ResnetBlock, ResnetShape, Upsample};
use super::transformer::{SpatialTransformer, TransformerShape};

/// What a pass carries from block to block.
pub(crate) struct Pass<'a> {
    /// The activated time embedding, `[1 or batch, channels]`.
    pub time: Tensor<2>,
    /// The text.
    pub context: ContextCursor<'a>,
    /// Is shown each stage.
    pub trace: &'a mut Trace<'a>,
}

impl Pass<'_> {
    fn resnet(&mut self, block: &ResnetBlock, x: Tensor<4>, at: &str, j: usize) -> Tensor<4> {
        let y = block.forward(x, Some(&self.time));
        (self.trace)(&format!("{at}.resnets.{j}"), &y);
        y
    }

    fn attention(
        &mut self,
        attention: Option<&SpatialTransformer>,
        x: Tensor<4>,
        at: &str,
        j: usize,
    ) -> Tensor<4> {
        let Some(attention) = attention else { return x };
        let y = attention.forward(x, &mut self.context);
        (self.trace)(&format!("{at}.attentions.{j}"), &y);
        y
    }
}

fn resnet_shape(config: &UNetConfig, input: usize, output: usize) -> ResnetShape {
    ResnetShape {
        input,
        output,
        time: Some(config.time_embed_dim),
        groups: config.groups,
        eps: config.eps,
        output_scale: 1.0,
        scale_shift: false,
    }
}

fn transformer_shape(config: &UNetConfig, level: &UNetLevel) -> TransformerShape {
    TransformerShape {
        channels: level.channels,
        heads: level.heads,
        layers: level.transformer_layers,
        context: level.context_dim,
        only_cross: level.only_cross_attention,
        linear_projection: config.linear_projection,
        groups: config.groups,
    }
}

fn load_attentions(
    p: &Params<'_>,
    shape: &TransformerShape,
    count: usize,
) -> Result<Vec<SpatialTransformer>, OpsError> {
    (0..count)
        .map(|j| SpatialTransformer::load(&p.at(format!("attentions.{j}")), shape))
        .collect()
}

/// A block of the way down.
#[derive(Module, Debug)]
pub struct DownBlock {
    resnets: Vec<ResnetBlock>,
    attentions: Vec<SpatialTransformer>,
    downsamplers: Vec<Downsample>,
}

impl DownBlock {
    /// Reads the block of level `i` at `p`.
    pub fn load(p: &Params<'_>, config: &UNetConfig, i: usize) -> Result<Self, OpsError> {
        let level = &config.levels[i];
        let before = config.levels[i.saturating_sub(1)].channels;
        let resnets = (0..level.layers)
            .map(|j| {
                let input = if j == 0 { before } else { level.channels };
                let shape = resnet_shape(config, input, level.channels);
                ResnetBlock::load(&p.at(format!("resnets.{j}")), shape)
            })
            .collect::<Result<_, _>>()?;
        let attentions = if level.down_attention {
            level.layers
        } else {
            0
        };
        let downsamplers = match i + 1 == config.levels.len() {
            true => vec![],
            false => vec![Downsample::load(
                &p.at("downsamplers.0"),
                level.channels,
                config.downsample_padding,
            )?],
        };
        Ok(DownBlock {
            resnets,
            attentions: load_attentions(p, &transformer_shape(config, level), attentions)?,
            downsamplers,
        })
    }

    /// Gives the output, and pushes what the way up will take to `skips`.
    pub(crate) fn forward(
        &self,
        mut x: Tensor<4>,
        skips: &mut Vec<Tensor<4>>,
        pass: &mut Pass<'_>,
        at: &str,
    ) -> Tensor<4> {
        for (j, resnet) in self.resnets.iter().enumerate() {
            x = pass.resnet(resnet, x, at, j);
            x = pass.attention(self.attentions.get(j), x, at, j);
            skips.push(x.clone());
        }
        for (j, down) in self.downsamplers.iter().enumerate() {
            x = down.forward(x);
            (pass.trace)(&format!("{at}.downsamplers.{j}"), &x);
            skips.push(x.clone());
        }
        x
    }

    pub(crate) fn transformers(&self) -> impl Iterator<Item = &SpatialTransformer> {
        self.attentions.iter()
    }
}

/// The block between the way down and the way up.
#[derive(Module, Debug)]
pub struct MidBlock {
    resnets: Vec<ResnetBlock>,
    attentions: Vec<SpatialTransformer>,
}

impl MidBlock {
    /// Reads the block at `p`; nothing when there is none.
    pub fn load(p: &Params<'_>, config: &UNetConfig) -> Result<Option<Self>, OpsError> {
        let (count, level) = match (config.mid, config.levels.last()) {
            (MidKind::Absent, _) | (_, None) => return Ok(None),
            (MidKind::Resnet, Some(level)) => (1, level),
            (MidKind::Attention, Some(level)) => (2, level),
        };
        let shape = ResnetShape {
            output_scale: config.mid_scale,
            ..resnet_shape(config, level.channels, level.channels)
        };
        let transformer = TransformerShape {
            // diffusers gives the mid block no such option.
            only_cross: false,
            ..transformer_shape(config, level)
        };
        Ok(Some(MidBlock {
            resnets: (0..count)
                .map(|j| ResnetBlock::load(&p.at(format!("resnets.{j}")), shape))
                .collect::<Result<_, _>>()?,
            attentions: load_attentions(p, &transformer, count - 1)?,
        }))
    }

    pub(crate) fn forward(&self, mut x: Tensor<4>, pass: &mut Pass<'_>, at: &str) -> Tensor<4> {
        for (j, resnet) in self.resnets.iter().enumerate() {
            x = pass.resnet(resnet, x, at, j);
            x = pass.attention(self.attentions.get(j), x, at, j);
        }
        x
    }

    pub(crate) fn transformers(&self) -> impl Iterator<Item = &SpatialTransformer> {
        self.attentions.iter()
    }
}

/// A block of the way up.
#[derive(Module, Debug)]
pub struct UpBlock {
    resnets: Vec<ResnetBlock>,
    attentions: Vec<SpatialTransformer>,
    upsamplers: Vec<Upsample>,
}

impl UpBlock {
    /// Reads the block of level `i` at `p`.
    pub fn load(p: &Params<'_>, config: &UNetConfig, i: usize) -> Result<Self, OpsError> {
        let level = &config.levels[i];
        let inputs = up_inputs(config, i);
        let resnets = inputs
            .iter()
            .enumerate()
            .map(|(j, &input)| {
                let shape = resnet_shape(config, input, level.channels);
                ResnetBlock::load(&p.at(format!("resnets.{j}")), shape)
            })
            .collect::<Result<_, _>>()?;
        let attentions = if level.up_attention { inputs.len() } else { 0 };
        let upsamplers = match i {
            0 => vec![],
            _ => vec![Upsample::load(&p.at("upsamplers.0"), level.channels)?],
        };
        Ok(UpBlock {
            resnets,
            attentions: load_attentions(p, &transformer_shape(config, level), attentions)?,
            upsamplers,
        })
    }

    /// Takes its skips from the end of `skips`, and enlarges to the size of the next one.
    pub(crate) fn forward(
        &self,
        mut x: Tensor<4>,
        skips: &mut Vec<Tensor<4>>,
        pass: &mut Pass<'_>,
        at: &str,
    ) -> Tensor<4> {
        for (j, resnet) in self.resnets.iter().enumerate() {
            if let Some(skip) = skips.pop() {
                x = join_channels(x, skip);
            }
            x = pass.resnet(resnet, x, at, j);
            x = pass.attention(self.attentions.get(j), x, at, j);
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

    pub(crate) fn transformers(&self) -> impl Iterator<Item = &SpatialTransformer> {
        self.attentions.iter()
    }
}

/// Input channels of the residual blocks of level `i` on the way up.
pub(crate) fn up_inputs(config: &UNetConfig, i: usize) -> Vec<usize> {
    let last = config.levels.len() - 1;
    let channels = |i: usize| config.levels[i.min(last)].channels;
    joined_inputs(channels, config.levels[i].layers, i)
}

/// Input channels of the `layers + 1` residual blocks of level `i` on the way up: what comes from below
/// or from the block before, and a skip of the way down. `channels` gives the channels of a level,
/// and below the last one those of the last.
pub(crate) fn joined_inputs(
    channels: impl Fn(usize) -> usize,
    layers: usize,
    i: usize,
) -> Vec<usize> {
    let below = channels(i + 1);
    let last_skip = channels(i.saturating_sub(1));
    (0..=layers)
        .map(|j| {
            let from = if j == 0 { below } else { channels(i) };
            let skip = if j == layers { last_skip } else { channels(i) };
            from + skip
        })
        .collect()
}
