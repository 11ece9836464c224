//! The loops around the tile: blocks of columns and of the inner dimension whose right-hand side is packed once
//! and shared, then tasks of rows and columns for the threads.

use std::ops::Range;

use rayon::prelude::*;

use super::finish::Finish;
use super::pack::{KBlock, Lhs, Weights};
use super::params::{
    A_PANELS, A_STRIDE, B_L2, B_L3, KC, LINE, SERIAL_WORK, TASKS_PER_THREAD, even_part, split,
};
use super::tile::{ALayout, TileArgs};
use crate::Isa;
use crate::scratch::Scratch;
use crate::simd::{Job, Simd};

/// An output that several tasks write, each its own part.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SharedOut(*mut f32);

// SAFETY: tasks write disjoint rows or columns, and the owner's borrow outlives them.
unsafe impl Send for SharedOut {}
// SAFETY: as above.
unsafe impl Sync for SharedOut {}

impl SharedOut {
    pub(crate) fn new(out: &mut [f32]) -> Self {
        Self(out.as_mut_ptr())
    }

    /// Address of the first element.
    pub(crate) fn start(self) -> *const f32 {
        self.0
    }

    /// Address of element `at`.
    ///
    /// # Safety
    /// `at` is inside the slice this was made of, or at its end.
    #[inline(always)]
    pub(crate) unsafe fn at(self, at: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(at) }
    }

    /// The same output from element `at` on.
    ///
    /// # Safety
    /// As [`SharedOut::at`].
    pub(crate) unsafe fn from(self, at: usize) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { self.at(at) })
    }

    /// # Safety
    /// `at..at + len` is inside the slice this was made of, and nobody else uses it meanwhile.
    #[inline(always)]
    pub(crate) unsafe fn part<'a>(self, at: usize, len: usize) -> &'a mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(at), len) }
    }
}

/// One product: `m` rows of `lhs` times `n` outputs of `weights`.
pub(crate) struct Product<'a, L> {
    pub m: usize,
    pub n: usize,
    pub channels: usize,
    pub lhs: L,
    pub weights: Weights<'a>,
    /// Row `i` is at `i * out_stride`, `n` long; rows do not overlap.
    pub out: SharedOut,
    pub out_stride: usize,
    pub finish: Finish<'a>,
}

/// Calls `f` for `0..count`, on the pool's threads when `parallel`.
pub(crate) fn for_each(count: usize, parallel: bool, f: impl Fn(usize) + Sync + Send) {
    if parallel && count > 1 {
        (0..count).into_par_iter().with_max_len(1).for_each(f);
    } else {
        (0..count).for_each(f);
    }
}

/// The blocks of the inner dimension.
pub(crate) fn k_blocks(channels: usize, taps: usize) -> Vec<KBlock> {
    if taps > KC {
        let part = even_part(taps, KC, 1);
        return (0..channels)
            .flat_map(|c| (0..taps).step_by(part).map(move |t| (c, t)))
            .map(|(c, t)| KBlock {
                channels: c..c + 1,
                taps: t..taps.min(t + part),
            })
            .collect();
    }
    let most = KC / taps;
    let unit = if most >= 16 { 16 } else { 1 };
    let part = even_part(channels, most / unit * unit, unit);
    (0..channels)
        .step_by(part)
        .map(|c| KBlock {
            channels: c..channels.min(c + part),
            taps: 0..taps,
        })
        .collect()
}

impl<L: Lhs> Product<'_, L> {
    /// Computes the product on the current pool.
    pub(crate) fn run(&self, isa: Isa) {
        let (mr, nr) = isa.tile_size();
        let threads = rayon::current_num_threads();
        let k = self.channels * self.weights.taps;
        let work = self.m.saturating_mul(self.n).saturating_mul(k);
        let parallel = threads > 1 && work >= SERIAL_WORK;
        let blocks = k_blocks(self.channels, self.weights.taps);
        if blocks.is_empty() {
            return isa.run(FinishOnly { product: self });
        }
        let longest = blocks.iter().map(KBlock::len).max().unwrap_or(0);
        let n_part = even_part(self.n, B_L3 / longest / nr * nr, nr);
        let mut packed = Scratch::new(n_part * longest);
        let panels = self.m.div_ceil(mr);
        for n0 in (0..self.n).step_by(n_part) {
            let cols = n0..self.n.min(n0 + n_part);
            for (index, block) in blocks.iter().enumerate() {
                self.pack_columns(
                    isa,
                    nr,
                    cols.clone(),
                    block,
                    packed.as_mut_slice(),
                    parallel,
                );
                let wanted = if parallel {
                    threads * TASKS_PER_THREAD
                } else {
                    1
                };
                let row_tasks = panels.min(wanted);
                let col_tasks = wanted.div_ceil(row_tasks).min(cols.len().div_ceil(nr));
                for_each(row_tasks * col_tasks, parallel, |task| {
                    let own = split(cols.len().div_ceil(nr), col_tasks, task % col_tasks);
                    isa.run(Task {
                        product: self,
                        packed: packed.as_slice(),
                        packed_from: cols.start,
                        panels: split(panels, row_tasks, task / col_tasks),
                        panel_count: panels,
                        cols: cols.start + own.start * nr..cols.end.min(cols.start + own.end * nr),
                        block,
                        first: index == 0,
                        last: index + 1 == blocks.len(),
                    });
                });
            }
        }
    }

    fn pack_columns(
        &self,
        isa: Isa,
        nr: usize,
        cols: Range<usize>,
        block: &KBlock,
        packed: &mut [f32],
        parallel: bool,
    ) {
        let size = block.len() * nr;
        let pack = |(panel, dst): (usize, &mut [f32])| {
            let start = cols.start + panel * nr;
            let cols = start..cols.end.min(start + nr);
            isa.run(PackColumns {
                weights: &self.weights,
                cols,
                block,
                dst,
            });
        };
        let used = &mut packed[..cols.len().div_ceil(nr) * size];
        if parallel {
            used.par_chunks_mut(size).enumerate().for_each(pack);
        } else {
            used.chunks_mut(size).enumerate().for_each(pack);
        }
    }
}

/// Columns of a panel as it is packed: one vector is enough for a narrow last panel.
#[inline(always)]
pub(crate) fn panel_vectors<S: Simd>(cols: usize) -> usize {
    if cols <= S::LANES { 1 } else { S::NV }
}

struct PackColumns<'a> {
    weights: &'a Weights<'a>,
    cols: Range<usize>,
    block: &'a KBlock,
    dst: &'a mut [f32],
}

impl Job for PackColumns<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = panel_vectors::<S>(self.cols.len()) * S::LANES;
        self.weights.pack(s, self.cols, self.block, width, self.dst);
    }
}

/// With no inner dimension the product is zero.
struct FinishOnly<'a, 'b, L> {
    product: &'a Product<'b, L>,
}

impl<L: Lhs> Job for FinishOnly<'_, '_, L> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let p = self.product;
        for row in 0..p.m {
            // SAFETY: row < m, and this job is alone.
            let values = unsafe { p.out.part(row * p.out_stride, p.n) };
            values.fill(0.0);
            p.finish.apply(s, row, 0..p.n, values);
        }
    }
}

struct Task<'a, 'b, L> {
    product: &'a Product<'b, L>,
    packed: &'a [f32],
    /// Column that `packed` starts with.
    packed_from: usize,
    panels: Range<usize>,
    panel_count: usize,
    cols: Range<usize>,
    block: &'a KBlock,
    first: bool,
    last: bool,
}

impl<L: Lhs> Job for Task<'_, '_, L> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let product = self.product;
        let k = self.block.len();
        let size = S::MR * A_STRIDE;
        let step = even_part(self.cols.len(), B_L2 / k / S::NR * S::NR, S::NR);
        // Rows are packed once for all columns; a few panels at a time, that they stay in L2.
        let group = if step < self.cols.len() { A_PANELS } else { 1 };
        let mut packed = Scratch::new(group * size);
        for first in self.panels.clone().step_by(group) {
            let panels = first..self.panels.end.min(first + group);
            for from in self.cols.clone().step_by(step) {
                let cols = from..self.cols.end.min(from + step);
                let parts = packed.as_mut_slice().chunks_exact_mut(size);
                for (index, part) in panels.clone().zip(parts) {
                    let rows = split(product.m, self.panel_count, index);
                    let ahead = if from == self.cols.start {
                        product.lhs.pack(rows.clone(), self.block, part);
                        // The next panel is packed right after this one has met its columns.
                        (index + 1 < self.panels.end)
                            .then(|| split(product.m, self.panel_count, index + 1))
                    } else {
                        None
                    };
                    self.panel(s, rows, cols.clone(), part, ahead);
                }
            }
        }
    }
}

impl<L: Lhs> Task<'_, '_, L> {
    /// One packed panel of rows over some columns, and their epilogue after the last block.
    #[inline(always)]
    fn panel<S: Simd>(
        &self,
        s: S,
        rows: Range<usize>,
        cols: Range<usize>,
        a: &[f32],
        ahead: Option<Range<usize>>,
    ) {
        let tiles = cols.len().div_ceil(S::NR);
        for (index, col) in cols.clone().step_by(S::NR).enumerate() {
            if let Some(rows) = ahead.clone() {
                let share = (index, tiles);
                self.product.lhs.prefetch(s, rows, self.block, share);
            }
            let width = S::NR.min(cols.end - col);
            let b = &self.packed[(col - self.packed_from) * self.block.len()..];
            self.tile(s, rows.clone(), col..col + width, a, b);
        }
        if self.last {
            let (out, stride) = (self.product.out, self.product.out_stride);
            for row in rows {
                // SAFETY: rows and columns of this task, inside the output.
                let values = unsafe { out.part(row * stride + cols.start, cols.len()) };
                self.product.finish.apply(s, row, cols.clone(), values);
            }
        }
    }

    #[inline(always)]
    fn tile<S: Simd>(&self, s: S, rows: Range<usize>, cols: Range<usize>, a: &[f32], b: &[f32]) {
        let (out, stride) = (self.product.out, self.product.out_stride);
        let nv = panel_vectors::<S>(cols.len());
        let k = self.block.len();
        let a_len = match L::LAYOUT {
            ALayout::Interleaved => k * S::MR,
            _ => (rows.len() - 1) * A_STRIDE + k,
        };
        assert!(b.len() >= k * nv * S::LANES && a.len() >= a_len && k <= A_STRIDE);
        let mut args = TileArgs {
            mr: rows.len(),
            nv,
            k,
            a_layout: L::LAYOUT,
            a: a.as_ptr(),
            b: b.as_ptr(),
            c: std::ptr::null_mut(),
            c_stride: stride,
            accumulate: !self.first,
        };
        if cols.len() == nv * S::LANES {
            // The output comes from memory; it can come while the tile is computed.
            for row in rows.clone() {
                // SAFETY: as below.
                let c = unsafe { out.at(row * stride + cols.start) };
                for at in (0..cols.len()).step_by(LINE) {
                    s.prefetch(c.wrapping_add(at));
                }
            }
            // SAFETY: A and B were checked above; C is this task's rows and columns of the output.
            unsafe {
                args.c = out.at(rows.start * stride + cols.start);
                s.tile(args);
            }
            return;
        }
        let mut whole = [0.0f32; crate::simd::MAX_MR * 2 * crate::simd::MAX_LANES];
        args.c = whole.as_mut_ptr();
        args.c_stride = nv * S::LANES;
        args.accumulate = false;
        // SAFETY: A and B as above; `whole` holds the largest tile.
        unsafe { s.tile(args) };
        for (row, sums) in rows.zip(whole.chunks_exact(nv * S::LANES)) {
            // SAFETY: this task's rows and columns of the output.
            let values = unsafe { out.part(row * stride + cols.start, cols.len()) };
            for (v, &sum) in values.iter_mut().zip(sums) {
                *v = if self.first { sum } else { *v + sum };
            }
        }
    }
}
