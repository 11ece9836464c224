//! Splitting work over the current rayon pool.

use rayon::prelude::*;

/// Scalar operations below which a second thread costs more than it brings.
const SERIAL_WORK: usize = 1 << 16;

/// Calls `f(first_row, rows)` over groups of whole rows of `out`, in parallel when `rows * cost_per_row`
/// is worth it. A ragged last row is not expected: `out.len()` is a multiple of `row_len`.
pub(crate) fn for_row_groups(
    out: &mut [f32],
    row_len: usize,
    cost_per_row: usize,
    f: impl Fn(usize, &mut [f32]) + Sync,
) {
    if out.is_empty() || row_len == 0 {
        return;
    }
    let rows = out.len() / row_len;
    let threads = rayon::current_num_threads();
    if threads == 1 || rows == 1 || rows.saturating_mul(cost_per_row) < SERIAL_WORK {
        return f(0, out);
    }
    let per_task = (SERIAL_WORK / 2).div_ceil(cost_per_row.max(1));
    let group = rows
        .div_ceil(threads * 4)
        .max(per_task)
        .min(rows.div_ceil(threads));
    out.par_chunks_mut(group * row_len)
        .enumerate()
        .for_each(|(i, rows)| f(i * group, rows));
}
