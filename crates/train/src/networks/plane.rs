//! A small network for points in the plane: the toy that shows the whole of diffusion in a minute.

use aquatint_ops::fused::{Activation, silu, timestep_embedding};
use aquatint_ops::nn::Linear;
use aquatint_ops::{OpsError, Params, Tensor};
use burn::module::Module;
use serde::{Deserialize, Serialize};

use super::{Network, Told};
use crate::TrainError;

/// Sizes of a [`PlaneNetwork`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PlaneConfig {
    /// Channels.
    pub width: usize,
    /// Residual blocks.
    pub depth: usize,
}

impl Default for PlaneConfig {
    fn default() -> Self {
        Self {
            width: 128,
            depth: 4,
        }
    }
}

/// A residual network over single points: `x + second(silu(first(x) + time))` in each block, with a
/// sinusoidal embedding of the timestep.
#[derive(Module, Debug)]
pub struct PlaneNetwork {
    conv_in: Linear,
    time_embedding: Linear,
    blocks: Vec<PlaneBlock>,
    conv_out: Linear,
    width: usize,
}

#[derive(Module, Debug)]
struct PlaneBlock {
    conv1: Linear,
    time_emb_proj: Linear,
    conv2: Linear,
}

impl PlaneNetwork {
    /// Reads the network at `p`.
    pub(crate) fn load(p: &Params<'_>, config: PlaneConfig) -> Result<Self, OpsError> {
        let PlaneConfig { width, depth } = config;
        let linear = |p: &Params<'_>, name: &str, input, output| {
            Linear::load(&p.at(name), input, output, true)
        };
        let block = |i: usize| {
            let p = p.at(format!("blocks.{i}"));
            Ok(PlaneBlock {
                conv1: linear(&p, "conv1", width, width)?,
                time_emb_proj: linear(&p, "time_emb_proj", width, width)?,
                conv2: linear(&p, "conv2", width, width)?,
            })
        };
        Ok(Self {
            conv_in: linear(p, "conv_in", 2, width)?,
            time_embedding: linear(p, "time_embedding", width, width)?,
            blocks: (0..depth).map(block).collect::<Result<_, OpsError>>()?,
            conv_out: linear(p, "conv_out", width, 2)?,
            width,
        })
    }
}

impl Network for PlaneNetwork {
    fn predict(
        &self,
        input: Tensor<4>,
        timesteps: &[f64],
        _: &Told,
    ) -> Result<Tensor<4>, TrainError> {
        let shape = input.dims();
        let device = input.device();
        let points: Tensor<2> = input.reshape([shape[0], 2]);
        let time = timestep_embedding(timesteps, self.width, true, 0.0, &device);
        let time = self
            .time_embedding
            .forward_with(time, Activation::Silu, None);
        let mut x = self.conv_in.forward(points);
        for block in &self.blocks {
            let told = block.time_emb_proj.forward(time.clone());
            let inner = block
                .conv1
                .forward_with(x.clone(), Activation::None, Some(told));
            x = block
                .conv2
                .forward_with(silu(inner), Activation::None, Some(x));
        }
        Ok(self.conv_out.forward(silu(x)).reshape(shape))
    }
}
