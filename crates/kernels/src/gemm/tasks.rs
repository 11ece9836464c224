//! Tasks that threads take in turn: for those that are few, or whose threads are not equally fast.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::driver::for_each;

/// Calls `f` for `0..count`, on the pool's threads when `parallel`; a thread takes the next number when it is done with
/// one.
pub(crate) fn for_each_in_turn(count: usize, parallel: bool, f: impl Fn(usize) + Sync + Send) {
    let tasks = Tasks::new(count);
    let workers = rayon::current_num_threads().min(count);
    for_each(if parallel { workers } else { 1 }, parallel, |_| {
        tasks.each(&f);
    });
}

/// Numbered tasks that several threads work off.
#[derive(Debug)]
pub(crate) struct Tasks {
    count: usize,
    next: AtomicUsize,
    done: AtomicUsize,
}

impl Tasks {
    pub(crate) fn new(count: usize) -> Self {
        let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { count, next, done }
    }

    /// Takes tasks until none is left.
    pub(crate) fn each(&self, f: impl Fn(usize)) {
        loop {
            let task = self.next.fetch_add(1, Ordering::Relaxed);
            if task >= self.count {
                return;
            }
            let _done = Done(&self.done);
            f(task);
        }
    }

    /// Waits until all tasks are done. All must have been taken; who has taken one waits for nobody, so this ends soon.
    pub(crate) fn wait(&self) {
        let mut turns = 0u32;
        while self.done.load(Ordering::Acquire) < self.count {
            turns += 1;
            if turns.is_multiple_of(256) {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
    }
}

/// Counts a task when it ends, by a panic too: nobody is to wait for it for ever.
struct Done<'a>(&'a AtomicUsize);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_is_done_once_and_waited_for() {
        let tasks = Tasks::new(100);
        let counts: Vec<AtomicUsize> = (0..100).map(|_| AtomicUsize::new(0)).collect();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    tasks.each(|i| {
                        counts[i].fetch_add(1, Ordering::Relaxed);
                    });
                    tasks.wait();
                    assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
                });
            }
        });
    }

    #[test]
    fn a_panic_leaves_nobody_waiting() {
        let tasks = Tasks::new(2);
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            tasks.each(|_| panic!("on purpose"));
        }));
        assert!(ended.is_err());
        tasks.each(|_| ());
        tasks.wait();
    }
}
