//! The randomness of PyTorch's CUDA generator.

use super::RngState;
use crate::noise::NoiseSource;

/// Philox4x32 with 10 rounds (Salmon, Moraes, Dror and Shaw, *Parallel Random Numbers: As Easy as
/// 1, 2, 3*, 2011), as `torch.randn(..., device="cuda")` draws from it.
///
/// The seed is the key, the index of the value the subsequence (the upper half of the counter), and
/// each call moves the lower half by one; the first two of the four words give one normal value by
/// Box and Muller. Element `i` of a call hence does not depend on how many others there are.
///
/// The integers are CUDA's exactly. The transform is done in `f32` with correctly rounded
/// functions; CUDA's `logf` and `sinf` are within 1 to 2 units in the last place of that
/// (AUTOMATIC1111's double precision differs by up to 1e-5 where a value is near 0). A GPU makes
/// values with an index past its number of resident threads (1536 or 2048 for each of its
/// multiprocessors) out of the other words of earlier subsequences, so beyond that size a seed's
/// noise differs between cards; like AUTOMATIC1111 and stable-diffusion.cpp, this goes on as an
/// unbounded card would.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Philox {
    seed: u64,
    offset: u64,
}

impl Philox {
    /// As `torch.manual_seed(seed)` on CUDA.
    pub fn from_seed(seed: u64) -> Self {
        Self { seed, offset: 0 }
    }

    /// The state, to go on from later with [`from_state`](super::Generator::from_state).
    pub fn state(&self) -> RngState {
        RngState::Philox {
            seed: self.seed,
            offset: self.offset,
        }
    }

    pub(crate) fn from_parts(seed: u64, offset: u64) -> Self {
        Self { seed, offset }
    }
}

impl NoiseSource for Philox {
    /// Fills `out` with standard normal values, as one call of `torch.randn(out.len())` does.
    fn normal(&mut self, out: &mut [f32]) {
        let key = halves(self.seed);
        let [low, high] = halves(self.offset);
        for (index, value) in (0_u64..).zip(out) {
            let [index_low, index_high] = halves(index);
            let [x, y, ..] = philox4x32([low, high, index_low, index_high], key);
            *value = box_muller(x, y);
        }
        self.offset = self.offset.wrapping_add(1);
    }
}

/// Low and high half.
pub(crate) fn halves(x: u64) -> [u32; 2] {
    [x as u32, (x >> 32) as u32]
}

/// The bijection: ten rounds, the key bumped between them.
pub(crate) fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
    // The golden ratio, and the square root of 3 less 1.
    const BUMPS: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];
    for _ in 0..10 {
        let [low0, high0] = halves(u64::from(counter[0]) * u64::from(MULTIPLIERS[0]));
        let [low1, high1] = halves(u64::from(counter[2]) * u64::from(MULTIPLIERS[1]));
        counter = [
            high1 ^ counter[1] ^ key[0],
            low1,
            high0 ^ counter[3] ^ key[1],
            low0,
        ];
        key[0] = key[0].wrapping_add(BUMPS[0]);
        key[1] = key[1].wrapping_add(BUMPS[1]);
    }
    counter
}

/// The first (sine) value of cuRAND's `_curand_box_muller`.
fn box_muller(x: u32, y: u32) -> f32 {
    const STEP: f32 = 2.328_306_4e-10;
    const STEP_TAU: f32 = STEP * std::f32::consts::TAU;
    // In (0, 1] and (0, 2 pi]; the compiler of CUDA fuses both.
    let u = (x as f32).mul_add(STEP, STEP / 2.0);
    let v = (y as f32).mul_add(STEP_TAU, STEP_TAU / 2.0);
    let radius = (-2.0 * f64::from(u).ln() as f32).sqrt();
    radius * f64::from(v).sin() as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_known_answers_of_random123() {
        // kat_vectors of Random123, lines "philox4x32 10".
        let cases = [
            (
                [0; 4],
                [0; 2],
                [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8],
            ),
            (
                [u32::MAX; 4],
                [u32::MAX; 2],
                [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd],
            ),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(philox4x32(counter, key), expected);
        }
    }

    #[test]
    fn extreme_words_stay_finite() {
        for x in [0, 1, u32::MAX] {
            for y in [0, 1, u32::MAX] {
                assert!(box_muller(x, y).is_finite());
            }
        }
    }
}
