//! Every kernel against its naive reference, on every instruction set of this machine.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests: an error is a failed test"
)]

mod attention;
mod attention_backward;
mod blocks;
mod conv;
mod conv_backward;
mod gemm;
mod rows;
mod rows_backward;
mod transformer;

use aquatint_kernels::blocks::encode_q8_0;
use aquatint_kernels::{Activation, BlockFormat, RhsData};
use half::{bf16, f16};
use proptest::prelude::*;

/// Half a unit in the last place of 1.
pub(crate) const ROUNDOFF: f64 = f32::EPSILON as f64 / 2.0;

/// A property's configuration. Two cases have to do for Miri, which is slow and has no directory for those that failed.
pub(crate) fn cases(count: u32) -> ProptestConfig {
    let mut config = ProptestConfig::with_cases(count);
    if cfg!(miri) {
        config.cases = 2;
        config.failure_persistence = None;
    }
    config
}

/// Numbers in [-1, 1), the same for the same seed.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// A weight in one of its storage types.
#[derive(Debug, Clone)]
pub(crate) enum Stored {
    F32(Vec<f32>),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
    F8E4M3(Vec<u8>),
    Blocks(BlockFormat, Vec<u8>),
}

/// How many kinds of [`Stored`] there are; the first three are floats of 16 bits or more.
pub(crate) const STORED: usize = 7;

impl Stored {
    /// Kinds of 8 bits and less hold numbers that have little to do with `values`, but are as many or, to fill a
    /// block, a few more.
    pub(crate) fn new(values: Vec<f32>, kind: usize) -> Self {
        let bytes = || values.iter().map(|v| v.to_bits() as u8);
        match kind % STORED {
            0 => Self::F32(values),
            1 => Self::F16(values.into_iter().map(f16::from_f32).collect()),
            2 => Self::BF16(values.into_iter().map(bf16::from_f32).collect()),
            // Up to 2 in magnitude, subnormals and zeros among them.
            3 => Self::F8E4M3(
                bytes()
                    .map(|b| if b & 0x7f > 0x40 { b ^ 0x40 } else { b })
                    .collect(),
            ),
            4 => {
                let mut padded = values;
                padded.resize(padded.len().next_multiple_of(32), 0.5);
                Self::Blocks(BlockFormat::Q8_0, encode_q8_0(&padded).unwrap())
            }
            kind => {
                let format = [BlockFormat::Q4_0, BlockFormat::Q4K][kind - 5];
                let blocks = values.len().div_ceil(format.block_len());
                let mut noise = bytes().cycle();
                let mut stored = Vec::new();
                for _ in 0..blocks {
                    let block = stored.len();
                    stored.extend(noise.by_ref().take(format.block_bytes()));
                    let scale =
                        f16::from_f32(0.03 + f32::from(stored[block]) / 5000.0).to_le_bytes();
                    stored[block..block + 2].copy_from_slice(&scale);
                    if format == BlockFormat::Q4K {
                        stored[block + 2..block + 4].copy_from_slice(&scale);
                    }
                }
                Self::Blocks(format, stored)
            }
        }
    }

    pub(crate) fn data(&self) -> RhsData<'_> {
        match self {
            Self::F32(v) => RhsData::F32(v),
            Self::F16(v) => RhsData::F16(v),
            Self::BF16(v) => RhsData::BF16(v),
            Self::F8E4M3(v) => RhsData::F8E4M3(v),
            Self::Blocks(format, v) => RhsData::Blocks(*format, v),
        }
    }

    /// The magnitudes of the numbers.
    pub(crate) fn magnitudes(&self) -> Self {
        let data = self.data();
        Self::F32((0..data.len()).map(|i| data.get(i).abs()).collect())
    }
}

pub(crate) const ACTIVATIONS: [Activation; 6] = [
    Activation::None,
    Activation::Relu,
    Activation::Silu,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::QuickGelu,
];

/// Sizes that find edges: nothing, one, primes, and around the tiles.
pub(crate) fn size() -> impl Strategy<Value = usize> {
    prop_oneof![1 => Just(0usize), 2 => Just(1usize), 6 => 2usize..40, 2 => prop::sample::select(vec![47, 61, 97, 128])]
}

/// Asserts `|got - want| <= bound * magnitude` for every element.
pub(crate) fn assert_close(what: &str, got: &[f32], want: &[f32], magnitude: &[f32], bound: f64) {
    assert_eq!(got.len(), want.len());
    for (i, ((&g, &w), &m)) in got.iter().zip(want).zip(magnitude).enumerate() {
        let error = (f64::from(g) - f64::from(w)).abs();
        let allowed = bound * f64::from(m.abs()) + 1e-30;
        assert!(
            error <= allowed,
            "{what}: element {i} is {g}, not {w}: {error:e} > {allowed:e}"
        );
    }
}
