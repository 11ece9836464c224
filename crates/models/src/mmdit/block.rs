//! A block: text and picture, each with weights of its own, attend to both together.

use aquatint_ops::fused::{AttentionMask, attention};
use aquatint_ops::nn::Linear;
use aquatint_ops::{OpsError, Params, Tensor};
use burn::module::Module;

use super::MmditConfig;
use crate::dit::{self, FeedForward, Modulator, Qkv, gated, join, modulate};

/// The text's stream of a block that is not the last: there it feeds no further.
#[derive(Module, Debug)]
struct TextEnd {
    to_add_out: Linear,
    ff: FeedForward,
}

/// diffusers' `JointTransformerBlock`.
#[derive(Module, Debug)]
pub(super) struct Block {
    norm: Modulator,
    norm_context: Modulator,
    picture: Qkv,
    text: Qkv,
    to_out: Linear,
    /// The picture's attention to itself, in blocks that have it.
    dual: Option<Qkv>,
    dual_out: Option<Linear>,
    ff: FeedForward,
    text_end: Option<TextEnd>,
    heads: usize,
}

impl Block {
    pub fn load(p: &Params<'_>, config: &MmditConfig, index: usize) -> Result<Self, OpsError> {
        let c = config.channels();
        let (heads, norms) = (config.heads, config.qk_norm);
        let dual = config.dual_attention[index];
        let last = index + 1 == config.layers();
        let attn = p.at("attn");
        let out = |p: &Params<'_>| Linear::load(&p.at("to_out.0"), c, c, true);
        let attn2 = p.at("attn2");
        Ok(Block {
            norm: Modulator::load(&p.at("norm1"), c, if dual { 9 } else { 6 })?,
            norm_context: Modulator::load(&p.at("norm1_context"), c, if last { 2 } else { 6 })?,
            picture: Qkv::load(&attn, dit::PICTURE, c, heads, norms)?,
            text: Qkv::load(&attn, dit::TEXT, c, heads, norms)?,
            to_out: out(&attn)?,
            dual: match dual {
                true => Some(Qkv::load(&attn2, dit::PICTURE, c, heads, norms)?),
                false => None,
            },
            dual_out: match dual {
                true => Some(out(&attn2)?),
                false => None,
            },
            ff: FeedForward::load(&p.at("ff"), c)?,
            text_end: match last {
                true => None,
                false => Some(TextEnd {
                    to_add_out: Linear::load(&attn.at("to_add_out"), c, c, true)?,
                    ff: FeedForward::load(&p.at("ff_context"), c)?,
                }),
            },
            heads,
        })
    }

    /// Picture and text, each `[batch, tokens, channels]`; the last block gives no text.
    pub fn forward(
        &self,
        x: Tensor<3>,
        text: Tensor<3>,
        embedding: &Tensor<2>,
    ) -> (Tensor<3>, Option<Tensor<3>>) {
        let m = self.norm.forward(embedding);
        let t = self.norm_context.forward(embedding);
        // Shift and scale of the attention, gate; of the feed-forward likewise. The last block's text has
        // a scale and a shift alone, in that order.
        let normed = modulate(x.clone(), &m[1], &m[0]);
        let normed_text = match self.text_end {
            Some(_) => modulate(text.clone(), &t[1], &t[0]),
            None => modulate(text.clone(), &t[0], &t[1]),
        };
        let [a, b] = self.attend(normed, normed_text);
        let mut y = gated(x.clone(), self.to_out.forward(a), &m[2]);
        if let (Some(qkv), Some(out)) = (&self.dual, &self.dual_out) {
            let normed = modulate(x, &m[7], &m[6]);
            let [q, k, v] = qkv.forward(normed);
            let a = attention(q, k, v, self.heads, AttentionMask::None);
            y = gated(y, out.forward(a), &m[8]);
        }
        let fed = self.ff.forward(modulate(y.clone(), &m[4], &m[3]));
        let y = gated(y, fed, &m[5]);
        let text = self.text_end.as_ref().map(|end| {
            let text = gated(text, end.to_add_out.forward(b), &t[2]);
            let fed = end.ff.forward(modulate(text.clone(), &t[4], &t[3]));
            gated(text, fed, &t[5])
        });
        (y, text)
    }

    /// The attention of both streams to both.
    fn attend(&self, x: Tensor<3>, text: Tensor<3>) -> [Tensor<3>; 2] {
        let tokens = x.dims()[1];
        let [q, k, v] = self.picture.forward(x);
        let [tq, tk, tv] = self.text.forward(text);
        let (q, k, v) = (join([q, tq]), join([k, tk]), join([v, tv]));
        dit::part(attention(q, k, v, self.heads, AttentionMask::None), tokens)
    }
}
