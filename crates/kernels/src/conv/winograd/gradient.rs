//! Gradient of the weights: the forward pass is linear in them, so its three transforms run backwards. Inputs and
//! the output's gradients are transformed, each place's product runs over all tiles, and only their sum is
//! transformed back: a quarter of the multiplications here too.

use std::ops::Range;

use super::inputs::TransformInputs;
use super::plan::Tiling;
use super::tile::{ROW, Tile};
use super::transform::{columns, gradient_line, row, side, square, weight_gradient_line};
use crate::Isa;
use crate::conv::Window;
use crate::gemm::driver::{SharedOut, for_each};
use crate::gemm::params::{SERIAL_WORK, split};
use crate::scratch::Scratch;
use crate::simd::{Job, MAX_LANES, Simd};

/// Floats of transformed inputs and gradients that are held at once (24 MiB).
const HELD: usize = 6 << 20;
/// Tiles of a block: their inputs (16 KiB of a panel) stay in L1.
const TILES: usize = 128;

/// Gradient of the weights of `conv`, whose own weights, output and epilogue are not used.
pub(in crate::conv) struct WeightGradient<'a, 'b> {
    pub conv: &'a Window<'b>,
    /// Gradient of the output.
    pub dy: &'a [f32],
    /// `[out_channels, in_channels, 3, 3]`
    pub dw: &'a mut [f32],
}

impl WeightGradient<'_, '_> {
    /// Floats of transformed sums.
    pub(in crate::conv) fn sums_len<const M: usize>(isa: Isa, conv: &Window<'_>) -> usize {
        let (mr, nr) = isa.tile_size();
        let padded = conv.out_channels.next_multiple_of(mr) * conv.in_channels.next_multiple_of(nr);
        padded * side(M) * side(M)
    }

    pub(in crate::conv) fn run<const M: usize>(self, isa: Isa) {
        let conv = self.conv;
        let (mr, nr) = isa.tile_size();
        let inputs = Tiling::<M>::new(conv.batch, conv.out_size, conv.in_channels, nr);
        let gradients = Tiling::<M>::new(conv.batch, conv.out_size, conv.out_channels, mr);
        let most = HELD / (inputs.tile_len() + gradients.tile_len());
        let (inputs, gradients) = (
            inputs.in_groups(most.max(1)),
            gradients.in_groups(most.max(1)),
        );
        let work = inputs.tiles * inputs.places() * conv.in_channels * conv.out_channels;
        let parallel = rayon::current_num_threads() > 1 && work >= SERIAL_WORK;
        let (mut x, mut dy) = (Scratch::new(inputs.len()), Scratch::new(gradients.len()));
        let mut sums = Scratch::new(Self::sums_len::<M>(isa, conv));
        let (panels, columns) = (
            conv.out_channels.div_ceil(mr),
            conv.in_channels.div_ceil(nr),
        );
        for group in 0..inputs.groups() {
            let tiles = inputs.group_tiles(group);
            let out = [
                SharedOut::new(x.as_mut_slice()),
                SharedOut::new(dy.as_mut_slice()),
            ];
            self.transform(isa, (&inputs, &gradients), tiles.clone(), out, parallel);
            let out = SharedOut::new(sums.as_mut_slice());
            for_each(inputs.places() * columns, parallel, |i| {
                let len = panels * mr * nr;
                isa.run(SumTiles {
                    inputs: &inputs,
                    gradients: &gradients,
                    x: x.as_slice(),
                    dy: dy.as_slice(),
                    tiles: tiles.len(),
                    place: i / columns,
                    column: i % columns,
                    out_channels: conv.out_channels,
                    // SAFETY: each place and column has its own part.
                    sums: unsafe { out.part(i * len, len) },
                    accumulate: group > 0,
                });
            });
        }
        let dw = SharedOut::new(self.dw);
        let len = conv.in_channels * 9;
        for_each(conv.out_channels, parallel, |channel| {
            isa.run(Finish::<M> {
                sums: sums.as_slice(),
                panels,
                columns,
                channel,
                in_channels: conv.in_channels,
                // SAFETY: each output channel has its own part.
                dw: unsafe { dw.part(channel * len, len) },
            });
        });
    }
}

impl WeightGradient<'_, '_> {
    /// Transforms the inputs and the output's gradients of a group of tiles.
    fn transform<const M: usize>(
        &self,
        isa: Isa,
        (inputs, gradients): (&Tiling<M>, &Tiling<M>),
        tiles: Range<usize>,
        [x, dy]: [SharedOut; 2],
        parallel: bool,
    ) {
        let runs = tiles.len().div_ceil(16);
        let chunks = inputs.chunks + gradients.chunks;
        for_each(runs * chunks, parallel, |i| {
            let part = split(tiles.len(), runs, i / chunks);
            let part = tiles.start + part.start..tiles.start + part.end;
            match (i % chunks).checked_sub(inputs.chunks) {
                None => isa.run(TransformInputs {
                    conv: self.conv,
                    tiling: inputs,
                    tiles: part,
                    first: tiles.start,
                    chunk: i % chunks,
                    out: x,
                }),
                Some(chunk) => isa.run(TransformGradients {
                    dy: self.dy,
                    tiling: gradients,
                    tiles: part,
                    first: tiles.start,
                    chunk,
                    out: dy,
                }),
            }
        });
    }
}

/// A chunk of output channels of some tiles.
struct TransformGradients<'a, const M: usize> {
    dy: &'a [f32],
    tiling: &'a Tiling<M>,
    tiles: Range<usize>,
    /// First tile of the group.
    first: usize,
    chunk: usize,
    out: SharedOut,
}

impl<const M: usize> Job for TransformGradients<'_, M> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let tiling = self.tiling;
        let channels = tiling.channels(self.chunk);
        let place_len = tiling.place_len();
        let from = self.chunk * tiling.places() * place_len;
        let (oh, ow) = tiling.out_size;
        for tile in self.tiles.clone() {
            let (image, oy, ox) = tiling.position(tile);
            let pixel = (image * oh + oy) * ow + ox;
            let first = from + (tile - self.first) * ROW;
            for c in (0..channels.len()).step_by(S::LANES) {
                let width = S::LANES.min(channels.len() - c);
                let y = square!(|r, q| if r < M && q < M && oy + r < oh && ox + q < ow {
                    let at = (pixel + r * ow + q) * tiling.all_channels() + channels.start + c;
                    s.load_some(&self.dy[at..][..width])
                } else {
                    s.zero()
                });
                let half = columns!(s, gradient_line::<S, M>, y, [0 1 2 3]);
                for r in 0..side(M) {
                    let [a, b, c2, d, ..] = row(&half, r);
                    let line = gradient_line::<S, M>(s, [a, b, c2, d]);
                    for (q, &v) in line.iter().enumerate().take(side(M)) {
                        let at = first + (r * side(M) + q) * place_len + c;
                        // SAFETY: the tile's own row of a place; whole vectors fit, as ROW is a multiple of every
                        // LANES.
                        unsafe { s.store(self.out.at(at), v) };
                    }
                }
            }
        }
    }
}

/// Products of one place and a panel of input channels over the tiles of a group, for all output channels.
struct SumTiles<'a, const M: usize> {
    inputs: &'a Tiling<M>,
    gradients: &'a Tiling<M>,
    x: &'a [f32],
    dy: &'a [f32],
    tiles: usize,
    place: usize,
    column: usize,
    out_channels: usize,
    /// `[panel, MR, NR]`
    sums: &'a mut [f32],
    accumulate: bool,
}

impl<const M: usize> Job for SumTiles<'_, M> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let at = |tiling: &Tiling<M>, channel: usize| {
            let chunk = channel / tiling.chunk;
            let place = chunk * tiling.places() + self.place;
            place * tiling.place_len() + channel % tiling.chunk
        };
        let b = &self.x[at(self.inputs, self.column * S::NR)..];
        for from in (0..self.tiles).step_by(TILES) {
            let k = TILES.min(self.tiles - from);
            for (panel, c) in self.sums.chunks_exact_mut(S::MR * S::NR).enumerate() {
                let channel = panel * S::MR;
                let rows = S::MR.min(self.out_channels - channel);
                let a = &self.dy[at(self.gradients, channel)..];
                let last = (from + k - 1) * ROW;
                assert!(a.len() >= last + rows && b.len() >= last + S::NR);
                // SAFETY: the last rows of A and B were checked to be there; C is a whole tile.
                unsafe {
                    Tile {
                        rows,
                        k,
                        a: a.as_ptr().add(from * ROW),
                        b: b.as_ptr().add(from * ROW),
                        c: c.as_mut_ptr(),
                        accumulate: self.accumulate || from > 0,
                        next: a.as_ptr(),
                    }
                    .run::<S, true>(s);
                }
            }
        }
    }
}

/// Transforms the sums of an output channel back.
struct Finish<'a, const M: usize> {
    /// `[place, column, panel, MR, NR]`
    sums: &'a [f32],
    panels: usize,
    columns: usize,
    channel: usize,
    in_channels: usize,
    dw: &'a mut [f32],
}

impl<const M: usize> Job for Finish<'_, M> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let tile = S::MR * S::NR;
        let place_len = self.columns * self.panels * tile;
        let mut taps = [0.0f32; 9 * MAX_LANES];
        for c in (0..self.in_channels).step_by(S::LANES) {
            let (column, lane) = (c / S::NR, c % S::NR);
            let panel = column * self.panels + self.channel / S::MR;
            let first = panel * tile + self.channel % S::MR * S::NR + lane;
            let u = square!(|r, q| if r < side(M) && q < side(M) {
                s.load_slice(&self.sums[(r * side(M) + q) * place_len + first..])
            } else {
                s.zero()
            });
            let half = columns!(s, weight_gradient_line::<S, M>, u, [0 1 2 3 4 5]);
            for r in 0..3 {
                let line = weight_gradient_line::<S, M>(s, row(&half, r));
                for (q, &v) in line.iter().enumerate() {
                    s.store_slice(&mut taps[(r * 3 + q) * S::LANES..], v);
                }
            }
            let width = S::LANES.min(self.in_channels - c);
            let out = self.dw[c * 9..][..width * 9].chunks_exact_mut(9);
            for (i, out) in out.enumerate() {
                for (tap, v) in out.iter_mut().enumerate() {
                    *v = taps[tap * S::LANES + i];
                }
            }
        }
    }
}
