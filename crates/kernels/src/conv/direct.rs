//! Convolution as a matrix product: patches are gathered while the left-hand side is packed, so that no image of
//! patches is ever stored.

use std::ops::Range;

use super::Window;
use crate::gemm::driver::Product;
use crate::gemm::pack::{KBlock, Lhs, MatLhs, Weights};
use crate::gemm::params::{A_STRIDE, split};
use crate::simd::Simd;
use crate::{Isa, RhsLayout};

pub(super) fn run(isa: Isa, conv: &Window<'_>) {
    let out = conv.out;
    let (oh, ow) = conv.out_size;
    let taps = conv.kernel.0 * conv.kernel.1;
    let (m, n, channels) = (conv.batch * oh * ow, conv.out_channels, conv.in_channels);
    let weights = Weights {
        data: conv.weight,
        offset: 0,
        layout: RhsLayout::RowsAreOutputs,
        row_stride: channels * taps,
        taps,
    };
    let finish = conv.finish;
    let plain = taps == 1
        && conv.stride == 1
        && !conv.upsample
        && conv.origin == (0, 0)
        && conv.out_size == conv.size;
    if plain {
        let lhs = MatLhs {
            data: conv.x,
            stride: channels,
        };
        Product {
            m,
            n,
            channels,
            lhs,
            weights,
            out,
            out_stride: n,
            finish,
        }
        .run(isa);
    } else {
        let lhs = Patches { conv };
        Product {
            m,
            n,
            channels,
            lhs,
            weights,
            out,
            out_stride: n,
            finish,
        }
        .run(isa);
    }
}

/// Rows are output pixels; a row is the window's channels, tap after tap.
struct Patches<'a, 'b> {
    conv: &'a Window<'b>,
}

impl Lhs for Patches<'_, '_> {
    #[inline(always)]
    fn pack(&self, rows: Range<usize>, block: &KBlock, panel: &mut [f32]) {
        let conv = self.conv;
        let len = block.channels.len();
        let whole = len == conv.in_channels && block.taps.len() == conv.kernel.0 * conv.kernel.1;
        let (first, mut at) = (rows.start, self.window(rows.start));
        for row in rows {
            if row > first {
                at = self.next(at);
            }
            let (image, oy, ox) = at;
            let panel = &mut panel[(row - first) * A_STRIDE..][..A_STRIDE];
            if whole && !conv.upsample {
                self.pack_lines(at, panel);
                continue;
            }
            for (slot, tap) in block.taps.clone().enumerate() {
                let (r, s) = (tap / conv.kernel.1, tap % conv.kernel.1);
                let dst = &mut panel[slot * len..][..len];
                if let Some(pixel) = conv.pixel(image, oy + r, ox + s) {
                    copy(&conv.x[pixel + block.channels.start..][..len], dst);
                } else {
                    dst.fill(0.0);
                }
            }
        }
    }

    #[inline(always)]
    fn prefetch<S: Simd>(&self, s: S, rows: Range<usize>, block: &KBlock, share: (usize, usize)) {
        let conv = self.conv;
        // Pixels of a few channels follow each other so closely that the CPU sees them coming.
        if block.channels.len() < 16 {
            return;
        }
        let part = split(rows.len(), share.1, share.0);
        for row in rows.start + part.start..rows.start + part.end {
            let (image, oy, ox) = self.window(row);
            for tap in block.taps.clone() {
                let (r, q) = (tap / conv.kernel.1, tap % conv.kernel.1);
                if let Some(pixel) = conv.pixel(image, oy + r, ox + q) {
                    for c in block.channels.clone().step_by(16) {
                        s.prefetch(conv.x.as_ptr().wrapping_add(pixel + c));
                    }
                }
            }
        }
    }
}

impl Patches<'_, '_> {
    /// Image, and row and column of the window's first place, of an output pixel.
    #[inline(always)]
    fn window(&self, row: usize) -> (usize, usize, usize) {
        let (oh, ow) = self.conv.out_size;
        let (line, x) = (row / ow, row % ow);
        let stride = self.conv.stride;
        (line / oh, line % oh * stride, x * stride)
    }

    /// The same of the next output pixel.
    #[inline(always)]
    fn next(&self, (image, y, x): (usize, usize, usize)) -> (usize, usize, usize) {
        let (stride, (oh, ow)) = (self.conv.stride, self.conv.out_size);
        if x + stride < ow * stride {
            (image, y, x + stride)
        } else if y + stride < oh * stride {
            (image, y + stride, 0)
        } else {
            (image + 1, 0, 0)
        }
    }

    /// All channels of all places of a window: a line of it is one run of the image, unless it crosses the edge.
    #[inline(always)]
    fn pack_lines(&self, (image, oy, ox): (usize, usize, usize), panel: &mut [f32]) {
        let conv = self.conv;
        let (kh, kw) = conv.kernel;
        let (channels, run) = (conv.in_channels, kw * conv.in_channels);
        for r in 0..kh {
            let first = conv.pixel(image, oy + r, ox);
            match first {
                Some(pixel) if conv.pixel(image, oy + r, ox + kw - 1).is_some() => {
                    // Whole vectors; what is too much is overwritten by the next line or never read.
                    let padded = run.next_multiple_of(16);
                    if let Some(src) = conv.x.get(pixel..pixel + padded) {
                        copy(src, &mut panel[r * run..][..padded]);
                    } else {
                        copy(&conv.x[pixel..][..run], &mut panel[r * run..][..run]);
                    }
                }
                _ => {
                    for s in 0..kw {
                        let dst = &mut panel[r * run + s * channels..][..channels];
                        match conv.pixel(image, oy + r, ox + s) {
                            Some(pixel) => copy(&conv.x[pixel..][..channels], dst),
                            None => dst.fill(0.0),
                        }
                    }
                }
            }
        }
    }
}

/// Copies a few channels; as vectors, since a call of `memcpy` takes longer than most of these copies.
#[inline(always)]
fn copy(src: &[f32], dst: &mut [f32]) {
    let (mut from, mut to) = (src.chunks_exact(16), dst.chunks_exact_mut(16));
    for (src, dst) in (&mut from).zip(&mut to) {
        dst.copy_from_slice(&src[..16]);
    }
    to.into_remainder().copy_from_slice(from.remainder());
}
