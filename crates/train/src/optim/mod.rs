//! From gradients to new weights: clipping, AdamW, the learning rate's course, averaged weights.

mod adamw;
mod ema;
mod rate;

pub use adamw::{AdamW, Moments};
pub use ema::Ema;
pub use rate::{Decay, LearningRate};

use rayon::prelude::*;

/// Elements of a task; sums are taken by task, so they do not depend on the number of threads.
const PART: usize = 1 << 14;

/// Euclidean norm over all gradients, in f64.
pub fn global_norm<'a>(gradients: impl IntoIterator<Item = &'a [f32]>) -> f64 {
    let square = |part: &[f32]| part.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>();
    gradients
        .into_iter()
        .map(|gradient| {
            let parts: Vec<f64> = gradient.par_chunks(PART).map(square).collect();
            parts.iter().sum::<f64>()
        })
        .sum::<f64>()
        .sqrt()
}

/// The factor that brings a gradient of norm `norm` to at most `limit`, as `torch.nn.utils.clip_grad_norm_`.
pub fn clip_factor(norm: f64, limit: Option<f64>) -> f32 {
    limit.map_or(1.0, |limit| (limit / (norm + 1e-6)).min(1.0) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_gradients_are_shortened_and_short_ones_left() {
        let parts: [&[f32]; 2] = [&[3.0, 0.0], &[-4.0]];
        let norm = global_norm(parts);
        assert_eq!(norm, 5.0);
        assert!((f64::from(clip_factor(norm, Some(1.0))) - 0.2).abs() < 1e-7);
        assert_eq!(clip_factor(norm, Some(10.0)), 1.0);
        assert_eq!(clip_factor(norm, None), 1.0);
    }

    #[test]
    fn a_norm_does_not_depend_on_the_threads() {
        let values: Vec<f32> = (0..100_003)
            .map(|i| ((i * 37) % 101) as f32 * 0.01 - 0.5)
            .collect();
        let norm = |threads| {
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .expect("pool")
                .install(|| global_norm([&values[..]]))
        };
        assert_eq!(norm(1).to_bits(), norm(3).to_bits());
    }
}
