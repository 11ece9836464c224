//! Packing: rows of A into a panel, columns of B into panels of a tile's width, widened on the way.

use std::ops::Range;

use super::params::{A_STRIDE, LINE, SET_CYCLE, split};
use super::tile::ALayout;
use super::{RhsData, RhsLayout};
use crate::scratch::Scratch;
use crate::simd::{MAX_LANES, Simd, address};

/// A block of the inner dimension, which runs over `taps` (places of a convolution's window) and channels.
/// Packed order is taps outside, channels inside. Holds either all taps of some channels or some taps of one
/// channel, so that it is one run of a PyTorch weight's row.
#[derive(Debug, Clone)]
pub(crate) struct KBlock {
    pub channels: Range<usize>,
    pub taps: Range<usize>,
}

impl KBlock {
    pub(crate) fn len(&self) -> usize {
        self.channels.len() * self.taps.len()
    }
}

/// The left-hand side: whatever can write its rows into a panel.
pub(crate) trait Lhs: Sync {
    /// How [`Lhs::pack`] lays out a panel; `Rows` or `Interleaved`.
    const LAYOUT: ALayout = ALayout::Rows;
    /// Rows `rows` of the block as they lie in memory, from the first one's first element to the last one's last, and
    /// the elements from one to the next, when a tile can read them there. Then they are never packed.
    #[inline(always)]
    fn in_place(&self, _rows: Range<usize>, _: &KBlock) -> Option<(&[f32], usize)> {
        None
    }
    /// Writes rows `rows` of the block to `panel`, in the layout above.
    fn pack(&self, rows: Range<usize>, block: &KBlock, panel: &mut [f32]);
    /// Asks for share `share.0` of `share.1` of what `pack` will read.
    #[inline(always)]
    fn prefetch<S: Simd>(&self, _: S, _rows: Range<usize>, _: &KBlock, _share: (usize, usize)) {}
}

/// A row-major matrix as a left-hand side.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MatLhs<'a> {
    pub data: &'a [f32],
    pub stride: usize,
}

impl Lhs for MatLhs<'_> {
    #[inline(always)]
    fn in_place(&self, rows: Range<usize>, block: &KBlock) -> Option<(&[f32], usize)> {
        // A tile reads its rows side by side, which such rows would drive out of the cache for each other.
        if self.stride.is_multiple_of(SET_CYCLE) {
            return None;
        }
        let row = |i: usize| i * self.stride;
        let (start, end) = (row(rows.start), row(rows.end - 1));
        let part = &self.data[start + block.channels.start..end + block.channels.end];
        Some((part, self.stride))
    }

    #[inline(always)]
    fn pack(&self, rows: Range<usize>, block: &KBlock, panel: &mut [f32]) {
        for (row, to) in rows.zip(panel.chunks_mut(A_STRIDE)) {
            let from = &self.data[row * self.stride..][block.channels.clone()];
            to[..from.len()].copy_from_slice(from);
        }
    }

    #[inline(always)]
    fn prefetch<S: Simd>(&self, s: S, rows: Range<usize>, block: &KBlock, share: (usize, usize)) {
        let from = self.data.as_ptr();
        for row in split(rows.len(), share.1, share.0) {
            let start = (rows.start + row) * self.stride + block.channels.start;
            for at in (start..start + block.channels.len()).step_by(LINE) {
                s.prefetch_l2(from.wrapping_add(at));
            }
        }
    }
}

/// A matrix that lies transposed, `[k, m]`, as a left-hand side.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TransposedLhs<'a> {
    pub data: &'a [f32],
    /// Elements from one row in memory to the next.
    pub stride: usize,
    /// Rows of the widest tile, for which panels are laid out.
    pub mr: usize,
}

impl Lhs for TransposedLhs<'_> {
    const LAYOUT: ALayout = ALayout::Interleaved;

    #[inline(always)]
    fn pack(&self, rows: Range<usize>, block: &KBlock, panel: &mut [f32]) {
        // A copy of constant size is a vector or two; what it writes too much is overwritten by the next column,
        // or lies behind the last.
        const WIDE: usize = 16;
        const { assert!(crate::simd::MAX_MR <= WIDE) };
        for (slot, p) in block.channels.clone().enumerate() {
            let at = p * self.stride + rows.start;
            let dst = &mut panel[slot * self.mr..];
            match (self.data.get(at..at + WIDE), dst.get_mut(..WIDE)) {
                (Some(source), Some(dst)) => dst.copy_from_slice(source),
                _ => dst[..rows.len()].copy_from_slice(&self.data[at..][..rows.len()]),
            }
        }
    }

    #[inline(always)]
    fn prefetch<S: Simd>(&self, s: S, rows: Range<usize>, block: &KBlock, share: (usize, usize)) {
        let from = self.data.as_ptr();
        for p in split(block.channels.len(), share.1, share.0) {
            let at = (block.channels.start + p) * self.stride + rows.end - 1;
            s.prefetch(from.wrapping_add(at));
        }
    }
}

/// Numbers of LANES rows of a weight that are widened at once; the stride keeps rows out of each other's cache sets.
const WIDE: usize = 128;
const WIDE_STRIDE: usize = WIDE + 16;

/// The right-hand side: `n` outputs over `taps * channels` inputs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weights<'a> {
    pub data: RhsData<'a>,
    /// First element of this matrix.
    pub offset: usize,
    pub layout: RhsLayout,
    pub row_stride: usize,
    /// Places of the window; element `(output, channel, tap)` of a row is at `channel * taps + tap`.
    pub taps: usize,
}

impl Weights<'_> {
    /// Packs outputs `cols` of `block` as rows of `width` (zeros behind the last output).
    #[inline(always)]
    pub(crate) fn pack<S: Simd>(
        &self,
        s: S,
        cols: Range<usize>,
        block: &KBlock,
        width: usize,
        dst: &mut [f32],
    ) {
        match self.layout {
            RhsLayout::RowsAreInner => {
                for (p, row) in block.channels.clone().zip(dst.chunks_exact_mut(width)) {
                    let at = self.offset + p * self.row_stride + cols.start;
                    let (row, rest) = row.split_at_mut(cols.len());
                    s.widen(self.data, at, row);
                    rest.fill(0.0);
                }
            }
            RhsLayout::RowsAreOutputs if self.taps == 1 => {
                self.pack_turned(s, cols, block, width, dst);
            }
            RhsLayout::RowsAreOutputs => self.pack_taps(s, cols, block, width, dst),
        }
    }

    /// Rows of outputs without a window: squares are turned straight into their place.
    #[inline(always)]
    fn pack_turned<S: Simd>(
        &self,
        s: S,
        cols: Range<usize>,
        block: &KBlock,
        width: usize,
        dst: &mut [f32],
    ) {
        let len = block.channels.len();
        assert!(dst.len() >= len * width && width.is_multiple_of(S::LANES));
        // For prefetching: bytes of 256 numbers, as one may be a fraction of a byte.
        let start = address(self.data, 0);
        let pitch = address(self.data, 256).addr() - start.addr();
        let mut wide = Scratch::new(S::LANES * WIDE_STRIDE);
        let wide = wide.as_mut_slice();
        let mut turned = [0.0f32; MAX_LANES * MAX_LANES];
        for lane0 in (0..width).step_by(S::LANES) {
            let col = (cols.start + lane0).min(cols.end);
            let present = S::LANES.min(cols.end - col);
            let row =
                |lane: usize| self.offset + (col + lane) * self.row_stride + block.channels.start;
            for chunk0 in (0..len).step_by(WIDE) {
                let chunk = WIDE.min(len - chunk0);
                let last = row(present.max(1) - 1) + chunk0;
                // What needs no widening is turned where it lies, if all rows are there.
                let plain = present == S::LANES && chunk.is_multiple_of(S::LANES);
                let (square, stride) = if let (true, RhsData::F32(d)) = (plain, self.data) {
                    let first = &d[row(0) + chunk0..last + chunk];
                    (first.as_ptr(), self.row_stride)
                } else {
                    for (lane, wide) in wide.chunks_exact_mut(WIDE_STRIDE).enumerate() {
                        if lane < present {
                            s.widen(self.data, row(lane) + chunk0, &mut wide[..chunk]);
                        } else {
                            wide[..chunk].fill(0.0);
                        }
                    }
                    // Taken after the writes, which end an earlier pointer's right to read.
                    (wide.as_ptr(), WIDE_STRIDE)
                };
                for f0 in (0..chunk).step_by(S::LANES) {
                    for lane in 0..present {
                        // Where these rows go on after this chunk.
                        let next = row(lane) + chunk0 + f0 + WIDE;
                        s.prefetch(start.wrapping_add(next * pitch / 256).cast());
                    }
                    let at = (chunk0 + f0) * width + lane0;
                    let rows = S::LANES.min(chunk - f0);
                    // SAFETY: a square is readable at any f0 < chunk: in `wide`, rows are WIDE_STRIDE >= WIDE + LANES
                    // long; in place, chunk is a multiple of LANES and the slice reaches to the end of the last row.
                    // `dst` has been checked to hold `len` rows of `width`, `turned` holds the largest square.
                    unsafe {
                        if rows == S::LANES {
                            let dst = dst.as_mut_ptr().add(at);
                            s.transpose_to(square.add(f0), stride, dst, width);
                            continue;
                        }
                        s.transpose(square.add(f0), stride, turned.as_mut_ptr());
                    }
                    for (i, lanes) in turned.chunks_exact(S::LANES).take(rows).enumerate() {
                        s.store_slice(&mut dst[at + i * width..], s.load_slice(lanes));
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn pack_taps<S: Simd>(
        &self,
        s: S,
        cols: Range<usize>,
        block: &KBlock,
        width: usize,
        dst: &mut [f32],
    ) {
        let (taps, channels) = (block.taps.len(), block.channels.len());
        let first = self.offset + block.channels.start * self.taps + block.taps.start;
        let (chunk, stride) = (WIDE, WIDE_STRIDE);
        let mut wide = Scratch::new(S::LANES * stride);
        let wide = wide.as_mut_slice();
        let mut turned = [0.0f32; MAX_LANES * MAX_LANES];
        for lane0 in (0..width).step_by(S::LANES) {
            let (mut tap, mut channel) = (0, 0);
            for chunk0 in (0..block.len()).step_by(chunk) {
                let len = chunk.min(block.len() - chunk0);
                for (lane, row) in wide.chunks_exact_mut(stride).enumerate() {
                    let col = cols.start + lane0 + lane;
                    if col < cols.end {
                        let at = col * self.row_stride + first + chunk0;
                        s.widen(self.data, at, &mut row[..len]);
                    } else {
                        row[..len].fill(0.0);
                    }
                }
                for f0 in (0..len).step_by(S::LANES) {
                    // SAFETY: rows are `stride` >= chunk + LANES long, so that a whole square is readable at any
                    // f0 < chunk; `turned` holds the largest square.
                    unsafe { s.transpose(wide.as_ptr().add(f0), stride, turned.as_mut_ptr()) };
                    let rows = S::LANES.min(len - f0);
                    for lanes in turned.chunks_exact(S::LANES).take(rows) {
                        let row = tap * channels + channel;
                        s.store_slice(&mut dst[row * width + lane0..], s.load_slice(lanes));
                        tap += 1;
                        if tap == taps {
                            (tap, channel) = (0, channel + 1);
                        }
                    }
                }
            }
        }
    }
}
