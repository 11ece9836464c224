//! Gradients as plain slices.

use aquatint_kernels::{self as kernels, Buffer, MatMut, MatRef, Rhs};
use burn::backend::flex::{FlexTensor, Layout};
use burn::tensor::DType;
use rayon::prelude::*;

use crate::flex::{Operand, Weight, done};

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

/// Sums of the rows of a `[rows, columns]` matrix, of as many equal parts of them as give `len` sums: the gradient of
/// a bias, or of a bias an image.
pub(super) fn sum_rows(x: &[f32], columns: usize, len: usize) -> FlexTensor {
    let mut out = Buffer::zeroed(len);
    let parts = len.checked_div(columns).unwrap_or(0);
    let part = x.len().checked_div(parts).unwrap_or(0);
    if part > 0 {
        out.par_chunks_mut(columns)
            .zip(x.par_chunks(part))
            .for_each(|(out, x)| sum_part(x, out));
    }
    wrap(out, &[len])
}

/// The sum of rows as long as `out`. Blocks of rows are summed in f32, their sums in f64, so that many rows lose no
/// digits, and in order, whatever the threads.
fn sum_part(x: &[f32], out: &mut [f32]) {
    const ROWS: usize = 64;
    let columns = out.len();
    let blocks: Vec<Vec<f32>> = x
        .par_chunks(columns * ROWS)
        .map(|rows| {
            let mut block = vec![0f32; columns];
            for row in rows.chunks_exact(columns) {
                block.iter_mut().zip(row).for_each(|(sum, v)| *sum += v);
            }
            block
        })
        .collect();
    let mut total = vec![0f64; columns];
    for block in blocks {
        total
            .iter_mut()
            .zip(block)
            .for_each(|(t, b)| *t += f64::from(b));
    }
    out.iter_mut().zip(total).for_each(|(o, t)| *o = t as f32);
}

/// The product of two matrices, `[rows, inner]` and `[inner, columns]`.
pub(super) fn product(a: MatRef<'_>, b: Rhs<'_>, [rows, columns, inner]: [usize; 3]) -> Buffer {
    let mut out = Buffer::new(rows * columns);
    done(kernels::gemm(kernels::Gemm {
        batch: 1,
        m: rows,
        n: columns,
        k: inner,
        a,
        b,
        c: MatMut::new(&mut out, rows, columns),
        epilogue: kernels::Epilogue::default(),
    }));
    out
}
