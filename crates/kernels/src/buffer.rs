//! Large buffers that are used again and again, so that a steady loop asks the system for no memory.
//!
//! A loop over a network allocates and frees the same few hundred megabytes in every step. Taken from the
//! system each time, they come as zeroed pages of 4 KiB, one fault each: 12 % of the time of a step. Here they
//! come from one region of address space, in huge pages where the system gives them, and stay with it.
//!
//! The pool holds what was in use at once and little more: before it grows beyond that, it gives free pages
//! back. [`release`] gives all free pages back, between one stage of a program and the next.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::arena::{Arena, GRAIN, PAGE};

/// Bytes from which a buffer comes from the pool; smaller ones come from the heap.
pub const POOLED_FROM: usize = 64 << 10;

/// Address space of a region. It costs nothing until it is touched.
const REGION: usize = 16 << 30;

/// A buffer of floats, returned to the pool when it is dropped.
pub struct Buffer {
    place: Place,
    len: usize,
}

enum Place {
    Heap(Vec<f32>),
    Region {
        /// Start of the block, aligned to [`GRAIN`].
        start: NonNull<f32>,
        region: usize,
        offset: usize,
    },
}

// SAFETY: a buffer is the only one to hold its block, as a `Vec` its allocation.
unsafe impl Send for Buffer {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// A buffer of `len` floats of unspecified value: whoever takes it writes all of it.
    pub fn new(len: usize) -> Self {
        let bytes = len.saturating_mul(size_of::<f32>());
        let taken = (bytes >= POOLED_FROM)
            .then(|| pool().take(bytes.next_multiple_of(GRAIN)))
            .flatten();
        let place = taken.unwrap_or_else(|| Place::Heap(vec![0.0; len]));
        let mut buffer = Self { place, len };
        if cfg!(debug_assertions) {
            // So that a test notices who reads what it did not write.
            buffer.fill(f32::NAN);
        }
        buffer
    }

    /// A buffer of zeros.
    pub fn zeroed(len: usize) -> Self {
        let mut buffer = Self::new(len);
        buffer.fill(0.0);
        buffer
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &self.place {
            Place::Heap(values) => values,
            // SAFETY: the block is at least `len` floats of a mapped region, aligned to `GRAIN`, initialised (the
            // system's pages are zeroed), this buffer's alone, and mapped as long as the program runs.
            Place::Region { start, .. } => unsafe {
                std::slice::from_raw_parts(start.as_ptr(), self.len)
            },
        }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        match &mut self.place {
            Place::Heap(values) => values,
            // SAFETY: as in `deref`, borrowed mutably.
            Place::Region { start, .. } => unsafe {
                std::slice::from_raw_parts_mut(start.as_ptr(), self.len)
            },
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer of {} floats", self.len)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Place::Region { region, offset, .. } = self.place {
            let bytes = (self.len * size_of::<f32>()).next_multiple_of(GRAIN);
            pool().give(region, offset, bytes);
        }
    }
}

/// What the pool holds and did, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BufferStats {
    /// Held by buffers now.
    pub in_use: u64,
    /// Most held at once since the last [`release`].
    pub highest: u64,
    /// Memory that the pool holds, in use or free.
    pub resident: u64,
    /// Memory that came from the system since the program began, each time it came.
    pub grown: u64,
    /// Buffers given out since the program began.
    pub taken: u64,
}

/// What the pool holds and did.
pub fn stats() -> BufferStats {
    let pool = pool();
    BufferStats {
        resident: (pool.touched() * PAGE) as u64,
        ..pool.stats
    }
}

/// Gives the memory of free buffers back to the system.
pub fn release() {
    let mut pool = pool();
    pool.shrink(usize::MAX);
    pool.stats.highest = pool.stats.in_use;
}

/// One piece of address space.
struct Region {
    memory: region::Memory,
    arena: Arena,
}

struct Pool {
    regions: Vec<Region>,
    stats: BufferStats,
}

static POOL: Mutex<Pool> = Mutex::new(Pool {
    regions: Vec::new(),
    stats: BufferStats {
        in_use: 0,
        highest: 0,
        resident: 0,
        grown: 0,
        taken: 0,
    },
});

/// No step between two that belong together can panic.
fn pool() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    fn take(&mut self, bytes: usize) -> Option<Place> {
        let (region, (offset, fresh)) = match self.find(bytes) {
            Some(found) => found,
            None => {
                // As much as the system lets us reserve, at least what is asked for.
                let needed = bytes.next_multiple_of(PAGE);
                let sizes = std::iter::successors(Some(REGION), |s| Some(s / 2));
                let memory = sizes
                    .take_while(|&s| s > needed)
                    .chain([needed])
                    .find_map(region::Memory::reserve)?;
                let arena = Arena::new(memory.len());
                self.regions.push(Region { memory, arena });
                self.find(bytes)?
            }
        };
        self.stats.taken += 1;
        self.stats.in_use += bytes as u64;
        self.stats.highest = self.stats.highest.max(self.stats.in_use);
        self.stats.grown += (fresh * PAGE) as u64;
        if fresh > 0 {
            // What was in use at once, and an eighth for what lies between blocks.
            let highest = self.stats.highest as usize;
            let bound = (highest + highest / 8) / PAGE + 4;
            self.shrink(self.touched().saturating_sub(bound));
        }
        let start = self.regions[region].memory.at(offset);
        Some(Place::Region {
            start,
            region,
            offset,
        })
    }

    fn find(&mut self, bytes: usize) -> Option<(usize, (usize, usize))> {
        let mut regions = self.regions.iter_mut().enumerate();
        regions.find_map(|(i, r)| Some((i, r.arena.take(bytes)?)))
    }

    fn give(&mut self, region: usize, offset: usize, bytes: usize) {
        self.stats.in_use -= bytes as u64;
        self.regions[region].arena.give(offset, bytes);
    }

    fn touched(&self) -> usize {
        self.regions.iter().map(|r| r.arena.touched()).sum()
    }

    /// Gives about that many free pages back.
    fn shrink(&mut self, mut pages: usize) {
        for region in &mut self.regions {
            for range in region.arena.untouch(pages) {
                pages = pages.saturating_sub(range.len() / PAGE);
                region.memory.forget(range);
            }
        }
    }
}

#[cfg(all(target_os = "linux", target_pointer_width = "64", not(miri)))]
mod region {
    use std::ops::Range;
    use std::ptr::NonNull;

    use memmap2::{Advice, MmapMut, MmapOptions, UncheckedAdvice};

    use crate::arena::PAGE;

    /// Reserved address space, aligned to [`PAGE`], mapped until the program ends.
    pub(super) struct Memory {
        map: MmapMut,
        /// Where in the map it begins.
        start: usize,
        /// The same as a pointer, the only one through which the map is read and written.
        pointer: NonNull<u8>,
        len: usize,
    }

    // SAFETY: the pointer is into the map, which may be sent.
    unsafe impl Send for Memory {}

    impl Memory {
        /// Reserves `len` bytes, a multiple of [`PAGE`], if the system lets us.
        pub(super) fn reserve(len: usize) -> Option<Self> {
            // One page more, to align the start.
            let whole = len.checked_add(PAGE)?;
            let mut map = MmapOptions::new()
                .len(whole)
                .no_reserve_swap()
                .map_anon()
                .ok()?;
            let start = map.as_ptr().align_offset(PAGE);
            // Without huge pages it is slower and just as right.
            let _ = map.advise_range(Advice::HugePage, start, len);
            let pointer = NonNull::new(map[start..].as_mut_ptr())?;
            Some(Self {
                map,
                start,
                pointer,
                len,
            })
        }

        pub(super) fn len(&self) -> usize {
            self.len
        }

        /// The float at `offset` bytes.
        pub(super) fn at(&mut self, offset: usize) -> NonNull<f32> {
            // SAFETY: the arena gives offsets within `len`, which the map holds after `start`.
            unsafe { self.pointer.add(offset) }.cast()
        }

        /// Lets the system take the pages back. They read as zeros afterwards.
        pub(super) fn forget(&mut self, range: Range<usize>) {
            let (offset, len) = (self.start + range.start, range.len());
            // SAFETY: the arena names only pages that no buffer lies in; zeros are as good as what was there. If the
            // system refuses, the pages stay as they are.
            let _ = unsafe {
                self.map
                    .unchecked_advise_range(UncheckedAdvice::DontNeed, offset, len)
            };
        }
    }
}

#[cfg(not(all(target_os = "linux", target_pointer_width = "64", not(miri))))]
mod region {
    use std::ops::Range;
    use std::ptr::NonNull;

    /// Elsewhere every buffer comes from the heap.
    pub(super) enum Memory {}

    impl Memory {
        pub(super) fn reserve(_len: usize) -> Option<Self> {
            None
        }

        pub(super) fn len(&self) -> usize {
            match *self {}
        }

        pub(super) fn at(&mut self, _offset: usize) -> NonNull<f32> {
            match *self {}
        }

        pub(super) fn forget(&mut self, _range: Range<usize>) {
            match *self {}
        }
    }
}

#[cfg(feature = "burn")]
mod bytes {
    use std::mem::MaybeUninit;

    use burn_std::{AccessError, AccessPolicy, AllocationController, AllocationProperty, Bytes};

    use super::Buffer;

    struct Controller(Buffer);

    impl AllocationController for Controller {
        fn alloc_align(&self) -> usize {
            align_of::<f32>()
        }

        fn property(&self) -> AllocationProperty {
            AllocationProperty::Other
        }

        unsafe fn memory_mut(
            &mut self,
            _policy: AccessPolicy,
        ) -> Result<&mut [MaybeUninit<u8>], AccessError> {
            let values: &mut [f32] = &mut self.0;
            let len = size_of_val(values);
            // SAFETY: the floats of `values` as bytes, borrowed from it mutably; the caller writes only initialised
            // bytes, of which every value is a float.
            Ok(unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), len) })
        }

        fn memory(&self, _policy: AccessPolicy) -> Result<&[MaybeUninit<u8>], AccessError> {
            let values: &[f32] = &self.0;
            // SAFETY: the floats of `values` as bytes, borrowed from it.
            Ok(unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) })
        }
    }

    impl Buffer {
        /// The buffer as burn's bytes, without a copy. It returns to the pool when they are dropped.
        pub fn into_bytes(self) -> Bytes {
            let len = size_of_val::<[f32]>(&self);
            // SAFETY: all `len` bytes of a buffer are initialised.
            unsafe { Bytes::from_controller(Box::new(Controller(self)), len) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_and_empty_buffers_come_from_the_heap() {
        assert!(Buffer::new(0).is_empty());
        let mut b = Buffer::zeroed(10);
        b[9] = 1.0;
        assert_eq!(b[..], [0., 0., 0., 0., 0., 0., 0., 0., 0., 1.]);
        assert!(matches!(b.place, Place::Heap(_)));
    }

    #[test]
    fn threads_have_buffers_of_their_own() {
        // Miri has no pool, and is slow.
        let (threads, turns, len) = if cfg!(miri) {
            (2, 3, 200)
        } else {
            (4, 20, 20_000)
        };
        std::thread::scope(|scope| {
            for t in 0..threads {
                scope.spawn(move || {
                    for i in 0..turns {
                        let mut b = Buffer::new(len + len / 3 * (i % 3));
                        let value = (t * 100 + i) as f32;
                        b.fill(value);
                        std::thread::yield_now();
                        assert!(b.iter().all(|&v| v == value));
                    }
                });
            }
        });
    }
}
