//! Attention: the probabilities of a head are computed again in the backward pass.

use aquatint_kernels::{self as kernels, Buffer, MatRef, Rhs, RhsData};
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::record::{Entry, Rule, Saved, primitive};
use super::values::{product, sum, values, wrap};
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
        _: [bool; 3],
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
        let parts: Vec<[Buffer; 3]> = (0..batch * heads)
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
                head.gradients()
            })
            .collect();
        let joined = |which: usize, tokens: usize| {
            let mut out = Buffer::new(batch * tokens * c);
            for (i, part) in parts.iter().enumerate() {
                let rows = out.chunks_exact_mut(c).skip(i / heads * tokens);
                for (to, from) in rows.zip(part[which].chunks_exact(d)) {
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

impl Head<'_> {
    /// Of q, k and v, without gaps.
    fn gradients(&self) -> [Buffer; 3] {
        let [n, m, d, c] = self.sizes;
        let scale = 1.0 / (d as f32).sqrt();
        let of_rows = |data| Rhs {
            row_stride: c,
            ..Rhs::weight(RhsData::F32(data), d)
        };
        let p = self.probabilities(scale);
        // dS = P (dP - sum(P dP)), in the place of dP.
        let mut ds = product(MatRef::new(self.dy, c), of_rows(self.v), [n, m, d]);
        for (ds, p) in ds.chunks_exact_mut(m).zip(p.chunks_exact(m)) {
            let sum = sum(ds, p, |a, b| a * b);
            for (ds, p) in ds.iter_mut().zip(p) {
                *ds = p * (*ds - sum) * scale;
            }
        }
        let inner = |data| Rhs {
            row_stride: c,
            ..Rhs::inner(RhsData::F32(data), d)
        };
        let dq = product(MatRef::new(&ds, m), inner(self.k), [n, d, m]);
        let dk = product(MatRef::transposed(&ds, m), inner(self.q), [m, d, n]);
        let dv = product(MatRef::transposed(&p, m), inner(self.dy), [m, d, n]);
        [dq, dk, dv]
    }

    fn probabilities(&self, scale: f32) -> Buffer {
        let [n, m, d, c] = self.sizes;
        let keys = Rhs {
            row_stride: c,
            ..Rhs::weight(RhsData::F32(self.k), d)
        };
        let mut p = product(MatRef::new(self.q, c), keys, [n, m, d]);
        p.iter_mut().for_each(|s| *s *= scale);
        if let Some(mask) = self.mask {
            p.iter_mut().zip(mask).for_each(|(s, mask)| *s += mask);
        }
        if self.causal {
            for (i, row) in p.chunks_exact_mut(m).enumerate() {
                row[(i + 1).min(m)..].fill(f32::NEG_INFINITY);
            }
        }
        done(kernels::softmax_rows(&mut p, m));
        p
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
