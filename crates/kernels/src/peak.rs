//! The rate of multiply-adds that one core reaches with nothing else to do: what "percent of peak" refers to.

use std::hint::black_box;
use std::time::Instant;

use crate::Isa;
use crate::simd::{Job, Simd};

/// GFLOP/s of a loop of independent multiply-adds on the calling thread, over about 2 ms. Take the best of several
/// calls on a machine that does other things too.
pub fn peak_gflops(isa: Isa) -> f64 {
    let start = Instant::now();
    let operations = isa.run(MultiplyAdds {
        rounds: black_box(400_000),
    });
    operations / start.elapsed().as_secs_f64() / 1e9
}

/// The same on all threads of the current pool at once, added up.
pub fn peak_gflops_of_all_threads(isa: Isa) -> f64 {
    rayon::broadcast(|_| peak_gflops(isa)).iter().sum()
}

struct MultiplyAdds {
    rounds: usize,
}

impl Job for MultiplyAdds {
    type Output = f64;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        const CHAINS: usize = 12;
        let (x, y) = (s.splat(black_box(0.999)), s.splat(black_box(0.001)));
        let mut acc = [s.splat(1.0); CHAINS];
        for _ in 0..self.rounds {
            for a in &mut acc {
                *a = s.fma(*a, x, y);
            }
        }
        black_box(acc.iter().fold(0.0, |t, &a| t + s.sum(a)));
        (self.rounds * CHAINS * S::LANES * 2) as f64
    }
}
