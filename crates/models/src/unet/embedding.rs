//! Embeddings of the timestep and of what is added to it.

use aquatint_ops::fused::{Activation, timestep_embedding};
use aquatint_ops::nn::Linear;
use aquatint_ops::{OpsError, Params, Tensor};
use burn::module::Module;

use super::Trace;
use super::conditioning::{AddedConditioning, Conditioning};
use super::config::{AddedConfig, UNetConfig};

/// Two Linear layers with SiLU between them.
#[derive(Module, Debug)]
pub struct TimestepEmbedding {
    linear_1: Linear,
    cond_proj: Option<Linear>,
    linear_2: Linear,
}

impl TimestepEmbedding {
    /// Reads `linear_1`, `linear_2` and, when `cond` gives its channels, `cond_proj` at `p`.
    pub fn load(
        p: &Params<'_>,
        input: usize,
        output: usize,
        cond: Option<usize>,
    ) -> Result<Self, OpsError> {
        Ok(TimestepEmbedding {
            linear_1: Linear::load(&p.at("linear_1"), input, output, true)?,
            cond_proj: match cond {
                Some(dim) => Some(Linear::load(&p.at("cond_proj"), dim, input, false)?),
                None => None,
            },
            linear_2: Linear::load(&p.at("linear_2"), output, output, true)?,
        })
    }

    /// `[batch, in]` to `[batch, out]`.
    pub(super) fn forward(&self, x: Tensor<2>, cond: Option<Tensor<2>>) -> Tensor<2> {
        let x = match (&self.cond_proj, cond) {
            (Some(proj), Some(cond)) => proj.forward_with(cond, Activation::None, Some(x)),
            _ => x,
        };
        self.linear_2
            .forward(self.linear_1.forward_with(x, Activation::Silu, None))
    }
}

/// The time embedding of a pass: one row for all of the batch when it is the same for each entry,
/// else one row an entry.
pub(crate) fn embed(
    config: &UNetConfig,
    time_embedding: &TimestepEmbedding,
    add_embedding: Option<&TimestepEmbedding>,
    timesteps: &[f64],
    cond: &Conditioning,
    trace: &mut Trace<'_>,
) -> Tensor<2> {
    let device = cond.context.device();
    let timesteps = match timesteps.iter().all(|t| *t == timesteps[0]) {
        true => &timesteps[..1],
        false => timesteps,
    };
    let sinusoid = timestep_embedding(
        timesteps,
        config.levels[0].channels,
        config.flip_sin_to_cos,
        config.freq_shift,
        &device,
    );
    let guidance = match (config.time_cond_dim, cond.guidance) {
        (Some(channels), Some(scale)) => {
            // LCM embeds the guidance scale less one, times a thousand, sines first.
            let scaled = vec![(scale - 1.0) * 1000.0; timesteps.len()];
            Some(timestep_embedding(&scaled, channels, false, 1.0, &device))
        }
        _ => None,
    };
    let time = time_embedding.forward(sinusoid, guidance);
    show(trace, "time_embedding", &time);
    match (add_embedding, &cond.added, &config.added) {
        (Some(embedding), Some(added), Some(shape)) => {
            let added = embedding.forward(added_input(config, shape, added), None);
            show(trace, "add_embedding", &added);
            time + added
        }
        _ => time,
    }
}

/// Shows an embedding as a stage, `[rows, 1, 1, channels]`.
pub(super) fn show(trace: &mut Trace<'_>, name: &str, embedding: &Tensor<2>) {
    let [rows, channels] = embedding.dims();
    trace(name, &embedding.clone().reshape([rows, 1, 1, channels]));
}

/// SDXL's input of `add_embedding`: the pooled text, then the embedded sizes.
fn added_input(config: &UNetConfig, shape: &AddedConfig, added: &AddedConditioning) -> Tensor<2> {
    let batch = added.time_ids.len();
    let ids: Vec<f64> = added.time_ids.iter().flatten().copied().collect();
    let sizes = timestep_embedding(
        &ids,
        shape.time_dim,
        config.flip_sin_to_cos,
        config.freq_shift,
        &added.text_embeds.device(),
    );
    let sizes = sizes.reshape([batch, ids.len() / batch * shape.time_dim]);
    Tensor::cat(vec![added.text_embeds.clone(), sizes], 1)
}
