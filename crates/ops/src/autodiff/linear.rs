//! Linear: `dx = dz W`, `dW = dz^T x`, `db` the sum of `dz`'s rows.

use aquatint_kernels::{MatRef, Rhs, RhsData};
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;

use super::epilogue::{Backward, Operands};
use super::record::{Entry, Rule, Saved};
use super::values::{product, values, weight, wrap};
use crate::fused::Epilogue;
use crate::{PackedWeight, flex};

/// A weight for `dx`.
#[derive(Debug, Clone)]
enum Matrix {
    Float(Saved),
    Packed(PackedWeight),
}

#[derive(Debug, Clone)]
struct Linear {
    /// For `dW`.
    x: Option<Saved>,
    /// For `dx`.
    weight: Option<Matrix>,
    epilogue: Backward,
    /// Shape of x.
    shape: Vec<usize>,
    outputs: usize,
}

impl Rule<4> for Linear {
    fn gradients(
        self,
        dy: FlexTensor,
        [wants_x, wants_weight, wants_bias, wants_residual]: [bool; 4],
        saved: &mut Checkpointer,
    ) -> [Option<FlexTensor>; 4] {
        let (n, k) = (self.outputs, self.shape.last().copied().unwrap_or(0));
        let m = self.shape[..self.shape.len() - 1].iter().product();
        let dz = self.epilogue.gradients(dy, n, [wants_bias, wants_residual]);
        let dz_values = dz.product.values();
        let dx = self.weight.filter(|_| wants_x).map(|w| {
            let through = |w| product(MatRef::new(dz_values, n), Rhs::inner(w, k), [m, k, n]);
            let dx = match w {
                Matrix::Float(w) => through(weight(w.take(saved)).data()),
                Matrix::Packed(w) => through(w.data().expect("as in the forward pass")),
            };
            wrap(dx, &self.shape)
        });
        let dweight = self.x.filter(|_| wants_weight).map(|x| {
            let x = values(x.take(saved));
            let rhs = Rhs::inner(RhsData::F32(x.values()), k);
            let lhs = MatRef::transposed(dz_values, n);
            wrap(product(lhs, rhs, [n, k, m]), &[n, k])
        });
        [dx, dweight, dz.bias, dz.residual]
    }
}

pub(crate) fn linear<const D: usize>(
    x: &Tensor<D>,
    weight: &Tensor<2>,
    epilogue: &Epilogue<D>,
) -> Option<Tensor<D>> {
    let mut entry = Entry::default();
    let (input, matrix) = (entry.operand(x)?, entry.operand(weight)?);
    let rest = Operands::new(&mut entry, epilogue)?;
    entry.belongs()?;
    let tracked = input.is_tracked() || matrix.is_tracked();
    let (y, backward) = rest.apply(tracked, |epilogue| {
        flex::linear(&input.value(), &matrix.value(), epilogue)
    })?;
    let [bias, residual] = rest.nodes();
    let nodes = [input.node(), matrix.node(), bias, residual];
    Some(entry.record(nodes, y, None, |keeper| {
        Linear {
            x: matrix.is_tracked().then(|| keeper.keep(&input)),
            weight: input
                .is_tracked()
                .then(|| Matrix::Float(keeper.keep(&matrix))),
            epilogue: backward,
            shape: x.dims().to_vec(),
            outputs: weight.dims()[0],
        }
    }))
}

pub(crate) fn linear_packed<const D: usize>(
    x: &Tensor<D>,
    weight: &PackedWeight,
    epilogue: &Epilogue<D>,
) -> Option<Tensor<D>> {
    let mut entry = Entry::default();
    let input = entry.operand(x)?;
    let rest = Operands::new(&mut entry, epilogue)?;
    entry.belongs()?;
    let (y, backward) = rest.apply(input.is_tracked(), |epilogue| {
        flex::linear_packed(&input.value(), weight, epilogue)
    })?;
    let [bias, residual] = rest.nodes();
    let nodes = [input.node(), None, bias, residual];
    Some(entry.record(nodes, y, None, |_| Linear {
        x: None,
        weight: input.is_tracked().then(|| Matrix::Packed(weight.clone())),
        epilogue: backward,
        shape: x.dims().to_vec(),
        outputs: weight.dims()[0],
    }))
}
