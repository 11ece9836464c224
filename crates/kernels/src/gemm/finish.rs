//! What happens to finished rows of a product: bias, activation, residual.

use std::ops::Range;

use super::Activation;
use crate::simd::{Simd, map2, math};

/// The epilogue by rows of one product.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Finish<'a> {
    /// One bias of `n` for every `rows_per_bias` rows.
    pub bias: Option<&'a [f32]>,
    pub rows_per_bias: usize,
    pub n: usize,
    pub activation: Activation,
    /// Residual and its row stride.
    pub residual: Option<(&'a [f32], usize)>,
}

impl Finish<'_> {
    /// Finishes columns `cols` of row `row`; `values` are those columns.
    #[inline(always)]
    pub(crate) fn apply<S: Simd>(&self, s: S, row: usize, cols: Range<usize>, values: &mut [f32]) {
        if let Some(bias) = self.bias {
            let bias = &bias[row / self.rows_per_bias * self.n..][cols.clone()];
            match self.activation {
                Activation::None => map2!(s, values, bias, |v, b| s.add(v, b)),
                Activation::Silu => {
                    map2!(s, values, bias, |v, b| {
                        math::activate(s, Activation::Silu, s.add(v, b))
                    });
                }
                other => {
                    map2!(s, values, bias, |v, b| s.add(v, b));
                    math::activate_slice(s, other, values);
                }
            }
        } else {
            math::activate_slice(s, self.activation, values);
        }
        if let Some((residual, stride)) = self.residual {
            map2!(s, values, &residual[row * stride..][cols], |v, r| s
                .add(v, r));
        }
    }
}
