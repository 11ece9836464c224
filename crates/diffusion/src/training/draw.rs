//! Random numbers of a training step, as a function of the seed and the step.

use crate::noise::NoiseSource;
use crate::rng::Philox;
use crate::rng::philox::{halves, philox4x32};

/// What a number is for; each purpose has its own stream, so that a change of one does not move another.
#[derive(Debug, Clone, Copy)]
#[repr(u32)]
enum Stream {
    Times = 1,
    Choices = 2,
    Noise = 3,
    Offsets = 4,
}

/// The random numbers of one training step. A value depends on the seed, the step and its own index alone:
/// nothing has to be remembered from step to step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draw {
    seed: u64,
    step: u64,
}

impl Draw {
    /// The numbers of a step, counted from 0.
    pub fn new(seed: u64, step: u64) -> Self {
        Self { seed, step }
    }

    /// Uniform in [0, 1), for the noise levels.
    pub(super) fn time(&self, index: usize) -> f64 {
        self.uniform(Stream::Times, index)
    }

    /// Uniform in [0, 1), for the choices that an example's data asks for: crop, flip, caption, dropout.
    pub fn choice(&self, index: usize) -> f64 {
        self.uniform(Stream::Choices, index)
    }

    /// Fills `out` with the standard normal noise of an example of the batch.
    pub fn normal(&self, example: usize, out: &mut [f32]) {
        self.normals(Stream::Noise, example, out);
    }

    /// Fills `out` with standard normal values, one a channel.
    pub(super) fn offsets(&self, example: usize, out: &mut [f32]) {
        self.normals(Stream::Offsets, example, out);
    }

    fn uniform(&self, stream: Stream, index: usize) -> f64 {
        let [a, b, ..] = self.words(stream, index as u64);
        // 53 bits, the precision of f64.
        ((u64::from(a) << 32 | u64::from(b)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn normals(&self, stream: Stream, example: usize, out: &mut [f32]) {
        let [a, b, c, d] = self.words(stream, example as u64);
        let seed = u64::from(a) << 32 | u64::from(b);
        let offset = u64::from(c) << 32 | u64::from(d);
        Philox::from_parts(seed, offset).normal(out);
    }

    fn words(&self, stream: Stream, index: u64) -> [u32; 4] {
        let [step_low, step_high] = halves(self.step);
        let [index, _] = halves(index);
        philox4x32(
            [index, stream as u32, step_low, step_high],
            halves(self.seed),
        )
    }
}
