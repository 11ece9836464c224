//! What the forward and the backward pass share: rows of one head, packed turned; masks on a block of turned scores;
//! turned sums written as rows.

use std::ops::Range;

use super::{HeadsRef, Mask};
use crate::gemm::driver::SharedOut;
use crate::gemm::pack::{KBlock, Weights};
use crate::simd::{MAX_LANES, Simd, map, map2};
use crate::{RhsData, RhsLayout};

/// Columns of the widest tile.
pub(super) const MAX_WIDTH: usize = 2 * MAX_LANES;

/// The rows of one head of one image.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeadRows<'a> {
    data: &'a [f32],
    offset: usize,
    stride: usize,
    channels: usize,
}

impl<'a> HeadRows<'a> {
    pub(super) fn new(view: &HeadsRef<'a>, batch: usize, head: usize, channels: usize) -> Self {
        Self {
            data: view.data,
            offset: batch * view.batch_stride + head * view.head_stride,
            stride: view.token_stride,
            channels,
        }
    }

    #[inline(always)]
    pub(super) fn row(&self, token: usize) -> &'a [f32] {
        &self.data[self.offset + token * self.stride..][..self.channels]
    }
}

/// Packs `scale` times the rows `tokens` turned, `[channels, NR]`, with zeros behind the last.
#[inline(always)]
pub(super) fn pack_turned<S: Simd>(
    s: S,
    rows: HeadRows<'_>,
    tokens: Range<usize>,
    scale: f32,
    dst: &mut [f32],
) {
    let weights = Weights {
        data: RhsData::F32(rows.data),
        offset: rows.offset,
        layout: RhsLayout::RowsAreOutputs,
        row_stride: rows.stride,
        taps: 1,
    };
    let block = KBlock {
        channels: 0..rows.channels,
        taps: 0..1,
    };
    weights.pack(s, tokens, &block, S::NR, dst);
    if scale != 1.0 {
        let scale = s.splat(scale);
        map!(s, dst, |v| s.mul(v, scale));
    }
}

/// What hides keys from the queries of one head of one image.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hidden<'a> {
    mask: Option<Mask<'a>>,
    offset: usize,
    causal: bool,
}

impl<'a> Hidden<'a> {
    pub(super) fn new(mask: Option<Mask<'a>>, causal: bool, batch: usize, head: usize) -> Self {
        let offset = mask.map_or(0, |m| batch * m.batch_stride + head * m.head_stride);
        Self {
            mask,
            offset,
            causal,
        }
    }

    /// Adds the mask to `scores`, `[keys, NR]`, and `-inf` to keys after their query when causal. `buffer` has the
    /// size of `scores` when there is a mask.
    #[inline(always)]
    pub(super) fn apply<S: Simd>(
        &self,
        s: S,
        keys: Range<usize>,
        queries: Range<usize>,
        scores: &mut [f32],
        buffer: &mut [f32],
    ) {
        if let Some(mask) = self.mask {
            if mask.query_stride == 0 {
                let values = &mask.data[self.offset..][keys.clone()];
                for (row, &m) in scores.chunks_exact_mut(S::NR).zip(values) {
                    map!(s, row, |v| s.add(v, s.splat(m)));
                }
            } else {
                let rows = Weights {
                    data: RhsData::F32(mask.data),
                    offset: self.offset,
                    layout: RhsLayout::RowsAreOutputs,
                    row_stride: mask.query_stride,
                    taps: 1,
                };
                let block = KBlock {
                    channels: keys.clone(),
                    taps: 0..1,
                };
                rows.pack(s, queries.clone(), &block, S::NR, buffer);
                map2!(s, scores, buffer, |v, m| s.add(v, m));
            }
        }
        if self.causal && keys.end > queries.start + 1 {
            for (row, key) in scores.chunks_exact_mut(S::NR).zip(keys) {
                let hidden = key.saturating_sub(queries.start).min(S::NR);
                row[..hidden].fill(f32::NEG_INFINITY);
            }
        }
    }
}

/// Where turned sums, `[channels, NR]`, go as rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct TurnedRows {
    pub channels: usize,
    /// Rows, at most NR.
    pub rows: usize,
    /// Place of the first row.
    pub start: usize,
    /// From one row to the next.
    pub stride: usize,
}

impl TurnedRows {
    /// Writes the sums, which have room up to whole vectors of channels, times each row's factor.
    ///
    /// # Safety
    /// The rows lie inside of `out`, and nobody else uses them meanwhile.
    #[inline(always)]
    pub(super) unsafe fn write<S: Simd>(
        &self,
        s: S,
        sums: &[f32],
        factors: &[f32; MAX_WIDTH],
        out: SharedOut,
    ) {
        let mut square = [0.0f32; MAX_LANES * MAX_LANES];
        for lane in (0..self.rows).step_by(S::LANES) {
            for channel in (0..self.channels).step_by(S::LANES) {
                let from = &sums[channel * S::NR + lane..][..(S::LANES - 1) * S::NR + S::LANES];
                // SAFETY: `from` is a square of rows NR apart; `square` holds the largest.
                unsafe { s.transpose(from.as_ptr(), S::NR, square.as_mut_ptr()) };
                let width = S::LANES.min(self.channels - channel);
                let rows = square.chunks_exact(S::LANES).take(S::LANES);
                for (i, row) in rows.enumerate().take(self.rows - lane) {
                    let at = self.start + (lane + i) * self.stride + channel;
                    // SAFETY: the caller's promise.
                    let out = unsafe { out.part(at, width) };
                    if width == S::LANES {
                        let factor = s.splat(factors[lane + i]);
                        s.store_slice(out, s.mul(s.load_slice(row), factor));
                        continue;
                    }
                    for (o, v) in out.iter_mut().zip(row) {
                        *o = v * factors[lane + i];
                    }
                }
            }
        }
    }
}
