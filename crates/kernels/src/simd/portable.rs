//! Plain arrays of 4 lanes, which every compiler target turns into what it has; tile 4 x 8.

use half::{bf16, f16};

use super::{Simd, source};
use crate::RhsData;
use crate::gemm::tile::{TileArgs, dispatch_rows};

/// No special instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Portable;

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> [f32; 4] {
    [f(0), f(1), f(2), f(3)]
}

impl Simd for Portable {
    type V = [f32; 4];
    const LANES: usize = 4;
    const MR: usize = 4;
    const NV: usize = 2;

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; 4] {
        [x; 4]
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> [f32; 4] {
        // SAFETY: the caller's promise; arrays of f32 need no more alignment than f32.
        unsafe { p.cast::<[f32; 4]>().read() }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: [f32; 4]) {
        // SAFETY: the caller's promise; arrays of f32 need no more alignment than f32.
        unsafe { p.cast::<[f32; 4]>().write(v) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const f16) -> [f32; 4] {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[f16; 4]>().read() }.map(f16::to_f32)
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const bf16) -> [f32; 4] {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[bf16; 4]>().read() }.map(bf16::to_f32)
    }
    #[inline(always)]
    fn add(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        each(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        each(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        each(|i| a[i] / b[i])
    }
    // Not f32::mul_add: without the instruction that is a slow library call.
    #[inline(always)]
    fn fma(self, a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        each(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn max(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn min(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        each(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    // Adding and taking away 1.5 * 2^23 rounds; the arguments here stay below 2^22.
    #[inline(always)]
    fn round(self, a: [f32; 4]) -> [f32; 4] {
        each(|i| (a[i] + 12_582_912.0) - 12_582_912.0)
    }
    #[inline(always)]
    fn exp2_int(self, n: [f32; 4]) -> [f32; 4] {
        each(|i| f32::from_bits(((n[i] as i32 + 127) << 23) as u32))
    }
    #[inline(always)]
    fn select_lt(self, a: [f32; 4], b: [f32; 4], yes: [f32; 4], no: [f32; 4]) -> [f32; 4] {
        each(|i| if a[i] < b[i] { yes[i] } else { no[i] })
    }

    #[inline(always)]
    unsafe fn transpose_to(self, src: *const f32, stride: usize, dst: *mut f32, dst_stride: usize) {
        for i in 0..4 {
            // SAFETY: the caller's promise covers rows 0..4 of `src` and of `dst`.
            unsafe { self.store(dst.add(i * dst_stride), each(|j| *src.add(j * stride + i))) };
        }
    }

    fn widen(self, data: RhsData<'_>, at: usize, out: &mut [f32]) {
        source::widen(self, data, at, out);
    }

    #[inline(always)]
    unsafe fn tile(self, args: TileArgs) {
        // SAFETY: the caller's promise about `args`.
        unsafe { dispatch_rows!(self, &args, 2, 4, [1 2 3 4]) }
    }
}
