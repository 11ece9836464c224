//! Transforming inputs.

use std::ops::Range;

use super::plan::Plan;
use super::transform::{SIDE, columns, input_line};
use crate::conv::Window;
use crate::gemm::driver::SharedOut;
use crate::gemm::tile::SHORT_STRIDE;
use crate::simd::{Job, Simd};

/// Stands for every pixel of the padding.
static ZEROS: [f32; SHORT_STRIDE] = [0.0; SHORT_STRIDE];

/// A chunk of channels of some tiles.
pub(super) struct TransformInputs<'a, 'b, const M: usize> {
    pub conv: &'a Window<'b>,
    pub plan: &'a Plan<M>,
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
        let channels = self.plan.channels(self.chunk);
        let place_len = self.plan.place_len();
        let from = self.chunk * self.plan.places() * place_len;
        for tile in self.tiles.clone() {
            let pixels = self.pixels(tile, channels.clone());
            let row = from + (tile - self.first) * SHORT_STRIDE;
            for c in (0..channels.len()).step_by(S::LANES) {
                let width = S::LANES.min(channels.len() - c);
                let mut d = [[s.zero(); SIDE]; SIDE];
                for (line, pixels) in d.iter_mut().zip(&pixels).take(M + 2) {
                    for (v, &pixel) in line.iter_mut().zip(pixels).take(M + 2) {
                        // SAFETY: every pixel points to this chunk's channels, c + width <= their number.
                        *v = unsafe {
                            if width == S::LANES {
                                s.load(pixel.add(c))
                            } else {
                                s.load_partial(std::slice::from_raw_parts(pixel.add(c), width))
                            }
                        };
                    }
                }
                let half = columns!(s, input_line::<S, M>, d, [0 1 2 3 4 5], M + 2, M + 2);
                for (r, line) in half.into_iter().enumerate().take(M + 2) {
                    let line = input_line::<S, M>(s, line);
                    for (q, v) in line.into_iter().enumerate().take(M + 2) {
                        let at = row + (r * (M + 2) + q) * place_len + c;
                        // SAFETY: the tile's own row of a place; whole vectors fit, as SHORT_STRIDE is a multiple
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
        let (image, oy, ox) = self.plan.position(tile);
        let mut pixels = [[ZEROS.as_ptr(); SIDE]; SIDE];
        for (r, line) in pixels.iter_mut().enumerate().take(M + 2) {
            for (q, pixel) in line.iter_mut().enumerate().take(M + 2) {
                if let Some(at) = conv.pixel(image, oy + r, ox + q) {
                    *pixel = conv.x[at + channels.start..at + channels.end].as_ptr();
                }
            }
        }
        pixels
    }
}
