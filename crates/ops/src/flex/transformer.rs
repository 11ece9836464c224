//! What the transformer families need beside products and attention.

use aquatint_kernels as kernels;
use aquatint_kernels::Buffer;
use burn::tensor::Tensor;

use super::{Operand, done, in_place_or_copy, wrap};
use crate::fused::{Modulation, RotaryPairs, RowNorm};

pub(crate) fn rms_norm<const D: usize>(
    x: &Tensor<D>,
    eps: f64,
    gamma: &Tensor<1>,
) -> Option<Tensor<D>> {
    let (input, gamma) = (Operand::new(x)?, Operand::new(gamma)?);
    let shape = x.dims();
    let mut out = Buffer::new(input.values().len());
    done(kernels::rms_norm(kernels::RmsNorm {
        x: input.values(),
        cols: shape[D - 1],
        eps: eps as f32,
        gamma: Some(gamma.values()),
        out: &mut out,
    }));
    Some(wrap(out, shape))
}

pub(crate) fn modulated_norm(
    x: &Tensor<3>,
    norm: RowNorm,
    eps: f64,
    gamma: &Option<Tensor<1>>,
    modulation: &Modulation,
) -> Option<Tensor<3>> {
    let (input, gamma) = (Operand::new(x)?, Operand::optional(gamma)?);
    let scale = Operand::new(&modulation.scale)?;
    let shift = Operand::optional(&modulation.shift)?;
    let shape = x.dims();
    let mut out = Buffer::new(input.values().len());
    done(kernels::modulated_norm(kernels::ModulatedNorm {
        x: input.values(),
        tokens: shape[1],
        cols: shape[2],
        eps: eps as f32,
        centre: norm == RowNorm::Layer,
        gamma: gamma.as_ref().map(Operand::values),
        scale: scale.values(),
        shift: shift.as_ref().map(Operand::values),
        out: &mut out,
    }));
    Some(wrap(out, shape))
}

#[allow(
    clippy::result_large_err,
    reason = "the tensor comes back, and no error is made"
)]
pub(crate) fn add_gated(
    x: Tensor<3>,
    y: &Tensor<3>,
    gate: &Tensor<2>,
) -> Result<Tensor<3>, Tensor<3>> {
    let (Some(y), Some(gate)) = (Operand::new(y), Operand::new(gate)) else {
        return Err(x);
    };
    let [_, tokens, cols] = x.dims();
    in_place_or_copy(x, |x| {
        done(kernels::add_gated(kernels::AddGated {
            x,
            y: y.values(),
            tokens,
            cols,
            gate: gate.values(),
        }));
    })
}

#[allow(
    clippy::result_large_err,
    reason = "the tensor comes back, and no error is made"
)]
pub(crate) fn rotary(
    x: Tensor<4>,
    cos: &Tensor<2>,
    sin: &Tensor<2>,
    pairs: RotaryPairs,
) -> Result<Tensor<4>, Tensor<4>> {
    let (Some(cos), Some(sin)) = (Operand::new(cos), Operand::new(sin)) else {
        return Err(x);
    };
    let [_, tokens, heads, head_dim] = x.dims();
    in_place_or_copy(x, |x| {
        done(kernels::rotary(kernels::Rotary {
            x,
            tokens,
            heads,
            head_dim,
            cos: cos.values(),
            sin: sin.values(),
            pairs,
        }));
    })
}
