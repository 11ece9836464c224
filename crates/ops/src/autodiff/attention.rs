//! Attention: the kernel's backward, which computes the scores again in tiles.

use aquatint_kernels::{self as kernels, AttentionBackward, Buffer, HeadsRef, Mask};
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;

use super::record::{Entry, Rule, Saved, primitive};
use super::values::{values, wrap};
use crate::flex::{self, done};
use crate::fused::AttentionMask;

#[derive(Debug, Clone)]
struct Attention {
    q: Saved,
    k: Saved,
    v: Saved,
    mask: AttentionMask,
    out: FlexTensor,
    /// Of each query's scores; none when nobody sees anything.
    lse: Option<FlexTensor>,
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
        let shapes = [n, m, m].map(|tokens| [batch, tokens, c]);
        let [mut dq, mut dk, mut dv] = shapes.map(|s| Buffer::zeroed(s.iter().product()));
        let [q, k, v] = [self.q, self.k, self.v].map(|x| values(x.take(saved)));
        let mask = match self.mask.clone() {
            AttentionMask::Additive(mask) => Some(values(primitive(mask))),
            _ => None,
        };
        if let Some(lse) = self.lse {
            let view = |data, tokens| HeadsRef::new(data, tokens, heads, d);
            done(kernels::attention_backward(AttentionBackward {
                batch,
                heads,
                queries: n,
                keys: m,
                head_dim: d,
                q: view(q.values(), n),
                k: view(k.values(), m),
                v: view(v.values(), m),
                scale: 1.0 / (d as f32).sqrt(),
                causal: matches!(self.mask, AttentionMask::Causal),
                mask: mask
                    .as_ref()
                    .map(|mask| Mask::queries_keys(mask.values(), m)),
                out: values(self.out).values(),
                lse: values(lse).values(),
                d_out: values(dy).values(),
                dq: &mut dq,
                dk: &mut dk,
                dv: &mut dv,
            }));
        }
        let mut gradients = [dq, dk, dv].into_iter().zip(shapes);
        wanted.map(|wanted| {
            let (gradient, shape) = gradients.next()?;
            wanted.then(|| wrap(gradient, &shape))
        })
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
    let tracked = q.is_tracked() || k.is_tracked() || v.is_tracked();
    let operands = [&q.value(), &k.value(), &v.value()];
    let (y, lse) = if tracked && queries * keys * channels > 0 {
        let (y, lse) = flex::attention_with_lse(operands, heads, &mask)?;
        (y, Some(primitive(lse)))
    } else {
        let [q, k, v] = operands;
        (flex::attention(q, k, v, heads, &mask)?, None)
    };
    let out = primitive(y.clone());
    Some(
        entry.record([q.node(), k.node(), v.node()], y, None, |keeper| {
            Attention {
                q: keeper.keep(&q),
                k: keeper.keep(&k),
                v: keeper.keep(&v),
                mask,
                out,
                lse,
                sizes: [batch, queries, keys, heads, channels / heads],
            }
        }),
    )
}
