//! Scaled dot-product attention with an online softmax; the scores are never stored whole.

use crate::Isa;
use crate::error::{KernelError, at_least, exactly, extent, product};

mod backward;
mod fused;
mod tiles;

pub use backward::{AttentionBackward, attention_backward};

/// A view of `[batch, tokens, heads, head_dim]` inside a larger buffer; `head_dim` has stride 1.
#[derive(Debug, Clone, Copy)]
pub struct HeadsRef<'a> {
    /// The elements, from those of the first token on.
    pub data: &'a [f32],
    /// Elements from one image's tokens to the next's; 0 shares them.
    pub batch_stride: usize,
    /// Elements from one token to the next.
    pub token_stride: usize,
    /// Elements from one head to the next.
    pub head_stride: usize,
}

impl<'a> HeadsRef<'a> {
    /// A row-major `[batch, tokens, heads * head_dim]` buffer with no gaps.
    pub fn new(data: &'a [f32], tokens: usize, heads: usize, head_dim: usize) -> Self {
        let token_stride = heads.saturating_mul(head_dim);
        Self {
            data,
            batch_stride: tokens.saturating_mul(token_stride),
            token_stride,
            head_stride: head_dim,
        }
    }

    /// `sizes` are batch, heads and head_dim.
    fn check(
        &self,
        what: &'static str,
        sizes: [usize; 3],
        tokens: usize,
    ) -> Result<(), KernelError> {
        let dims = [
            (sizes[0], self.batch_stride),
            (tokens, self.token_stride),
            (sizes[1], self.head_stride),
            (sizes[2], 1),
        ];
        at_least(what, self.data.len(), extent(&dims))
    }

    pub(crate) fn row(
        &self,
        batch: usize,
        token: usize,
        head: usize,
        head_dim: usize,
    ) -> &'a [f32] {
        let at = batch * self.batch_stride + token * self.token_stride + head * self.head_stride;
        &self.data[at..][..head_dim]
    }
}

/// Numbers added to the scaled scores: element `(b, h, q, k)` is
/// `data[b * batch_stride + h * head_stride + q * query_stride + k]`. A stride of 0 shares the values.
/// `-inf` hides a key; a query that sees no key gets zeros.
#[derive(Debug, Clone, Copy)]
pub struct Mask<'a> {
    /// The values.
    pub data: &'a [f32],
    /// Elements from one image to the next.
    pub batch_stride: usize,
    /// Elements from one head to the next.
    pub head_stride: usize,
    /// Elements from one query to the next.
    pub query_stride: usize,
}

impl<'a> Mask<'a> {
    /// One value a key, the same for every query, head and image: `[keys]`.
    pub fn keys(data: &'a [f32]) -> Self {
        Self {
            data,
            batch_stride: 0,
            head_stride: 0,
            query_stride: 0,
        }
    }

    fn check(&self, [batch, heads, queries, keys]: [usize; 4]) -> Result<(), KernelError> {
        let dims = [
            (batch, self.batch_stride),
            (heads, self.head_stride),
            (queries, self.query_stride),
            (keys, 1),
        ];
        at_least("mask", self.data.len(), extent(&dims))
    }

    /// `[queries, keys]`, the same for every head and image.
    pub fn queries_keys(data: &'a [f32], keys: usize) -> Self {
        Self {
            data,
            batch_stride: 0,
            head_stride: 0,
            query_stride: keys,
        }
    }
}

/// `out = softmax(scale * q * k^T + mask) * v` for every head.
#[derive(Debug)]
pub struct Attention<'a> {
    /// Images.
    pub batch: usize,
    /// Heads.
    pub heads: usize,
    /// Tokens that ask.
    pub queries: usize,
    /// Tokens that answer.
    pub keys: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// `[batch, queries, heads, head_dim]`
    pub q: HeadsRef<'a>,
    /// `[batch, keys, heads, head_dim]`
    pub k: HeadsRef<'a>,
    /// `[batch, keys, heads, head_dim]`
    pub v: HeadsRef<'a>,
    /// Factor of the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Query `i` sees keys `0..=i` only (PyTorch's `is_causal`).
    pub causal: bool,
    /// Added to the scaled scores.
    pub mask: Option<Mask<'a>>,
    /// Output, `[batch, queries, heads * head_dim]` with no gaps; every element is overwritten.
    pub out: &'a mut [f32],
}

impl Attention<'_> {
    pub(crate) fn check(&self) -> Result<(), KernelError> {
        let Self {
            batch,
            heads,
            queries,
            keys,
            head_dim,
            ..
        } = *self;
        exactly(
            "out",
            self.out.len(),
            product(&[batch, queries, heads, head_dim]),
        )?;
        let sizes = [batch, heads, head_dim];
        self.q.check("q", sizes, queries)?;
        self.k.check("k", sizes, keys)?;
        self.v.check("v", sizes, keys)?;
        self.mask
            .map_or(Ok(()), |m| m.check([batch, heads, queries, keys]))
    }
}

impl Attention<'_> {
    /// [`attention`] with the instructions of `isa`.
    ///
    /// # Errors
    /// As [`attention`].
    pub fn run(self, isa: Isa) -> Result<(), KernelError> {
        self.check()?;
        if !self.out.is_empty() {
            fused::run(isa, self, None);
        }
        Ok(())
    }

    /// [`attention_with_lse`] with the instructions of `isa`.
    ///
    /// # Errors
    /// As [`attention_with_lse`].
    pub fn run_with_lse(self, isa: Isa, lse: &mut [f32]) -> Result<(), KernelError> {
        self.check()?;
        exactly(
            "lse",
            lse.len(),
            product(&[self.batch, self.heads, self.queries]),
        )?;
        if lse.is_empty() {
            return Ok(());
        }
        some_channels(self.head_dim)?;
        fused::run(isa, self, Some(lse));
        Ok(())
    }
}

fn some_channels(head_dim: usize) -> Result<(), KernelError> {
    if head_dim == 0 {
        return Err(KernelError::Size {
            what: "head_dim",
            expected: "be at least 1",
            found: 0,
        });
    }
    Ok(())
}

/// Computes attention, see [`Attention`]. With no keys the output is zero.
///
/// # Errors
/// [`KernelError`] when a slice is too short for its shape and strides.
pub fn attention(attention: Attention<'_>) -> Result<(), KernelError> {
    attention.run(Isa::best())
}

/// Computes [`attention`] and writes what its backward pass needs: for each query and head the logarithm of the sum
/// of the exponentials of its scores, `[batch, heads, queries]`; `-inf` for a query that sees no key.
///
/// # Errors
/// As [`attention`]; also when `head_dim` is 0.
pub fn attention_with_lse(attention: Attention<'_>, lse: &mut [f32]) -> Result<(), KernelError> {
    attention.run_with_lse(Isa::best(), lse)
}
