//! The encoder: norm, attention with a bias by distance, norm, gated feed-forward.

use aquatint_ops::nn::{Embedding, Linear, RmsNorm};
use aquatint_ops::{Activation, OpsError, Params, Tensor};
use burn::module::{Module, Param};
use burn::tensor::{DType, TensorData, activation::softmax};

use super::T5Config;
use crate::ModelError;

/// Which tokens are attended to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum T5Mask<'a> {
    /// All, the padding too: Stable Diffusion 3 and FLUX.
    #[default]
    All,
    /// The first so many of each sequence.
    Lengths(&'a [usize]),
}

#[derive(Module, Debug)]
struct SelfAttention {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    heads: usize,
}

impl SelfAttention {
    fn load(p: &Params<'_>, config: &T5Config) -> Result<Self, OpsError> {
        let inner = config.num_heads * config.d_kv;
        let linear = |name| Linear::load(&p.at(name), config.d_model, inner, false);
        Ok(SelfAttention {
            q: linear("q")?,
            k: linear("k")?,
            v: linear("v")?,
            o: Linear::load(&p.at("o"), inner, config.d_model, false)?,
            heads: config.num_heads,
        })
    }

    /// `residual + attention(x)`; the logits are not scaled. `bias` is `[1 or batch, heads, tokens, tokens]`.
    fn forward(&self, x: Tensor<3>, bias: &Tensor<4>, residual: Tensor<3>) -> Tensor<3> {
        let [batch, tokens, _] = x.dims();
        let split = |y: Tensor<3>| {
            let size = y.dims()[2] / self.heads;
            y.reshape([batch, tokens, self.heads, size]).swap_dims(1, 2)
        };
        let q = split(self.q.forward(x.clone()));
        let k = split(self.k.forward(x.clone()));
        let v = split(self.v.forward(x));
        let logits = q.matmul(k.swap_dims(2, 3)) + bias.clone();
        let y = softmax(logits, 3).matmul(v).swap_dims(1, 2);
        let inner = y.dims()[2] * y.dims()[3];
        self.o.forward_with(
            y.reshape([batch, tokens, inner]),
            Activation::None,
            Some(residual),
        )
    }
}

#[derive(Module, Debug)]
struct Block {
    attention_norm: RmsNorm,
    attention: SelfAttention,
    norm: RmsNorm,
    wi_0: Linear,
    wi_1: Linear,
    wo: Linear,
}

impl Block {
    fn load(p: &Params<'_>, config: &T5Config) -> Result<Self, OpsError> {
        let norm = |name| RmsNorm::load(&p.at(name), config.d_model, config.layer_norm_eps);
        let ff = p.at("layer.1.DenseReluDense");
        let (outer, inner) = (config.d_model, config.d_ff);
        Ok(Block {
            attention_norm: norm("layer.0.layer_norm")?,
            attention: SelfAttention::load(&p.at("layer.0.SelfAttention"), config)?,
            norm: norm("layer.1.layer_norm")?,
            wi_0: Linear::load(&ff.at("wi_0"), outer, inner, false)?,
            wi_1: Linear::load(&ff.at("wi_1"), outer, inner, false)?,
            wo: Linear::load(&ff.at("wo"), inner, outer, false)?,
        })
    }

    fn forward(&self, x: Tensor<3>, bias: &Tensor<4>) -> Tensor<3> {
        let normed = self.attention_norm.forward(x.clone());
        let x = self.attention.forward(normed, bias, x);
        let normed = self.norm.forward(x.clone());
        let gate = self
            .wi_0
            .forward_with(normed.clone(), Activation::GeluTanh, None);
        let inner = gate * self.wi_1.forward(normed);
        self.wo.forward_with(inner, Activation::None, Some(x))
    }
}

/// T5's encoder.
#[derive(Module, Debug)]
pub struct T5Encoder {
    shared: Embedding,
    /// `[buckets, heads]`.
    distances: Param<Tensor<2>>,
    blocks: Vec<Block>,
    final_norm: RmsNorm,
    #[module(skip)]
    config: T5Config,
}

impl T5Encoder {
    /// Reads the encoder at `p`, in the names of transformers' `T5EncoderModel`.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape, or the configuration cannot run.
    pub fn load(p: &Params<'_>, config: &T5Config) -> Result<Self, ModelError> {
        config.validate()?;
        let encoder = p.at("encoder");
        let own = p.has("shared.weight");
        let embedding = if own {
            p.at("shared")
        } else {
            encoder.at("embed_tokens")
        };
        let bias = encoder.at("block.0.layer.0.SelfAttention.relative_attention_bias");
        Ok(T5Encoder {
            shared: Embedding::load(&embedding, config.vocab_size, config.d_model)?,
            distances: bias.vector("weight", [config.buckets, config.num_heads])?,
            blocks: (0..config.num_layers)
                .map(|i| Block::load(&encoder.at(format!("block.{i}")), config))
                .collect::<Result<_, _>>()?,
            final_norm: RmsNorm::load(
                &encoder.at("final_layer_norm"),
                config.d_model,
                config.layer_norm_eps,
            )?,
            config: config.clone(),
        })
    }

    /// The shape of this encoder.
    pub fn config(&self) -> &T5Config {
        &self.config
    }

    /// Encodes token sequences, all of one length, to `[batch, tokens, d_model]`.
    ///
    /// # Errors
    /// When sequences are empty or unequal, or an id is outside the vocabulary.
    pub fn forward(&self, tokens: &[Vec<u32>], mask: T5Mask<'_>) -> Result<Tensor<3>, ModelError> {
        self.forward_traced(tokens, mask, &mut |_| {})
    }

    /// As [`T5Encoder::forward`]; `trace` is shown the embedding and each block's output.
    ///
    /// # Errors
    /// As [`T5Encoder::forward`].
    pub fn forward_traced(
        &self,
        tokens: &[Vec<u32>],
        mask: T5Mask<'_>,
        trace: &mut dyn FnMut(&Tensor<3>),
    ) -> Result<Tensor<3>, ModelError> {
        self.check(tokens, mask)?;
        let length = tokens[0].len();
        let mut bias = self.bias(length);
        if let T5Mask::Lengths(lengths) = mask {
            let device = bias.device();
            bias = bias + padding(lengths, length, &device);
        }
        let mut x = self.shared.forward(tokens);
        trace(&x);
        for block in &self.blocks {
            x = block.forward(x, &bias);
            trace(&x);
        }
        Ok(self.final_norm.forward(x))
    }

    fn check(&self, tokens: &[Vec<u32>], mask: T5Mask<'_>) -> Result<(), ModelError> {
        let error = |what, found: String, expected: String| {
            Err(ModelError::Input {
                component: "T5 text encoder",
                what,
                found,
                expected,
            })
        };
        let length = tokens.first().map_or(0, Vec::len);
        if length == 0 || tokens.iter().any(|row| row.len() != length) {
            let lengths: Vec<usize> = tokens.iter().map(Vec::len).collect();
            return error(
                "tokens",
                format!("sequences of {lengths:?}"),
                "sequences of one length".into(),
            );
        }
        let largest = tokens.iter().flatten().copied().max().unwrap_or(0);
        if largest as usize >= self.config.vocab_size {
            let expected = format!("below {}", self.config.vocab_size);
            return error("a token", largest.to_string(), expected);
        }
        if let T5Mask::Lengths(lengths) = mask
            && (lengths.len() != tokens.len() || lengths.iter().any(|n| !(1..=length).contains(n)))
        {
            let expected = format!("{} lengths of 1 to {length}", tokens.len());
            return error("the mask", format!("{lengths:?}"), expected);
        }
        Ok(())
    }

    /// The bias of each head by the distance of query and key, `[1, heads, tokens, tokens]`.
    fn bias(&self, tokens: usize) -> Tensor<4> {
        let heads = self.config.num_heads;
        let table: Vec<f32> = self.distances.val().into_data().iter::<f32>().collect();
        // One value a distance, from the query's first key to its last.
        let span = 2 * tokens - 1;
        let mut values = vec![0f32; heads * tokens * tokens];
        let buckets: Vec<usize> = (0..span)
            .map(|i| self.bucket(i as i64 - (tokens as i64 - 1)))
            .collect();
        for (head, of_head) in values.chunks_exact_mut(tokens * tokens).enumerate() {
            for (query, row) in of_head.chunks_exact_mut(tokens).enumerate() {
                for (key, value) in row.iter_mut().enumerate() {
                    *value = table[buckets[key + tokens - 1 - query] * heads + head];
                }
            }
        }
        let data = TensorData::new(values, [1, heads, tokens, tokens]);
        Tensor::from_data(data, (&self.distances.device(), DType::F32))
    }

    /// Which kind of distance a key's position less a query's is: near ones each their own, far ones in
    /// logarithmic steps; keys behind the query have the second half.
    fn bucket(&self, distance: i64) -> usize {
        let half = self.config.buckets / 2;
        let exact = half / 2;
        let side = if distance > 0 { half } else { 0 };
        let far = distance.unsigned_abs() as usize;
        if far < exact {
            return side + far;
        }
        // In f32, as the reference rounds.
        let span = (self.config.max_distance as f64 / exact as f64).ln() as f32;
        let step = (far as f32 / exact as f32).ln() / span * (half - exact) as f32;
        side + (exact + step as usize).min(half - 1)
    }
}

/// The lowest number on keys past each sequence's length, `[batch, 1, 1, tokens]`.
fn padding(lengths: &[usize], tokens: usize, device: &aquatint_ops::Device) -> Tensor<4> {
    let values: Vec<f32> = lengths
        .iter()
        .flat_map(|&n| (0..tokens).map(move |i| if i < n { 0.0 } else { f32::MIN }))
        .collect();
    let data = TensorData::new(values, [lengths.len(), 1, 1, tokens]);
    Tensor::from_data(data, (device, DType::F32))
}
