//! Winograd convolution: 3x3, stride 1. Tiles of M x M outputs are products over channels at each of the (M + 2)²
//! places of the transformed tile.
//!
//! Tiles are taken in blocks. A block's inputs are transformed once and shared; then each task takes a panel of
//! output channels and goes through the input channels in chunks, transforming the weights of a chunk into its own
//! cache just before they are used, so that transformed weights are never stored whole.

use std::ops::Range;

use super::Window;
use super::transform::{SIDE, columns, input_line, output_line, weight_line};
use crate::gemm::driver::{SharedOut, for_each};
use crate::gemm::finish::Finish;
use crate::gemm::pack::{KBlock, Weights};
use crate::gemm::params::{SERIAL_WORK, even_part, split};
use crate::gemm::tile::{ALayout, SHORT_STRIDE, TileArgs};
use crate::scratch::Scratch;
use crate::simd::{Job, Simd};
use crate::{Isa, RhsLayout};

/// Channels of a chunk.
const CHUNK: usize = SHORT_STRIDE;
/// Tiles of a block, so that a task's products stay in L2 (36 places, 32 channels: 4.5 KiB a tile).
const BLOCK_TILES: usize = 126;
/// Floats of transformed inputs held at once (24 MiB).
const HELD: usize = 6 << 20;

pub(super) fn run<const M: usize>(isa: Isa, conv: &Window<'_>) {
    let out = conv.out;
    let (mr, nr) = isa.tile_size();
    let plan = Plan::<M>::new(conv, mr);
    let work = plan
        .tiles
        .saturating_mul(conv.in_channels * conv.out_channels);
    let threads = rayon::current_num_threads();
    let parallel = threads > 1 && work * plan.places() >= SERIAL_WORK;
    // Several blocks at once when there are too few panels of channels to go round.
    let column_panels = conv.out_channels.div_ceil(nr);
    let wanted = if parallel {
        (threads * 4).div_ceil(column_panels)
    } else {
        1
    };
    let group = wanted.min(HELD / plan.block_len()).clamp(1, plan.blocks);
    let mut inputs = Scratch::new(group * plan.block_len());
    for first in (0..plan.blocks).step_by(group) {
        let blocks = first..plan.blocks.min(first + group);
        let shared = SharedOut::new(inputs.as_mut_slice());
        let per_block = plan.panels * plan.chunks;
        for_each(blocks.len() * per_block, parallel, |i| {
            let (block, panel, chunk) =
                (i / per_block, i % per_block / plan.chunks, i % plan.chunks);
            // SAFETY: each (block, panel, chunk) has its own part.
            let part = unsafe {
                let at =
                    block * plan.block_len() + (chunk * plan.panels + panel) * plan.panel_len();
                shared.part(at, plan.panel_len())
            };
            let tiles = plan.panel_tiles(blocks.start + block, panel);
            isa.run(TransformInputs {
                conv,
                plan: &plan,
                tiles,
                chunk,
                part,
            });
        });
        let inputs = inputs.as_slice();
        for_each(blocks.len() * column_panels, parallel, |i| {
            let (block, column) = (i / column_panels, i % column_panels);
            isa.run(Columns {
                conv,
                plan: &plan,
                finish: conv.finish,
                inputs: &inputs[block * plan.block_len()..][..plan.block_len()],
                block: blocks.start + block,
                cols: column * nr..conv.out_channels.min((column + 1) * nr),
                out,
            });
        });
    }
}

/// Sizes. Transformed inputs of a block lie as `[chunk, panel, place, MR tiles, CHUNK channels]`.
struct Plan<const M: usize> {
    out_size: (usize, usize),
    /// Tiles down and across an image.
    grid: (usize, usize),
    tiles: usize,
    blocks: usize,
    /// Panels of the largest block.
    panels: usize,
    chunks: usize,
    mr: usize,
    in_channels: usize,
}

impl<const M: usize> Plan<M> {
    fn new(conv: &Window<'_>, mr: usize) -> Self {
        let out_size = conv.out_size;
        let grid = (out_size.0.div_ceil(M), out_size.1.div_ceil(M));
        let tiles = conv.batch * grid.0 * grid.1;
        let chunks = conv.in_channels.div_ceil(CHUNK);
        let held = HELD / ((M + 2) * (M + 2) * chunks * CHUNK * mr);
        let most = (BLOCK_TILES / mr).min(held).max(1) * mr;
        let blocks = tiles.div_ceil(even_part(tiles, most, 1));
        let panels = tiles.div_ceil(blocks).div_ceil(mr);
        Self {
            out_size,
            grid,
            tiles,
            blocks,
            panels,
            chunks,
            mr,
            in_channels: conv.in_channels,
        }
    }

    fn places(&self) -> usize {
        (M + 2) * (M + 2)
    }

    fn panel_len(&self) -> usize {
        self.places() * self.mr * CHUNK
    }

    fn block_len(&self) -> usize {
        self.chunks * self.panels * self.panel_len()
    }

    fn block_tiles(&self, block: usize) -> Range<usize> {
        split(self.tiles, self.blocks, block)
    }

    /// Tiles of a panel; none when the block is smaller than the largest.
    fn panel_tiles(&self, block: usize, panel: usize) -> Range<usize> {
        let tiles = self.block_tiles(block);
        let panels = tiles.len().div_ceil(self.mr);
        if panel >= panels {
            return 0..0;
        }
        let part = split(tiles.len(), panels, panel);
        tiles.start + part.start..tiles.start + part.end
    }

    /// Image, first output row and first output column of a tile.
    fn place(&self, tile: usize) -> (usize, usize, usize) {
        let (line, across) = (tile / self.grid.1, tile % self.grid.1);
        (line / self.grid.0, line % self.grid.0 * M, across * M)
    }

    fn channels(&self, chunk: usize) -> Range<usize> {
        chunk * CHUNK..self.in_channels.min((chunk + 1) * CHUNK)
    }
}

struct TransformInputs<'a, 'b, const M: usize> {
    conv: &'a Window<'b>,
    plan: &'a Plan<M>,
    tiles: Range<usize>,
    chunk: usize,
    part: &'a mut [f32],
}

impl<const M: usize> Job for TransformInputs<'_, '_, M> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let channels = self.plan.channels(self.chunk);
        for (row, tile) in self.tiles.clone().enumerate() {
            let pixels = self.pixels(tile);
            for c in (0..channels.len()).step_by(S::LANES) {
                let from = channels.start + c;
                let width = S::LANES.min(channels.end - from);
                let mut d = [[s.zero(); SIDE]; SIDE];
                for (line, pixels) in d.iter_mut().zip(&pixels) {
                    for (v, &pixel) in line.iter_mut().zip(pixels) {
                        if pixel != usize::MAX {
                            let x = &self.conv.x[pixel + from..][..width];
                            *v = if width == S::LANES {
                                s.load_slice(x)
                            } else {
                                s.load_partial(x)
                            };
                        }
                    }
                }
                let half = columns!(s, input_line::<S, M>, d, [0 1 2 3 4 5], M + 2, M + 2);
                for (r, line) in half.into_iter().enumerate().take(M + 2) {
                    for (q, v) in input_line::<S, M>(s, line)
                        .into_iter()
                        .enumerate()
                        .take(M + 2)
                    {
                        // Whole vectors fit: CHUNK is a multiple of every LANES.
                        let at = ((r * (M + 2) + q) * self.plan.mr + row) * CHUNK + c;
                        s.store_slice(&mut self.part[at..], v);
                    }
                }
            }
        }
    }
}

impl<const M: usize> TransformInputs<'_, '_, M> {
    /// Offset of each pixel of a tile's input; `usize::MAX` in the padding.
    #[inline(always)]
    fn pixels(&self, tile: usize) -> [[usize; SIDE]; SIDE] {
        let conv = self.conv;
        let (image, oy, ox) = self.plan.place(tile);
        let mut pixels = [[usize::MAX; SIDE]; SIDE];
        for (r, line) in pixels.iter_mut().enumerate().take(M + 2) {
            for (q, pixel) in line.iter_mut().enumerate().take(M + 2) {
                *pixel = conv.pixel(image, oy + r, ox + q).unwrap_or(usize::MAX);
            }
        }
        pixels
    }
}

/// A panel of output channels over a block of tiles.
struct Columns<'a, 'b, const M: usize> {
    conv: &'a Window<'b>,
    plan: &'a Plan<M>,
    finish: Finish<'a>,
    inputs: &'a [f32],
    block: usize,
    cols: Range<usize>,
    out: SharedOut,
}

impl<const M: usize> Job for Columns<'_, '_, M> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let places = self.plan.places();
        let tiles = self.plan.block_tiles(self.block);
        let mut weights = Scratch::new(places * CHUNK * S::NR);
        let mut taps = Scratch::new(9 * CHUNK * S::NR);
        let mut products = Scratch::new(places * tiles.len() * S::NR);
        for chunk in 0..self.plan.chunks {
            let k = self.plan.channels(chunk).len();
            self.transform_weights(s, chunk, taps.as_mut_slice(), weights.as_mut_slice());
            for place in 0..places {
                let b = &weights.as_slice()[place * CHUNK * S::NR..][..k * S::NR];
                for panel in 0..self.plan.panels {
                    let rows = self.plan.panel_tiles(self.block, panel);
                    if rows.is_empty() {
                        continue;
                    }
                    let panel_at = (chunk * self.plan.panels + panel) * self.plan.panel_len();
                    let a = &self.inputs[panel_at + place * S::MR * CHUNK..][..S::MR * CHUNK];
                    let at = (place * tiles.len() + rows.start - tiles.start) * S::NR;
                    let c = &mut products.as_mut_slice()[at..][..rows.len() * S::NR];
                    // SAFETY: A holds MR rows of CHUNK >= k; B holds k rows of NR; C as many rows of NR as the
                    // panel has tiles, which are at most MR.
                    unsafe {
                        s.tile(TileArgs {
                            mr: rows.len(),
                            nv: S::NV,
                            k,
                            a_layout: ALayout::ShortRows,
                            a: a.as_ptr(),
                            b: b.as_ptr(),
                            c: c.as_mut_ptr(),
                            c_stride: S::NR,
                            accumulate: chunk > 0,
                        });
                    }
                }
            }
        }
        for (row, tile) in tiles.clone().enumerate() {
            self.write_tile(s, tile, row, tiles.len(), products.as_slice());
        }
    }
}

impl<const M: usize> Columns<'_, '_, M> {
    /// Weights of a chunk as `[place, channel, NR]`.
    #[inline(always)]
    fn transform_weights<S: Simd>(&self, s: S, chunk: usize, taps: &mut [f32], dst: &mut [f32]) {
        let channels = self.plan.channels(chunk);
        let k = channels.len();
        let weights = Weights {
            data: self.conv.weight,
            offset: 0,
            layout: RhsLayout::RowsAreOutputs,
            row_stride: self.conv.in_channels * 9,
            taps: 9,
        };
        weights.pack(
            s,
            self.cols.clone(),
            &KBlock {
                channels,
                taps: 0..9,
            },
            S::NR,
            taps,
        );
        for c in 0..k {
            for lane in (0..S::NR).step_by(S::LANES) {
                let mut g = [[s.zero(); 3]; 3];
                for (r, line) in g.iter_mut().enumerate() {
                    for (q, v) in line.iter_mut().enumerate() {
                        *v = s.load_slice(&taps[((r * 3 + q) * k + c) * S::NR + lane..]);
                    }
                }
                let half = columns!(s, weight_line::<S, M>, g, [0 1 2], 3, M + 2);
                for (r, line) in half.into_iter().enumerate().take(M + 2) {
                    for (q, v) in weight_line::<S, M>(s, [line[0], line[1], line[2]])
                        .into_iter()
                        .enumerate()
                        .take(M + 2)
                    {
                        let place = r * (M + 2) + q;
                        s.store_slice(&mut dst[(place * CHUNK + c) * S::NR + lane..], v);
                    }
                }
            }
        }
    }

    /// Transforms the products of one tile back and finishes its pixels.
    #[inline(always)]
    fn write_tile<S: Simd>(&self, s: S, tile: usize, row: usize, tiles: usize, products: &[f32]) {
        let (image, oy, ox) = self.plan.place(tile);
        let (oh, ow) = self.plan.out_size;
        let n = self.conv.out_channels;
        let mut pixels = [[[0.0f32; 2 * crate::simd::MAX_LANES]; 4]; 4];
        for lane in (0..self.cols.len()).step_by(S::LANES) {
            let mut m = [[s.zero(); SIDE]; SIDE];
            for (r, line) in m.iter_mut().enumerate().take(M + 2) {
                for (q, v) in line.iter_mut().enumerate().take(M + 2) {
                    let place = r * (M + 2) + q;
                    *v = s.load_slice(&products[(place * tiles + row) * S::NR + lane..]);
                }
            }
            let half = columns!(s, output_line::<S, M>, m, [0 1 2 3 4 5], M + 2, M);
            for (r, line) in half.into_iter().enumerate().take(M) {
                for (q, v) in output_line::<S, M>(s, line).into_iter().enumerate().take(M) {
                    s.store_slice(&mut pixels[r][q][lane..], v);
                }
            }
        }
        for (r, line) in pixels.iter().enumerate().take(M.min(oh - oy)) {
            for (q, pixel) in line.iter().enumerate().take(M.min(ow - ox)) {
                let at = (image * oh + oy + r) * ow + ox + q;
                // SAFETY: these channels of this pixel belong to this task alone.
                let out = unsafe { self.out.part(at * n + self.cols.start, self.cols.len()) };
                out.copy_from_slice(&pixel[..self.cols.len()]);
                self.finish.apply(s, at, self.cols.clone(), out);
            }
        }
    }
}
