//! AdamW (Loshchilov and Hutter 2019), with PyTorch's order of operations.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::PART;
use crate::TrainError;

/// Settings of AdamW; the defaults are PyTorch's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamW {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Added to the root of the squared gradients.
    pub eps: f64,
    /// Share of a weight that a step of rate 1 takes away.
    pub weight_decay: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 1e-2,
        }
    }
}

/// What AdamW remembers of one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    /// Mean of gradients.
    pub first: Vec<f32>,
    /// Mean of squared gradients.
    pub second: Vec<f32>,
}

impl Moments {
    /// Of a tensor of `len` elements that has seen no gradient.
    pub fn new(len: usize) -> Self {
        Self {
            first: vec![0.0; len],
            second: vec![0.0; len],
        }
    }
}

impl AdamW {
    pub(crate) fn check(&self) -> Result<(), TrainError> {
        for (key, value) in [
            ("optimizer.beta1", self.beta1),
            ("optimizer.beta2", self.beta2),
        ] {
            if !(0.0..1.0).contains(&value) {
                return Err(TrainError::setting(key, value, "0 or more, less than 1"));
            }
        }
        if !(self.eps > 0.0 && self.eps < 1.0) {
            return Err(TrainError::setting(
                "optimizer.eps",
                self.eps,
                "between 0 and 1",
            ));
        }
        if !(0.0..=1.0).contains(&self.weight_decay) {
            let key = "optimizer.weight_decay";
            return Err(TrainError::setting(key, self.weight_decay, "0 to 1"));
        }
        Ok(())
    }

    /// Moves `weights` against `gradient · scale`, in update number `update` (from 1) with learning rate `rate`.
    ///
    /// # Panics
    /// When the slices differ in length.
    pub fn step(
        &self,
        update: u64,
        rate: f64,
        weights: &mut [f32],
        gradient: &[f32],
        scale: f32,
        moments: &mut Moments,
    ) {
        assert!(
            weights.len() == gradient.len()
                && weights.len() == moments.first.len()
                && weights.len() == moments.second.len(),
            "weights, gradient and moments of one tensor"
        );
        let exponent = update.min(i32::MAX as u64) as i32;
        let keep = (1.0 - rate * self.weight_decay) as f32;
        let new1 = (1.0 - self.beta1) as f32;
        let (beta2, new2) = (self.beta2 as f32, (1.0 - self.beta2) as f32);
        let size = (rate / (1.0 - self.beta1.powi(exponent))) as f32;
        let root = (1.0 - self.beta2.powi(exponent)).sqrt() as f32;
        let eps = self.eps as f32;
        weights
            .par_chunks_mut(PART)
            .zip(gradient.par_chunks(PART))
            .zip(moments.first.par_chunks_mut(PART))
            .zip(moments.second.par_chunks_mut(PART))
            .for_each(|(((weights, gradient), first), second)| {
                let moments = first.iter_mut().zip(second);
                for ((w, &g), (m, v)) in weights.iter_mut().zip(gradient).zip(moments) {
                    let g = g * scale;
                    *m += (g - *m) * new1;
                    *v = *v * beta2 + g * g * new2;
                    *w = *w * keep - size * *m / (v.sqrt() / root + eps);
                }
            });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `golden/train_optim.py` prints these.
    const TORCH: [[f32; 3]; 4] = [
        [0.489_500_02, -1.009_000_1, 0.239_750],
        [0.479_115_9, -1.017_718_7, 0.237_580_27],
        [0.452_163_5, -1.024_236_9, 0.256_020_34],
        [0.452_676_7, -1.011_301_8, 0.261_607_97],
    ];

    #[test]
    fn ten_updates_equal_those_of_torch() {
        let adam = AdamW {
            weight_decay: 0.1,
            ..AdamW::default()
        };
        let mut weights = [0.5_f32, -1.0, 0.25];
        let mut moments = Moments::new(3);
        let mut seen = Vec::new();
        for update in 1..=10_u64 {
            let g = |i: usize| ((update as f32) * 0.7 + i as f32).sin();
            let gradient = [g(0), g(1), g(2)];
            adam.step(update, 0.01, &mut weights, &gradient, 1.0, &mut moments);
            if [1, 2, 5, 10].contains(&update) {
                seen.push(weights);
            }
        }
        for (found, expected) in seen.iter().zip(&TORCH) {
            for (a, b) in found.iter().zip(expected) {
                // A few roundings of f32 an update.
                assert!((a - b).abs() < 1e-6, "{seen:?}");
            }
        }
    }

    #[test]
    fn an_update_does_not_depend_on_the_threads() {
        let run = |threads: usize| {
            let mut weights: Vec<f32> = (0..50_000).map(|i| (i as f32).sin()).collect();
            let gradient: Vec<f32> = (0..50_000).map(|i| (i as f32).cos()).collect();
            let mut moments = Moments::new(weights.len());
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .expect("pool")
                .install(|| {
                    AdamW::default().step(1, 0.1, &mut weights, &gradient, 0.5, &mut moments);
                });
            weights
        };
        assert_eq!(run(1), run(3));
    }
}
