//! Linear: `dx = dz W`, `dW = dz^T x`, `db` the sum of `dz`'s rows.

use aquatint_kernels as kernels;
use aquatint_kernels::{MatMut, MatRef, Rhs, RhsData};
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;

use super::elementwise::activation_gradient;
use super::record::{Entry, Rule, Saved, primitive};
use super::values::{sum_rows, transpose, values, wrap};
use crate::flex::{self, Weight, done};
use crate::fused::{Activation, Epilogue};

#[derive(Debug, Clone)]
struct Linear {
    /// For `dW`.
    x: Option<Saved>,
    /// For `dx`.
    weight: Option<Saved>,
    /// `x W^T + b`, when an activation follows.
    before: Option<FlexTensor>,
    activation: Activation,
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
        let m = self.shape.iter().product::<usize>() / k.max(1);
        let residual = wants_residual.then(|| dy.clone());
        let dz = values(match self.before {
            Some(before) => activation_gradient(before, dy, self.activation),
            None => dy,
        });
        let dx = self.weight.filter(|_| wants_x).map(|weight| {
            let weight = Weight::from_primitive(weight.take(saved))
                .expect("a storage type that the forward pass took");
            let mut dx = vec![0f32; m * k];
            product(
                dz.values(),
                n,
                Rhs::inner(weight.data(), k),
                [m, k],
                &mut dx,
            );
            wrap(dx, &self.shape)
        });
        let dweight = self.x.filter(|_| wants_weight).map(|x| {
            let x = values(x.take(saved));
            let transposed = transpose(dz.values(), m, n);
            let rhs = Rhs::inner(RhsData::F32(x.values()), k);
            let mut dweight = vec![0f32; n * k];
            product(&transposed, m, rhs, [n, k], &mut dweight);
            wrap(dweight, &[n, k])
        });
        let dbias = wants_bias.then(|| wrap(sum_rows(dz.values(), n), &[n]));
        [dx, dweight, dbias, residual]
    }
}

/// `out = a b` for row-major matrices without gaps.
fn product(a: &[f32], inner: usize, b: Rhs<'_>, [rows, columns]: [usize; 2], out: &mut [f32]) {
    done(kernels::gemm(kernels::Gemm {
        batch: 1,
        m: rows,
        n: columns,
        k: inner,
        a: MatRef::new(a, inner),
        b,
        c: MatMut::new(out, rows, columns),
        epilogue: kernels::Epilogue::default(),
    }));
}

pub(crate) fn linear<const D: usize>(
    x: &Tensor<D>,
    weight: &Tensor<2>,
    epilogue: &Epilogue<D>,
) -> Option<Tensor<D>> {
    let mut entry = Entry::default();
    let (input, matrix) = (entry.operand(x)?, entry.operand(weight)?);
    let bias = entry.optional(&epilogue.bias)?;
    let residual = entry.optional(&epilogue.residual)?;
    entry.belongs()?;
    let tracked =
        input.is_tracked() || matrix.is_tracked() || bias.as_ref().is_some_and(|b| b.is_tracked());
    let split = tracked && epilogue.activation != Activation::None;
    let inner = Epilogue {
        bias: bias.as_ref().map(|b| b.value()),
        activation: match split {
            true => Activation::None,
            false => epilogue.activation,
        },
        residual: match split {
            true => None,
            false => residual.as_ref().map(|r| r.value()),
        },
    };
    let z = flex::linear(&input.value(), &matrix.value(), &inner)?;
    let before = split.then(|| primitive(z.clone()));
    let mut y = z;
    if split {
        y = flex::activate(&y, epilogue.activation)?;
        if let Some(residual) = &residual {
            y = y + residual.value();
        }
    }
    let nodes = [
        input.node(),
        matrix.node(),
        bias.as_ref().and_then(|b| b.node()),
        residual.as_ref().and_then(|r| r.node()),
    ];
    Some(entry.record(nodes, y, None, |keeper| Linear {
        x: matrix.is_tracked().then(|| keeper.keep(&input)),
        weight: input.is_tracked().then(|| keeper.keep(&matrix)),
        before,
        activation: epilogue.activation,
        shape: x.dims().to_vec(),
        outputs: weight.dims()[0],
    }))
}
