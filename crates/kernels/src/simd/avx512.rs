//! AVX-512F: 16 lanes, tile 14 x 32 (28 accumulators, 2 vectors of B, 1 broadcast).

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{Job, Simd, source};
use crate::RhsData;
use crate::gemm::tile::{TileArgs, dispatch_rows};

/// Proof that the CPU has AVX-512F (and what [`Avx512::detect`] asks beside it).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Avx512(());

impl Avx512 {
    pub(super) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma");
        found.then_some(Self(()))
    }

    pub(super) fn enter<J: Job>(self, job: J) -> J::Output {
        #[target_feature(enable = "avx512f,avx2,fma")]
        fn inner<J: Job>(s: Avx512, job: J) -> J::Output {
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

impl Simd for Avx512 {
    type V = __m512;
    const LANES: usize = 16;
    const MR: usize = 14;
    const NV: usize = 2;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        proven!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m512 {
        proven!(_mm512_loadu_ps(p))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: __m512) {
        proven!(_mm512_storeu_ps(p, v))
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const f16) -> __m512 {
        proven!(_mm512_cvtph_ps(_mm256_loadu_si256(p.cast())))
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const bf16) -> __m512 {
        proven!({
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        })
    }
    #[inline(always)]
    unsafe fn load_f8(self, p: *const u8) -> __m512 {
        proven!({
            let wide = _mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()));
            let magnitude = _mm512_and_si512(wide, _mm512_set1_epi32(0x7f));
            let sign = _mm512_and_si512(wide, _mm512_set1_epi32(i32::MIN));
            let scaled = _mm512_mul_ps(
                _mm512_castsi512_ps(_mm512_slli_epi32::<20>(magnitude)),
                _mm512_set1_ps(f32::from_bits((127 + 120) << 23)),
            );
            let nan = _mm512_cmpeq_epi32_mask(magnitude, _mm512_set1_epi32(0x7f));
            let bits = _mm512_mask_mov_epi32(
                _mm512_castps_si512(scaled),
                nan,
                _mm512_set1_epi32(0x7fc0_0000),
            );
            _mm512_castsi512_ps(_mm512_or_si512(bits, sign))
        })
    }
    #[inline(always)]
    unsafe fn splat_f16(self, p: *const u8) -> __m512 {
        proven!(_mm512_cvtph_ps(_mm256_set1_epi16(
            p.cast::<i16>().read_unaligned()
        )))
    }
    #[inline(always)]
    unsafe fn load_i8(self, p: *const u8) -> __m512 {
        proven!(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(
            p.cast()
        ))))
    }
    #[inline(always)]
    unsafe fn load_nibbles(self, p: *const u8) -> (__m512, __m512) {
        proven!({
            let wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
            let low = _mm512_and_si512(wide, _mm512_set1_epi32(15));
            let high = _mm512_srli_epi32::<4>(wide);
            (_mm512_cvtepi32_ps(low), _mm512_cvtepi32_ps(high))
        })
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        proven!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        proven!(_mm512_roundscale_ps::<0>(a))
    }
    #[inline(always)]
    fn exp2_int(self, n: __m512) -> __m512 {
        self.mul_exp2(self.splat(1.0), n)
    }
    #[inline(always)]
    fn mul_exp2(self, v: __m512, n: __m512) -> __m512 {
        proven!(_mm512_scalef_ps(v, n))
    }
    #[inline(always)]
    fn select_lt(self, a: __m512, b: __m512, yes: __m512, no: __m512) -> __m512 {
        proven!(_mm512_mask_blend_ps(
            _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b),
            no,
            yes
        ))
    }

    #[inline(always)]
    unsafe fn transpose_to(self, src: *const f32, stride: usize, dst: *mut f32, dst_stride: usize) {
        proven!({
            let mut r = [_mm512_setzero_ps(); 16];
            for (i, r) in r.iter_mut().enumerate() {
                *r = _mm512_loadu_ps(src.add(i * stride));
            }
            // Pairs of rows, then quads: each 128-bit lane holds 4x4 blocks turned.
            let mut t = [_mm512_setzero_ps(); 16];
            for i in 0..8 {
                t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
            }
            for i in 0..4 {
                let (a, b, c, d) = (t[4 * i], t[4 * i + 1], t[4 * i + 2], t[4 * i + 3]);
                r[4 * i] = _mm512_shuffle_ps::<0x44>(a, c);
                r[4 * i + 1] = _mm512_shuffle_ps::<0xEE>(a, c);
                r[4 * i + 2] = _mm512_shuffle_ps::<0x44>(b, d);
                r[4 * i + 3] = _mm512_shuffle_ps::<0xEE>(b, d);
            }
            // Then the 4x4 grid of lanes itself.
            for c in 0..4 {
                let low = _mm512_shuffle_f32x4::<0x88>(r[c], r[4 + c]);
                let high = _mm512_shuffle_f32x4::<0xDD>(r[c], r[4 + c]);
                let low2 = _mm512_shuffle_f32x4::<0x88>(r[8 + c], r[12 + c]);
                let high2 = _mm512_shuffle_f32x4::<0xDD>(r[8 + c], r[12 + c]);
                let row = |i: usize| dst.add((i * 4 + c) * dst_stride);
                _mm512_storeu_ps(row(0), _mm512_shuffle_f32x4::<0x88>(low, low2));
                _mm512_storeu_ps(row(1), _mm512_shuffle_f32x4::<0x88>(high, high2));
                _mm512_storeu_ps(row(2), _mm512_shuffle_f32x4::<0xDD>(low, low2));
                _mm512_storeu_ps(row(3), _mm512_shuffle_f32x4::<0xDD>(high, high2));
            }
        })
    }

    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        proven!({
            let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(v)));
            let eight = _mm256_add_ps(_mm512_castps512_ps256(v), high);
            let high = _mm256_extractf128_ps::<1>(eight);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), high);
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        })
    }

    #[inline(always)]
    fn widen(self, data: RhsData<'_>, at: usize, out: &mut [f32]) {
        #[target_feature(enable = "avx512f,avx2,fma")]
        fn inner(s: Avx512, data: RhsData<'_>, at: usize, out: &mut [f32]) {
            source::widen(s, data, at, out);
        }
        proven!(inner(self, data, at, out))
    }

    #[inline(always)]
    unsafe fn tile(self, args: TileArgs) {
        #[target_feature(enable = "avx512f,avx2,fma")]
        unsafe fn inner(s: Avx512, args: &TileArgs) {
            // SAFETY: the caller's promise about `args`.
            unsafe { dispatch_rows!(s, args, 2, 14, [1 2 3 4 5 6 7 8 9 10 11 12 13 14]) }
        }
        proven!(inner(self, &args))
    }
}
