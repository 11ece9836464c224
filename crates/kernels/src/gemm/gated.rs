//! Products whose outputs come in pairs, `value * activation(gate)`: only the result is stored.
//!
//! A pair needs both of its sums whole, so a tile runs through all blocks of the inner dimension before the next
//! begins, and its sums wait in L1.

use std::ops::Range;

use rayon::prelude::*;

use super::Activation;
use super::driver::{Product, SharedOut, for_each, k_blocks, panel_vectors};
use super::few_rows::FewRows;
use super::finish::Finish;
use super::pack::{KBlock, Lhs, Weights};
use super::params::{A_PANELS, A_STRIDE, B_L3, SERIAL_WORK, TASKS_PER_THREAD, even_part, split};
use super::tile::{ALayout, TileArgs};
use crate::Isa;
use crate::scratch::Scratch;
use crate::simd::{Job, MAX_LANES, MAX_MR, Simd, map2, math};

/// Floats of the widest tile.
const TILE: usize = MAX_MR * 2 * MAX_LANES;

/// A product with `2 n` outputs of its weights and of its bias, and `n` columns of its output.
pub(crate) struct Gated<'a, L> {
    pub product: Product<'a, L>,
}

/// What all tasks of some columns share.
struct Columns<'a, 'b, L> {
    product: &'a Product<'b, L>,
    blocks: &'a [KBlock],
    /// For each panel of columns: for each block its values, then its gates.
    packed: &'a [f32],
    packed_from: usize,
}

impl<L: Lhs> Gated<'_, L> {
    /// Computes the product on the current pool.
    pub(crate) fn run(&self, isa: Isa) {
        let product = &self.product;
        let (mr, nr) = isa.tile_size();
        let threads = rayon::current_num_threads();
        let k = product.channels;
        let work = product.m.saturating_mul(product.n).saturating_mul(2 * k);
        let parallel = threads > 1 && work >= SERIAL_WORK;
        let blocks = k_blocks(k, 1);
        let n_part = even_part(product.n, B_L3 / (2 * k).max(1) / nr * nr, nr);
        let mut packed = Scratch::new(n_part * 2 * k);
        let row_panels = product.m.div_ceil(mr);
        for n0 in (0..product.n).step_by(n_part) {
            let cols = n0..product.n.min(n0 + n_part);
            let panels = cols.len().div_ceil(nr);
            if k > 0 {
                let size = 2 * k * nr;
                let pack = |(panel, dst): (usize, &mut [f32])| {
                    let start = cols.start + panel * nr;
                    isa.run(PackPairs {
                        weights: &product.weights,
                        n: product.n,
                        blocks: &blocks,
                        cols: start..cols.end.min(start + nr),
                        dst,
                    });
                };
                let used = &mut packed.as_mut_slice()[..panels * size];
                if parallel {
                    used.par_chunks_mut(size).enumerate().for_each(pack);
                } else {
                    used.chunks_mut(size).enumerate().for_each(pack);
                }
            }
            let columns = Columns {
                product,
                blocks: &blocks,
                packed: packed.as_slice(),
                packed_from: cols.start,
            };
            let wanted = if parallel {
                threads * TASKS_PER_THREAD
            } else {
                1
            };
            let row_tasks = row_panels.min(wanted);
            let col_tasks = wanted.div_ceil(row_tasks).min(panels);
            for_each(row_tasks * col_tasks, parallel, |task| {
                let own = split(panels, col_tasks, task % col_tasks);
                isa.run(Task {
                    of: &columns,
                    panels: split(row_panels, row_tasks, task / col_tasks),
                    panel_count: row_panels,
                    cols: cols.start + own.start * nr..cols.end.min(cols.start + own.end * nr),
                });
            });
        }
    }
}

struct PackPairs<'a> {
    weights: &'a Weights<'a>,
    n: usize,
    blocks: &'a [KBlock],
    cols: Range<usize>,
    dst: &'a mut [f32],
}

impl Job for PackPairs<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = panel_vectors::<S>(self.cols.len()) * S::LANES;
        let mut rest = self.dst;
        for block in self.blocks {
            let (values, after) = rest.split_at_mut(block.len() * S::NR);
            let (gates, after) = after.split_at_mut(block.len() * S::NR);
            let of = self.cols.clone();
            // One call for both, as it is inlined.
            for (from, part) in [(0, values), (self.n, gates)] {
                let cols = from + of.start..from + of.end;
                self.weights.pack(s, cols, block, width, part);
            }
            rest = after;
        }
    }
}

struct Task<'a, 'b, 'c, L> {
    of: &'a Columns<'b, 'c, L>,
    panels: Range<usize>,
    panel_count: usize,
    cols: Range<usize>,
}

impl<L: Lhs> Job for Task<'_, '_, '_, L> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Columns {
            product, blocks, ..
        } = *self.of;
        let size = S::MR * A_STRIDE;
        // As many panels of all blocks as stay in L2.
        let group = (A_PANELS / blocks.len().max(1)).max(1);
        let mut packed = Scratch::new(group * blocks.len() * size);
        for first in self.panels.clone().step_by(group) {
            let panels = first..self.panels.end.min(first + group);
            for (index, panel) in panels.clone().enumerate() {
                let rows = split(product.m, self.panel_count, panel);
                for (b, block) in blocks.iter().enumerate() {
                    if product.lhs.in_place(rows.clone(), block).is_some() {
                        continue;
                    }
                    let at = (index * blocks.len() + b) * size;
                    let dst = &mut packed.as_mut_slice()[at..at + size];
                    product.lhs.pack(rows.clone(), block, dst);
                }
            }
            for col in self.cols.clone().step_by(S::NR) {
                let cols = col..self.cols.end.min(col + S::NR);
                for (index, panel) in panels.clone().enumerate() {
                    let a = &packed.as_slice()[index * blocks.len() * size..];
                    let rows = split(product.m, self.panel_count, panel);
                    self.tile(s, rows, cols.clone(), a);
                }
            }
        }
    }
}

impl<L: Lhs> Task<'_, '_, '_, L> {
    #[inline(always)]
    fn tile<S: Simd>(&self, s: S, rows: Range<usize>, cols: Range<usize>, a: &[f32]) {
        let Columns {
            product,
            blocks,
            packed,
            packed_from,
        } = *self.of;
        let size = S::MR * A_STRIDE;
        let nv = panel_vectors::<S>(cols.len());
        let width = nv * S::LANES;
        let (mut values, mut gates) = ([0.0f32; TILE], [0.0f32; TILE]);
        let mut b = &packed[(cols.start - packed_from) * 2 * product.channels..];
        for (index, block) in blocks.iter().enumerate() {
            let k = block.len();
            let packed = &a[index * size..][..size];
            let (a, a_stride) = match product.lhs.in_place(rows.clone(), block) {
                Some(a) => a,
                None => (packed, A_STRIDE),
            };
            let a_len = match L::LAYOUT {
                ALayout::Interleaved => k * S::MR,
                ALayout::Rows => (rows.len() - 1) * a_stride + k,
            };
            for sums in [&mut values, &mut gates] {
                assert!(b.len() >= k * S::NR && a.len() >= a_len && rows.len() <= S::MR);
                // SAFETY: A holds the rows, or k columns of MR; B holds k rows of `width`
                // <= NR; `sums` holds the largest tile.
                unsafe {
                    s.tile(TileArgs {
                        mr: rows.len(),
                        nv,
                        k,
                        a_layout: L::LAYOUT,
                        a_stride,
                        a: a.as_ptr(),
                        b: b.as_ptr(),
                        c: sums.as_mut_ptr(),
                        c_stride: width,
                        accumulate: index > 0,
                    });
                }
                b = &b[k * S::NR..];
            }
        }
        let (values, gates) = (
            &mut values[..rows.len() * width],
            &mut gates[..rows.len() * width],
        );
        let finish = &product.finish;
        let place = (rows.start, cols.clone());
        add_biases(s, finish, place, width, (&mut *values, &mut *gates));
        math::activate_slice(s, finish.activation, gates);
        map2!(s, values, gates, |v, g| s.mul(v, g));
        for (row, values) in rows.zip(values.chunks_exact_mut(width)) {
            let values = &mut values[..cols.len()];
            add_residual(s, finish, row, cols.clone(), values);
            // SAFETY: rows and columns of this task, inside the output.
            let out = unsafe {
                product
                    .out
                    .part(row * product.out_stride + cols.start, cols.len())
            };
            out.copy_from_slice(values);
        }
    }
}

/// Adds the biases of rows from `first_row` on to values and gates, `width` apart.
#[inline(always)]
fn add_biases<S: Simd>(
    s: S,
    finish: &Finish<'_>,
    (first_row, cols): (usize, Range<usize>),
    width: usize,
    (values, gates): (&mut [f32], &mut [f32]),
) {
    let Some(bias) = finish.bias else { return };
    let n = finish.n / 2;
    let pairs = values
        .chunks_exact_mut(width)
        .zip(gates.chunks_exact_mut(width));
    for (row, (values, gates)) in (first_row..).zip(pairs) {
        let bias = &bias[row / finish.rows_per_bias * finish.n..][..finish.n];
        let (values, gates) = (&mut values[..cols.len()], &mut gates[..cols.len()]);
        map2!(s, values, &bias[cols.clone()], |v, b| s.add(v, b));
        map2!(s, gates, &bias[n + cols.start..n + cols.end], |v, b| s
            .add(v, b));
    }
}

#[inline(always)]
fn add_residual<S: Simd>(
    s: S,
    finish: &Finish<'_>,
    row: usize,
    cols: Range<usize>,
    values: &mut [f32],
) {
    if let Some((residual, stride)) = finish.residual {
        map2!(s, values, &residual[row * stride..][cols], |v, r| s
            .add(v, r));
    }
}

/// Few rows are computed whole, `2 n` wide, and then paired. `rows` has the outputs, the bias and the width of both,
/// and the result's place.
pub(crate) fn few_rows(isa: Isa, rows: FewRows<'_>) {
    let mut both = Scratch::new(rows.m * rows.n);
    let (out, out_stride, finish) = (rows.out, rows.out_stride, rows.finish);
    let (m, width) = (rows.m, rows.n);
    FewRows {
        out: SharedOut::new(both.as_mut_slice()),
        out_stride: width,
        finish: Finish {
            activation: Activation::None,
            residual: None,
            ..finish
        },
        ..rows
    }
    .run(isa);
    for row in 0..m {
        // SAFETY: row < m of the output, `width / 2` wide, and nobody else writes.
        let out = unsafe { out.part(row * out_stride, width / 2) };
        let pair = &mut both.as_mut_slice()[row * width..][..width];
        isa.run(Pair {
            finish,
            row,
            pair,
            out,
        });
    }
}

struct Pair<'a> {
    finish: Finish<'a>,
    row: usize,
    pair: &'a mut [f32],
    out: &'a mut [f32],
}

impl Job for Pair<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.out.len();
        let (values, gates) = self.pair.split_at_mut(n);
        math::activate_slice(s, self.finish.activation, gates);
        map2!(s, values, gates, |v, g| s.mul(v, g));
        add_residual(s, &self.finish, self.row, 0..n, values);
        self.out.copy_from_slice(values);
    }
}
