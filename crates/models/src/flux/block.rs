//! Double blocks, in which text and picture have weights of their own, and single blocks, in which they share them.

use aquatint_ops::fused::{
    Activation, AttentionMask, RotaryPairs, attention, join_channels, rotary,
};
use aquatint_ops::nn::Linear;
use aquatint_ops::{OpsError, Params, Tensor};
use burn::module::Module;

use super::FluxConfig;
use crate::dit::{self, FeedForward, Modulator, Qkv, gated, join, modulate};

/// The angles of all tokens, text first: cosines and sines, each `[tokens, head_dim / 2]`.
#[derive(Debug, Clone)]
pub(super) struct Angles {
    pub cos: Tensor<2>,
    pub sin: Tensor<2>,
}

impl Angles {
    fn turn(&self, x: Tensor<3>, heads: usize) -> Tensor<3> {
        let [batch, tokens, channels] = x.dims();
        let x = x.reshape([batch, tokens, heads, channels / heads]);
        rotary(
            x,
            self.cos.clone(),
            self.sin.clone(),
            RotaryPairs::Neighbours,
        )
        .reshape([batch, tokens, channels])
    }

    fn attend(&self, [q, k, v]: [Tensor<3>; 3], heads: usize) -> Tensor<3> {
        let (q, k) = (self.turn(q, heads), self.turn(k, heads));
        attention(q, k, v, heads, AttentionMask::None)
    }
}

/// diffusers' `FluxTransformerBlock`.
#[derive(Module, Debug)]
pub(super) struct DoubleBlock {
    norm: Modulator,
    norm_context: Modulator,
    picture: Qkv,
    text: Qkv,
    to_out: Linear,
    to_add_out: Linear,
    ff: FeedForward,
    ff_context: FeedForward,
    heads: usize,
}

impl DoubleBlock {
    pub fn load(p: &Params<'_>, config: &FluxConfig) -> Result<Self, OpsError> {
        let (c, heads) = (config.channels(), config.heads);
        let attn = p.at("attn");
        Ok(DoubleBlock {
            norm: Modulator::load(&p.at("norm1"), c, 6)?,
            norm_context: Modulator::load(&p.at("norm1_context"), c, 6)?,
            picture: Qkv::load(&attn, dit::PICTURE, c, heads, true)?,
            text: Qkv::load(&attn, dit::TEXT, c, heads, true)?,
            to_out: Linear::load(&attn.at("to_out.0"), c, c, true)?,
            to_add_out: Linear::load(&attn.at("to_add_out"), c, c, true)?,
            ff: FeedForward::load(&p.at("ff"), c)?,
            ff_context: FeedForward::load(&p.at("ff_context"), c)?,
            heads,
        })
    }

    /// Picture and text, each `[batch, tokens, channels]`.
    pub fn forward(
        &self,
        x: Tensor<3>,
        text: Tensor<3>,
        embedding: &Tensor<2>,
        angles: &Angles,
    ) -> (Tensor<3>, Tensor<3>) {
        let words = text.dims()[1];
        // Shift, scale and gate of the attention, then of the feed-forward.
        let m = self.norm.forward(embedding);
        let t = self.norm_context.forward(embedding);
        let [q, k, v] = self.picture.forward(modulate(x.clone(), &m[1], &m[0]));
        let [tq, tk, tv] = self.text.forward(modulate(text.clone(), &t[1], &t[0]));
        let joined = [join([tq, q]), join([tk, k]), join([tv, v])];
        let [b, a] = dit::part(angles.attend(joined, self.heads), words);
        let x = gated(x, self.to_out.forward(a), &m[2]);
        let text = gated(text, self.to_add_out.forward(b), &t[2]);
        let fed = self.ff.forward(modulate(x.clone(), &m[4], &m[3]));
        let x = gated(x, fed, &m[5]);
        let fed = self
            .ff_context
            .forward(modulate(text.clone(), &t[4], &t[3]));
        (x, gated(text, fed, &t[5]))
    }
}

/// diffusers' `FluxSingleTransformerBlock`: attention and feed-forward side by side.
#[derive(Module, Debug)]
pub(super) struct SingleBlock {
    norm: Modulator,
    qkv: Qkv,
    proj_mlp: Linear,
    proj_out: Linear,
    heads: usize,
}

impl SingleBlock {
    pub fn load(p: &Params<'_>, config: &FluxConfig) -> Result<Self, OpsError> {
        let (c, heads) = (config.channels(), config.heads);
        Ok(SingleBlock {
            norm: Modulator::load(&p.at("norm"), c, 3)?,
            qkv: Qkv::load(&p.at("attn"), dit::PICTURE, c, heads, true)?,
            proj_mlp: Linear::load(&p.at("proj_mlp"), c, 4 * c, true)?,
            proj_out: Linear::load(&p.at("proj_out"), 5 * c, c, true)?,
            heads,
        })
    }

    /// Text and picture in one stream, `[batch, tokens, channels]`.
    pub fn forward(&self, x: Tensor<3>, embedding: &Tensor<2>, angles: &Angles) -> Tensor<3> {
        let m = self.norm.forward(embedding);
        let normed = modulate(x.clone(), &m[1], &m[0]);
        let attended = angles.attend(self.qkv.forward(normed.clone()), self.heads);
        let wide = self
            .proj_mlp
            .forward_with(normed, Activation::GeluTanh, None);
        let y = self.proj_out.forward(join_channels(attended, wide));
        gated(x, y, &m[2])
    }
}
