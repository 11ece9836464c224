//! Attention: the probabilities of a head are computed again in the backward pass.

use aquatint_kernels::{self as kernels, Buffer, MatRef, Rhs, RhsData, RhsLayout};
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::record::{Entry, Rule, Saved, primitive};
use super::values::{product, product_into, sum, values, wrap};
use crate::flex::{self, done};
use crate::fused::AttentionMask;

#[derive(Debug, Clone)]
struct Attention {
    q: Saved,
    k: Saved,
    v: Saved,
    mask: AttentionMask,
    /// batch, queries, keys, heads, channels of a head.
    sizes: [usize; 5],
}

impl Rule<3> for Attention {
    fn gradients(
        self,
        dy: FlexTensor,
        wanted: [bool; 3],
        saved: &mut Checkpointer,
    ) -> [Option<FlexTensor>; 3] {
        let [batch, n, m, heads, d] = self.sizes;
        let c = heads * d;
        if n * m * c == 0 {
            let zeros = |tokens| {
                Some(wrap(
                    Buffer::zeroed(batch * tokens * c),
                    &[batch, tokens, c],
                ))
            };
            return [zeros(n), zeros(m), zeros(m)];
        }
        let [q, k, v] = [self.q, self.k, self.v].map(|x| values(x.take(saved)));
        let dy = values(dy);
        let causal = matches!(self.mask, AttentionMask::Causal);
        let mask = match self.mask {
            AttentionMask::Additive(mask) => Some(values(primitive(mask))),
            _ => None,
        };
        let parts: Vec<[Option<Buffer>; 3]> = (0..batch * heads)
            .into_par_iter()
            .map(|i| {
                let at = |tokens: usize| i / heads * tokens * c + i % heads * d;
                let head = Head {
                    q: &q.values()[at(n)..],
                    k: &k.values()[at(m)..],
                    v: &v.values()[at(m)..],
                    dy: &dy.values()[at(n)..],
                    mask: mask.as_ref().map(|mask| mask.values()),
                    causal,
                    sizes: [n, m, d, c],
                };
                head.gradients(wanted)
            })
            .collect();
        let joined = |which: usize, tokens: usize| {
            let mut out = Buffer::new(batch * tokens * c);
            for (i, part) in parts.iter().enumerate() {
                let rows = out.chunks_exact_mut(c).skip(i / heads * tokens);
                for (to, from) in rows.zip(part[which].as_ref()?.chunks_exact(d)) {
                    to[i % heads * d..][..d].copy_from_slice(from);
                }
            }
            Some(wrap(out, &[batch, tokens, c]))
        };
        [joined(0, n), joined(1, m), joined(2, m)]
    }
}

/// One head of an image; rows of its operands are `sizes[3]` apart.
struct Head<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    dy: &'a [f32],
    mask: Option<&'a [f32]>,
    causal: bool,
    /// queries, keys, channels of the head, channels of all heads.
    sizes: [usize; 4],
}

/// Queries of a block: its scores stay in cache, and many queries take no more memory.
const QUERIES: usize = 128;

impl<'a> Head<'a> {
    /// Of those of q, k and v that are wanted, without gaps.
    fn gradients(&self, [wants_q, wants_k, wants_v]: [bool; 3]) -> [Option<Buffer>; 3] {
        let [n, m, d, c] = self.sizes;
        let mut dq = wants_q.then(|| Buffer::new(n * d));
        let mut dk = wants_k.then(|| Buffer::zeroed(m * d));
        let mut dv = wants_v.then(|| Buffer::zeroed(m * d));
        for first in (0..n).step_by(QUERIES) {
            let rows = QUERIES.min(n - first);
            let (q, dy) = (&self.q[first * c..], &self.dy[first * c..]);
            let p = self.probabilities(q, first, rows);
            if let Some(sum) = &mut dv {
                self.add_columns(sum, &p, dy, rows);
            }
            if !wants_q && !wants_k {
                continue;
            }
            let ds = self.score_gradients(dy, &p, rows);
            if let Some(sum) = &mut dk {
                self.add_columns(sum, &ds, q, rows);
            }
            if let Some(dq) = &mut dq {
                let dq = &mut dq[first * d..][..rows * d];
                let k = self.rows(self.k, RhsLayout::RowsAreInner);
                product_into(dq, MatRef::new(&ds, m), k, [rows, d, m], None);
            }
        }
        [dq, dk, dv]
    }

    /// `sum += left^T right`, for `left` with a row a query and a column a key. The sum so far is
    /// the residual of the next product.
    fn add_columns(&self, sum: &mut Buffer, left: &[f32], right: &'a [f32], rows: usize) {
        let [_, m, d, _] = self.sizes;
        let right = self.rows(right, RhsLayout::RowsAreInner);
        let mut next = Buffer::new(m * d);
        let left = MatRef::transposed(left, m);
        product_into(&mut next, left, right, [m, d, rows], Some(sum));
        *sum = next;
    }

    fn rows(&self, data: &'a [f32], layout: RhsLayout) -> Rhs<'a> {
        Rhs {
            data: RhsData::F32(data),
            layout,
            row_stride: self.sizes[3],
            batch_stride: 0,
        }
    }

    fn scale(&self) -> f32 {
        1.0 / (self.sizes[2] as f32).sqrt()
    }

    /// Of `rows` queries, from number `first` on.
    fn probabilities(&self, q: &[f32], first: usize, rows: usize) -> Buffer {
        let [_, m, d, c] = self.sizes;
        let keys = self.rows(self.k, RhsLayout::RowsAreOutputs);
        let mut p = product(MatRef::new(q, c), keys, [rows, m, d]);
        let scale = self.scale();
        match self.mask {
            Some(mask) => {
                let mask = &mask[first * m..];
                p.iter_mut()
                    .zip(mask)
                    .for_each(|(s, mask)| *s = *s * scale + mask);
            }
            None => p.iter_mut().for_each(|s| *s *= scale),
        }
        if self.causal {
            for (i, row) in p.chunks_exact_mut(m).enumerate() {
                row[(first + i + 1).min(m)..].fill(f32::NEG_INFINITY);
            }
        }
        done(kernels::softmax_rows(&mut p, m));
        p
    }

    /// `dS = P (dP - sum(P dP))`, times the scale.
    fn score_gradients(&self, dy: &[f32], p: &[f32], rows: usize) -> Buffer {
        let [_, m, d, c] = self.sizes;
        let values = self.rows(self.v, RhsLayout::RowsAreOutputs);
        let mut ds = product(MatRef::new(dy, c), values, [rows, m, d]);
        let scale = self.scale();
        for (ds, p) in ds.chunks_exact_mut(m).zip(p.chunks_exact(m)) {
            let sum = sum(ds, p, |a, b| a * b);
            for (ds, p) in ds.iter_mut().zip(p) {
                *ds = p * (*ds - sum) * scale;
            }
        }
        ds
    }
}

pub(crate) fn attention(
    q: &Tensor<3>,
    k: &Tensor<3>,
    v: &Tensor<3>,
    heads: usize,
    mask: &AttentionMask,
) -> Option<Tensor<3>> {
    let ([batch, queries, channels], keys) = (q.dims(), k.dims()[1]);
    let mut entry = Entry::default();
    let (q, k, v) = (entry.operand(q)?, entry.operand(k)?, entry.operand(v)?);
    let mask = match mask {
        AttentionMask::Additive(m) => {
            let m = entry.operand(m)?;
            // No kernel gives the gradient of a mask.
            if m.is_tracked() {
                return None;
            }
            AttentionMask::Additive(m.value())
        }
        other => other.clone(),
    };
    entry.belongs()?;
    let y = flex::attention(&q.value(), &k.value(), &v.value(), heads, &mask)?;
    Some(
        entry.record([q.node(), k.node(), v.node()], y, None, |keeper| {
            Attention {
                q: keeper.keep(&q),
                k: keeper.keep(&k),
                v: keeper.keep(&v),
                mask,
                sizes: [batch, queries, keys, heads, channels / heads],
            }
        }),
    )
}
