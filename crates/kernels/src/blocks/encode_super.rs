//! Numbers to GGML's K-quants: the scales that a search has found, rounded and packed, and the numbers for them.

#![allow(
    clippy::needless_range_loop,
    reason = "the same lane of several arrays"
)]

use super::GROUP;
use super::encode::half_bytes;
use super::search::{Lanes, Search, TINY, affine, clamp, nearest, refined, symmetric};
use super::super_blocks::{scale_and_minimum, scale_of_q3};
use crate::simd::half_to_f32;

/// Numbers of a block.
const LEN: usize = 256;

#[inline(always)]
fn lanes<const N: usize, const G: usize>(block: &[f32; LEN]) -> Lanes<N, G> {
    let mut out = [[0.0; G]; N];
    for (i, out) in out.iter_mut().enumerate() {
        for (g, out) in out.iter_mut().enumerate() {
            *out = block[g * N + i];
        }
    }
    out
}

/// The block's numbers in their order, as small integers.
#[inline(always)]
fn in_order<const N: usize, const G: usize>(q: &Lanes<N, G>) -> [u8; LEN] {
    let mut out = [0; LEN];
    for (i, q) in q.iter().enumerate() {
        for (g, q) in q.iter().enumerate() {
            out[g * N + i] = *q as u8;
        }
    }
    out
}

#[inline(always)]
fn rounded(x: f32) -> (f32, [u8; 2]) {
    let bytes = half_bytes(x);
    (half_to_f32(u16::from_le_bytes(bytes)), bytes)
}

#[inline(always)]
fn greatest(values: &[f32]) -> f32 {
    let mut greatest = 0.0;
    for &x in values {
        greatest = if x > greatest { x } else { greatest };
    }
    greatest
}

/// The first value of the largest magnitude.
#[inline(always)]
fn largest(values: &[f32]) -> f32 {
    let mut largest = 0.0f32;
    for &x in values {
        largest = if x.abs() > largest.abs() { x } else { largest };
    }
    largest
}

/// The numbers again, for the scales and minima as they are stored; groups of scale zero keep theirs.
#[inline(always)]
fn again<const N: usize, const G: usize>(
    x: &Lanes<N, G>,
    scale: &[f32; G],
    minimum: &[f32; G],
    (low, high): (f32, f32),
    q: &mut Lanes<N, G>,
) {
    for i in 0..N {
        for g in 0..G {
            let new = clamp(nearest((x[i][g] + minimum[g]) / scale[g]), low, high) - low;
            q[i][g] = if scale[g] == 0.0 { q[i][g] } else { new };
        }
    }
}

/// The pieces that Q4_K and Q5_K share: f16 scales and packed pairs to `out[..16]`; gives the numbers.
#[inline(always)]
fn eight_groups(block: &[f32; LEN], search: &Search, out: &mut [u8]) -> [u8; LEN] {
    let x: Lanes<32, 8> = lanes(block);
    let mut squares = [0.0f32; 8];
    for x in &x {
        for g in 0..8 {
            squares[g] += x[g] * x[g];
        }
    }
    let mut weights = x;
    for w in weights.iter_mut() {
        for g in 0..8 {
            w[g] = (squares[g] / 32.0).sqrt() + w[g].abs();
        }
    }
    let mut q = [[0.0; 8]; 32];
    let (scales, minima) = affine(&x, &weights, search, &mut q);
    let (top_scale, top_minimum) = (greatest(&scales), greatest(&minima));
    let inverse = |top: f32| if top > 0.0 { 63.0 / top } else { 0.0 };
    let (by_scale, by_minimum) = (inverse(top_scale), inverse(top_minimum));
    let (scale, bytes) = rounded(top_scale / 63.0);
    out[..2].copy_from_slice(&bytes);
    let (minimum, bytes) = rounded(top_minimum / 63.0);
    out[2..4].copy_from_slice(&bytes);
    // Stored from a byte each, as C converts: what is negative wraps, then is 63 at most.
    let small = |x: f32| (nearest(x) as i32 as u8).min(63);
    let packed = &mut out[4..16];
    packed.fill(0);
    for g in 0..8 {
        let (s, m) = (small(by_scale * scales[g]), small(by_minimum * minima[g]));
        if g < 4 {
            packed[g] |= s;
            packed[g + 4] |= m;
        } else {
            packed[g + 4] = s & 15 | (m & 15) << 4;
            packed[g - 4] |= s >> 4 << 6;
            packed[g] |= m >> 4 << 6;
        }
    }
    let (mut stored_scales, mut stored_minima) = ([0.0; 8], [0.0; 8]);
    for g in 0..8 {
        let (s, m) = scale_and_minimum(packed, g);
        (stored_scales[g], stored_minima[g]) = (scale * f32::from(s), minimum * f32::from(m));
    }
    again(
        &x,
        &stored_scales,
        &stored_minima,
        (0.0, search.top),
        &mut q,
    );
    in_order(&q)
}

#[inline(always)]
pub(super) fn encode_q4_k(block: &[f32; LEN], out: &mut [u8]) {
    let search = Search {
        top: 15.0,
        start: -1.0,
        steps: 20,
        absolute: false,
    };
    let q = eight_groups(block, &search, out);
    for (i, out) in out[16..144].iter_mut().enumerate() {
        let (pair, at) = (i / GROUP, i % GROUP);
        *out = q[2 * pair * GROUP + at] | q[(2 * pair + 1) * GROUP + at] << 4;
    }
}

#[inline(always)]
pub(super) fn encode_q5_k(block: &[f32; LEN], out: &mut [u8]) {
    let search = Search {
        top: 31.0,
        start: -0.5,
        steps: 15,
        absolute: false,
    };
    let q = eight_groups(block, &search, out);
    for (at, out) in out[16..48].iter_mut().enumerate() {
        *out = (0..8).fold(0, |high, g| high | (q[g * GROUP + at] >> 4) << g);
    }
    for (i, out) in out[48..176].iter_mut().enumerate() {
        let (pair, at) = (i / GROUP, i % GROUP);
        *out = q[2 * pair * GROUP + at] & 15 | (q[(2 * pair + 1) * GROUP + at] & 15) << 4;
    }
}

/// Two bits of each number, as [`super::super_blocks`] reads them.
#[inline(always)]
fn pack_pairs(q: &[u8; LEN], out: &mut [u8]) {
    for (i, out) in out[..64].iter_mut().enumerate() {
        let first = i / GROUP * 128 + i % GROUP;
        *out = (0..4).fold(0, |byte, j| byte | (q[first + j * GROUP] & 3) << (2 * j));
    }
}

#[inline(always)]
pub(super) fn encode_q2_k(block: &[f32; LEN], out: &mut [u8]) {
    let x: Lanes<16, 16> = lanes(block);
    let mut weights = x;
    for w in weights.iter_mut().flatten() {
        *w = w.abs();
    }
    let search = Search {
        top: 3.0,
        start: -0.5,
        steps: 15,
        absolute: true,
    };
    let mut q = [[0.0; 16]; 16];
    let (scales, minima) = affine(&x, &weights, &search, &mut q);
    let (top_scale, top_minimum) = (greatest(&scales), greatest(&minima));
    let inverse = |top: f32| if top > 0.0 { 15.0 / top } else { 0.0 };
    let (by_scale, by_minimum) = (inverse(top_scale), inverse(top_minimum));
    let stored = |top: f32| rounded(if top > 0.0 { top / 15.0 } else { 0.0 });
    let ((scale, scale_bytes), (minimum, minimum_bytes)) = (stored(top_scale), stored(top_minimum));
    let (mut stored_scales, mut stored_minima) = ([0.0; 16], [0.0; 16]);
    for g in 0..16 {
        let byte = |x: f32| nearest(x) as i32 as u8;
        out[g] = byte(by_scale * scales[g]) | byte(by_minimum * minima[g]) << 4;
        stored_scales[g] = scale * f32::from(out[g] & 15);
        stored_minima[g] = minimum * f32::from(out[g] >> 4);
    }
    again(&x, &stored_scales, &stored_minima, (0.0, 3.0), &mut q);
    pack_pairs(&in_order(&q), &mut out[16..80]);
    out[80..82].copy_from_slice(&scale_bytes);
    out[82..84].copy_from_slice(&minimum_bytes);
}

#[inline(always)]
pub(super) fn encode_q6_k(block: &[f32; LEN], out: &mut [u8]) {
    let x: Lanes<16, 16> = lanes(block);
    let mut q = [[0.0; 16]; 16];
    let scales = symmetric(&x, 32.0, &mut q);
    let top = largest(&scales);
    if top.abs() < TINY {
        out.fill(0);
        return;
    }
    let inverse = -128.0 / top;
    let (scale, bytes) = rounded(1.0 / inverse);
    out[208..210].copy_from_slice(&bytes);
    let mut stored = [0.0; 16];
    for g in 0..16 {
        let small = (nearest(inverse * scales[g]) as i32).min(127) as i8;
        out[192 + g] = small.cast_unsigned();
        stored[g] = scale * f32::from(small);
    }
    again(&x, &stored, &[0.0; 16], (-32.0, 31.0), &mut q);
    let q = in_order(&q);
    for half in 0..2 {
        let q = &q[128 * half..][..128];
        for at in 0..64 {
            out[64 * half + at] = q[at] & 15 | (q[at + 64] & 15) << 4;
        }
        for at in 0..GROUP {
            let high = (0..4).fold(0, |high, j| high | q[at + j * GROUP] >> 4 << (2 * j));
            out[128 + GROUP * half + at] = high;
        }
    }
}

#[inline(always)]
pub(super) fn encode_q3_k(block: &[f32; LEN], out: &mut [u8]) {
    let x: Lanes<16, 16> = lanes(block);
    let mut q = [[0.0; 16]; 16];
    let scales = refined(&x, &mut q);
    let top = largest(&scales);
    let packed = &mut out[96..108];
    packed.fill(0);
    let mut scale = 0.0;
    let mut bytes = [0; 2];
    if top != 0.0 {
        let inverse = -32.0 / top;
        (scale, bytes) = rounded(1.0 / inverse);
        for (g, s) in scales.iter().enumerate() {
            let small = (clamp(nearest(inverse * s), -32.0, 31.0) + 32.0) as u8;
            packed[g % 8] |= (small & 15) << (g / 8 * 4);
            packed[8 + g % 4] |= small >> 4 << (g / 4 * 2);
        }
    }
    let mut stored = [0.0; 16];
    for (g, stored) in stored.iter_mut().enumerate() {
        *stored = scale * f32::from(scale_of_q3(packed, g));
    }
    out[108..110].copy_from_slice(&bytes);
    again(&x, &stored, &[0.0; 16], (-4.0, 3.0), &mut q);
    let q = in_order(&q);
    for (at, out) in out[..GROUP].iter_mut().enumerate() {
        *out = (0..8).fold(0, |high, g| high | (q[g * GROUP + at] >> 2) << g);
    }
    pack_pairs(&q, &mut out[32..96]);
}
