//! The steady state of the loop takes no memory from the system. The pool of buffers and the allocator are the
//! process's, so this test has a program of its own.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};

use aquatint_engine::models::{Checkpoint, Location, OpenOptions};
use aquatint_engine::{Device, Event, Request, RunOptions, Stage, generate};
use aquatint_ops::buffer;
use aquatint_testkit::golden;

/// Allocations above this size are counted. It is that of the latents of both branches at 512x512: the samplers keep
/// latents in plain vectors, some dozen of 64 and 128 KiB a step, which the heap holds from step to step.
const LARGE: usize = 128 << 10;

static LARGE_ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

struct Counting;

fn count(size: usize) {
    if size > LARGE {
        LARGE_ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as the caller's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: as the caller's.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller's.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn steps_after_the_second_take_nothing_from_the_system() {
    let location = Location::Path(golden("sd1"));
    let model =
        Checkpoint::open(&location, &OpenOptions::default()).expect("the golden model opens");
    let request = Request {
        prompt: "a lighthouse".into(),
        width: 512,
        height: 512,
        steps: 6,
        guidance: 7.5,
        sampler: "euler".into(),
        ..Request::default()
    };
    let mut after = Vec::new();
    generate(
        &model,
        &request,
        &RunOptions::default(),
        &Device::flex(),
        &mut |event| {
            if let Event::Step {
                stage: Stage::Denoise,
                ..
            } = event
            {
                let pool = buffer::stats();
                after.push((
                    LARGE_ALLOCATIONS.load(Ordering::Relaxed),
                    pool.grown,
                    pool.taken,
                ));
            }
            ControlFlow::Continue(())
        },
    )
    .expect("the run succeeds");
    assert_eq!(after.len(), 6);
    // The first step finds out what is needed.
    let steps: Vec<_> = after
        .windows(2)
        .skip(1)
        .map(|w| (w[1].0 - w[0].0, w[1].1 - w[0].1, w[1].2 - w[0].2))
        .collect();
    eprintln!("large allocations, bytes from the system, pooled buffers of each step: {steps:?}");
    for (allocations, grown, taken) in steps {
        assert!(taken > 10, "the pool is used: {taken}");
        assert_eq!(grown, 0, "the pool grew");
        assert_eq!(allocations, 0, "allocations larger than latents");
    }
}
