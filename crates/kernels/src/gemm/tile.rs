//! The matrix tile: `C[mr, nv vectors] (+)= A[mr, k] * B[k, nv vectors]`, held in registers.

use super::params::A_STRIDE;
use crate::simd::Simd;

/// How the rows of a packed A panel lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ALayout {
    /// Row `i` starts at `i * A_STRIDE`; what copying rows gives.
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
    pub a: *const f32,
    pub b: *const f32,
    pub c: *mut f32,
    pub c_stride: usize,
    /// Add to C rather than overwrite it.
    pub accumulate: bool,
}

/// A tile of fixed size; `RS` and `KS` are the strides of A between rows and between columns.
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
    for _ in 0..t.k {
        // SAFETY: `a` and `b` have moved p < k columns and rows; offsets are within one column of A, one row of B.
        unsafe {
            let mut columns = [s.zero(); NV];
            for (v, column) in columns.iter_mut().enumerate() {
                *column = s.load(b.add(v * S::LANES));
            }
            for (i, row) in acc.iter_mut().enumerate() {
                let x = s.splat(*a.add(i * RS));
                for (sum, &column) in row.iter_mut().zip(&columns) {
                    *sum = s.fma(x, column, *sum);
                }
            }
            a = a.add(KS);
            b = b.add(NV * S::LANES);
        }
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

/// Row stride of [`ALayout::Rows`].
pub(crate) const ROWS: usize = A_STRIDE;

/// Calls the [`tile`] whose fixed size fits `args`. `$nv` is the widest number of vectors, `$mr` the most rows.
macro_rules! dispatch_rows {
    ($s:expr, $args:expr, $nv:literal, $mr:literal, [$($rows:literal)*]) => {{
        use $crate::gemm::tile::{ALayout, ROWS, tile};
        // By reference: a copy on the stack would be read in one piece right after it was written in many, and
        // wait for all stores before it.
        let args: &$crate::gemm::tile::TileArgs = $args;
        match (args.nv, args.a_layout, args.mr) {
            $(($nv, ALayout::Rows, $rows) => tile::<_, $rows, $nv, ROWS, 1>($s, args),)*
            $((1, ALayout::Rows, $rows) => tile::<_, $rows, 1, ROWS, 1>($s, args),)*
            $(($nv, ALayout::Interleaved, $rows) => tile::<_, $rows, $nv, 1, $mr>($s, args),)*
            $((1, ALayout::Interleaved, $rows) => tile::<_, $rows, 1, 1, $mr>($s, args),)*
            _ => unreachable!("tile of {} rows and {} vectors", args.mr, args.nv),
        }
    }};
}
pub(crate) use dispatch_rows;
