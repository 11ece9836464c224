//! The pool of buffers is the process's, so its figures are tested in a program of their own.

use aquatint_kernels::Buffer;
use aquatint_kernels::buffer::{release, stats};

const HUGE_PAGE: u64 = 2 << 20;

#[test]
fn a_steady_loop_takes_nothing_from_the_system() {
    let step = || {
        let mut a = Buffer::new(3 << 20);
        let b = Buffer::new(1 << 20);
        a.fill(1.0);
        drop(b);
        let mut c = Buffer::zeroed(2 << 20);
        c[7] = 2.0;
        assert!(a.iter().all(|&v| v == 1.0));
        assert_eq!(c.iter().sum::<f32>(), 2.0);
        assert_eq!(a.as_ptr() as usize % 64, 0);
    };
    step();
    let before = stats();
    (0..3).for_each(|_| step());
    let after = stats();
    assert_eq!(after.grown, before.grown);
    assert_eq!(after.in_use, before.in_use);
    if !cfg!(all(target_os = "linux", target_pointer_width = "64")) {
        return;
    }
    assert_eq!(after.taken, before.taken + 9);
    assert_eq!(after.highest, 5 << 22);
    assert!(after.resident <= after.highest * 9 / 8 + 4 * HUGE_PAGE);
    release();
    assert_eq!(stats().resident, 0);

    // Blocks that do not fit into what smaller ones left behind: the pool gives that back before it grows.
    let blocks: Vec<_> = (0..64).map(|_| Buffer::zeroed(1 << 19)).collect();
    let kept: Vec<_> = blocks.into_iter().step_by(2).collect();
    let large = Buffer::zeroed(16 << 20);
    let pool = stats();
    assert_eq!(pool.in_use, (32 << 21) + (64 << 20));
    assert!(pool.resident <= pool.highest * 9 / 8 + 4 * HUGE_PAGE);
    assert!(
        large
            .iter()
            .chain(kept.iter().flat_map(|b| b.iter()))
            .all(|&v| v == 0.0)
    );
}
