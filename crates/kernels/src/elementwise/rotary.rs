//! Rotary position embeddings (Su et al. 2021).

use crate::Isa;
use crate::error::{KernelError, exactly, product};
use crate::simd::{Job, Simd};
use crate::threads::for_row_groups;

/// Which two elements of a head turn together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotaryPairs {
    /// `2 i` and `2 i + 1`: FLUX, and diffusers' `use_real_unbind_dim = -1`.
    Neighbours,
    /// `i` and `i + head_dim / 2`: GPT-NeoX, and diffusers' `use_real_unbind_dim = -2`.
    Halves,
}

/// Turns queries or keys by their positions, in place: `(a, b)` becomes `(a cos - b sin, a sin + b cos)`.
#[derive(Debug)]
pub struct Rotary<'a> {
    /// `[batch, tokens, heads, head_dim]`.
    pub x: &'a mut [f32],
    /// Tokens of a batch entry.
    pub tokens: usize,
    /// Attention heads.
    pub heads: usize,
    /// Elements of a head; even.
    pub head_dim: usize,
    /// Cosines of each token's angles, `[tokens, head_dim / 2]`.
    pub cos: &'a [f32],
    /// Sines likewise.
    pub sin: &'a [f32],
    /// Which elements turn together.
    pub pairs: RotaryPairs,
}

/// Applies a rotary embedding, see [`Rotary`].
///
/// # Errors
/// [`KernelError`] when a slice does not have the length of its shape, or `head_dim` is odd.
pub fn rotary(rotary: Rotary<'_>) -> Result<(), KernelError> {
    rotary.run(Isa::best())
}

impl Rotary<'_> {
    /// [`rotary`] with the instructions of `isa`.
    ///
    /// # Errors
    /// As [`rotary`].
    pub fn run(self, isa: Isa) -> Result<(), KernelError> {
        let Self {
            x,
            tokens,
            heads,
            head_dim,
            cos,
            sin,
            pairs,
        } = self;
        if !head_dim.is_multiple_of(2) {
            return Err(KernelError::Size {
                what: "head_dim",
                expected: "be even",
                found: head_dim,
            });
        }
        let row = product(&[heads, head_dim]);
        let entry = product(&[tokens, row]);
        let batch = x.len().checked_div(entry).unwrap_or(0);
        exactly("x", x.len(), product(&[batch, entry]))?;
        let angles = product(&[tokens, head_dim / 2]);
        exactly("cos", cos.len(), angles)?;
        exactly("sin", sin.len(), angles)?;
        for_row_groups(x, row, row * 2, |first, rows| {
            isa.run(Turn {
                rows,
                first: first % tokens,
                tokens,
                heads,
                head_dim,
                cos,
                sin,
                pairs,
            });
        });
        Ok(())
    }
}

struct Turn<'a> {
    rows: &'a mut [f32],
    /// Token of the first row.
    first: usize,
    tokens: usize,
    heads: usize,
    head_dim: usize,
    cos: &'a [f32],
    sin: &'a [f32],
    pairs: RotaryPairs,
}

impl Job for Turn<'_> {
    type Output = ();
    // Plain loops: the compiler vectorises them for the job's instruction set, and memory bounds them.
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let half = self.head_dim / 2;
        let row = self.heads * self.head_dim;
        for (i, tokens) in self.rows.chunks_exact_mut(row).enumerate() {
            let token = (self.first + i) % self.tokens;
            let cos = &self.cos[token * half..][..half];
            let sin = &self.sin[token * half..][..half];
            for head in tokens.chunks_exact_mut(self.head_dim) {
                match self.pairs {
                    RotaryPairs::Neighbours => {
                        for ((pair, &c), &s) in head.chunks_exact_mut(2).zip(cos).zip(sin) {
                            (pair[0], pair[1]) =
                                (pair[0] * c - pair[1] * s, pair[0] * s + pair[1] * c);
                        }
                    }
                    RotaryPairs::Halves => {
                        let (left, right) = head.split_at_mut(half);
                        let pairs = left.iter_mut().zip(right).zip(cos).zip(sin);
                        for (((a, b), &c), &s) in pairs {
                            (*a, *b) = (*a * c - *b * s, *a * s + *b * c);
                        }
                    }
                }
            }
        }
    }
}
