//! Stored numbers of any type, widened to `f32` a run at a time.

use half::{bf16, f16};

use super::Simd;
use crate::RhsData;

/// A storage type whose every number stands for itself. A `u8` is an f8 (e4m3fn).
pub(crate) trait Element: Copy + Send + Sync + 'static {
    fn widen(self) -> f32;
    /// # Safety
    /// `p` is readable for `LANES` elements.
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::V;
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::V {
        // SAFETY: the caller's promise is the same.
        unsafe { s.load(p) }
    }
}

macro_rules! element {
    ($type:ty, $widen:expr, $load:ident) => {
        impl Element for $type {
            #[inline(always)]
            fn widen(self) -> f32 {
                $widen(self)
            }
            #[inline(always)]
            unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::V {
                // SAFETY: the caller's promise is the same.
                unsafe { s.$load(p) }
            }
        }
    };
}
element!(f16, f16::to_f32, load_f16);
element!(bf16, bf16::to_f32, load_bf16);
element!(u8, crate::blocks::decode_f8_e4m3, load_f8);

/// Widens a slice into another of the same length.
#[inline(always)]
pub(crate) fn widen_slice<S: Simd, E: Element>(s: S, src: &[E], dst: &mut [f32]) {
    let whole = src.len() / S::LANES * S::LANES;
    let dst = &mut dst[..src.len()];
    for i in (0..whole).step_by(S::LANES) {
        // SAFETY: i + LANES <= whole <= both lengths.
        unsafe { s.store(dst.as_mut_ptr().add(i), E::load(s, src.as_ptr().add(i))) };
    }
    for (d, e) in dst[whole..].iter_mut().zip(&src[whole..]) {
        *d = e.widen();
    }
}

/// Numbers in memory, in whatever form, addressed by their index.
pub(crate) trait Source: Copy + Send + Sync {
    /// Widens numbers `at..at + out.len()`.
    fn widen<S: Simd>(self, s: S, at: usize, out: &mut [f32]);
    /// Where number `at` is, for prefetching.
    fn address(self, at: usize) -> *const u8;
}

impl<E: Element> Source for &[E] {
    #[inline(always)]
    fn widen<S: Simd>(self, s: S, at: usize, out: &mut [f32]) {
        widen_slice(s, &self[at..][..out.len()], out);
    }

    #[inline(always)]
    fn address(self, at: usize) -> *const u8 {
        self.as_ptr().wrapping_add(at).cast()
    }
}

/// Evaluates an expression of the [`Source`] that an [`crate::RhsData`] holds. A macro, as a closure would leave the
/// job's instruction set.
macro_rules! with_source {
    ($data:expr, |$d:ident| $f:expr) => {{
        use $crate::blocks::{
            BlockFormat, Blocks, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0,
        };
        match $data {
            $crate::RhsData::F32($d) => $f,
            $crate::RhsData::F16($d) => $f,
            $crate::RhsData::BF16($d) => $f,
            $crate::RhsData::F8E4M3($d) => $f,
            $crate::RhsData::Blocks(BlockFormat::Q8_0, bytes) => {
                let $d = Blocks::<Q8_0>::new(bytes);
                $f
            }
            $crate::RhsData::Blocks(BlockFormat::Q6K, bytes) => {
                let $d = Blocks::<Q6K>::new(bytes);
                $f
            }
            $crate::RhsData::Blocks(BlockFormat::Q5K, bytes) => {
                let $d = Blocks::<Q5K>::new(bytes);
                $f
            }
            $crate::RhsData::Blocks(BlockFormat::Q5_1, bytes) => {
                let $d = Blocks::<Q5_1>::new(bytes);
                $f
            }
            $crate::RhsData::Blocks(BlockFormat::Q5_0, bytes) => {
                let $d = Blocks::<Q5_0>::new(bytes);
                $f
            }
            $crate::RhsData::Blocks(BlockFormat::Q4K, bytes) => {
                let $d = Blocks::<Q4K>::new(bytes);
                $f
            }
            $crate::RhsData::Blocks(BlockFormat::Q4_1, bytes) => {
                let $d = Blocks::<Q4_1>::new(bytes);
                $f
            }
            $crate::RhsData::Blocks(BlockFormat::Q4_0, bytes) => {
                let $d = Blocks::<Q4_0>::new(bytes);
                $f
            }
            $crate::RhsData::Blocks(BlockFormat::Q3K, bytes) => {
                let $d = Blocks::<Q3K>::new(bytes);
                $f
            }
            $crate::RhsData::Blocks(BlockFormat::Q2K, bytes) => {
                let $d = Blocks::<Q2K>::new(bytes);
                $f
            }
        }
    }};
}

/// What [`Simd::widen`] does, to be compiled for an instruction set.
#[inline(always)]
pub(super) fn widen<S: Simd>(s: S, data: RhsData<'_>, at: usize, out: &mut [f32]) {
    with_source!(data, |d| d.widen(s, at, out));
}

/// Where number `at` is, for prefetching.
#[inline]
pub(crate) fn address(data: RhsData<'_>, at: usize) -> *const u8 {
    with_source!(data, |d| d.address(at))
}

/// The number that the bits of an f16 stand for. Not `half`'s: that asks the CPU for its instructions each time.
#[inline(always)]
pub(crate) fn half_to_f32(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff) << 13;
    // Scaled by 2^(127 - 15), which is right for subnormals too; infinities and NaNs (2^16 and up) get their exponent.
    let scaled = f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23);
    let special = if scaled >= 65536.0 { 0x7f80_0000 } else { 0 };
    f32::from_bits(scaled.to_bits() | special | u32::from(bits & 0x8000) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_agree_with_the_half_crate() {
        for bits in (0..=u16::MAX).step_by(if cfg!(miri) { 61 } else { 1 }) {
            let (got, want) = (half_to_f32(bits), f16::from_bits(bits).to_f32());
            assert!(got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()));
        }
    }
}
