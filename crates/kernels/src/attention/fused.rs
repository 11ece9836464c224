//! First version: one query at a time, online softmax over blocks of keys.

use super::Attention;
use crate::threads::for_row_groups;

const KEY_BLOCK: usize = 64;

pub(super) fn run(_isa: crate::Isa, mut a: Attention<'_>) {
    let out = std::mem::take(&mut a.out);
    let a = &a;
    let d = a.head_dim;
    for_row_groups(out, a.heads * d, a.heads * d * a.keys * 2, |first, rows| {
        for (i, row) in rows.chunks_exact_mut(a.heads * d).enumerate() {
            let (batch, query) = ((first + i) / a.queries, (first + i) % a.queries);
            for (head, out) in row.chunks_exact_mut(d).enumerate() {
                one_query(a, batch, head, query, out);
            }
        }
    });
}

fn one_query(a: &Attention<'_>, batch: usize, head: usize, query: usize, out: &mut [f32]) {
    let d = a.head_dim;
    let q = a.q.row(batch, query, head, d);
    let keys = if a.causal {
        a.keys.min(query + 1)
    } else {
        a.keys
    };
    let (mut max, mut sum) = (f32::NEG_INFINITY, 0.0f32);
    out.fill(0.0);
    for block in (0..keys).step_by(KEY_BLOCK) {
        let len = KEY_BLOCK.min(keys - block);
        let mut scores = [0.0f32; KEY_BLOCK];
        let mut block_max = max;
        for (j, s) in scores[..len].iter_mut().enumerate() {
            let k = a.k.row(batch, block + j, head, d);
            *s = q.iter().zip(k).map(|(q, k)| q * k).sum::<f32>() * a.scale;
            if let Some(m) = a.mask {
                let at = batch * m.batch_stride + head * m.head_stride + query * m.query_stride;
                *s += m.data[at + block + j];
            }
            block_max = block_max.max(*s);
        }
        if block_max == f32::NEG_INFINITY {
            continue;
        }
        let shrink = (max - block_max).exp();
        max = block_max;
        sum *= shrink;
        out.iter_mut().for_each(|o| *o *= shrink);
        for (j, s) in scores[..len].iter().enumerate() {
            let p = (s - max).exp();
            sum += p;
            let v = a.v.row(batch, block + j, head, d);
            out.iter_mut().zip(v).for_each(|(o, v)| *o += p * v);
        }
    }
    if sum > 0.0 {
        out.iter_mut().for_each(|o| *o /= sum);
    }
}
