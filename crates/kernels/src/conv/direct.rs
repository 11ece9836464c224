//! Convolution as a matrix product: patches are gathered while the left-hand side is packed, so that no image of
//! patches is ever stored.

use std::ops::Range;

use super::Conv2d;
use crate::gemm::driver::{Product, SharedOut};
use crate::gemm::finish::Finish;
use crate::gemm::pack::{KBlock, Lhs, MatLhs, Weights};
use crate::gemm::params::A_STRIDE;
use crate::{Isa, RhsLayout};

pub(super) fn run(isa: Isa, mut conv: Conv2d<'_>) {
    let out = SharedOut::new(std::mem::take(&mut conv.out));
    let (oh, ow) = conv.out_size();
    let taps = conv.kernel.0 * conv.kernel.1;
    let (m, n, channels) = (conv.batch * oh * ow, conv.out_channels, conv.in_channels);
    let weights = Weights {
        data: conv.weight,
        offset: 0,
        layout: RhsLayout::RowsAreOutputs,
        row_stride: channels * taps,
        taps,
    };
    let finish = conv.finish();
    let plain =
        taps == 1 && conv.stride == 1 && !conv.upsample && conv.padding == Default::default();
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
        let lhs = Patches {
            conv: &conv,
            out_size: (oh, ow),
            seen: conv.seen_size(),
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
    }
}

impl Conv2d<'_> {
    /// The epilogue over rows that are output pixels.
    pub(super) fn finish(&self) -> Finish<'_> {
        let (oh, ow) = self.out_size();
        let per_image = self.bias.is_some_and(|b| b.len() != self.out_channels);
        Finish {
            bias: self.bias,
            rows_per_bias: if per_image { oh * ow } else { usize::MAX },
            n: self.out_channels,
            activation: self.activation,
            residual: self.residual.map(|r| (r, self.out_channels)),
        }
    }
}

/// Rows are output pixels; a row is the window's channels, tap after tap.
struct Patches<'a, 'b> {
    conv: &'a Conv2d<'b>,
    out_size: (usize, usize),
    seen: (usize, usize),
}

impl Lhs for Patches<'_, '_> {
    #[inline(always)]
    fn pack(&self, rows: Range<usize>, block: &KBlock, panel: &mut [f32]) {
        let conv = self.conv;
        let (oh, ow) = self.out_size;
        let shift = u32::from(conv.upsample);
        let len = block.channels.len();
        for (i, row) in rows.enumerate() {
            let (line, ox) = (row / ow, row % ow);
            let (b, oy) = (line / oh, line % oh);
            for (slot, tap) in block.taps.clone().enumerate() {
                let (r, s) = (tap / conv.kernel.1, tap % conv.kernel.1);
                // Above or left of the image these wrap to huge numbers.
                let y = (oy * conv.stride + r).wrapping_sub(conv.padding.top);
                let x = (ox * conv.stride + s).wrapping_sub(conv.padding.left);
                let dst = &mut panel[i * A_STRIDE + slot * len..][..len];
                if y < self.seen.0 && x < self.seen.1 {
                    let pixel = (b * conv.height + (y >> shift)) * conv.width + (x >> shift);
                    let at = pixel * conv.in_channels + block.channels.start;
                    dst.copy_from_slice(&conv.x[at..][..len]);
                } else {
                    dst.fill(0.0);
                }
            }
        }
    }
}
