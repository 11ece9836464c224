//! One vector interface for all instruction sets; kernels are written once against it.
//!
//! A kernel is a [`Job`]: its `run` is inlined into a function compiled for the instruction set
//! ([`Isa::run`]), so everything on the way down to an intrinsic must be `#[inline(always)]`. Threads are
//! split outside of jobs, because a closure handed to rayon leaves that function.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod isa;
pub(crate) mod math;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
mod source;

use half::{bf16, f16};

pub use isa::Isa;
pub(crate) use source::{Element, Source, address, half_to_f32};

use crate::RhsData;
use crate::gemm::tile::TileArgs;

/// Most lanes any instruction set has.
pub(crate) const MAX_LANES: usize = 16;
/// Most rows any tile has.
pub(crate) const MAX_MR: usize = 14;

/// Work that runs under one instruction set.
pub(crate) trait Job {
    type Output;
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// A vector of `f32` lanes. A value of the implementing type proves that the CPU has the instructions.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    type V: Copy;
    const LANES: usize;
    /// Rows of the widest matrix tile.
    const MR: usize;
    /// Vectors across the widest matrix tile.
    const NV: usize;
    /// Columns of the widest matrix tile.
    const NR: usize = Self::NV * Self::LANES;

    fn splat(self, x: f32) -> Self::V;
    /// # Safety
    /// `p` is readable for `LANES` elements.
    unsafe fn load(self, p: *const f32) -> Self::V;
    /// # Safety
    /// `p` is writable for `LANES` elements.
    unsafe fn store(self, p: *mut f32, v: Self::V);
    /// # Safety
    /// `p` is readable for `LANES` elements.
    unsafe fn load_f16(self, p: *const f16) -> Self::V;
    /// # Safety
    /// `p` is readable for `LANES` elements.
    unsafe fn load_bf16(self, p: *const bf16) -> Self::V;
    /// f8 (e4m3fn).
    ///
    /// # Safety
    /// `p` is readable for `LANES` elements.
    #[inline(always)]
    unsafe fn load_f8(self, p: *const u8) -> Self::V {
        let mut lanes = [0.0; MAX_LANES];
        for (i, lane) in lanes.iter_mut().enumerate().take(Self::LANES) {
            // SAFETY: the caller's promise.
            *lane = crate::blocks::decode_f8_e4m3(unsafe { *p.add(i) });
        }
        self.load_slice(&lanes)
    }
    /// Signed bytes.
    ///
    /// # Safety
    /// `p` is readable for `LANES` bytes.
    #[inline(always)]
    unsafe fn load_i8(self, p: *const u8) -> Self::V {
        let mut lanes = [0.0; MAX_LANES];
        for (i, lane) in lanes.iter_mut().enumerate().take(Self::LANES) {
            // SAFETY: the caller's promise.
            *lane = f32::from(unsafe { *p.add(i) }.cast_signed());
        }
        self.load_slice(&lanes)
    }
    /// The f16 at `p` in all lanes.
    ///
    /// # Safety
    /// `p` is readable for 2 bytes.
    #[inline(always)]
    unsafe fn splat_f16(self, p: *const u8) -> Self::V {
        // SAFETY: the caller's promise.
        let bits = unsafe { p.cast::<u16>().read_unaligned() };
        self.splat(half_to_f32(u16::from_le(bits)))
    }
    /// Low and high halves of bytes.
    ///
    /// # Safety
    /// `p` is readable for `LANES` bytes.
    #[inline(always)]
    unsafe fn load_nibbles(self, p: *const u8) -> (Self::V, Self::V) {
        let (mut low, mut high) = ([0.0; MAX_LANES], [0.0; MAX_LANES]);
        for i in 0..Self::LANES {
            // SAFETY: the caller's promise.
            let byte = unsafe { *p.add(i) };
            low[i] = f32::from(byte & 15);
            high[i] = f32::from(byte >> 4);
        }
        (self.load_slice(&low), self.load_slice(&high))
    }
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger; `b` when either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; `b` when either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// To the nearest integer.
    fn round(self, a: Self::V) -> Self::V;
    /// `2^n` for integral `n` in -126..=127.
    fn exp2_int(self, n: Self::V) -> Self::V;
    /// `v * 2^n` for integral `n` in -126..=127.
    #[inline(always)]
    fn mul_exp2(self, v: Self::V, n: Self::V) -> Self::V {
        self.mul(v, self.exp2_int(n))
    }
    /// `if a < b { yes } else { no }`
    fn select_lt(self, a: Self::V, b: Self::V, yes: Self::V, no: Self::V) -> Self::V;
    /// Turns a square of `LANES` rows, `stride` apart, into `LANES` rows `dst_stride` apart.
    ///
    /// # Safety
    /// `src` is readable and `dst` writable for `LANES` elements at each of `LANES` rows.
    unsafe fn transpose_to(self, src: *const f32, stride: usize, dst: *mut f32, dst_stride: usize);
    /// Turns a square of `LANES` rows, `stride` apart, into `LANES` rows without gaps.
    ///
    /// # Safety
    /// `src` is readable for `LANES` elements at each of `LANES` rows; `dst` is writable for `LANES^2`.
    #[inline(always)]
    unsafe fn transpose(self, src: *const f32, stride: usize, dst: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { self.transpose_to(src, stride, dst, Self::LANES) }
    }
    /// Widens numbers `at..at + out.len()` of `data`. One function for each instruction set, called and not inlined:
    /// there are many storage types and many callers.
    fn widen(self, data: RhsData<'_>, at: usize, out: &mut [f32]);
    /// Runs the matrix tile of `args`.
    ///
    /// # Safety
    /// As [`TileArgs`] says.
    unsafe fn tile(self, args: TileArgs);

    /// Asks for the cache line of `p`, which need not be a valid address.
    #[inline(always)]
    fn prefetch(self, p: *const f32) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch never faults.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(p.cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = p;
    }

    /// Asks for the cache line of `p` to come to L2; it need not be a valid address.
    #[inline(always)]
    fn prefetch_l2(self, p: *const f32) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch never faults.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T1>(p.cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = p;
    }

    /// Asks for the cache line of `p`, to be written; it need not be a valid address.
    #[inline(always)]
    fn prefetch_write(self, p: *const f32) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch never faults.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_ET0>(p.cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = p;
    }

    fn zero(self) -> Self::V {
        self.splat(0.0)
    }

    /// The first `LANES` elements of a slice.
    #[inline(always)]
    fn load_slice(self, x: &[f32]) -> Self::V {
        assert!(x.len() >= Self::LANES);
        // SAFETY: the length was checked.
        unsafe { self.load(x.as_ptr()) }
    }

    /// Writes the first `LANES` elements of a slice.
    #[inline(always)]
    fn store_slice(self, x: &mut [f32], v: Self::V) {
        assert!(x.len() >= Self::LANES);
        // SAFETY: the length was checked.
        unsafe { self.store(x.as_mut_ptr(), v) }
    }

    /// Loads fewer than `LANES` elements; the rest is zero.
    #[inline(always)]
    fn load_partial(self, x: &[f32]) -> Self::V {
        let mut lanes = [0.0; MAX_LANES];
        lanes[..x.len()].copy_from_slice(x);
        self.load_slice(&lanes)
    }

    /// Loads up to `LANES` elements; the rest is zero.
    #[inline(always)]
    fn load_some(self, x: &[f32]) -> Self::V {
        if x.len() >= Self::LANES {
            self.load_slice(x)
        } else {
            self.load_partial(x)
        }
    }

    /// Stores fewer than `LANES` elements.
    #[inline(always)]
    fn store_partial(self, x: &mut [f32], v: Self::V) {
        let lanes = self.to_array(v);
        x.copy_from_slice(&lanes[..x.len()]);
    }

    /// Stores `LANES` elements, or fewer where the slice is shorter.
    #[inline(always)]
    fn store_some(self, x: &mut [f32], v: Self::V) {
        if x.len() >= Self::LANES {
            self.store_slice(x, v);
        } else {
            self.store_partial(x, v);
        }
    }

    /// The lanes, then zeros.
    #[inline(always)]
    fn to_array(self, v: Self::V) -> [f32; MAX_LANES] {
        let mut lanes = [0.0; MAX_LANES];
        self.store_slice(&mut lanes, v);
        lanes
    }

    /// Sum of the lanes: halves are added until one is left, whatever the instruction set.
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        let mut lanes = self.to_array(v);
        let mut width = Self::LANES;
        while width > 1 {
            width /= 2;
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
        }
        lanes[0]
    }

    /// The largest element; `-inf` when there is none.
    #[inline(always)]
    fn max_of(self, x: &[f32]) -> f32 {
        let mut acc = self.splat(f32::NEG_INFINITY);
        let mut chunks = x.chunks_exact(Self::LANES);
        for c in &mut chunks {
            acc = self.max(acc, self.load_slice(c));
        }
        let lanes = self.to_array(acc);
        lanes[..Self::LANES]
            .iter()
            .chain(chunks.remainder())
            .copied()
            .fold(f32::NEG_INFINITY, f32::max)
    }
}

// The loops below are macros, not functions of closures: a closure is a function of its own without the job's
// instruction set, and unless LLVM chooses to inline it, every intrinsic in it becomes a call.

/// Replaces every element of `$x` by an expression of its vector.
macro_rules! map {
    ($s:expr, $x:expr, |$v:ident| $f:expr) => {{
        let (s, x): (_, &mut [f32]) = ($s, $x);
        let lanes = $crate::simd::lanes(s);
        let mut chunks = x.chunks_exact_mut(lanes);
        for chunk in &mut chunks {
            let $v = s.load_slice(chunk);
            let y = $f;
            s.store_slice(chunk, y);
        }
        let rest = chunks.into_remainder();
        if !rest.is_empty() {
            let $v = s.load_partial(rest);
            let y = $f;
            s.store_partial(rest, y);
        }
    }};
}
pub(crate) use map;

/// Replaces every element of `$x` by an expression of its vector and the one at the same place of `$y`.
macro_rules! map2 {
    ($s:expr, $x:expr, $y:expr, |$v:ident, $w:ident| $f:expr) => {{
        let (s, x): (_, &mut [f32]) = ($s, $x);
        let lanes = $crate::simd::lanes(s);
        let y: &[f32] = &$y[..x.len()];
        let mut chunks = x.chunks_exact_mut(lanes);
        let mut others = y.chunks_exact(lanes);
        for (chunk, other) in (&mut chunks).zip(&mut others) {
            let ($v, $w) = (s.load_slice(chunk), s.load_slice(other));
            let y = $f;
            s.store_slice(chunk, y);
        }
        let rest = chunks.into_remainder();
        if !rest.is_empty() {
            let ($v, $w) = (s.load_partial(rest), s.load_partial(others.remainder()));
            let y = $f;
            s.store_partial(rest, y);
        }
    }};
}
pub(crate) use map2;

/// Sum of an expression of every element; partial sums are kept apart by lane.
macro_rules! sum_of {
    ($s:expr, $x:expr, |$v:ident| $f:expr) => {{
        let (s, x): (_, &[f32]) = ($s, $x);
        let lanes = $crate::simd::lanes(s);
        let (mut even, mut odd) = (s.zero(), s.zero());
        let mut pairs = x.chunks_exact(2 * lanes);
        for pair in &mut pairs {
            let $v = s.load_slice(pair);
            even = s.add(even, $f);
            let $v = s.load_slice(&pair[lanes..]);
            odd = s.add(odd, $f);
        }
        for chunk in pairs.remainder().chunks(lanes) {
            let $v = s.load_some(chunk);
            // Lanes behind the end must not count, whatever the expression makes of zero.
            let mut values = s.to_array($f);
            values[chunk.len()..].fill(0.0);
            even = s.add(even, s.load_slice(&values));
        }
        s.sum(s.add(even, odd))
    }};
}
pub(crate) use sum_of;

/// `LANES` of a value's type, for the macros.
#[inline(always)]
pub(crate) fn lanes<S: Simd>(_: S) -> usize {
    S::LANES
}
