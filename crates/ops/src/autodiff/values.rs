//! Gradients as plain slices.

use aquatint_kernels::Buffer;
use burn::backend::flex::{FlexTensor, Layout};
use burn::tensor::DType;

use crate::flex::{Operand, Weight};

/// A primitive's elements, contiguous. `x` is f32: upstream gradients and kept activations are.
pub(super) fn values(x: FlexTensor) -> Operand {
    Operand::from_primitive(x).expect("activations and gradients are f32")
}

/// A weight's elements, in their storage type.
pub(super) fn weight(x: FlexTensor) -> Weight {
    Weight::from_primitive(x).expect("the forward pass took this storage type")
}

/// A contiguous f32 primitive.
pub(super) fn wrap(values: Buffer, shape: &[usize]) -> FlexTensor {
    let layout = Layout::contiguous(shape.to_vec().into());
    FlexTensor::new(values.into_bytes(), layout, DType::F32)
}

/// The sum of the rows of a `[rows, columns]` matrix: the gradient of a bias.
pub(super) fn sum_rows(x: &[f32], columns: usize) -> FlexTensor {
    // Blocks of rows in f32, their sums in f64, so that many rows lose no digits.
    let mut total = vec![0f64; columns];
    let mut block = vec![0f32; columns];
    for rows in x.chunks(columns.max(1) * 64) {
        block.fill(0.0);
        for row in rows.chunks_exact(columns) {
            block.iter_mut().zip(row).for_each(|(sum, v)| *sum += v);
        }
        total
            .iter_mut()
            .zip(&block)
            .for_each(|(t, b)| *t += f64::from(*b));
    }
    let mut out = Buffer::new(columns);
    out.iter_mut().zip(total).for_each(|(o, t)| *o = t as f32);
    wrap(out, &[columns])
}

/// The transpose of a `[rows, columns]` matrix.
pub(super) fn transpose(x: &[f32], rows: usize, columns: usize) -> Buffer {
    const SIDE: usize = 16;
    let mut out = Buffer::new(x.len());
    for i in (0..rows).step_by(SIDE) {
        for j in (0..columns).step_by(SIDE) {
            for r in i..rows.min(i + SIDE) {
                for c in j..columns.min(j + SIDE) {
                    out[c * rows + r] = x[r * columns + c];
                }
            }
        }
    }
    out
}
