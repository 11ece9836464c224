//! First version: rows in parallel, B widened and turned to `[k, n]` once a matrix.

use super::{Gemm, RhsLayout};
use crate::elementwise::activate_slice;
use crate::threads::for_row_groups;

pub(super) fn run(g: Gemm<'_>) {
    let Gemm {
        batch,
        m,
        n,
        k,
        a,
        b,
        c,
        epilogue,
    } = g;
    for batch_index in 0..batch {
        let base = batch_index * b.batch_stride;
        let mut inner = vec![0.0f32; k * n];
        for_row_groups(&mut inner, n.max(1), n, |first, rows| {
            for (p, row) in rows.chunks_exact_mut(n).enumerate() {
                for (j, out) in row.iter_mut().enumerate() {
                    let p = first + p;
                    *out = b.data.get(
                        base + match b.layout {
                            RhsLayout::RowsAreOutputs => j * b.row_stride + p,
                            RhsLayout::RowsAreInner => p * b.row_stride + j,
                        },
                    );
                }
            }
        });
        let mut product = vec![0.0f32; m * n];
        for_row_groups(&mut product, n, n * k, |first, rows| {
            for (i, row) in rows.chunks_exact_mut(n).enumerate() {
                for (p, &x) in a.row(batch_index, first + i, k).iter().enumerate() {
                    for (out, &w) in row.iter_mut().zip(&inner[p * n..][..n]) {
                        *out += x * w;
                    }
                }
                if let Some(bias) = epilogue.bias {
                    row.iter_mut().zip(bias).for_each(|(o, b)| *o += b);
                }
                activate_slice(row, epilogue.activation);
                if let Some(r) = epilogue.residual {
                    let r = r.row(batch_index, first + i, n);
                    row.iter_mut().zip(r).for_each(|(o, r)| *o += r);
                }
            }
        });
        let base = if batch > 1 {
            batch_index * c.batch_stride
        } else {
            0
        };
        for (i, row) in product.chunks_exact(n).enumerate() {
            c.data[base + i * c.row_stride..][..n].copy_from_slice(row);
        }
    }
}
