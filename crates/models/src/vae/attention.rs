//! The attention in the middle of the encoder and the decoder, and what a pass over a whole
//! picture or over a tile does differently.

use aquatint_ops::fused::{Activation, AttentionMask, attention};
use aquatint_ops::nn::{GroupNorm, Linear};
use aquatint_ops::{OpsError, Params, Tensor};
use burn::module::Module;

/// Epsilon of every group normalisation of the autoencoder.
pub(crate) const EPS: f64 = 1e-6;

/// The operations that look at the whole picture. [`Whole`] does them as they are; the tiled
/// decode brings its own, so that no tile depends on what else is in it.
pub(crate) trait Global {
    /// Group normalisation.
    fn norm(&mut self, norm: &GroupNorm, x: Tensor<4>) -> Tensor<4>;
    /// Group normalisation, then SiLU.
    fn norm_silu(&mut self, norm: &GroupNorm, x: Tensor<4>) -> Tensor<4>;
    /// Attention with one head, `[batch, positions, channels]` each.
    fn attend(&mut self, q: Tensor<3>, k: Tensor<3>, v: Tensor<3>) -> Tensor<3>;
}

/// A pass over a whole picture.
pub(crate) struct Whole;

impl Global for Whole {
    fn norm(&mut self, norm: &GroupNorm, x: Tensor<4>) -> Tensor<4> {
        norm.forward(x)
    }

    fn norm_silu(&mut self, norm: &GroupNorm, x: Tensor<4>) -> Tensor<4> {
        norm.forward_silu(x)
    }

    fn attend(&mut self, q: Tensor<3>, k: Tensor<3>, v: Tensor<3>) -> Tensor<3> {
        attention(q, k, v, 1, AttentionMask::None)
    }
}

/// Self-attention with one head over the positions of a picture, with a residual.
#[derive(Module, Debug)]
pub struct PixelAttention {
    group_norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Vec<Linear>,
}

impl PixelAttention {
    /// Reads the attention at `p`, under its names of today (`to_q`, ...) or the older ones of
    /// diffusers before 0.18 (`query`, ...).
    pub fn load(p: &Params<'_>, channels: usize, groups: usize) -> Result<Self, OpsError> {
        let names = match p.has("query.weight") {
            true => ["query", "key", "value", "proj_attn"],
            false => ["to_q", "to_k", "to_v", "to_out.0"],
        };
        let linear = |name: &str| Linear::load(&p.at(name), channels, channels, true);
        Ok(PixelAttention {
            group_norm: GroupNorm::load(&p.at("group_norm"), groups, channels, EPS)?,
            to_q: linear(names[0])?,
            to_k: linear(names[1])?,
            to_v: linear(names[2])?,
            to_out: vec![linear(names[3])?],
        })
    }

    /// `[batch, height, width, channels]` to the same shape.
    pub(crate) fn forward(&self, x: Tensor<4>, global: &mut dyn Global) -> Tensor<4> {
        let dims = x.dims();
        let tokens = [dims[0], dims[1] * dims[2], dims[3]];
        let h = global.norm(&self.group_norm, x.clone()).reshape(tokens);
        let q = self.to_q.forward(h.clone());
        let k = self.to_k.forward(h.clone());
        let v = self.to_v.forward(h);
        self.to_out[0]
            .forward_with(
                global.attend(q, k, v),
                Activation::None,
                Some(x.reshape(tokens)),
            )
            .reshape(dims)
    }
}
