//! AVX2, FMA and F16C: 8 lanes, tile 6 x 16 (12 accumulators, 2 vectors of B, 1 broadcast).

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{Job, Simd, source};
use crate::RhsData;
use crate::gemm::tile::{TileArgs, dispatch_rows};

/// Proof that the CPU has AVX2, FMA and F16C.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Avx2(());

impl Avx2 {
    pub(super) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        found.then_some(Self(()))
    }

    pub(super) fn enter<J: Job>(self, job: J) -> J::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn inner<J: Job>(s: Avx2, job: J) -> J::Output {
            job.run(s)
        }
        // SAFETY: `self` proves the features.
        unsafe { inner(self, job) }
    }
}

/// Wraps an intrinsic whose only precondition is the CPU feature.
macro_rules! proven {
    ($e:expr) => {
        // SAFETY: `self` proves the feature; pointers are as the method's caller promises.
        unsafe { $e }
    };
}

impl Simd for Avx2 {
    type V = __m256;
    const LANES: usize = 8;
    const MR: usize = 6;
    const NV: usize = 2;

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        proven!(_mm256_set1_ps(x))
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m256 {
        proven!(_mm256_loadu_ps(p))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: __m256) {
        proven!(_mm256_storeu_ps(p, v))
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const f16) -> __m256 {
        proven!(_mm256_cvtph_ps(_mm_loadu_si128(p.cast())))
    }
    #[inline(always)]
    unsafe fn splat_f16(self, p: *const u8) -> __m256 {
        proven!(_mm256_cvtph_ps(_mm_set1_epi16(
            p.cast::<i16>().read_unaligned()
        )))
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const bf16) -> __m256 {
        proven!({
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        })
    }
    #[inline(always)]
    unsafe fn load_f8(self, p: *const u8) -> __m256 {
        proven!({
            let wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()));
            let magnitude = _mm256_and_si256(wide, _mm256_set1_epi32(0x7f));
            let sign = _mm256_and_si256(wide, _mm256_set1_epi32(i32::MIN));
            let scaled = _mm256_mul_ps(
                _mm256_castsi256_ps(_mm256_slli_epi32::<20>(magnitude)),
                _mm256_set1_ps(f32::from_bits((127 + 120) << 23)),
            );
            let nan = _mm256_cmpeq_epi32(magnitude, _mm256_set1_epi32(0x7f));
            let nan = _mm256_and_si256(nan, _mm256_set1_epi32(0x7fc0_0000));
            let bits = _mm256_or_si256(_mm256_castps_si256(scaled), nan);
            _mm256_castsi256_ps(_mm256_or_si256(bits, sign))
        })
    }
    #[inline(always)]
    unsafe fn load_i8(self, p: *const u8) -> __m256 {
        proven!(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(
            p.cast()
        ))))
    }
    #[inline(always)]
    unsafe fn load_nibbles(self, p: *const u8) -> (__m256, __m256) {
        proven!({
            let wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()));
            let low = _mm256_and_si256(wide, _mm256_set1_epi32(15));
            let high = _mm256_srli_epi32::<4>(wide);
            (_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
        })
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        proven!(_mm256_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_min_ps(a, b))
    }
    #[inline(always)]
    fn round(self, a: __m256) -> __m256 {
        proven!(_mm256_round_ps::<
            { _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC },
        >(a))
    }
    #[inline(always)]
    fn exp2_int(self, n: __m256) -> __m256 {
        proven!({
            let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
        })
    }
    #[inline(always)]
    fn select_lt(self, a: __m256, b: __m256, yes: __m256, no: __m256) -> __m256 {
        proven!(_mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b)))
    }

    #[inline(always)]
    unsafe fn transpose_to(self, src: *const f32, stride: usize, dst: *mut f32, dst_stride: usize) {
        proven!({
            let mut r = [_mm256_setzero_ps(); 8];
            for (i, r) in r.iter_mut().enumerate() {
                *r = _mm256_loadu_ps(src.add(i * stride));
            }
            let mut t = [_mm256_setzero_ps(); 8];
            for i in 0..4 {
                t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
            }
            for i in 0..2 {
                let (a, b, c, d) = (t[4 * i], t[4 * i + 1], t[4 * i + 2], t[4 * i + 3]);
                r[4 * i] = _mm256_shuffle_ps::<0x44>(a, c);
                r[4 * i + 1] = _mm256_shuffle_ps::<0xEE>(a, c);
                r[4 * i + 2] = _mm256_shuffle_ps::<0x44>(b, d);
                r[4 * i + 3] = _mm256_shuffle_ps::<0xEE>(b, d);
            }
            for i in 0..4 {
                let (low, high) = (r[i], r[4 + i]);
                _mm256_storeu_ps(
                    dst.add(i * dst_stride),
                    _mm256_permute2f128_ps::<0x20>(low, high),
                );
                _mm256_storeu_ps(
                    dst.add((i + 4) * dst_stride),
                    _mm256_permute2f128_ps::<0x31>(low, high),
                );
            }
        })
    }

    #[inline(always)]
    fn sum(self, v: __m256) -> f32 {
        proven!({
            let high = _mm256_extractf128_ps::<1>(v);
            let four = _mm_add_ps(_mm256_castps256_ps128(v), high);
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        })
    }

    #[inline(always)]
    fn widen(self, data: RhsData<'_>, at: usize, out: &mut [f32]) {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn inner(s: Avx2, data: RhsData<'_>, at: usize, out: &mut [f32]) {
            source::widen(s, data, at, out);
        }
        proven!(inner(self, data, at, out))
    }

    #[inline(always)]
    unsafe fn tile(self, args: TileArgs) {
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn inner(s: Avx2, args: &TileArgs) {
            // SAFETY: the caller's promise about `args`.
            unsafe { dispatch_rows!(s, args, 2, 6, [1 2 3 4 5 6]) }
        }
        proven!(inner(self, &args))
    }
}
