//! Transforming inputs.

use std::ops::Range;

use super::plan::Tiling;
use super::tile::ROW;
use super::transform::{SIDE, columns, input_line, row, side, square};
use crate::conv::Window;
use crate::gemm::driver::SharedOut;
use crate::simd::{Job, Simd};

/// Stands for every pixel of the padding.
static ZEROS: [f32; ROW] = [0.0; ROW];

/// A chunk of channels of some tiles.
pub(super) struct TransformInputs<'a, 'b, const M: usize> {
    pub conv: &'a Window<'b>,
    pub tiling: &'a Tiling<M>,
    pub tiles: Range<usize>,
    /// First tile of the group.
    pub first: usize,
    pub chunk: usize,
    /// Inputs of the group.
    pub out: SharedOut,
}

impl<const M: usize> Job for TransformInputs<'_, '_, M> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let channels = self.tiling.channels(self.chunk);
        let place_len = self.tiling.place_len();
        let from = self.chunk * self.tiling.places() * place_len;
        let mut next = self.pixels(self.tiles.start, channels.clone());
        for tile in self.tiles.clone() {
            let pixels = next;
            if tile + 1 < self.tiles.end {
                next = self.pixels(tile + 1, channels.clone());
            }
            let first = from + (tile - self.first) * ROW;
            for c in (0..channels.len()).step_by(S::LANES) {
                let width = S::LANES.min(channels.len() - c);
                for line in &next[..side(M)] {
                    for &pixel in &line[side(M) - M..side(M)] {
                        s.prefetch(pixel.wrapping_add(c));
                    }
                }
                let d = square!(|r, q| if r < side(M) && q < side(M) {
                    let pixel = pixels[r][q].wrapping_add(c);
                    // SAFETY: every pixel points to this chunk's channels, c + width <= their number.
                    unsafe {
                        if width == S::LANES {
                            s.load(pixel)
                        } else {
                            s.load_partial(std::slice::from_raw_parts(pixel, width))
                        }
                    }
                } else {
                    s.zero()
                });
                let half = columns!(s, input_line::<S, M>, d, [0 1 2 3 4 5]);
                for r in 0..side(M) {
                    let line = input_line::<S, M>(s, row(&half, r));
                    for (q, &v) in line.iter().enumerate().take(side(M)) {
                        let at = first + (r * side(M) + q) * place_len + c;
                        // SAFETY: the tile's own row of a place; whole vectors fit, as ROW is a multiple
                        // of every LANES.
                        unsafe { s.store(self.out.at(at), v) };
                    }
                }
            }
        }
    }
}

impl<const M: usize> TransformInputs<'_, '_, M> {
    /// Where the channels of each pixel of a tile's input begin.
    #[inline(always)]
    fn pixels(&self, tile: usize, channels: Range<usize>) -> [[*const f32; SIDE]; SIDE] {
        let conv = self.conv;
        let (image, oy, ox) = self.tiling.position(tile);
        let parity = self.tiling.parity(self.chunk);
        let mut pixels = [[ZEROS.as_ptr(); SIDE]; SIDE];
        for (r, line) in pixels.iter_mut().enumerate().take(side(M)) {
            for (q, pixel) in line.iter_mut().enumerate().take(side(M)) {
                if let Some(at) = conv.tile_pixel(parity, image, oy + r, ox + q) {
                    *pixel = conv.x[at + channels.start..at + channels.end].as_ptr();
                }
            }
        }
        pixels
    }
}
