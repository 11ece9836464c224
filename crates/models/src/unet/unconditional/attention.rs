//! Self-attention over the positions of a picture.

use aquatint_ops::fused::{Activation, AttentionMask, attention};
use aquatint_ops::nn::{GroupNorm, Linear};
use aquatint_ops::{OpsError, Params, Tensor};
use burn::module::Module;

use super::config::UNet2DConfig;

/// A normalisation, attention of every position to every other, and a residual (diffusers'
/// `Attention` as its former `AttentionBlock`).
#[derive(Module, Debug)]
pub struct SelfAttention {
    group_norm: Option<GroupNorm>,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Vec<Linear>,
    heads: usize,
    output_scale: f64,
}

impl SelfAttention {
    /// Reads the attention at `p`, under its names of today (`to_q`, ...) or the older ones of
    /// diffusers before 0.18 (`query`, ...). `groups` is those of the normalisation, if it has one.
    pub fn load(
        p: &Params<'_>,
        config: &UNet2DConfig,
        channels: usize,
        groups: Option<usize>,
        output_scale: f64,
    ) -> Result<Self, OpsError> {
        let names = match p.has("query.weight") {
            true => ["query", "key", "value", "proj_attn"],
            false => ["to_q", "to_k", "to_v", "to_out.0"],
        };
        let linear = |name: &str| Linear::load(&p.at(name), channels, channels, true);
        let norm = |groups| GroupNorm::load(&p.at("group_norm"), groups, channels, config.eps);
        Ok(SelfAttention {
            group_norm: groups.map(norm).transpose()?,
            to_q: linear(names[0])?,
            to_k: linear(names[1])?,
            to_v: linear(names[2])?,
            to_out: vec![linear(names[3])?],
            heads: config.heads(channels),
            output_scale,
        })
    }

    /// `[batch, height, width, channels]` to the same shape.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let dims = x.dims();
        let tokens = [dims[0], dims[1] * dims[2], dims[3]];
        let residual = x.clone().reshape(tokens);
        let h = match &self.group_norm {
            Some(norm) => norm.forward(x).reshape(tokens),
            None => residual.clone(),
        };
        let q = self.to_q.forward(h.clone());
        let k = self.to_k.forward(h.clone());
        let v = self.to_v.forward(h);
        let y = attention(q, k, v, self.heads, AttentionMask::None);
        let y = self.to_out[0].forward_with(y, Activation::None, Some(residual));
        let y = match self.output_scale == 1.0 {
            true => y,
            false => y / self.output_scale,
        };
        y.reshape(dims)
    }
}
