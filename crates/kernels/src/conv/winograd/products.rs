//! Products at each place, and the way back to pixels.

use std::ops::Range;

use super::plan::{PAD, Plan};
use super::tile::{ROW, Tile};
use super::transform::{columns, output_line, row, side, square};
use super::weights::{Ahead, TransformWeights, place_len, weight_len};
use crate::Activation;
use crate::conv::Window;
use crate::gemm::params::split;
use crate::scratch::Scratch;
use crate::simd::{Job, Simd, math};

/// Where transformed weights come from.
#[derive(Debug, Clone, Copy)]
pub(super) enum WeightSource<'a> {
    /// All of them, as `[panel, chunk]`.
    Held(&'a [f32]),
    /// They are transformed here.
    Stored,
}

/// A panel of output channels of some tiles.
pub(super) struct Products<'a, 'b, const M: usize> {
    pub conv: &'a Window<'b>,
    pub plan: &'a Plan<M>,
    /// Transformed inputs of the group.
    pub inputs: &'a [f32],
    pub group: Range<usize>,
    pub tiles: Range<usize>,
    pub column: usize,
    pub weights: WeightSource<'a>,
}

impl<const M: usize> Job for Products<'_, '_, M> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let plan = self.plan;
        let len = weight_len::<M>(plan.inputs.chunk, S::NR);
        let mut own = match self.weights {
            WeightSource::Held(_) => Scratch::new(0),
            WeightSource::Stored => Scratch::new(len),
        };
        let mut products = Scratch::new(plan.inputs.places() * self.place_products::<S>());
        for chunk in 0..plan.inputs.chunks {
            let weights = match self.weights {
                WeightSource::Held(all) => {
                    &all[(self.column * plan.inputs.chunks + chunk) * len..][..len]
                }
                WeightSource::Stored => {
                    TransformWeights::<M> {
                        conv: self.conv,
                        cols: plan.cols(self.column),
                        channels: plan.inputs.channels(chunk),
                        parity: plan.inputs.parity(chunk),
                        chunk: plan.inputs.chunk,
                        part: own.as_mut_slice(),
                    }
                    .run(s);
                    own.as_slice()
                }
            };
            self.multiply(s, chunk, weights, products.as_mut_slice());
        }
        for tile in self.tiles.clone() {
            self.write_tile(s, tile, products.as_slice());
        }
    }
}

impl<const M: usize> Products<'_, '_, M> {
    /// The weights that will be transformed after those of `chunk`.
    fn ahead(&self, chunk: usize) -> Option<Ahead> {
        let plan = self.plan;
        let (column, chunk) = match chunk + 1 < plan.inputs.chunks {
            true => (self.column, chunk + 1),
            false => (self.column + 1, 0),
        };
        let stored = matches!(self.weights, WeightSource::Stored);
        (stored && column < plan.columns)
            .then(|| Ahead::new(self.conv, plan.cols(column), plan.inputs.channels(chunk)))
    }

    /// Floats from one place's products to the next's; each place's are `[tile, NR]`.
    #[inline(always)]
    fn place_products<S: Simd>(&self) -> usize {
        self.tiles.len() * S::NR + PAD
    }

    #[inline(always)]
    fn multiply<S: Simd>(&self, s: S, chunk: usize, weights: &[f32], products: &mut [f32]) {
        let plan = self.plan;
        let k = plan.inputs.channels(chunk).len();
        let panels = self.tiles.len().div_ceil(S::MR);
        let first = self.tiles.start - self.group.start;
        let ahead = self.ahead(chunk);
        let mut pixels = (chunk + 1 == plan.inputs.chunks).then(|| PixelsAhead::new(self));
        for place in 0..plan.inputs.places() {
            let b = &weights[place * place_len(plan.inputs.chunk, S::NR)..][..k * S::NR];
            let inputs =
                &self.inputs[(chunk * plan.inputs.places() + place) * plan.inputs.place_len()..];
            let products = &mut products[place * self.place_products::<S>()..];
            for panel in 0..panels {
                let rows = split(self.tiles.len(), panels, panel);
                let a = &inputs[(first + rows.start) * ROW..][..rows.len() * ROW];
                let c = &mut products[rows.start * S::NR..][..rows.len() * S::NR];
                if let Some(ahead) = &ahead {
                    ahead.fetch(s, place * panels + panel, plan.inputs.places() * panels);
                }
                if let Some(pixels) = &mut pixels {
                    pixels.fetch(s, place * panels + panel + 1, plan.inputs.places() * panels);
                }
                // SAFETY: A holds as many rows of ROW >= k as the panel has tiles, at most MR; B holds k
                // rows of NR; C as many rows of NR as A.
                unsafe {
                    Tile {
                        rows: rows.len(),
                        k,
                        a: a.as_ptr(),
                        b: b.as_ptr(),
                        c: c.as_mut_ptr(),
                        accumulate: chunk > 0,
                        next: a.as_ptr().wrapping_add(a.len()),
                    }
                    .run::<S, false>(s);
                }
            }
        }
    }

    /// Transforms the products of one tile back and finishes its pixels.
    #[inline(always)]
    fn write_tile<S: Simd>(&self, s: S, tile: usize, products: &[f32]) {
        let (image, oy, ox) = self.plan.inputs.position(tile);
        let (oh, ow) = self.plan.inputs.out_size;
        let cols = self.plan.cols(self.column);
        let (tile_row, len) = (tile - self.tiles.start, self.place_products::<S>());
        let finish = &self.conv.finish;
        let (first, [down, right]) = self.conv.out_pixel(image, oy, ox);
        let bias = finish
            .bias
            .map(|b| &b[first / finish.rows_per_bias * finish.n..][..finish.n]);
        for lane in (0..cols.len()).step_by(S::LANES) {
            let width = S::LANES.min(cols.len() - lane);
            let channel = cols.start + lane;
            let bias = bias.map_or(s.zero(), |b| s.load_some(&b[channel..][..width]));
            let m = square!(|r, q| if r < side(M) && q < side(M) {
                let at = (r * side(M) + q) * len + tile_row * S::NR + lane;
                s.load_slice(&products[at..])
            } else {
                s.zero()
            });
            let half = columns!(s, output_line::<S, M>, m, [0 1 2 3 4 5]);
            for r in 0..M {
                let line = output_line::<S, M>(s, row(&half, r));
                for (q, &v) in line.iter().enumerate().take(M) {
                    if oy + r < oh && ox + q < ow {
                        let v = s.add(v, bias);
                        self.finish(s, first + r * down + q * right, channel, width, v);
                    }
                }
            }
        }
    }

    /// Activation and residual of up to `LANES` channels of a pixel.
    #[inline(always)]
    fn finish<S: Simd>(&self, s: S, pixel: usize, channel: usize, width: usize, v: S::V) {
        let finish = &self.conv.finish;
        let mut v = v;
        if finish.activation != Activation::None {
            v = math::activate(s, finish.activation, v);
        }
        if let Some((residual, stride)) = finish.residual {
            let residual = &residual[pixel * stride + channel..][..width];
            v = s.add(v, s.load_some(residual));
        }
        // SAFETY: these channels of this pixel belong to this task alone.
        let out = unsafe { self.conv.out.part(pixel * finish.n + channel, width) };
        if width == S::LANES {
            s.store_slice(out, v);
        } else {
            s.store_partial(out, v);
        }
    }
}

/// The output's pixels that will be written (and the residual's that will be read), fetched into cache little by little.
struct PixelsAhead<'a, 'b, const M: usize> {
    products: &'a Products<'a, 'b, M>,
    cols: Range<usize>,
    tile: usize,
    /// Line of the tile.
    line: usize,
    /// Lines fetched.
    done: usize,
}

impl<'a, 'b, const M: usize> PixelsAhead<'a, 'b, M> {
    fn new(products: &'a Products<'a, 'b, M>) -> Self {
        Self {
            products,
            cols: products.plan.cols(products.column),
            tile: products.tiles.start,
            line: 0,
            done: 0,
        }
    }

    /// What is missing of the first `step` of `steps` parts.
    #[inline(always)]
    fn fetch<S: Simd>(&mut self, s: S, step: usize, steps: usize) {
        let Products {
            conv, plan, tiles, ..
        } = self.products;
        let wanted = tiles.len() * M * step / steps;
        while self.done < wanted {
            let (image, oy, ox) = plan.inputs.position(self.tile);
            let (first, [_, right]) = conv.out_pixel(image, oy + self.line, ox);
            for pixel in 0..M {
                let at = (first + pixel * right) * conv.out_channels + self.cols.start;
                for c in (0..self.cols.len()).step_by(16) {
                    s.prefetch(conv.out.start().wrapping_add(at + c));
                    if let Some((residual, _)) = conv.finish.residual {
                        s.prefetch(residual.as_ptr().wrapping_add(at + c));
                    }
                }
            }
            self.line += 1;
            if self.line == M {
                (self.line, self.tile) = (0, self.tile + 1);
            }
            self.done += 1;
        }
    }
}
