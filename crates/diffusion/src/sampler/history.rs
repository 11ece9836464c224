//! What a multistep solver remembers.

use std::collections::VecDeque;

use crate::level::Level;
use crate::math::combine;

/// Network results of the last steps with their lambda (half the log-SNR), the newest first.
#[derive(Debug, Default)]
pub(crate) struct History(VecDeque<(f64, Vec<f32>)>);

impl History {
    /// Remembers a result, and forgets all but the newest `most`.
    pub fn push(&mut self, level: Level, value: Vec<f32>, most: usize) {
        self.0.push_front((level.lambda(), value));
        self.0.truncate(most.max(1));
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The lambda and the value of the `back`-th last result; 0 is the newest.
    pub fn get(&self, back: usize) -> (f64, &[f32]) {
        let (lambda, value) = &self.0[back];
        (*lambda, value)
    }

    /// The newest value and its first and second divided differences over a step of length `h`;
    /// empty where `order` does not need them.
    pub fn differences(&self, h: f64, order: usize) -> (&[f32], Vec<f32>, Vec<f32>) {
        let (lambda_0, m0) = self.get(0);
        if order < 2 {
            return (m0, Vec::new(), Vec::new());
        }
        let (lambda_1, m1) = self.get(1);
        let r0 = (lambda_0 - lambda_1) / h;
        let d1_0 = combine([(1.0 / r0, m0), (-1.0 / r0, m1)]);
        if order < 3 {
            return (m0, d1_0, Vec::new());
        }
        let (lambda_2, m2) = self.get(2);
        let r1 = (lambda_1 - lambda_2) / h;
        let d1_1 = combine([(1.0 / r1, m1), (-1.0 / r1, m2)]);
        let share = r0 / (r0 + r1);
        let d1 = combine([(1.0 + share, &d1_0), (-share, &d1_1)]);
        let d2 = combine([(1.0 / (r0 + r1), &d1_0), (-1.0 / (r0 + r1), &d1_1)]);
        (m0, d1, d2)
    }
}
