//! The layers that the models are made of. Names of their parameters are PyTorch's, so that a
//! layer is built by walking a checkpoint's names with [`Params`].

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::fused::{self, Activation, AttentionMask, Conv2dShape, Epilogue};
use crate::{LowRank, OpsError, Params, Weight};

/// A fully connected layer; weight `[out, in]`, bias `[out]` (PyTorch's `nn.Linear`).
#[derive(Module, Debug)]
pub struct Linear {
    /// `[out, in]`, in its storage type.
    pub weight: Weight,
    /// `[out]`, f32.
    pub bias: Option<Param<Tensor<1>>>,
    /// Added to the weight, when the source has one.
    pub low_rank: Option<LowRankAddition>,
}

/// A low-rank addition to a weight, `W + scale up down` (LoRA; Hu et al., 2021). Neither it nor the sum is ever
/// formed.
#[derive(Module, Debug)]
pub struct LowRankAddition {
    /// `[rank, in]`.
    pub down: Param<Tensor<2>>,
    /// `[out, rank]`.
    pub up: Param<Tensor<2>>,
    scale: f64,
}

impl LowRankAddition {
    /// Reads `lora_A.weight` and `lora_B.weight` at `p`, when its source has them.
    fn load(p: &Params<'_>, input: usize, output: usize) -> Result<Option<Self>, OpsError> {
        let Some(LowRank { rank, scale }) = p.low_rank() else {
            return Ok(None);
        };
        Ok(Some(LowRankAddition {
            down: p.weight("lora_A.weight", [rank, input])?,
            up: p.weight("lora_B.weight", [output, rank])?,
            scale,
        }))
    }

    /// `x (scale up down)^T + residual`.
    fn forward<const D: usize>(&self, x: Tensor<D>, residual: Option<Tensor<D>>) -> Tensor<D> {
        let low = fused::linear(x, self.down.val(), Epilogue::default());
        let epilogue = Epilogue {
            residual,
            ..Epilogue::default()
        };
        fused::linear(low * self.scale, self.up.val(), epilogue)
    }
}

impl Linear {
    /// Reads `weight` and, when `bias` is set, `bias` at `p`.
    pub fn load(p: &Params<'_>, input: usize, output: usize, bias: bool) -> Result<Self, OpsError> {
        Self::load_as(p, &[output, input], bias)
    }

    /// The linear layer that a 1x1 convolution is over channels last: its weight is stored as
    /// `[out, in, 1, 1]`.
    pub fn load_pointwise(p: &Params<'_>, input: usize, output: usize) -> Result<Self, OpsError> {
        Self::load_as(p, &[output, input, 1, 1], true)
    }

    fn load_as(p: &Params<'_>, stored: &[usize], bias: bool) -> Result<Self, OpsError> {
        let (output, input) = (stored[0], stored[1]);
        Ok(Linear {
            weight: p.matrix("weight", stored, [output, input])?,
            bias: match bias {
                true => Some(p.vector("bias", [output])?),
                false => None,
            },
            low_rank: LowRankAddition::load(p, input, output)?,
        })
    }

    /// `[.., in]` to `[.., out]`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.forward_with(x, Activation::None, None)
    }

    /// GEGLU of the output, whose first half are values, the second gates; in one pass where there is no low-rank
    /// addition. `[.., in]` to `[.., out / 2]`.
    pub fn forward_geglu<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        match self.low_rank {
            Some(_) => fused::geglu(self.forward(x)),
            None => {
                let bias = self.bias.as_ref().map(|b| b.val());
                self.weight.linear_geglu(x, bias)
            }
        }
    }

    /// `activation(x W^T + b) + residual`, in one pass where there is no low-rank addition.
    pub fn forward_with<const D: usize>(
        &self,
        x: Tensor<D>,
        activation: Activation,
        residual: Option<Tensor<D>>,
    ) -> Tensor<D> {
        let plain = activation == Activation::None;
        let (inside, after) = match (&self.low_rank, plain) {
            (None, _) => (residual, None),
            (Some(low), true) => (Some(low.forward(x.clone(), residual)), None),
            (Some(low), false) => (Some(low.forward(x.clone(), None)), residual),
        };
        let split = self.low_rank.is_some() && !plain;
        let epilogue = Epilogue {
            bias: self.bias.as_ref().map(|b| b.val()),
            activation: if split { Activation::None } else { activation },
            residual: inside,
        };
        let y = self.weight.linear(x, epilogue);
        let y = if split {
            fused::activate(y, activation)
        } else {
            y
        };
        match after {
            Some(residual) => y + residual,
            None => y,
        }
    }
}

/// A low-rank addition to a convolution: one of the same kernel to few channels, then to all of them by a 1x1
/// convolution (as kohya's and peft's).
#[derive(Module, Debug)]
pub struct LowRankConv {
    /// `[rank, in, kh, kw]`.
    pub down: Param<Tensor<4>>,
    /// `[out, rank]`.
    pub up: Param<Tensor<2>>,
    scale: f64,
}

impl LowRankConv {
    /// Reads `lora_A.weight` and `lora_B.weight` at `p`, when its source has them.
    fn load(p: &Params<'_>, [out, input, kh, kw]: [usize; 4]) -> Result<Option<Self>, OpsError> {
        let Some(LowRank { rank, scale }) = p.low_rank() else {
            return Ok(None);
        };
        Ok(Some(LowRankConv {
            down: p.weight("lora_A.weight", [rank, input, kh, kw])?,
            up: p.weight_as("lora_B.weight", &[out, rank, 1, 1], [out, rank])?,
            scale,
        }))
    }

    /// What is added, and the residual.
    fn forward(&self, x: Tensor<4>, shape: Conv2dShape, residual: Option<Tensor<4>>) -> Tensor<4> {
        let low = fused::conv2d(x, self.down.val(), shape, Epilogue::default());
        let epilogue = Epilogue {
            residual,
            ..Epilogue::default()
        };
        fused::linear(low * self.scale, self.up.val(), epilogue)
    }
}

/// A 2-d convolution over channels-last activations; weight `[out, in, kh, kw]` (PyTorch's layout).
#[derive(Module, Debug)]
pub struct Conv2d {
    /// `[out, in, kh, kw]`, in its storage type.
    pub weight: Param<Tensor<4>>,
    /// `[out]`, f32.
    pub bias: Option<Param<Tensor<1>>>,
    /// Added to the weight, when the source has one.
    pub low_rank: Option<LowRankConv>,
    #[module(skip)]
    shape: Conv2dShape,
}

impl Conv2d {
    /// Reads `weight` and `bias` at `p`.
    pub fn load(
        p: &Params<'_>,
        input: usize,
        output: usize,
        kernel: usize,
        shape: Conv2dShape,
    ) -> Result<Self, OpsError> {
        Self::load_with(p, input, output, kernel, shape, true)
    }

    /// As [`Conv2d::load`], with or without a bias.
    pub fn load_with(
        p: &Params<'_>,
        input: usize,
        output: usize,
        kernel: usize,
        shape: Conv2dShape,
        bias: bool,
    ) -> Result<Self, OpsError> {
        Ok(Conv2d {
            weight: p.weight("weight", [output, input, kernel, kernel])?,
            bias: match bias {
                true => Some(p.vector("bias", [output])?),
                false => None,
            },
            low_rank: LowRankConv::load(p, [output, input, kernel, kernel])?,
            shape,
        })
    }

    /// `[batch, height, width, in]` to `[batch, height', width', out]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.forward_with(x, Activation::None, None)
    }

    /// `activation(conv(x) + b) + residual`, in one pass where there is no low-rank addition.
    pub fn forward_with(
        &self,
        x: Tensor<4>,
        activation: Activation,
        residual: Option<Tensor<4>>,
    ) -> Tensor<4> {
        let bias = self.bias.as_ref().map(|b| b.val());
        self.run(x, self.shape, bias, activation, residual)
    }

    /// `conv(x) + b + shift`, in one pass; `shift` is a number a channel, `[1 or batch, out]`.
    pub fn forward_shifted(&self, x: Tensor<4>, shift: Tensor<2>) -> Tensor<4> {
        let bias = match &self.bias {
            Some(bias) => shift + bias.val().unsqueeze(),
            None => shift,
        };
        let [rows, channels] = bias.dims();
        let bias = bias.reshape([rows * channels]);
        self.run(x, self.shape, Some(bias), Activation::None, None)
    }

    /// As [`Conv2d::forward`], with another stride or padding than the layer's own.
    pub fn forward_as(&self, x: Tensor<4>, shape: Conv2dShape) -> Tensor<4> {
        let bias = self.bias.as_ref().map(|b| b.val());
        self.run(x, shape, bias, Activation::None, None)
    }

    fn run(
        &self,
        x: Tensor<4>,
        shape: Conv2dShape,
        bias: Option<Tensor<1>>,
        activation: Activation,
        residual: Option<Tensor<4>>,
    ) -> Tensor<4> {
        let conv = |x, activation, residual| {
            let epilogue = Epilogue {
                bias,
                activation,
                residual,
            };
            fused::conv2d(x, self.weight.val(), shape, epilogue)
        };
        let Some(low) = &self.low_rank else {
            return conv(x, activation, residual);
        };
        if activation == Activation::None {
            let low = low.forward(x.clone(), shape, residual);
            return conv(x, activation, Some(low));
        }
        let low = low.forward(x.clone(), shape, None);
        let y = fused::activate(conv(x, Activation::None, Some(low)), activation);
        match residual {
            Some(residual) => y + residual,
            None => y,
        }
    }
}

/// Group normalisation (Wu and He, 2018) over channels-last activations.
#[derive(Module, Debug)]
pub struct GroupNorm {
    /// Scale, `[channels]`.
    pub weight: Param<Tensor<1>>,
    /// Shift, `[channels]`.
    pub bias: Param<Tensor<1>>,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    /// Reads `weight` and `bias` at `p`.
    pub fn load(
        p: &Params<'_>,
        groups: usize,
        channels: usize,
        eps: f64,
    ) -> Result<Self, OpsError> {
        if groups == 0 || !channels.is_multiple_of(groups) {
            return Err(OpsError::NotDivisible {
                what: "channels of a group norm by its groups",
                value: channels,
                by: groups,
            });
        }
        Ok(GroupNorm {
            weight: p.vector("weight", [channels])?,
            bias: p.vector("bias", [channels])?,
            groups,
            eps,
        })
    }

    /// `[batch, .., channels]` to the same shape.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.run(x, false)
    }

    /// As [`GroupNorm::forward`], then SiLU, in one pass.
    pub fn forward_silu<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.run(x, true)
    }

    fn run<const D: usize>(&self, x: Tensor<D>, silu: bool) -> Tensor<D> {
        let (gamma, beta) = (self.weight.val(), self.bias.val());
        fused::group_norm(x, self.groups, self.eps, gamma, beta, silu)
    }
}

/// Layer normalisation (Ba et al., 2016) over the last axis.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// Scale, `[channels]`.
    pub weight: Param<Tensor<1>>,
    /// Shift, `[channels]`.
    pub bias: Param<Tensor<1>>,
    eps: f64,
}

impl LayerNorm {
    /// Reads `weight` and `bias` at `p`.
    pub fn load(p: &Params<'_>, channels: usize, eps: f64) -> Result<Self, OpsError> {
        Ok(LayerNorm {
            weight: p.vector("weight", [channels])?,
            bias: p.vector("bias", [channels])?,
            eps,
        })
    }

    /// `[.., channels]` to the same shape.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        fused::layer_norm(x, self.eps, self.weight.val(), self.bias.val())
    }
}

/// Root mean square normalisation (Zhang and Sennrich, 2019) over the last axis; of the heads of queries and
/// keys, too.
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// Scale, `[channels]`.
    pub weight: Param<Tensor<1>>,
    eps: f64,
}

impl RmsNorm {
    /// Reads `weight` at `p`.
    pub fn load(p: &Params<'_>, channels: usize, eps: f64) -> Result<Self, OpsError> {
        Ok(RmsNorm {
            weight: p.vector("weight", [channels])?,
            eps,
        })
    }

    /// `[.., channels]` to the same shape.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        fused::rms_norm(x, self.eps, self.weight.val())
    }
}

/// An embedding table `[vocabulary, channels]`, in its storage type.
#[derive(Module, Debug)]
pub struct Embedding {
    /// `[vocabulary, channels]`.
    pub weight: Weight,
}

impl Embedding {
    /// Reads `weight` at `p`.
    pub fn load(p: &Params<'_>, vocabulary: usize, channels: usize) -> Result<Self, OpsError> {
        Ok(Embedding {
            weight: p.matrix("weight", &[vocabulary, channels], [vocabulary, channels])?,
        })
    }

    /// Rows for ids: `[batch, tokens, channels]`, f32. See [`fused::embedding`].
    pub fn forward(&self, ids: &[Vec<u32>]) -> Tensor<3> {
        match &self.weight {
            Weight::Float(table) => fused::embedding(table.val(), ids),
            Weight::Packed(table) => fused::embedding_packed(table, ids),
        }
    }
}

/// Attention between projected tokens; a thin name for [`fused::attention`].
pub fn attention(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    heads: usize,
    mask: AttentionMask,
) -> Tensor<3> {
    fused::attention(q, k, v, heads, mask)
}
