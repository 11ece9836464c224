//! The formats of 32 numbers: GGML's `block_q8_0`, `block_q4_0`, `block_q4_1`, `block_q5_0` and `block_q5_1`.

use super::{Format, GROUP};
use crate::simd::{Simd, half_to_f32};

#[derive(Debug, Clone, Copy)]
pub(crate) struct Q8_0;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Q4_0;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Q4_1;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Q5_0;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Q5_1;

/// The f16 at the start of `bytes`.
#[inline(always)]
pub(super) fn half(bytes: &[u8]) -> f32 {
    half_to_f32(u16::from_le_bytes([bytes[0], bytes[1]]))
}

/// `scale * q` of signed bytes, as many as `out` takes, a multiple of 16.
#[inline(always)]
pub(super) fn scaled<S: Simd>(s: S, scale: f32, q: &[u8], out: &mut [f32]) {
    let scale = s.splat(scale);
    for (out, q) in out.chunks_exact_mut(S::LANES).zip(q.chunks_exact(S::LANES)) {
        // SAFETY: the chunk is LANES long.
        let q = unsafe { s.load_i8(q.as_ptr()) };
        s.store_slice(out, s.mul(scale, q));
    }
}

/// `scale * q - minimum` likewise. Rounded twice, as the reference does; not fused.
#[inline(always)]
pub(super) fn scaled_less<S: Simd>(s: S, scale: f32, minimum: f32, q: &[u8], out: &mut [f32]) {
    let (scale, minimum) = (s.splat(scale), s.splat(minimum));
    for (out, q) in out.chunks_exact_mut(S::LANES).zip(q.chunks_exact(S::LANES)) {
        // SAFETY: the chunk is LANES long.
        let q = unsafe { s.load_i8(q.as_ptr()) };
        s.store_slice(out, s.sub(s.mul(scale, q), minimum));
    }
}

/// Nibbles of 16 bytes, the low ones first.
#[inline(always)]
fn nibbles(bytes: &[u8]) -> [u8; GROUP] {
    let mut q = [0; GROUP];
    for (i, byte) in bytes[..GROUP / 2].iter().enumerate() {
        q[i] = byte & 15;
        q[i + GROUP / 2] = byte >> 4;
    }
    q
}

/// Numbers of 5 bits: 4 bytes of highest bits, then nibbles.
#[inline(always)]
fn fives(bytes: &[u8]) -> [u8; GROUP] {
    let high = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let mut q = nibbles(&bytes[4..]);
    for (i, q) in q.iter_mut().enumerate() {
        *q |= ((high >> i & 1) as u8) << 4;
    }
    q
}

impl Format for Q8_0 {
    const LEN: usize = 32;
    const BYTES: usize = 34;

    #[inline(always)]
    fn group<S: Simd>(s: S, block: &[u8], _: usize, out: &mut [f32]) {
        scaled(s, half(block), &block[2..34], &mut out[..GROUP]);
    }

    #[inline(always)]
    fn vectors<S: Simd>(s: S, block: &[u8], _: usize) -> [S::V; GROUP / 4] {
        let block = &block[..Self::BYTES];
        // SAFETY: the block begins with its scale.
        let scale = unsafe { s.splat_f16(block.as_ptr()) };
        let mut vectors = [s.zero(); GROUP / 4];
        for (v, q) in vectors.iter_mut().zip(block[2..].chunks_exact(S::LANES)) {
            // SAFETY: the chunk is LANES long.
            *v = s.mul(scale, unsafe { s.load_i8(q.as_ptr()) });
        }
        vectors
    }
}

impl Format for Q4_0 {
    const LEN: usize = 32;
    const BYTES: usize = 18;

    #[inline(always)]
    fn group<S: Simd>(s: S, block: &[u8], _: usize, out: &mut [f32]) {
        let (scale, eight) = (s.splat(half(block)), s.splat(8.0));
        let (low, high) = out[..GROUP].split_at_mut(GROUP / 2);
        let low = low.chunks_exact_mut(S::LANES);
        let high = high.chunks_exact_mut(S::LANES);
        for ((low, high), bytes) in low.zip(high).zip(block[2..18].chunks_exact(S::LANES)) {
            // SAFETY: the chunk is LANES long.
            let (l, h) = unsafe { s.load_nibbles(bytes.as_ptr()) };
            s.store_slice(low, s.mul(scale, s.sub(l, eight)));
            s.store_slice(high, s.mul(scale, s.sub(h, eight)));
        }
    }

    #[inline(always)]
    fn vectors<S: Simd>(s: S, block: &[u8], _: usize) -> [S::V; GROUP / 4] {
        let block = &block[..Self::BYTES];
        // SAFETY: the block begins with its scale.
        let (scale, eight) = (unsafe { s.splat_f16(block.as_ptr()) }, s.splat(8.0));
        let mut vectors = [s.zero(); GROUP / 4];
        let half = GROUP / 2 / S::LANES;
        for (i, bytes) in block[2..].chunks_exact(S::LANES).enumerate() {
            // SAFETY: the chunk is LANES long.
            let (low, high) = unsafe { s.load_nibbles(bytes.as_ptr()) };
            vectors[i] = s.mul(scale, s.sub(low, eight));
            vectors[half + i] = s.mul(scale, s.sub(high, eight));
        }
        vectors
    }
}

impl Format for Q4_1 {
    const LEN: usize = 32;
    const BYTES: usize = 20;

    #[inline(always)]
    fn group<S: Simd>(s: S, block: &[u8], _: usize, out: &mut [f32]) {
        let (scale, minimum) = (half(block), half(&block[2..]));
        scaled_less(
            s,
            scale,
            -minimum,
            &nibbles(&block[4..20]),
            &mut out[..GROUP],
        );
    }
}

impl Format for Q5_0 {
    const LEN: usize = 32;
    const BYTES: usize = 22;

    #[inline(always)]
    fn group<S: Simd>(s: S, block: &[u8], _: usize, out: &mut [f32]) {
        let q = fives(&block[2..22]).map(|q| q.wrapping_sub(16));
        scaled(s, half(block), &q, &mut out[..GROUP]);
    }
}

impl Format for Q5_1 {
    const LEN: usize = 32;
    const BYTES: usize = 24;

    #[inline(always)]
    fn group<S: Simd>(s: S, block: &[u8], _: usize, out: &mut [f32]) {
        let (scale, minimum) = (half(block), half(&block[2..]));
        scaled_less(s, scale, -minimum, &fives(&block[4..24]), &mut out[..GROUP]);
    }
}
