//! The randomness of `torch.Generator("cpu")`.

use super::mathfun;
use super::mt19937::{self, Mt19937};
use super::{RngError, RngState};
use crate::noise::NoiseSource;

/// Values that the vectorised transform makes together: 8 cosines, then the 8 sines of the same
/// angles.
const GROUP: usize = 16;
const HALF: usize = GROUP / 2;

/// `torch.Generator("cpu")`: MT19937, and both of PyTorch's ways to a normal value.
///
/// [`normal`](NoiseSource::normal) equals `torch.randn(shape, generator=g)` in `float32` bit for bit, for
/// every shape (only the number of values matters) and every sequence of calls:
///
/// - Under 16 values, PyTorch draws 53-bit uniforms and transforms a pair in double precision by
///   Box and Muller; the second value of the pair waits in the generator, also across calls that
///   take the other way. The elementary functions are the platform's `f64` ones, here and there;
///   where two platforms' last bit differs, the rounding to `f32` hides it but for about one value
///   in 10^8.
/// - From 16 values on, it fills the output with 24-bit uniforms and transforms groups of 16 in
///   single precision; when the size is no multiple of 16, the last 16 values are drawn again. The
///   reference is the AVX2 code, which every x86 machine of the last decade runs (on AVX-512 ones
///   PyTorch takes the same code). It is reproduced here in portable Rust: the same bits on every
///   machine.
///
/// On processors without AVX2, and on ARM, PyTorch's own second way calls the C library's `logf`,
/// `cosf` and `sinf` instead; there 4 values in 10 differ from these, by at most 2.3e-6 (measured
/// with `ATEN_CPU_CAPABILITY=default`), so pictures match ours to the eye, not to the bit.
///
/// Checked against PyTorch 2.15 by `golden/rng.py`: every one of the 2^24 radii and of the 2^24
/// angles of the second way, and many mixtures of calls.
#[derive(Clone, Debug)]
pub struct TorchCpu {
    engine: Mt19937,
    /// The waiting half of the last pair of the small way.
    spare: Option<f64>,
}

impl TorchCpu {
    /// As `torch.Generator("cpu").manual_seed(seed)`: only the low 32 bits count.
    pub fn from_seed(seed: u64) -> Self {
        Self {
            engine: Mt19937::new(seed as u32),
            spare: None,
        }
    }

    /// The state, to go on from later with [`from_state`](super::Generator::from_state).
    pub fn state(&self) -> RngState {
        let (words, used) = self.engine.parts();
        RngState::TorchCpu {
            words: words.to_vec(),
            used,
            spare: self.spare,
        }
    }

    pub(super) fn from_parts(
        words: &[u32],
        used: usize,
        spare: Option<f64>,
    ) -> Result<Self, RngError> {
        let engine = Mt19937::from_parts(words, used).ok_or(RngError::BadTorchState {
            words: words.len(),
            used,
            expected: mt19937::N,
        })?;
        if let Some(value) = spare.filter(|value| !value.is_finite()) {
            return Err(RngError::BadSpare { value });
        }
        Ok(Self { engine, spare })
    }

    /// 24 random bits in `[0, 1)`.
    fn uniform(&mut self) -> f32 {
        (self.engine.next_u32() & 0x00ff_ffff) as f32 / 16_777_216.0
    }

    /// 53 random bits in `[0, 1)`.
    fn uniform_f64(&mut self) -> f64 {
        const BITS_53: u64 = 1 << 53;
        (self.engine.next_u64() & (BITS_53 - 1)) as f64 / BITS_53 as f64
    }

    /// One value of the small way: the cosine of a fresh pair, or the sine of the last one.
    fn one(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let turn = self.uniform_f64();
        let radius = (-2.0 * (-self.uniform_f64()).ln_1p()).sqrt();
        let angle = 2.0 * std::f64::consts::PI * turn;
        self.spare = Some(radius * angle.sin());
        radius * angle.cos()
    }
}

impl NoiseSource for TorchCpu {
    /// Fills `out` with standard normal values, as one call of `torch.randn(out.len())` does.
    fn normal(&mut self, out: &mut [f32]) {
        if out.len() < GROUP {
            for value in out {
                *value = self.one() as f32;
            }
            return;
        }
        for value in &mut *out {
            *value = self.uniform();
        }
        let (groups, rest) = out.as_chunks_mut::<GROUP>();
        groups.iter_mut().for_each(box_muller);
        if !rest.is_empty()
            && let Some(last) = out.last_chunk_mut::<GROUP>()
        {
            for value in &mut *last {
                *value = self.uniform();
            }
            box_muller(last);
        }
    }
}

/// Turns 16 uniforms into 16 normal values in place: the first 8 give the radii, the last 8 the
/// angles.
fn box_muller(group: &mut [f32; GROUP]) {
    for i in 0..HALF {
        let radius = (-2.0 * mathfun::log(1.0 - group[i])).sqrt();
        let (sin, cos) = mathfun::sin_cos(std::f32::consts::TAU * group[i + HALF]);
        // PyTorch scales by the deviation 1 and adds the mean 0, which turns -0 into 0.
        group[i] = radius * cos + 0.0;
        group[i + HALF] = radius * sin + 0.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::check::{Golden, crc32};

    /// Every angle and every radius that there is, against PyTorch: both are one of 2^24 values.
    #[test]
    fn every_pair_of_uniforms_is_transformed_as_in_torch() {
        const SIZE: u32 = 1 << 24;
        let golden = Golden::read().exhaustive;
        let mut crc = crc32(0, &[]);
        for first in (0..SIZE).step_by(HALF) {
            let mut group = [0.0; GROUP];
            for (i, k) in (0..HALF).zip(first..) {
                group[i] = k as f32 / SIZE as f32;
                group[i + HALF] = (k.wrapping_mul(golden.stride) % SIZE) as f32 / SIZE as f32;
            }
            box_muller(&mut group);
            crc = crc32(crc, &group);
        }
        assert_eq!(crc, golden.crc32);
    }
}
