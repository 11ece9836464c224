//! What the diffusion transformers of text and picture share (MMDiT, FLUX): a modulation of each block by time and
//! pooled text, and the parts that it acts on.

use crate::ModelError;
use aquatint_ops::fused::{
    Activation, Modulation, RowNorm, add_gated, modulated_norm, silu, timestep_embedding,
};
use aquatint_ops::nn::{Linear, RmsNorm};
use aquatint_ops::{Device, OpsError, Params, Tensor};
use burn::module::Module;

/// Channels of the sinusoids of a time or a guidance scale.
const SINUSOIDS: usize = 256;
/// Epsilon of every norm.
pub(crate) const EPS: f64 = 1e-6;

/// What a diffusion transformer is told besides the noisy latent and the time, the same at each step of a run.
#[derive(Debug, Clone)]
pub struct TextConditioning {
    /// Embeddings of the text, `[batch, tokens, channels]`.
    pub context: Tensor<3>,
    /// Its pooled embedding, `[batch, channels]`.
    pub pooled: Tensor<2>,
}

impl TextConditioning {
    /// Is there a row of text, of pooled text and of time for each latent, of these many channels?
    pub(crate) fn check(
        &self,
        batch: usize,
        times: usize,
        [context_dim, pooled_dim]: [usize; 2],
    ) -> Result<(), ModelError> {
        let [texts, tokens, width] = self.context.dims();
        let [pools, pooled] = self.pooled.dims();
        let rows = [texts, pools, times];
        if rows == [batch; 3] && tokens > 0 && (width, pooled) == (context_dim, pooled_dim) {
            return Ok(());
        }
        Err(ModelError::Input {
            component: "transformer",
            what: "text, pooled text and times",
            found: format!("{rows:?} rows of {width} and {pooled} channels"),
            expected: format!("{batch} rows of {context_dim} and {pooled_dim} channels"),
        })
    }
}

/// Two fully connected layers with SiLU between them.
#[derive(Module, Debug)]
pub(crate) struct Embedder {
    linear_1: Linear,
    linear_2: Linear,
}

impl Embedder {
    fn load(p: &Params<'_>, input: usize, output: usize) -> Result<Self, OpsError> {
        Ok(Embedder {
            linear_1: Linear::load(&p.at("linear_1"), input, output, true)?,
            linear_2: Linear::load(&p.at("linear_2"), output, output, true)?,
        })
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.linear_2
            .forward(self.linear_1.forward_with(x, Activation::Silu, None))
    }

    fn sinusoids(&self, values: &[f64], device: &Device) -> Tensor<2> {
        self.forward(timestep_embedding(values, SINUSOIDS, true, 0.0, device))
    }
}

/// The embedding of time, pooled text and, for guidance-distilled models, a guidance scale (`time_text_embed`).
#[derive(Module, Debug)]
pub(crate) struct TimeText {
    timestep_embedder: Embedder,
    guidance_embedder: Option<Embedder>,
    text_embedder: Embedder,
}

impl TimeText {
    pub fn load(
        p: &Params<'_>,
        pooled: usize,
        channels: usize,
        guidance: bool,
    ) -> Result<Self, OpsError> {
        Ok(TimeText {
            timestep_embedder: Embedder::load(&p.at("timestep_embedder"), SINUSOIDS, channels)?,
            guidance_embedder: match guidance {
                true => Some(Embedder::load(
                    &p.at("guidance_embedder"),
                    SINUSOIDS,
                    channels,
                )?),
                false => None,
            },
            text_embedder: Embedder::load(&p.at("text_embedder"), pooled, channels)?,
        })
    }

    /// `[batch, channels]`, from times in training steps and a guidance scale.
    pub fn forward(&self, timesteps: &[f64], guidance: f64, pooled: Tensor<2>) -> Tensor<2> {
        let device = pooled.device();
        let mut time = self.timestep_embedder.sinusoids(timesteps, &device);
        if let Some(embedder) = &self.guidance_embedder {
            time = time + embedder.sinusoids(&vec![guidance * 1000.0; timesteps.len()], &device);
        }
        time + self.text_embedder.forward(pooled)
    }
}

/// The rows that modulate a block: shifts, scales and gates, each `[batch, channels]`.
#[derive(Module, Debug)]
pub(crate) struct Modulator {
    linear: Linear,
    parts: usize,
}

impl Modulator {
    /// Reads `linear` at `p`, which gives `parts` rows.
    pub fn load(p: &Params<'_>, channels: usize, parts: usize) -> Result<Self, OpsError> {
        Ok(Modulator {
            linear: Linear::load(&p.at("linear"), channels, parts * channels, true)?,
            parts,
        })
    }

    /// The rows, in the checkpoint's order. `embedding` has been through SiLU.
    pub fn forward(&self, embedding: &Tensor<2>) -> Vec<Tensor<2>> {
        self.linear.forward(embedding.clone()).chunk(self.parts, 1)
    }
}

/// The embedding as every modulator takes it.
pub(crate) fn activated(embedding: Tensor<2>) -> Tensor<2> {
    silu(embedding)
}

/// A layer norm without weights, then `y (1 + scale) + shift`.
pub(crate) fn modulate(x: Tensor<3>, scale: &Tensor<2>, shift: &Tensor<2>) -> Tensor<3> {
    let modulation = Modulation {
        scale: scale.clone(),
        shift: Some(shift.clone()),
    };
    modulated_norm(x, RowNorm::Layer, EPS, None, modulation)
}

/// `x + gate y`.
pub(crate) fn gated(x: Tensor<3>, y: Tensor<3>, gate: &Tensor<2>) -> Tensor<3> {
    add_gated(x, y, gate.clone())
}

/// The last norm: a scale and a shift (`norm_out`).
#[derive(Module, Debug)]
pub(crate) struct NormOut {
    modulator: Modulator,
}

impl NormOut {
    pub fn load(p: &Params<'_>, channels: usize) -> Result<Self, OpsError> {
        Ok(NormOut {
            modulator: Modulator::load(p, channels, 2)?,
        })
    }

    pub fn forward(&self, x: Tensor<3>, embedding: &Tensor<2>) -> Tensor<3> {
        let rows = self.modulator.forward(embedding);
        modulate(x, &rows[0], &rows[1])
    }
}

/// A feed-forward of four times the channels, GELU by its tanh form.
#[derive(Module, Debug)]
pub(crate) struct FeedForward {
    proj: Linear,
    out: Linear,
}

impl FeedForward {
    pub fn load(p: &Params<'_>, channels: usize) -> Result<Self, OpsError> {
        Ok(FeedForward {
            proj: Linear::load(&p.at("net.0.proj"), channels, 4 * channels, true)?,
            out: Linear::load(&p.at("net.2"), 4 * channels, channels, true)?,
        })
    }

    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.out
            .forward(self.proj.forward_with(x, Activation::GeluTanh, None))
    }
}

/// Queries, keys and values of one stream, with norms of queries and keys where the model has them.
#[derive(Module, Debug)]
pub(crate) struct Qkv {
    q: Linear,
    k: Linear,
    v: Linear,
    norm_q: Option<RmsNorm>,
    norm_k: Option<RmsNorm>,
    heads: usize,
}

/// Names of a [`Qkv`]'s parts.
pub(crate) type QkvNames = [&'static str; 5];
/// Those of the picture's stream, or of a block with one stream.
pub(crate) const PICTURE: QkvNames = ["to_q", "to_k", "to_v", "norm_q", "norm_k"];
/// Those of the text's stream.
pub(crate) const TEXT: QkvNames = [
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "norm_added_q",
    "norm_added_k",
];

impl Qkv {
    pub fn load(
        p: &Params<'_>,
        names: QkvNames,
        channels: usize,
        heads: usize,
        norms: bool,
    ) -> Result<Self, OpsError> {
        let linear = |name| Linear::load(&p.at(name), channels, channels, true);
        let norm = |name| match norms {
            true => RmsNorm::load(&p.at(name), channels / heads, EPS).map(Some),
            false => Ok(None),
        };
        Ok(Qkv {
            q: linear(names[0])?,
            k: linear(names[1])?,
            v: linear(names[2])?,
            norm_q: norm(names[3])?,
            norm_k: norm(names[4])?,
            heads,
        })
    }

    /// Queries, keys and values of `[batch, tokens, channels]`, of that shape.
    pub fn forward(&self, x: Tensor<3>) -> [Tensor<3>; 3] {
        let q = self.normed(self.q.forward(x.clone()), &self.norm_q);
        let k = self.normed(self.k.forward(x.clone()), &self.norm_k);
        [q, k, self.v.forward(x)]
    }

    fn normed(&self, x: Tensor<3>, norm: &Option<RmsNorm>) -> Tensor<3> {
        let Some(norm) = norm else { return x };
        let [batch, tokens, channels] = x.dims();
        norm.forward(x.reshape([batch, tokens, self.heads, channels / self.heads]))
            .reshape([batch, tokens, channels])
    }
}

/// Two streams one after the other along the tokens.
pub(crate) fn join([a, b]: [Tensor<3>; 2]) -> Tensor<3> {
    Tensor::cat(vec![a, b], 1)
}

/// The two streams of `[batch, tokens, channels]`, of which the first has `first` tokens.
pub(crate) fn part(x: Tensor<3>, first: usize) -> [Tensor<3>; 2] {
    let rest = x.dims()[1] - first;
    [x.clone().narrow(1, 0, first), x.narrow(1, first, rest)]
}

/// What a pass shows of its stages: a name, the picture's stream and the text's where there is one.
pub type Trace<'a> = dyn FnMut(&str, &Tensor<3>, Option<&Tensor<3>>) + 'a;
