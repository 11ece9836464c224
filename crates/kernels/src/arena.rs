//! Where in a region of memory a block lies: the arithmetic of [`crate::Buffer`]'s pool, without memory.

use std::collections::BTreeMap;
use std::ops::Range;

/// Granule in which memory comes from and goes back to the system: a huge page.
pub(crate) const PAGE: usize = 2 << 20;

/// Granule of a block's place and size.
pub(crate) const GRAIN: usize = 4096;

/// The blocks of one region: which parts are free, and which pages have been touched.
#[derive(Debug)]
pub(crate) struct Arena {
    /// Free parts, by their start; neighbours are always joined.
    holes: BTreeMap<usize, usize>,
    /// Pages that hold memory, as far as we know.
    touched: Vec<bool>,
}

impl Arena {
    /// A free region of `len` bytes, a multiple of [`PAGE`].
    pub(crate) fn new(len: usize) -> Self {
        Self {
            holes: BTreeMap::from([(0, len)]),
            touched: vec![false; len / PAGE],
        }
    }

    /// Takes a block of `len` bytes, a multiple of [`GRAIN`]: where the fewest new pages are needed, and of
    /// those in the smallest hole. Gives its start and the number of pages that were not touched before.
    pub(crate) fn take(&mut self, len: usize) -> Option<(usize, usize)> {
        let fits = self.holes.iter().filter(|&(_, &size)| size >= len);
        let (fresh, size, start) = fits
            .map(|(&start, &size)| (self.fresh(start, len), size, start))
            .min()?;
        self.holes.remove(&start);
        if size > len {
            self.holes.insert(start + len, size - len);
        }
        self.touched[pages_of(start, len)].fill(true);
        Some((start, fresh))
    }

    fn fresh(&self, start: usize, len: usize) -> usize {
        let pages = &self.touched[pages_of(start, len)];
        pages.iter().filter(|&&t| !t).count()
    }

    /// Gives a block back.
    pub(crate) fn give(&mut self, mut start: usize, mut len: usize) {
        if let Some(after) = self.holes.remove(&(start + len)) {
            len += after;
        }
        if let Some((&before, &size)) = self.holes.range(..start).next_back()
            && before + size == start
        {
            start = before;
            len += size;
        }
        self.holes.insert(start, len);
    }

    /// Pages that hold memory.
    pub(crate) fn touched(&self) -> usize {
        self.touched.iter().filter(|&&t| t).count()
    }

    /// Up to about `wanted` touched pages that lie wholly in holes, largest holes first, as ranges of bytes. They
    /// count as untouched from now on.
    pub(crate) fn untouch(&mut self, wanted: usize) -> Vec<Range<usize>> {
        let mut holes: Vec<(usize, usize)> = self.holes.iter().map(|(&s, &l)| (l, s)).collect();
        holes.sort_unstable_by(|a, b| b.cmp(a));
        let (mut ranges, mut count) = (Vec::new(), 0);
        for (len, start) in holes {
            // From the end: the start of a hole is what is taken next.
            for page in (start.div_ceil(PAGE)..(start + len) / PAGE).rev() {
                if count >= wanted {
                    return ranges;
                }
                if !std::mem::take(&mut self.touched[page]) {
                    continue;
                }
                count += 1;
                let bytes = page * PAGE..(page + 1) * PAGE;
                match ranges.last_mut() {
                    Some(Range { start, .. }) if *start == bytes.end => *start = bytes.start,
                    _ => ranges.push(bytes),
                }
            }
        }
        ranges
    }
}

/// The pages that a block lies in.
fn pages_of(start: usize, len: usize) -> Range<usize> {
    start / PAGE..(start + len).div_ceil(PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vec_of(range: Range<usize>) -> Vec<Range<usize>> {
        std::iter::once(range).collect()
    }

    #[test]
    fn what_was_given_back_is_taken_again() {
        let mut arena = Arena::new(8 * PAGE);
        let (a, fresh) = arena.take(3 * PAGE).unwrap();
        assert_eq!((a, fresh), (0, 3));
        let (b, _) = arena.take(PAGE).unwrap();
        assert_eq!(arena.touched(), 4);
        arena.give(a, 3 * PAGE);
        // Touched memory before untouched.
        assert_eq!(arena.take(2 * PAGE).unwrap(), (0, 0));
        arena.give(0, 2 * PAGE);
        arena.give(b, PAGE);
        assert_eq!(arena.untouch(usize::MAX), vec_of(0..4 * PAGE));
        assert_eq!(arena.touched(), 0);
        assert_eq!(arena.take(8 * PAGE).unwrap(), (0, 8));
        assert_eq!(arena.take(GRAIN), None);
    }

    #[test]
    fn pages_with_a_part_in_use_are_kept() {
        let mut arena = Arena::new(4 * PAGE);
        let (a, _) = arena.take(PAGE + GRAIN).unwrap();
        let (b, _) = arena.take(PAGE).unwrap();
        arena.give(a, PAGE + GRAIN);
        assert_eq!(arena.untouch(usize::MAX), vec_of(0..PAGE));
        arena.give(b, PAGE);
        assert_eq!(arena.untouch(1), vec_of(2 * PAGE..3 * PAGE));
        assert_eq!(arena.untouch(9), vec_of(PAGE..2 * PAGE));
    }

    /// Miri is slow, and has no directory in which to keep what failed.
    fn config() -> ProptestConfig {
        let mut config = ProptestConfig::default();
        if cfg!(miri) {
            config.cases = 4;
            config.failure_persistence = None;
        }
        config
    }

    proptest! {
        #![proptest_config(config())]

        #[test]
        fn blocks_never_overlap_and_nothing_is_lost(
            script in proptest::collection::vec((0usize..2000, any::<prop::sample::Index>()), 1..120)
        ) {
            let total = 16 * PAGE;
            let mut arena = Arena::new(total);
            let mut blocks: Vec<(usize, usize)> = Vec::new();
            for (grains, index) in script {
                if grains % 3 == 0 && !blocks.is_empty() {
                    let (start, len) = blocks.swap_remove(index.index(blocks.len()));
                    arena.give(start, len);
                } else if grains % 7 == 0 {
                    for range in arena.untouch(grains % 5) {
                        let free = |&(s, l): &(usize, usize)| s + l <= range.start || s >= range.end;
                        prop_assert!(blocks.iter().all(free));
                    }
                } else {
                    let len = (grains + 1) * GRAIN;
                    if let Some((start, _)) = arena.take(len) {
                        prop_assert!(start + len <= total);
                        prop_assert!(blocks.iter().all(|&(s, l)| s + l <= start || s >= start + len));
                        blocks.push((start, len));
                    }
                }
                let used: usize = blocks.iter().map(|b| b.1).sum();
                prop_assert_eq!(used + arena.holes.values().sum::<usize>(), total);
                prop_assert!(arena.touched() * PAGE >= used);
            }
            for (start, len) in blocks {
                arena.give(start, len);
            }
            prop_assert_eq!(arena.holes.len(), 1);
        }
    }
}
