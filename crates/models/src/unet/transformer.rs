//! Spatial transformers: self-attention, attention to the text, and a gated feed-forward.

use aquatint_ops::fused::{Activation, AttentionMask, attention};
use aquatint_ops::nn::{GroupNorm, LayerNorm, Linear};
use aquatint_ops::{OpsError, Params, Tensor};
use burn::module::Module;

use super::conditioning::{ContextCursor, KeysValues};

/// The shape of a [`SpatialTransformer`].
#[derive(Debug, Clone, Copy)]
pub struct TransformerShape {
    /// Channels.
    pub channels: usize,
    /// Attention heads.
    pub heads: usize,
    /// Blocks.
    pub layers: usize,
    /// Channels of the text.
    pub context: usize,
    /// Whether the first attention sees the text too.
    pub only_cross: bool,
    /// Whether the projections are stored as Linear (else as 1x1 convolutions).
    pub linear_projection: bool,
    /// Groups of the normalisation.
    pub groups: usize,
}

/// Multi-head attention; keys and values come from the picture or from the text.
#[derive(Module, Debug)]
pub struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Vec<Linear>,
    heads: usize,
    cross: bool,
}

impl Attention {
    fn load(
        p: &Params<'_>,
        channels: usize,
        context: Option<usize>,
        heads: usize,
    ) -> Result<Self, OpsError> {
        let source = context.unwrap_or(channels);
        Ok(Attention {
            to_q: Linear::load(&p.at("to_q"), channels, channels, false)?,
            to_k: Linear::load(&p.at("to_k"), source, channels, false)?,
            to_v: Linear::load(&p.at("to_v"), source, channels, false)?,
            to_out: vec![Linear::load(&p.at("to_out.0"), channels, channels, true)?],
            heads,
            cross: context.is_some(),
        })
    }

    /// Keys and values of `[batch, tokens, in]`.
    pub(crate) fn keys_values(&self, x: Tensor<3>) -> KeysValues {
        KeysValues {
            keys: self.to_k.forward(x.clone()),
            values: self.to_v.forward(x),
        }
    }

    /// `residual + attention(x)`, `[batch, tokens, channels]`.
    fn forward(
        &self,
        x: Tensor<3>,
        context: &mut ContextCursor<'_>,
        residual: Tensor<3>,
    ) -> Tensor<3> {
        let KeysValues { keys, values } = match self.cross {
            true => context.keys_values(self),
            false => self.keys_values(x.clone()),
        };
        let queries = self.to_q.forward(x);
        let y = attention(queries, keys, values, self.heads, AttentionMask::None);
        self.to_out[0].forward_with(y, Activation::None, Some(residual))
    }
}

/// A gated feed-forward of four times the channels (GEGLU).
#[derive(Module, Debug)]
pub struct FeedForward {
    proj: Linear,
    out: Linear,
}

impl FeedForward {
    fn load(p: &Params<'_>, channels: usize) -> Result<Self, OpsError> {
        Ok(FeedForward {
            proj: Linear::load(&p.at("net.0.proj"), channels, 8 * channels, true)?,
            out: Linear::load(&p.at("net.2"), 4 * channels, channels, true)?,
        })
    }

    /// `residual + feed_forward(x)`.
    fn forward(&self, x: Tensor<3>, residual: Tensor<3>) -> Tensor<3> {
        let gated = self.proj.forward_geglu(x);
        self.out
            .forward_with(gated, Activation::None, Some(residual))
    }
}

/// Self-attention, attention to the text, feed-forward, each after a layer norm and with a
/// residual (diffusers' `BasicTransformerBlock`).
#[derive(Module, Debug)]
pub struct TransformerBlock {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    ff: FeedForward,
}

impl TransformerBlock {
    fn load(p: &Params<'_>, shape: &TransformerShape) -> Result<Self, OpsError> {
        let c = shape.channels;
        let norm = |name: &str| LayerNorm::load(&p.at(name), c, 1e-5);
        let first = shape.only_cross.then_some(shape.context);
        let attn = |name: &str, context| Attention::load(&p.at(name), c, context, shape.heads);
        Ok(TransformerBlock {
            norm1: norm("norm1")?,
            attn1: attn("attn1", first)?,
            norm2: norm("norm2")?,
            attn2: attn("attn2", Some(shape.context))?,
            norm3: norm("norm3")?,
            ff: FeedForward::load(&p.at("ff"), c)?,
        })
    }

    fn forward(&self, x: Tensor<3>, context: &mut ContextCursor<'_>) -> Tensor<3> {
        let x = self
            .attn1
            .forward(self.norm1.forward(x.clone()), context, x);
        let x = self
            .attn2
            .forward(self.norm2.forward(x.clone()), context, x);
        self.ff.forward(self.norm3.forward(x.clone()), x)
    }
}

/// Transformer blocks over the positions of a picture (diffusers' `Transformer2DModel`).
#[derive(Module, Debug)]
pub struct SpatialTransformer {
    norm: GroupNorm,
    proj_in: Linear,
    transformer_blocks: Vec<TransformerBlock>,
    proj_out: Linear,
}

impl SpatialTransformer {
    /// Reads the transformer at `p`.
    pub fn load(p: &Params<'_>, shape: &TransformerShape) -> Result<Self, OpsError> {
        let c = shape.channels;
        let projection = |name: &str| match shape.linear_projection {
            true => Linear::load(&p.at(name), c, c, true),
            false => Linear::load_pointwise(&p.at(name), c, c),
        };
        Ok(SpatialTransformer {
            norm: GroupNorm::load(&p.at("norm"), shape.groups, c, 1e-6)?,
            proj_in: projection("proj_in")?,
            transformer_blocks: (0..shape.layers)
                .map(|i| TransformerBlock::load(&p.at(format!("transformer_blocks.{i}")), shape))
                .collect::<Result<_, _>>()?,
            proj_out: projection("proj_out")?,
        })
    }

    /// `[batch, height, width, channels]` to the same shape.
    pub(crate) fn forward(&self, x: Tensor<4>, context: &mut ContextCursor<'_>) -> Tensor<4> {
        let dims = x.dims();
        let tokens = [dims[0], dims[1] * dims[2], dims[3]];
        let residual = x.clone().reshape(tokens);
        let mut h = self.proj_in.forward(self.norm.forward(x).reshape(tokens));
        for block in &self.transformer_blocks {
            h = block.forward(h, context);
        }
        self.proj_out
            .forward_with(h, Activation::None, Some(residual))
            .reshape(dims)
    }

    /// The attentions to the text, in the order in which a pass meets them.
    pub(crate) fn cross_attentions(&self) -> impl Iterator<Item = &Attention> {
        self.transformer_blocks
            .iter()
            .flat_map(|block| [&block.attn1, &block.attn2])
            .filter(|attention| attention.cross)
    }
}
