//! Attention: probabilities are computed again in the backward pass.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::flex::FlexTensor;
use burn::tensor::{Tensor, activation};

use super::record::{Entry, Rule, Saved, plain, primitive};
use crate::flex;
use crate::fused::AttentionMask;

#[derive(Debug, Clone)]
struct Attention {
    q: Saved,
    k: Saved,
    v: Saved,
    heads: usize,
    mask: AttentionMask,
}

impl Rule<3> for Attention {
    fn gradients(
        self,
        dy: FlexTensor,
        _: [bool; 3],
        saved: &mut Checkpointer,
    ) -> [Option<FlexTensor>; 3] {
        let heads = self.heads;
        let split = |x: FlexTensor| {
            let x = plain::<3>(x);
            let [b, n, c] = x.dims();
            x.reshape([b, n, heads, c / heads]).swap_dims(1, 2)
        };
        let join = |x: Tensor<4>| {
            let [b, h, n, d] = x.dims();
            primitive(x.swap_dims(1, 2).reshape([b, n, h * d]))
        };
        let [q, k, v] = [self.q, self.k, self.v].map(|x| split(x.take(saved)));
        let dy = split(dy);
        let scale = 1.0 / (q.dims()[3] as f64).sqrt();
        let scores = q.clone().matmul(k.clone().transpose()) * scale;
        let [_, _, queries, keys] = scores.dims();
        let scores = match self.mask {
            AttentionMask::None => scores,
            AttentionMask::Causal => {
                let mask = Tensor::<2>::full([queries, keys], f32::NEG_INFINITY, &scores.device());
                scores + mask.triu(1).unsqueeze()
            }
            AttentionMask::Additive(mask) => scores + mask.unsqueeze(),
        };
        let p = activation::softmax(scores, 3);
        let dv = p.clone().transpose().matmul(dy.clone());
        let dp = dy.matmul(v.transpose());
        let ds = p.clone() * (dp.clone() - (dp * p).sum_dim(3)) * scale;
        let dq = ds.clone().matmul(k);
        let dk = ds.transpose().matmul(q);
        [Some(join(dq)), Some(join(dk)), Some(join(dv))]
    }
}

pub(crate) fn attention(
    q: &Tensor<3>,
    k: &Tensor<3>,
    v: &Tensor<3>,
    heads: usize,
    mask: &AttentionMask,
) -> Option<Tensor<3>> {
    let mut entry = Entry::default();
    let (q, k, v) = (entry.operand(q)?, entry.operand(k)?, entry.operand(v)?);
    let mask = match mask {
        AttentionMask::Additive(m) => {
            let m = entry.operand(m)?;
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
                heads,
                mask,
            }
        }),
    )
}
