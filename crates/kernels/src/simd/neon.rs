//! NEON: 4 lanes, tile 8 x 12 (24 accumulators, 3 vectors of B, 1 broadcast).

use std::arch::aarch64::*;

use half::{bf16, f16};

use super::{Job, Simd, source};
use crate::RhsData;
use crate::gemm::tile::{TileArgs, dispatch_rows};

/// Proof that the CPU has NEON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Neon(());

impl Neon {
    pub(super) fn detect() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Self(()))
    }

    pub(super) fn enter<J: Job>(self, job: J) -> J::Output {
        #[target_feature(enable = "neon")]
        fn inner<J: Job>(s: Neon, job: J) -> J::Output {
            job.run(s)
        }
        // SAFETY: `self` proves the feature.
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

impl Simd for Neon {
    type V = float32x4_t;
    const LANES: usize = 4;
    const MR: usize = 8;
    const NV: usize = 3;

    #[inline(always)]
    fn splat(self, x: f32) -> float32x4_t {
        proven!(vdupq_n_f32(x))
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> float32x4_t {
        proven!(vld1q_f32(p))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: float32x4_t) {
        proven!(vst1q_f32(p, v))
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const f16) -> float32x4_t {
        proven!({
            // Without the f16 types: place sign and magnitude, scale by 2^112, which also handles subnormals;
            // then give infinities and NaNs (magnitude 2^16 and up after scaling) their exponent.
            let h = vmovl_u16(vld1_u16(p.cast()));
            let sign = vshlq_n_u32::<16>(vandq_u32(h, vdupq_n_u32(0x8000)));
            let magnitude = vshlq_n_u32::<13>(vandq_u32(h, vdupq_n_u32(0x7fff)));
            let scaled = vmulq_f32(
                vreinterpretq_f32_u32(magnitude),
                vdupq_n_f32(f32::from_bits((127 + 112) << 23)),
            );
            let special = vcgeq_f32(scaled, vdupq_n_f32(65536.0));
            let fixed = vorrq_u32(
                vreinterpretq_u32_f32(scaled),
                vandq_u32(special, vdupq_n_u32(0x7f80_0000)),
            );
            vreinterpretq_f32_u32(vorrq_u32(fixed, sign))
        })
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const bf16) -> float32x4_t {
        proven!(vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p.cast()))))
    }
    #[inline(always)]
    fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        proven!(vaddq_f32(a, b))
    }
    #[inline(always)]
    fn sub(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        proven!(vsubq_f32(a, b))
    }
    #[inline(always)]
    fn mul(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        proven!(vmulq_f32(a, b))
    }
    #[inline(always)]
    fn div(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        proven!(vdivq_f32(a, b))
    }
    #[inline(always)]
    fn fma(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        proven!(vfmaq_f32(c, a, b))
    }
    #[inline(always)]
    fn max(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        proven!(vbslq_f32(vcgtq_f32(a, b), a, b))
    }
    #[inline(always)]
    fn min(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        proven!(vbslq_f32(vcltq_f32(a, b), a, b))
    }
    #[inline(always)]
    fn round(self, a: float32x4_t) -> float32x4_t {
        proven!(vrndnq_f32(a))
    }
    #[inline(always)]
    fn exp2_int(self, n: float32x4_t) -> float32x4_t {
        proven!({
            let biased = vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127));
            vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased))
        })
    }
    #[inline(always)]
    fn select_lt(
        self,
        a: float32x4_t,
        b: float32x4_t,
        yes: float32x4_t,
        no: float32x4_t,
    ) -> float32x4_t {
        proven!(vbslq_f32(vcltq_f32(a, b), yes, no))
    }

    #[inline(always)]
    unsafe fn transpose_to(self, src: *const f32, stride: usize, dst: *mut f32, dst_stride: usize) {
        proven!({
            let a = vtrnq_f32(vld1q_f32(src), vld1q_f32(src.add(stride)));
            let b = vtrnq_f32(
                vld1q_f32(src.add(2 * stride)),
                vld1q_f32(src.add(3 * stride)),
            );
            vst1q_f32(dst, vcombine_f32(vget_low_f32(a.0), vget_low_f32(b.0)));
            vst1q_f32(
                dst.add(dst_stride),
                vcombine_f32(vget_low_f32(a.1), vget_low_f32(b.1)),
            );
            vst1q_f32(
                dst.add(2 * dst_stride),
                vcombine_f32(vget_high_f32(a.0), vget_high_f32(b.0)),
            );
            vst1q_f32(
                dst.add(3 * dst_stride),
                vcombine_f32(vget_high_f32(a.1), vget_high_f32(b.1)),
            );
        })
    }

    #[inline(always)]
    fn widen(self, data: RhsData<'_>, at: usize, out: &mut [f32]) {
        #[target_feature(enable = "neon")]
        fn inner(s: Neon, data: RhsData<'_>, at: usize, out: &mut [f32]) {
            source::widen(s, data, at, out);
        }
        proven!(inner(self, data, at, out))
    }

    #[inline(always)]
    unsafe fn tile(self, args: TileArgs) {
        #[target_feature(enable = "neon")]
        unsafe fn inner(s: Neon, args: &TileArgs) {
            // SAFETY: the caller's promise about `args`.
            unsafe { dispatch_rows!(s, args, 3, 8, [1 2 3 4 5 6 7 8]) }
        }
        proven!(inner(self, &args))
    }
}
