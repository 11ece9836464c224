//! The loops around the tile: columns whose right-hand side is packed once and shared, then tasks of rows and columns
//! for the threads. A task runs through all blocks of the inner dimension, so that its part of the output stays in L2.

use std::ops::Range;

use rayon::prelude::*;

use super::finish::Finish;
use super::pack::{KBlock, Lhs, Weights};
use super::params::{
    A_PANELS, A_STRIDE, B_L2, B_L3, COLUMNS, KC, SERIAL_WORK, TASKS_PER_THREAD, even_part, split,
};
use super::tasks::Tasks;
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
    /// `at..at + len` is inside the slice this was made of, and nobody writes to it meanwhile.
    pub(crate) unsafe fn read<'a>(self, at: usize, len: usize) -> &'a [f32] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts(self.0.add(at), len) }
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
        let nr = isa.tile_size().1;
        let threads = rayon::current_num_threads();
        let k = self.channels * self.weights.taps;
        let work = self.m.saturating_mul(self.n).saturating_mul(k);
        let parallel = threads > 1 && work >= SERIAL_WORK;
        let blocks = k_blocks(self.channels, self.weights.taps);
        if blocks.is_empty() {
            return isa.run(FinishOnly { product: self });
        }
        let longest = blocks.iter().map(KBlock::len).max().unwrap_or(0);
        let most = B_L3 / self.n.min(COLUMNS).next_multiple_of(nr);
        let runs = blocks.len().div_ceil((most / longest).max(1));
        let run = |i: usize| Run::new(&blocks, split(blocks.len(), runs, i));
        let n_part = even_part(self.n, B_L3 / run(0).len / nr * nr, nr);
        let stages: Vec<Stage<'_>> = (0..self.n)
            .step_by(n_part)
            .flat_map(|n0| (0..runs).map(move |i| (n0..self.n.min(n0 + n_part), i)))
            .map(|(cols, i)| self.stage(isa, cols, run(i), parallel))
            .collect();
        // The next stage's columns are packed while others still multiply with those of the last.
        let size = n_part * run(0).len;
        let mut packed = Scratch::new(size * stages.len().min(2));
        let packed = SharedOut::new(packed.as_mut_slice());
        let workers = if parallel { threads } else { 1 };
        for_each(workers, parallel, |_| {
            for (i, stage) in stages.iter().enumerate() {
                if i >= 2 {
                    stages[i - 2].products.wait();
                }
                // SAFETY: this half is large enough for any stage.
                let half = unsafe { packed.from(i % 2 * size) };
                stage
                    .packing
                    .each(|task| self.pack_columns(isa, stage, half, task));
                stage.packing.wait();
                // A later run adds to what an earlier one has written.
                if i >= 1 && !stage.run.ends(0)[0] {
                    stages[i - 1].products.wait();
                }
                stage
                    .products
                    .each(|task| self.multiply(isa, stage, half, task));
            }
        });
    }

    fn stage<'b>(&self, isa: Isa, cols: Range<usize>, run: Run<'b>, parallel: bool) -> Stage<'b> {
        let (mr, nr) = isa.tile_size();
        let threads = rayon::current_num_threads();
        let (panels, tiles) = (self.m.div_ceil(mr), cols.len().div_ceil(nr));
        let (rows, columns) = if parallel {
            let rows = panels.div_ceil(A_PANELS).next_multiple_of(threads);
            let rows = rows.min(panels);
            let wanted = threads * TASKS_PER_THREAD;
            (rows, wanted.div_ceil(rows).min(tiles))
        } else {
            (1, 1)
        };
        Stage {
            packing: Tasks::new(tiles * run.blocks.len()),
            products: Tasks::new(rows * columns),
            parts: (rows, columns),
            cols,
            run,
        }
    }

    /// Some rows times some packed columns.
    fn multiply(&self, isa: Isa, stage: &Stage<'_>, packed: SharedOut, task: usize) {
        let (mr, nr) = isa.tile_size();
        let (cols, run) = (&stage.cols, &stage.run);
        let (rows, columns) = stage.parts;
        let (panels, tiles) = (self.m.div_ceil(mr), cols.len().div_ceil(nr));
        let own = split(tiles, columns, task % columns);
        isa.run(Task {
            product: self,
            // SAFETY: packing is done, and nobody packs into this half before all products of the stage are done.
            packed: unsafe { packed.read(0, tiles * nr * run.len) },
            packed_from: cols.start,
            panels: split(panels, rows, task / columns),
            panel_count: panels,
            cols: cols.start + own.start * nr..cols.end.min(cols.start + own.end * nr),
            run,
        });
    }

    /// Packs a panel of columns of a block. Panels follow each other, in each the blocks.
    fn pack_columns(&self, isa: Isa, stage: &Stage<'_>, packed: SharedOut, task: usize) {
        let nr = isa.tile_size().1;
        let (cols, run) = (&stage.cols, &stage.run);
        let count = run.blocks.len();
        let (panel, (block, at)) = (task / count, run.block(task % count));
        let start = cols.start + panel * nr;
        let (at, len) = ((panel * run.len + at) * nr, block.len() * nr);
        isa.run(PackColumns {
            weights: &self.weights,
            cols: start..cols.end.min(start + nr),
            block,
            // SAFETY: this block of this panel, inside of this half, is this task's alone.
            dst: unsafe { packed.part(at, len) },
        });
    }
}

/// Columns that are packed together, and their products.
struct Stage<'a> {
    cols: Range<usize>,
    run: Run<'a>,
    packing: Tasks,
    products: Tasks,
    /// Parts of the rows and of the columns that the products are split into.
    parts: (usize, usize),
}

/// Some blocks of the inner dimension whose columns are packed together.
struct Run<'a> {
    all: &'a [KBlock],
    blocks: Range<usize>,
    /// Inner dimension of them all.
    len: usize,
}

impl<'a> Run<'a> {
    fn new(all: &'a [KBlock], blocks: Range<usize>) -> Self {
        let len = all[blocks.clone()].iter().map(KBlock::len).sum();
        Self { all, blocks, len }
    }

    /// A block, and where it begins within the run.
    fn block(&self, i: usize) -> (&'a KBlock, usize) {
        let before = &self.all[self.blocks.start..][..i];
        let at = before.iter().map(KBlock::len).sum();
        (&self.all[self.blocks.start + i], at)
    }

    /// Whether block `i` is the product's first and its last.
    fn ends(&self, i: usize) -> [bool; 2] {
        let i = self.blocks.start + i;
        [i == 0, i + 1 == self.all.len()]
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
    /// Columns of all blocks of the run.
    packed: &'a [f32],
    /// Column that `packed` starts with.
    packed_from: usize,
    panels: Range<usize>,
    panel_count: usize,
    cols: Range<usize>,
    run: &'a Run<'a>,
}

/// One block of a run, as a task passes over it.
struct Pass<'a> {
    block: &'a KBlock,
    /// Where the block begins in a panel of columns.
    at: usize,
    first: bool,
    last: bool,
}

impl<L: Lhs> Job for Task<'_, '_, L> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let count = self.run.blocks.len();
        let longest = self.run.block(0).0.len();
        let step = even_part(self.cols.len(), B_L2 / longest / S::NR * S::NR, S::NR);
        // Rows are packed once for all columns; a few panels at a time, that they stay in L2.
        let alone = count == 1 && step >= self.cols.len();
        let groups = self.panels.len().div_ceil(if alone { 1 } else { A_PANELS });
        let size = S::MR * A_STRIDE;
        let mut packed = Scratch::new(split(self.panels.len(), groups, 0).len() * size);
        for group in 0..groups {
            let part = split(self.panels.len(), groups, group);
            let panels = self.panels.start + part.start..self.panels.start + part.end;
            for i in 0..count {
                let (block, at) = self.run.block(i);
                let [first, last] = self.run.ends(i);
                let pass = Pass {
                    block,
                    at,
                    first,
                    last,
                };
                for from in self.cols.clone().step_by(step) {
                    let cols = from..self.cols.end.min(from + step);
                    self.step(s, panels.clone(), cols, &pass, packed.as_mut_slice());
                }
            }
        }
    }
}

impl<L: Lhs> Task<'_, '_, L> {
    /// Some panels over some columns of a block. With the first columns the panels are packed.
    #[inline(always)]
    fn step<S: Simd>(
        &self,
        s: S,
        panels: Range<usize>,
        cols: Range<usize>,
        pass: &Pass<'_>,
        packed: &mut [f32],
    ) {
        let product = self.product;
        let parts = packed.chunks_exact_mut(S::MR * A_STRIDE);
        for (index, part) in panels.zip(parts) {
            let rows = split(product.m, self.panel_count, index);
            let first = cols.start == self.cols.start;
            // The next panel is read right after this one has met its columns.
            let ahead = (first && index + 1 < self.panels.end)
                .then(|| split(product.m, self.panel_count, index + 1));
            let a = match product.lhs.in_place(rows.clone(), pass.block) {
                Some(a) => a,
                None => {
                    if first {
                        product.lhs.pack(rows.clone(), pass.block, part);
                    }
                    (&*part, A_STRIDE)
                }
            };
            self.panel(s, rows, cols.clone(), pass, a, ahead);
        }
    }

    /// One panel of rows over some columns, and their epilogue after the last block.
    #[inline(always)]
    fn panel<S: Simd>(
        &self,
        s: S,
        rows: Range<usize>,
        cols: Range<usize>,
        pass: &Pass<'_>,
        a: (&[f32], usize),
        ahead: Option<Range<usize>>,
    ) {
        let tiles = cols.len().div_ceil(S::NR);
        for (index, col) in cols.clone().step_by(S::NR).enumerate() {
            if let Some(rows) = ahead.clone() {
                let share = (index, tiles);
                self.product.lhs.prefetch(s, rows, pass.block, share);
            }
            let width = S::NR.min(cols.end - col);
            let b = &self.packed[(col - self.packed_from) * self.run.len + pass.at * S::NR..];
            self.tile(s, (rows.clone(), col..col + width), pass, a, b);
        }
        if pass.last {
            let (out, stride) = (self.product.out, self.product.out_stride);
            for row in rows {
                // SAFETY: rows and columns of this task, inside the output.
                let values = unsafe { out.part(row * stride + cols.start, cols.len()) };
                self.product.finish.apply(s, row, cols.clone(), values);
            }
        }
    }

    #[inline(always)]
    fn tile<S: Simd>(
        &self,
        s: S,
        (rows, cols): (Range<usize>, Range<usize>),
        pass: &Pass<'_>,
        (a, a_stride): (&[f32], usize),
        b: &[f32],
    ) {
        let (out, stride) = (self.product.out, self.product.out_stride);
        let nv = panel_vectors::<S>(cols.len());
        let k = pass.block.len();
        let a_len = match L::LAYOUT {
            ALayout::Interleaved => k * S::MR,
            ALayout::Rows => (rows.len() - 1) * a_stride + k,
        };
        assert!(b.len() >= k * nv * S::LANES && a.len() >= a_len && k <= A_STRIDE);
        let mut args = TileArgs {
            mr: rows.len(),
            nv,
            k,
            a_layout: L::LAYOUT,
            a_stride,
            a: a.as_ptr(),
            b: b.as_ptr(),
            c: std::ptr::null_mut(),
            c_stride: stride,
            accumulate: !pass.first,
        };
        if cols.len() == nv * S::LANES {
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
                *v = if pass.first { sum } else { *v + sum };
            }
        }
    }
}
