//! Buffers that a thread keeps from call to call, so that a steady loop allocates nothing.

use std::cell::RefCell;

use crate::Buffer;

/// A cache line of floats, for its alignment.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Line(#[allow(dead_code, reason = "read through the slice of floats")] [f32; 16]);

thread_local! {
    static POOL: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Floats from which a buffer comes from the process's pool, where another thread and another size can use it next;
/// what a thread keeps for itself stays in its cache.
const SHARED_FROM: usize = 1 << 18;

/// A buffer of floats with unspecified values, aligned to 64 bytes, that returns to its pool.
#[derive(Debug)]
pub(crate) struct Scratch {
    place: Place,
    len: usize,
}

#[derive(Debug)]
enum Place {
    Thread(Vec<Line>),
    Shared(Buffer),
}

impl Scratch {
    /// Takes the smallest pooled buffer that is large enough, or grows the largest.
    pub(crate) fn new(len: usize) -> Self {
        if len >= SHARED_FROM {
            let place = Place::Shared(Buffer::new(len));
            return Self { place, len };
        }
        let needed = len.div_ceil(16);
        let mut lines = POOL.with_borrow_mut(|pool| {
            let fits = pool.iter().position(|b| b.len() >= needed);
            let index = fits.or(pool.len().checked_sub(1));
            index.map(|i| pool.remove(i)).unwrap_or_default()
        });
        if lines.len() < needed {
            lines = vec![Line([0.0; 16]); needed];
        }
        let place = Place::Thread(lines);
        Self { place, len }
    }

    fn as_mut_ptr(&mut self) -> *mut f32 {
        match &mut self.place {
            Place::Thread(lines) => lines.as_mut_ptr().cast(),
            Place::Shared(buffer) => buffer.as_mut_ptr(),
        }
    }

    /// The same memory as half as many `f64`.
    pub(crate) fn as_mut_f64(&mut self) -> &mut [f64] {
        // SAFETY: the buffer holds at least `len` initialised floats, aligned to 8 bytes; any bits are an f64.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr().cast(), self.len / 2) }
    }

    pub(crate) fn as_slice(&self) -> &[f32] {
        match &self.place {
            // SAFETY: `lines` holds at least `len` initialised floats without gaps.
            Place::Thread(lines) => unsafe {
                std::slice::from_raw_parts(lines.as_ptr().cast(), self.len)
            },
            Place::Shared(buffer) => buffer,
        }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        // SAFETY: as above, borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr(), self.len) }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let Place::Thread(lines) = &mut self.place else {
            return;
        };
        let lines = std::mem::take(lines);
        // A thread that is ending has no pool any more; then the buffer is simply freed.
        let _ = POOL.try_with(|pool| {
            if let Ok(mut pool) = pool.try_borrow_mut() {
                let at = pool.partition_point(|b| b.len() < lines.len());
                pool.insert(at, lines);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_reused_and_distinct() {
        let first = {
            let mut a = Scratch::new(1000);
            let mut b = Scratch::new(10);
            a.as_mut_slice().fill(1.0);
            b.as_mut_slice().fill(2.0);
            assert!(a.as_slice().iter().all(|&x| x == 1.0));
            assert_eq!(a.as_slice().as_ptr() as usize % 64, 0);
            a.as_slice().as_ptr()
        };
        assert_eq!(Scratch::new(900).as_slice().as_ptr(), first);
    }
}
