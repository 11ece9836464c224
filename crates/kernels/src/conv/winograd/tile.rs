//! The matrix tile of one place: as the general one, with rows of a length of its own. It fetches the next panel's
//! rows into L1 while it computes: rows are short and many, which the CPU does not see coming.

use crate::simd::Simd;

/// Distance of the rows of transformed inputs, and the most channels of a chunk.
pub(super) const ROW: usize = 160;

/// `C[rows, NR] (+)= A[rows, k] * B[k, NR]`. To be run, `c` must be readable and writable for `rows` rows of `NR` without
/// gaps, `1 <= rows <= MR`, and `a` and `b` readable: `a` for `rows` rows of `k`, `ROW` apart, and `b` for `k` rows
/// without gaps; or, when it is run turned, `a` for `k` rows of `rows` and `b` for `k` rows of `NR`, both `ROW` apart.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tile {
    pub rows: usize,
    pub k: usize,
    pub a: *const f32,
    pub b: *const f32,
    pub c: *mut f32,
    /// Add to C rather than overwrite it.
    pub accumulate: bool,
    /// What will be A next; ignored when turned.
    pub next: *const f32,
}

impl Tile {
    /// # Safety
    /// As the type says.
    #[inline(always)]
    pub(super) unsafe fn run<S: Simd, const TURNED: bool>(self, s: S) {
        macro_rules! dispatch {
            ($vectors:literal, $($rows:literal)*) => {
                match self.rows {
                    // SAFETY: the caller's promise, for this number of rows.
                    $($rows => unsafe { self.fixed::<S, $rows, $vectors, TURNED>(s) },)*
                    _ => unreachable!("tile of {} rows", self.rows),
                }
            };
        }
        match (S::MR, S::NV) {
            (14, 2) => dispatch!(2, 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
            (6, 2) => dispatch!(2, 1 2 3 4 5 6),
            (4, 2) => dispatch!(2, 1 2 3 4),
            (8, 3) => dispatch!(3, 1 2 3 4 5 6 7 8),
            (rows, vectors) => unreachable!("tiles of {rows} rows and {vectors} vectors"),
        }
    }

    /// # Safety
    /// As the type says, with `rows == R` and `V == NV`.
    #[inline(always)]
    unsafe fn fixed<S: Simd, const R: usize, const V: usize, const TURNED: bool>(self, s: S) {
        let (a_row, a_step, b_step) = if TURNED {
            (1, ROW, ROW)
        } else {
            (ROW, 1, V * S::LANES)
        };
        let mut sums = [[s.zero(); V]; R];
        let (mut a, mut b, mut next) = (self.a, self.b, self.next);
        for _ in 0..self.k {
            // SAFETY: `a` and `b` have moved p < k steps; offsets are within a column of A, a row of B.
            unsafe {
                if !TURNED {
                    s.prefetch(next);
                }
                let mut columns = [s.zero(); V];
                for (v, column) in columns.iter_mut().enumerate() {
                    *column = s.load(b.add(v * S::LANES));
                }
                for (i, row) in sums.iter_mut().enumerate() {
                    let x = s.splat(*a.add(i * a_row));
                    for (sum, &column) in row.iter_mut().zip(&columns) {
                        *sum = s.fma(x, column, *sum);
                    }
                }
            }
            // The last step may leave the buffers.
            a = a.wrapping_add(a_step);
            b = b.wrapping_add(b_step);
            next = next.wrapping_add(16);
        }
        for (i, row) in sums.iter().enumerate() {
            for (v, &sum) in row.iter().enumerate() {
                // SAFETY: vector v of row i < R of C.
                unsafe {
                    let c = self.c.add((i * V + v) * S::LANES);
                    let sum = if self.accumulate {
                        s.add(s.load(c), sum)
                    } else {
                        sum
                    };
                    s.store(c, sum);
                }
            }
        }
    }
}
