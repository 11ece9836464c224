//! The backward pass of attention by recomputation: scores are computed again in tiles, turned as in the forward
//! pass, so that none is ever stored whole.

use std::ops::Range;

use super::{HeadsRef, Mask, some_channels};
use crate::Isa;
use crate::error::{KernelError, exactly, product};
use crate::gemm::driver::{SharedOut, for_each};
use crate::gemm::params::{SERIAL_WORK, split};
use crate::scratch::Scratch;
use crate::threads::for_row_groups;

mod pass;

use pass::Pass;

/// Gradients of [`crate::attention`] by its queries, keys and values.
#[derive(Debug)]
pub struct AttentionBackward<'a> {
    /// Images.
    pub batch: usize,
    /// Heads.
    pub heads: usize,
    /// Tokens that ask.
    pub queries: usize,
    /// Tokens that answer.
    pub keys: usize,
    /// Channels of a head; at least 1.
    pub head_dim: usize,
    /// As in the forward pass, `[batch, queries, heads, head_dim]`.
    pub q: HeadsRef<'a>,
    /// As in the forward pass, `[batch, keys, heads, head_dim]`.
    pub k: HeadsRef<'a>,
    /// As in the forward pass, `[batch, keys, heads, head_dim]`.
    pub v: HeadsRef<'a>,
    /// As in the forward pass.
    pub scale: f32,
    /// As in the forward pass.
    pub causal: bool,
    /// As in the forward pass; it gets no gradient.
    pub mask: Option<Mask<'a>>,
    /// The forward pass's output, `[batch, queries, heads * head_dim]`.
    pub out: &'a [f32],
    /// What [`crate::attention_with_lse`] wrote, `[batch, heads, queries]`.
    pub lse: &'a [f32],
    /// Gradient by the output, shape of `out`.
    pub d_out: &'a [f32],
    /// Gradient by the queries, `[batch, queries, heads * head_dim]` with no gaps; overwritten.
    pub dq: &'a mut [f32],
    /// Gradient by the keys, `[batch, keys, heads * head_dim]` with no gaps; overwritten.
    pub dk: &'a mut [f32],
    /// Gradient by the values, `[batch, keys, heads * head_dim]` with no gaps; overwritten.
    pub dv: &'a mut [f32],
}

/// Computes the gradients of attention, see [`AttentionBackward`]. The same numbers come out whatever the number of
/// threads.
///
/// # Errors
/// [`KernelError`] when a slice does not have the length of its shape, or `head_dim` is 0.
pub fn attention_backward(attention: AttentionBackward<'_>) -> Result<(), KernelError> {
    attention.run(Isa::best())
}

/// Keys whose scores are held at once, 9 of AVX-512's tiles. From 56 to 336 keys, and 2 to 8 panels of queries, the time
/// of 2x8x1024x80 and 2x8x256x32 changes by 1 % (measured on Zen 5).
const KEY_BLOCK: usize = 126;
/// Tasks that a call should have at least; with fewer heads, keys are split. Not the number of threads, which must
/// not decide the last bits.
const TASKS: usize = 4;

impl AttentionBackward<'_> {
    pub(crate) fn check(&self) -> Result<(), KernelError> {
        let Self {
            batch,
            heads,
            queries,
            keys,
            head_dim,
            ..
        } = *self;
        some_channels(head_dim)?;
        let sizes = [batch, heads, head_dim];
        self.q.check("q", sizes, queries)?;
        self.k.check("k", sizes, keys)?;
        self.v.check("v", sizes, keys)?;
        self.mask
            .map_or(Ok(()), |m| m.check([batch, heads, queries, keys]))?;
        let asked = product(&[batch, queries, heads, head_dim]);
        let answered = product(&[batch, keys, heads, head_dim]);
        exactly("out", self.out.len(), asked)?;
        exactly("d_out", self.d_out.len(), asked)?;
        exactly("lse", self.lse.len(), product(&[batch, heads, queries]))?;
        exactly("dq", self.dq.len(), asked)?;
        exactly("dk", self.dk.len(), answered)?;
        exactly("dv", self.dv.len(), answered)
    }

    /// [`attention_backward`] with the instructions of `isa`.
    ///
    /// # Errors
    /// As [`attention_backward`].
    pub fn run(mut self, isa: Isa) -> Result<(), KernelError> {
        self.check()?;
        let pairs = self.batch * self.heads;
        if self.queries == 0 || self.keys == 0 || pairs == 0 {
            self.dq.fill(0.0);
            self.dk.fill(0.0);
            self.dv.fill(0.0);
            return Ok(());
        }
        let dq_all = std::mem::take(&mut self.dq);
        let dk = SharedOut::new(std::mem::take(&mut self.dk));
        let dv = SharedOut::new(std::mem::take(&mut self.dv));
        let a = &self;
        let parts = TASKS.div_ceil(pairs).min(a.keys.div_ceil(KEY_BLOCK));
        let size = dq_all.len();
        let mut others = Scratch::new((parts - 1) * size);
        let dq = SharedOut::new(dq_all);
        let dq_others = SharedOut::new(others.as_mut_slice());
        let work = (pairs * a.queries).saturating_mul(a.keys * a.head_dim);
        let parallel = rayon::current_num_threads() > 1 && work >= SERIAL_WORK;
        for_each(pairs * parts, parallel, |task| {
            let (pair, part) = (task / parts, task % parts);
            let dq = match part.checked_sub(1) {
                None => dq,
                // SAFETY: each part of the keys has its own copy of all queries' gradients.
                Some(other) => unsafe { dq_others.from(other * size) },
            };
            isa.run(Pass {
                a,
                batch: pair / a.heads,
                head: pair % a.heads,
                keys: key_range(a.keys, parts, part),
                dq,
                dk,
                dv,
            });
        });
        if parts > 1 {
            let others = others.as_slice();
            for_row_groups(dq_all, 1, parts, |first, dq| {
                for other in others.chunks_exact(size) {
                    let other = &other[first..][..dq.len()];
                    dq.iter_mut().zip(other).for_each(|(a, b)| *a += b);
                }
            });
        }
        Ok(())
    }
}

/// Whole blocks of keys for each part.
fn key_range(keys: usize, parts: usize, part: usize) -> Range<usize> {
    let blocks = split(keys.div_ceil(KEY_BLOCK), parts, part);
    blocks.start * KEY_BLOCK..keys.min(blocks.end * KEY_BLOCK)
}
