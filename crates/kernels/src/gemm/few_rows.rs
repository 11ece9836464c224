//! Products of few rows with a PyTorch weight: dot products straight from the weight's rows, no packing.

use super::RhsData;
use super::driver::{SharedOut, for_each};
use super::finish::Finish;
use super::pack::{MatLhs, Weights};
use super::params::{SERIAL_WORK, TASKS_PER_THREAD, split};
use crate::blocks::{Format, GROUP, Q4_0, Q4K, Q8_0};
use crate::scratch::Scratch;
use crate::simd::{Element, Job, Simd};
use crate::{BlockFormat, Isa};

/// `1 <= m <= FEW_ROWS`; the weight has one tap and rows of outputs.
pub(crate) struct FewRows<'a> {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub lhs: MatLhs<'a>,
    pub weights: Weights<'a>,
    pub out: SharedOut,
    pub out_stride: usize,
    pub finish: Finish<'a>,
}

impl FewRows<'_> {
    pub(crate) fn run(&self, isa: Isa) {
        let threads = rayon::current_num_threads();
        // Waking a thread costs some ten microseconds; what need not be widened first is done sooner.
        let serial = match self.weights.data {
            RhsData::F32(_) | RhsData::F16(_) | RhsData::BF16(_) => 8 * SERIAL_WORK,
            RhsData::Blocks(BlockFormat::Q8_0 | BlockFormat::Q4_0, _) if self.m <= 2 => {
                8 * SERIAL_WORK
            }
            _ => SERIAL_WORK,
        };
        let parallel = threads > 1 && self.m * self.n * self.k >= serial;
        let tasks = if parallel {
            (threads * TASKS_PER_THREAD).min(self.n)
        } else {
            1
        };
        for_each(tasks, parallel, |t| {
            isa.run(Columns {
                of: self,
                cols: split(self.n, tasks, t),
            })
        });
    }
}

struct Columns<'a, 'b> {
    of: &'a FewRows<'b>,
    cols: std::ops::Range<usize>,
}

impl Job for Columns<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let of = self.of;
        let offset = of.weights.offset;
        match of.weights.data {
            RhsData::F32(d) => self.rows(s, &d[offset..]),
            RhsData::F16(d) => self.rows(s, &d[offset..]),
            RhsData::BF16(d) => self.rows(s, &d[offset..]),
            RhsData::F8E4M3(d) => self.rows(s, &d[offset..]),
            RhsData::Blocks(BlockFormat::Q8_0, d) => self.blocks::<S, Q8_0>(s, d),
            RhsData::Blocks(BlockFormat::Q4_0, d) => self.blocks::<S, Q4_0>(s, d),
            RhsData::Blocks(BlockFormat::Q4K, d) => self.blocks::<S, Q4K>(s, d),
            #[allow(unreachable_patterns, reason = "formats that are widened first")]
            data => self.widened(s, data),
        }
        for row in 0..of.m {
            // SAFETY: these columns are this task's alone.
            let values = unsafe {
                of.out
                    .part(row * of.out_stride + self.cols.start, self.cols.len())
            };
            of.finish.apply(s, row, self.cols.clone(), values);
        }
    }
}

impl Columns<'_, '_> {
    /// Few rows meet blocks in registers; more of them, and rows that do not begin with a block, need them widened.
    #[inline(always)]
    fn blocks<S: Simd, F: Format>(&self, s: S, data: &[u8]) {
        let of = self.of;
        let whole = [of.weights.offset, of.weights.row_stride, of.k]
            .iter()
            .all(|n| n.is_multiple_of(F::LEN));
        match of.m {
            1 if whole => self.block_columns::<S, F, 1>(s, data),
            2 if whole => self.block_columns::<S, F, 2>(s, data),
            _ => self.widened(s, of.weights.data),
        }
    }

    #[inline(always)]
    fn block_columns<S: Simd, F: Format, const M: usize>(&self, s: S, data: &[u8]) {
        let of = self.of;
        let rows: [&[f32]; M] = std::array::from_fn(|i| &of.lhs.data[i * of.lhs.stride..][..of.k]);
        for col in self.cols.clone() {
            let first = (of.weights.offset + col * of.weights.row_stride) / F::LEN;
            let weight = &data[first * F::BYTES..][..of.k / F::LEN * F::BYTES];
            let dots = dot_blocks::<S, F, M>(s, rows, weight);
            for (row, dot) in dots.into_iter().enumerate() {
                // SAFETY: this column is this task's alone.
                unsafe { of.out.part(row * of.out_stride + col, 1)[0] = dot };
            }
        }
    }

    /// Smaller types are widened a row of the weight at a time.
    #[inline(always)]
    fn widened<S: Simd>(&self, s: S, data: RhsData<'_>) {
        let of = self.of;
        let mut wide = Scratch::new(of.k);
        for col in self.cols.clone() {
            let at = of.weights.offset + col * of.weights.row_stride;
            s.widen(data, at, wide.as_mut_slice());
            let one = Self {
                of,
                cols: col..col + 1,
            };
            one.rows_at(s, wide.as_slice(), 0);
        }
    }

    #[inline(always)]
    fn rows<S: Simd, E: Element>(&self, s: S, data: &[E]) {
        self.rows_at(s, data, self.of.weights.row_stride);
    }

    /// `data` has the weight's row of output `col` at `col * stride`.
    #[inline(always)]
    fn rows_at<S: Simd, E: Element>(&self, s: S, data: &[E], stride: usize) {
        // (rows, vectors of the inner dimension at once): enough independent sums to hide the latency.
        match self.of.m {
            1 => self.columns::<S, E, 1, 8>(s, data, stride),
            2 => self.columns::<S, E, 2, 4>(s, data, stride),
            3 => self.columns::<S, E, 3, 4>(s, data, stride),
            4 => self.columns::<S, E, 4, 2>(s, data, stride),
            5 => self.columns::<S, E, 5, 2>(s, data, stride),
            6 => self.columns::<S, E, 6, 2>(s, data, stride),
            7 => self.columns::<S, E, 7, 2>(s, data, stride),
            _ => self.columns::<S, E, 8, 1>(s, data, stride),
        }
    }

    #[inline(always)]
    fn columns<S: Simd, E: Element, const M: usize, const U: usize>(
        &self,
        s: S,
        data: &[E],
        stride: usize,
    ) {
        let of = self.of;
        let rows: [&[f32]; M] = std::array::from_fn(|i| &of.lhs.data[i * of.lhs.stride..][..of.k]);
        for col in self.cols.clone() {
            let weight = &data[col * stride..][..of.k];
            let dots = dot::<S, E, M, U>(s, rows, weight);
            for (row, dot) in dots.into_iter().enumerate() {
                // SAFETY: this column is this task's alone.
                unsafe { of.out.part(row * of.out_stride + col, 1)[0] = dot };
            }
        }
    }
}

/// Dot products with whole blocks; rows are as long as those.
#[inline(always)]
fn dot_blocks<S: Simd, F: Format, const M: usize>(
    s: S,
    rows: [&[f32]; M],
    weight: &[u8],
) -> [f32; M] {
    let vectors = GROUP / S::LANES;
    let mut acc = [[s.zero(); GROUP / 4]; M];
    for (i, block) in weight.chunks_exact(F::BYTES).enumerate() {
        for group in 0..F::LEN / GROUP {
            let weights = F::vectors(s, block, group);
            let at = i * F::LEN + group * GROUP;
            for (sums, row) in acc.iter_mut().zip(rows) {
                let row = &row[at..at + GROUP];
                for v in 0..vectors {
                    // SAFETY: `row` is a group long, `vectors` times LANES.
                    let x = unsafe { s.load(row.as_ptr().add(v * S::LANES)) };
                    sums[v] = s.fma(x, weights[v], sums[v]);
                }
            }
        }
    }
    // A loop: a closure would lose the job's instruction set.
    let mut dots = [0.0f32; M];
    for (dot, sums) in dots.iter_mut().zip(acc) {
        let mut total = sums[0];
        for &sum in &sums[1..vectors] {
            total = s.add(total, sum);
        }
        *dot = s.sum(total);
    }
    dots
}

#[inline(always)]
fn dot<S: Simd, E: Element, const M: usize, const U: usize>(
    s: S,
    rows: [&[f32]; M],
    weight: &[E],
) -> [f32; M] {
    let k = weight.len();
    let mut acc = [[s.zero(); U]; M];
    let step = U * S::LANES;
    let whole = k / step * step;
    for p in (0..whole).step_by(step) {
        for u in 0..U {
            let at = p + u * S::LANES;
            // SAFETY: at + LANES <= whole <= k, the length of the weight and of every row.
            unsafe {
                let w = E::load(s, weight.as_ptr().add(at));
                for (sums, row) in acc.iter_mut().zip(rows) {
                    sums[u] = s.fma(s.load(row.as_ptr().add(at)), w, sums[u]);
                }
            }
        }
    }
    let vectors = k / S::LANES * S::LANES;
    for at in (whole..vectors).step_by(S::LANES) {
        // SAFETY: at + LANES <= vectors <= k.
        unsafe {
            let w = E::load(s, weight.as_ptr().add(at));
            for (sums, row) in acc.iter_mut().zip(rows) {
                sums[0] = s.fma(s.load(row.as_ptr().add(at)), w, sums[0]);
            }
        }
    }
    let mut dots = [0.0f32; M];
    for (i, dot) in dots.iter_mut().enumerate() {
        let mut total = acc[i][0];
        for &sum in &acc[i][1..] {
            total = s.add(total, sum);
        }
        *dot = s.sum(total);
        for (x, w) in rows[i][vectors..].iter().zip(&weight[vectors..]) {
            *dot += x * w.widen();
        }
    }
    dots
}
