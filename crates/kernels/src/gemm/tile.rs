//! The matrix tile: `C[mr, nv vectors] (+)= A[mr, k] * B[k, nv vectors]`, held in registers.

use super::params::LINE;
use crate::simd::Simd;

/// How the rows of A lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ALayout {
    /// Row `i` starts at `i * a_stride`: rows as they are, or copies of them.
    Rows,
    /// Element `(i, p)` is at `p * MR + i`; what a transpose gives.
    Interleaved,
}

/// One tile. To be run, the pointers must be valid for all that the fields describe: `a` readable for `mr`
/// rows of `k` in its layout, `b` readable for `k` rows of `nv * LANES` without gaps, `c` readable and writable
/// for `mr` rows of `nv * LANES`, `c_stride` apart; `1 <= mr <= MR`; `nv` is 1 or `NV`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TileArgs {
    pub mr: usize,
    pub nv: usize,
    pub k: usize,
    pub a_layout: ALayout,
    /// Elements from one row of A to the next, when it lies in rows.
    pub a_stride: usize,
    pub a: *const f32,
    pub b: *const f32,
    pub c: *mut f32,
    pub c_stride: usize,
    /// Add to C rather than overwrite it.
    pub accumulate: bool,
}

/// Steps before the end of a tile at which C is asked for.
const LATE: usize = 48;
/// Elements of B that are asked for ahead: far enough for L3, which answers late when all cores ask.
const B_AHEAD: usize = 1024;

/// A tile of fixed size; `RS` and `KS` are the strides of A between rows and between columns, the former `a_stride`
/// when it is 0.
///
/// # Safety
/// As [`TileArgs`] says, for `MR` rows and `NV` vectors.
#[inline(always)]
pub(crate) unsafe fn tile<
    S: Simd,
    const MR: usize,
    const NV: usize,
    const RS: usize,
    const KS: usize,
>(
    s: S,
    t: &TileArgs,
) {
    let mut acc = [[s.zero(); NV]; MR];
    let (mut a, mut b) = (t.a, t.b);
    let row_stride = if RS == 0 { t.a_stride } else { RS };
    // C is asked for late in the loop: what passes by until then would drive it out of L1 again.
    let late = LATE.min(t.k);
    let mut steps = t.k - late;
    for part in 0..2 {
        for _ in 0..steps {
            for at in (0..NV * S::LANES).step_by(LINE) {
                s.prefetch(b.wrapping_add(B_AHEAD + at));
            }
            // SAFETY: `a` and `b` have moved p < k columns and rows; offsets are within one column of A, one row of B.
            unsafe {
                let mut columns = [s.zero(); NV];
                for (v, column) in columns.iter_mut().enumerate() {
                    *column = s.load(b.add(v * S::LANES));
                }
                for (i, row) in acc.iter_mut().enumerate() {
                    let x = s.splat(*a.add(i * row_stride));
                    for (sum, &column) in row.iter_mut().zip(&columns) {
                        *sum = s.fma(x, column, *sum);
                    }
                }
                a = a.add(KS);
                b = b.add(NV * S::LANES);
            }
        }
        if part == 0 {
            for i in 0..MR {
                for at in (0..NV * S::LANES).step_by(LINE) {
                    s.prefetch_write(t.c.wrapping_add(i * t.c_stride + at));
                }
            }
        }
        steps = late;
    }
    for (i, row) in acc.iter().enumerate() {
        for (v, &sum) in row.iter().enumerate() {
            // SAFETY: row i < MR and vector v < NV of C.
            unsafe {
                let c = t.c.add(i * t.c_stride + v * S::LANES);
                s.store(
                    c,
                    if t.accumulate {
                        s.add(s.load(c), sum)
                    } else {
                        sum
                    },
                );
            }
        }
    }
}

/// Calls the [`tile`] whose fixed size fits `args`. `$nv` is the widest number of vectors, `$mr` the most rows.
macro_rules! dispatch_rows {
    ($s:expr, $args:expr, $nv:literal, $mr:literal, [$($rows:literal)*]) => {{
        use $crate::gemm::tile::{ALayout, tile};
        // By reference: a copy on the stack would be read in one piece right after it was written in many, and
        // wait for all stores before it.
        let args: &$crate::gemm::tile::TileArgs = $args;
        match (args.nv, args.a_layout, args.mr) {
            $(($nv, ALayout::Rows, $rows) => tile::<_, $rows, $nv, 0, 1>($s, args),)*
            $((1, ALayout::Rows, $rows) => tile::<_, $rows, 1, 0, 1>($s, args),)*
            $(($nv, ALayout::Interleaved, $rows) => tile::<_, $rows, $nv, 1, $mr>($s, args),)*
            $((1, ALayout::Interleaved, $rows) => tile::<_, $rows, 1, 1, $mr>($s, args),)*
            _ => unreachable!("tile of {} rows and {} vectors", args.mr, args.nv),
        }
    }};
}
pub(crate) use dispatch_rows;
