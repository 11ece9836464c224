//! The CLIP text encoder (Radford et al., 2021): a transformer with causal attention and layer
//! normalisation before each part.

use aquatint_ops::nn::{Embedding, LayerNorm, Linear, attention};
use aquatint_ops::{Activation, AttentionMask, OpsError, Params, Tensor};
use burn::module::{Module, Param};

use super::ClipTextConfig;
use crate::ModelError;

/// A layer counted from the end, as AUTOMATIC1111 and ComfyUI count: 1 is the last layer's output,
/// 2 the penultimate's, and so on.
///
/// `--clip-skip N` is this number; ComfyUI writes it -N. In diffusers, Stable Diffusion 1.x and 2.x
/// take `clip_skip = N - 1` (1 there is the penultimate layer), and SDXL, which begins to count at
/// the penultimate layer, `clip_skip = N - 2`.
///
/// Layers are those of the encoder as it is loaded. For Stable Diffusion 2.x that is 23 layers, the
/// last of which is the penultimate of OpenCLIP: 1 is its default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClipSkip(usize);

impl ClipSkip {
    /// The last layer, the default of Stable Diffusion 1.x and 2.x.
    pub const LAST: ClipSkip = ClipSkip(1);
    /// The layer before the last, the default of SDXL.
    pub const PENULTIMATE: ClipSkip = ClipSkip(2);

    /// Layer `n` from the end.
    ///
    /// # Errors
    /// When `n` is 0.
    pub fn new(n: usize) -> Result<Self, ModelError> {
        match n {
            0 => Err(input("clip skip", 0, "1 (the last layer) or more")),
            n => Ok(ClipSkip(n)),
        }
    }

    /// The number: 1 for the last layer.
    pub fn get(self) -> usize {
        self.0
    }
}

/// What the encoder gives for a batch of token sequences.
#[derive(Debug, Clone)]
pub struct ClipTextOutput {
    /// `[batch, tokens, channels]`: the last layer's output after the final normalisation.
    pub last_hidden: Tensor<3>,
    /// `[batch, tokens, channels]`: the output of the layer that was asked for, before the final
    /// normalisation (`hidden_states[-n]` in transformers).
    pub hidden: Tensor<3>,
    /// `[batch, channels]`: `last_hidden` at the end token.
    pub pooled: Tensor<2>,
    /// `[batch, projection]`: `pooled`, projected; where the encoder has the projection.
    pub text_embeds: Option<Tensor<2>>,
}

#[derive(Module, Debug)]
struct SelfAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    heads: usize,
}

impl SelfAttention {
    fn load(p: &Params<'_>, config: &ClipTextConfig) -> Result<Self, OpsError> {
        let linear = |name| Linear::load(&p.at(name), config.hidden_size, config.hidden_size, true);
        Ok(SelfAttention {
            q_proj: linear("q_proj")?,
            k_proj: linear("k_proj")?,
            v_proj: linear("v_proj")?,
            out_proj: linear("out_proj")?,
            heads: config.num_attention_heads,
        })
    }

    fn forward(&self, x: Tensor<3>, residual: Tensor<3>) -> Tensor<3> {
        let q = self.q_proj.forward(x.clone());
        let k = self.k_proj.forward(x.clone());
        let v = self.v_proj.forward(x);
        let y = attention(q, k, v, self.heads, AttentionMask::Causal);
        self.out_proj
            .forward_with(y, Activation::None, Some(residual))
    }
}

#[derive(Module, Debug)]
struct FeedForward {
    fc1: Linear,
    fc2: Linear,
    #[module(skip)]
    activation: Activation,
}

impl FeedForward {
    fn load(p: &Params<'_>, config: &ClipTextConfig) -> Result<Self, OpsError> {
        let (outer, inner) = (config.hidden_size, config.intermediate_size);
        Ok(FeedForward {
            fc1: Linear::load(&p.at("fc1"), outer, inner, true)?,
            fc2: Linear::load(&p.at("fc2"), inner, outer, true)?,
            activation: config.hidden_act,
        })
    }

    fn forward(&self, x: Tensor<3>, residual: Tensor<3>) -> Tensor<3> {
        let y = self.fc1.forward_with(x, self.activation, None);
        self.fc2.forward_with(y, Activation::None, Some(residual))
    }
}

#[derive(Module, Debug)]
struct EncoderLayer {
    layer_norm1: LayerNorm,
    self_attn: SelfAttention,
    layer_norm2: LayerNorm,
    mlp: FeedForward,
}

impl EncoderLayer {
    fn load(p: &Params<'_>, config: &ClipTextConfig) -> Result<Self, OpsError> {
        let norm = |name| LayerNorm::load(&p.at(name), config.hidden_size, config.layer_norm_eps);
        Ok(EncoderLayer {
            layer_norm1: norm("layer_norm1")?,
            self_attn: SelfAttention::load(&p.at("self_attn"), config)?,
            layer_norm2: norm("layer_norm2")?,
            mlp: FeedForward::load(&p.at("mlp"), config)?,
        })
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let x = self
            .self_attn
            .forward(self.layer_norm1.forward(x.clone()), x);
        self.mlp.forward(self.layer_norm2.forward(x.clone()), x)
    }
}

/// The CLIP text encoder.
#[derive(Module, Debug)]
pub struct ClipTextEncoder {
    token_embedding: Embedding,
    position_embedding: Param<Tensor<2>>,
    layers: Vec<EncoderLayer>,
    final_layer_norm: LayerNorm,
    text_projection: Option<Linear>,
    #[module(skip)]
    config: ClipTextConfig,
}

impl ClipTextEncoder {
    /// Reads the encoder at `p`, in the names of transformers: with the prefix `text_model.`, or
    /// without it, as transformers 5 writes a `CLIPTextModel`.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape, or the configuration cannot run.
    pub fn load(p: &Params<'_>, config: &ClipTextConfig) -> Result<Self, ModelError> {
        config.check()?;
        const TOKENS: &str = "embeddings.token_embedding";
        let bare = p.has(&format!("{TOKENS}.weight"));
        let text = if bare { p.clone() } else { p.at("text_model") };
        let channels = config.hidden_size;
        let layers = text.at("encoder.layers");
        let positions = text.at("embeddings.position_embedding");
        let text_projection = match config.projection {
            Some(out) => Some(Linear::load(
                &p.at("text_projection"),
                channels,
                out,
                false,
            )?),
            None => None,
        };
        Ok(ClipTextEncoder {
            token_embedding: Embedding::load(&text.at(TOKENS), config.vocab_size, channels)?,
            position_embedding: positions
                .vector("weight", [config.max_position_embeddings, channels])?,
            layers: (0..config.num_hidden_layers)
                .map(|i| EncoderLayer::load(&layers.at(i.to_string()), config))
                .collect::<Result<_, _>>()?,
            final_layer_norm: LayerNorm::load(
                &text.at("final_layer_norm"),
                channels,
                config.layer_norm_eps,
            )?,
            text_projection,
            config: config.clone(),
        })
    }

    /// The shape of this encoder.
    pub fn config(&self) -> &ClipTextConfig {
        &self.config
    }

    /// Encodes token sequences, all of one length; `hidden` is of layer `skip` from the end.
    ///
    /// # Shapes
    /// - tokens: `[batch][tokens]`; output: see [`ClipTextOutput`]
    ///
    /// # Errors
    /// When sequences are empty, unequal or longer than the encoder's, an id is outside its
    /// vocabulary, or it has not so many layers.
    pub fn forward(
        &self,
        tokens: &[Vec<u32>],
        skip: ClipSkip,
    ) -> Result<ClipTextOutput, ModelError> {
        self.check(tokens, skip)?;
        let length = tokens[0].len();
        let embedded = self.token_embedding.forward(tokens);
        let positions = self.position_embedding.val().narrow(0, 0, length);
        let mut x = embedded + positions.unsqueeze();
        let wanted = self.layers.len() - skip.get();
        let mut hidden = None;
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(x);
            if i == wanted {
                hidden = Some(x.clone());
            }
        }
        let hidden = hidden.unwrap_or_else(|| x.clone());
        let last_hidden = self.final_layer_norm.forward(x);
        let pooled = self.pool(&last_hidden, tokens);
        let text_embeds = self
            .text_projection
            .as_ref()
            .map(|projection| projection.forward(pooled.clone()));
        Ok(ClipTextOutput {
            last_hidden,
            hidden,
            pooled,
            text_embeds,
        })
    }

    /// The final layer normalisation, for the output of an earlier layer.
    pub fn final_norm(&self, hidden: Tensor<3>) -> Tensor<3> {
        self.final_layer_norm.forward(hidden)
    }

    fn check(&self, tokens: &[Vec<u32>], skip: ClipSkip) -> Result<(), ModelError> {
        let longest = self.config.max_position_embeddings;
        let length = tokens.first().map_or(0, Vec::len);
        if !(1..=longest).contains(&length) {
            let expected = format!("1 to {longest} tokens a sequence");
            return Err(input("tokens", length, expected));
        }
        if let Some(other) = tokens.iter().find(|row| row.len() != length) {
            let expected = format!("{length}, as in the first sequence");
            return Err(input("tokens", other.len(), expected));
        }
        let largest = tokens.iter().flatten().max().copied().unwrap_or(0);
        if largest as usize >= self.config.vocab_size {
            let expected = format!("an id below the vocabulary's {}", self.config.vocab_size);
            return Err(input("token", largest, expected));
        }
        if skip.get() > self.layers.len() {
            let expected = format!("1 to {}, the encoder's layers", self.layers.len());
            return Err(input("clip skip", skip.get(), expected));
        }
        Ok(())
    }

    /// Rows of `hidden` at each sequence's end token.
    fn pool(&self, hidden: &Tensor<3>, tokens: &[Vec<u32>]) -> Tensor<2> {
        let [_, _, channels] = hidden.dims();
        let rows = tokens.iter().enumerate().map(|(i, row)| {
            let at = end_position(row, self.config.eos_token_id);
            hidden
                .clone()
                .slice([i..i + 1, at..at + 1, 0..channels])
                .reshape([1, channels])
        });
        Tensor::cat(rows.collect(), 0)
    }
}

/// Where a sequence ends, by the rule of transformers: the first end token (0 when there is none),
/// or with the end token 2 of old configurations the first of the largest ids.
fn end_position(row: &[u32], eos: u32) -> usize {
    let target = match eos {
        2 => row.iter().max().copied().unwrap_or(0),
        eos => eos,
    };
    row.iter().position(|&id| id == target).unwrap_or(0)
}

fn input(what: &'static str, found: impl ToString, expected: impl Into<String>) -> ModelError {
    ModelError::Input {
        component: "text_encoder",
        what,
        found: found.to_string(),
        expected: expected.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_sequence() {
        assert_eq!(end_position(&[5, 1, 9, 9], 9), 2);
        assert_eq!(end_position(&[5, 1, 9, 9], 2), 2);
        assert_eq!(end_position(&[5, 1, 3], 7), 0);
        assert_eq!(end_position(&[8, 7, 7], 7), 1);
    }

    #[test]
    fn clip_skip_counts_from_one() {
        assert!(ClipSkip::new(0).is_err());
        assert_eq!(ClipSkip::new(1).unwrap(), ClipSkip::LAST);
        assert_eq!(ClipSkip::new(2).unwrap(), ClipSkip::PENULTIMATE);
    }
}
