//! Sizes of the blocks that keep a product's operands in cache, apart from the loops that use them.

/// Longest inner dimension of one block. Long, because the output's tiles are loaded and stored once a block; a tile's
/// rows of A (14 x 1024 floats, 56 KiB) then come from L2 in part, which is fast enough.
pub(crate) const KC: usize = 1024;
/// Distance between the rows of a packed A panel. A constant, so that a tile addresses all its rows from one
/// register; 65 cache lines, so that rows fall into different cache sets.
pub(crate) const A_STRIDE: usize = KC + 16;
/// Elements after which addresses fall into the same set of L1 again (4 KiB; 8 or 12 lines a set). Rows of A that lie a
/// multiple of it apart are packed, all others are read where they lie: on Zen 5 packing makes 1024x1024x1024 4 %
/// faster, and products with other strides 1 to 2 % slower.
pub(crate) const SET_CYCLE: usize = 1024;
/// Panels of A that are packed together when the columns do not fit L2 at once (300 KiB).
pub(crate) const A_PANELS: usize = 5;
/// Elements of B that stay in L2 while the rows of a task pass by (512 KiB).
pub(crate) const B_L2: usize = 128 * 1024;
/// Elements of B that are packed at once and shared by the threads (6 MiB of L3).
pub(crate) const B_L3: usize = 1536 * 1024;
/// Columns that should be packed at once, though the inner dimension is too long for all of it to be packed with them:
/// rows of A are packed again for each of such parts.
pub(crate) const COLUMNS: usize = 512;
/// Products of at most this many rows skip packing: each weight is used too few times to pay for it.
pub(crate) const FEW_ROWS: usize = 8;
/// Multiply-adds below which threads cost more than they bring.
pub(crate) const SERIAL_WORK: usize = 1 << 17;
/// Tasks a thread should find, so that uneven cores even out.
pub(crate) const TASKS_PER_THREAD: usize = 4;

/// Elements of a cache line.
pub(crate) const LINE: usize = 16;

/// `total` in the fewest equal parts of at most `limit`, each a multiple of `unit` (but the last).
pub(crate) fn even_part(total: usize, limit: usize, unit: usize) -> usize {
    let parts = total.div_ceil(limit.max(unit)).max(1);
    total.div_ceil(parts).next_multiple_of(unit).max(1)
}

/// The range of part `i` when `total` is split into `parts` whose sizes differ by at most one.
pub(crate) fn split(total: usize, parts: usize, i: usize) -> std::ops::Range<usize> {
    let (size, extra) = (total / parts, total % parts);
    let start = i * size + i.min(extra);
    start..start + size + usize::from(i < extra)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_everything_once() {
        for total in [1, 2, 13, 14, 15, 128, 1000] {
            for parts in 1..=total.min(20) {
                let mut next = 0;
                for i in 0..parts {
                    let range = split(total, parts, i);
                    assert_eq!(range.start, next);
                    assert!(range.len() >= total / parts && range.len() <= total.div_ceil(parts));
                    next = range.end;
                }
                assert_eq!(next, total);
            }
        }
        assert_eq!(even_part(1280, 1024, 16), 640);
        assert_eq!(even_part(320, 1024, 16), 320);
        assert_eq!(even_part(5, 576, 16), 16);
    }
}
