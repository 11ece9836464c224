//! Numbers to GGML's K-quants. The search for each group's scale is GGML's, step by step in the same order of
//! sums, so that the bits are the same; all groups of a block go side by side, as lanes of a vector.

use super::GROUP;
use super::encode::half_bytes;
use super::super_blocks::{scale_and_minimum, scale_of_q3};
use crate::simd::half_to_f32;

/// Numbers of a block.
const LEN: usize = 256;

/// A block as `N` numbers of each of `G` groups side by side.
type Lanes<const N: usize, const G: usize> = [[f32; G]; N];

/// Groups whose largest magnitude is smaller are zero.
const TINY: f32 = 1e-15;

/// To the nearest whole number, halves to even, of anything below 2^22.
#[inline(always)]
fn nearest(x: f32) -> f32 {
    const BIG: f32 = 12_582_912.0;
    (x + BIG) - BIG
}

#[inline(always)]
fn clamp(x: f32, low: f32, high: f32) -> f32 {
    if x < low {
        low
    } else if x > high {
        high
    } else {
        x
    }
}

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

/// How a scale and a minimum are looked for.
struct Search {
    /// The largest number.
    top: f32,
    /// The first of the scales that are tried, as an addition to `top`; each next is 0.1 more.
    start: f32,
    /// How many more are tried.
    steps: usize,
    /// Absolute errors are weighed, not squares.
    absolute: bool,
}

/// Scales and minima of the groups, with `q * scale - minimum` close to `x`; `q` is what was best in the search.
#[inline(always)]
fn affine<const N: usize, const G: usize>(
    x: &Lanes<N, G>,
    weights: &Lanes<N, G>,
    search: &Search,
    q: &mut Lanes<N, G>,
) -> ([f32; G], [f32; G]) {
    let (mut low, mut high) = (x[0], x[0]);
    let mut sum_w = weights[0];
    let mut sum_x = [0.0; G];
    for g in 0..G {
        sum_x[g] = sum_w[g] * x[0][g];
    }
    for i in 1..N {
        for g in 0..G {
            let (x, w) = (x[i][g], weights[i][g]);
            low[g] = if x < low[g] { x } else { low[g] };
            high[g] = if x > high[g] { x } else { high[g] };
            sum_w[g] += w;
            sum_x[g] += w * x;
        }
    }
    let (mut scale, mut inverse) = ([0.0; G], [0.0; G]);
    let mut flat = [false; G];
    for g in 0..G {
        low[g] = if low[g] > 0.0 { 0.0 } else { low[g] };
        flat[g] = high[g] == low[g];
        inverse[g] = search.top / (high[g] - low[g]);
        scale[g] = 1.0 / inverse[g];
    }
    let first = low;
    let mut best = [0.0; G];
    for i in 0..N {
        for g in 0..G {
            q[i][g] = clamp(nearest(inverse[g] * (x[i][g] - first[g])), 0.0, search.top);
            best[g] += weights[i][g] * error(scale[g], q[i][g], low[g], x[i][g], search.absolute);
        }
    }
    for step in 0..=search.steps {
        for g in 0..G {
            // From the best minimum so far, as the numbers below.
            inverse[g] = (search.start + 0.1 * step as f32 + search.top) / (high[g] - low[g]);
        }
        let mut tried = [[0.0; G]; N];
        let (mut sum_q, mut sum_qq, mut sum_xq) = ([0.0; G], [0.0; G], [0.0; G]);
        for i in 0..N {
            for g in 0..G {
                let (x, w) = (x[i][g], weights[i][g]);
                let q = clamp(nearest(inverse[g] * (x - low[g])), 0.0, search.top);
                tried[i][g] = q;
                sum_q[g] += w * q;
                sum_qq[g] += w * q * q;
                sum_xq[g] += w * q * x;
            }
        }
        let (mut new_scale, mut new_low, mut solvable) = ([0.0; G], [0.0; G], [false; G]);
        for g in 0..G {
            let d = sum_w[g] * sum_qq[g] - sum_q[g] * sum_q[g];
            solvable[g] = d > 0.0;
            let low = (sum_qq[g] * sum_x[g] - sum_q[g] * sum_xq[g]) / d;
            let scale = (sum_w[g] * sum_xq[g] - sum_x[g] * sum_q[g]) / d;
            let through_zero = sum_xq[g] / sum_qq[g];
            new_scale[g] = if low > 0.0 { through_zero } else { scale };
            new_low[g] = if low > 0.0 { 0.0 } else { low };
        }
        let mut errors = [0.0; G];
        for i in 0..N {
            for g in 0..G {
                let e = error(
                    new_scale[g],
                    tried[i][g],
                    new_low[g],
                    x[i][g],
                    search.absolute,
                );
                errors[g] += weights[i][g] * e;
            }
        }
        let mut better = [false; G];
        for g in 0..G {
            better[g] = solvable[g] & (errors[g] < best[g]);
            best[g] = if better[g] { errors[g] } else { best[g] };
            scale[g] = if better[g] { new_scale[g] } else { scale[g] };
            low[g] = if better[g] { new_low[g] } else { low[g] };
        }
        for i in 0..N {
            for g in 0..G {
                q[i][g] = if better[g] { tried[i][g] } else { q[i][g] };
            }
        }
    }
    let mut minimum = [0.0; G];
    for g in 0..G {
        minimum[g] = -if flat[g] { first[g] } else { low[g] };
        scale[g] = if flat[g] { 0.0 } else { scale[g] };
        for q in q.iter_mut() {
            q[g] = if flat[g] { 0.0 } else { q[g] };
        }
    }
    (scale, minimum)
}

#[inline(always)]
fn error(scale: f32, q: f32, low: f32, x: f32, absolute: bool) -> f32 {
    let off = scale * q + low - x;
    if absolute { off.abs() } else { off * off }
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

/// Scales of sixteen groups of 16 with `(q - top) * scale` close to `x`, by squares of errors weighed by squares
/// of numbers.
#[inline(always)]
fn symmetric(x: &Lanes<16, 16>, top: f32, q: &mut Lanes<16, 16>) -> [f32; 16] {
    let mut largest = [0.0f32; 16];
    for x in x {
        for g in 0..16 {
            let more = x[g].abs() > largest[g].abs();
            largest[g] = if more { x[g] } else { largest[g] };
        }
    }
    let mut scale = [0.0; 16];
    let mut best = [0.0; 16];
    // The middle first, then from the left to the right of it.
    for step in [
        0, -9, -8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9,
    ] {
        let mut inverse = [0.0; 16];
        for g in 0..16 {
            inverse[g] = -(top + 0.1 * step as f32) / largest[g];
        }
        let mut tried = [[0.0; 16]; 16];
        let (mut sum_xq, mut sum_qq) = ([0.0; 16], [0.0; 16]);
        for i in 0..16 {
            for g in 0..16 {
                let x = x[i][g];
                let q = clamp(nearest(inverse[g] * x), -top, top - 1.0);
                let w = x * x;
                tried[i][g] = q + top;
                sum_xq[g] += w * x * q;
                sum_qq[g] += w * q * q;
            }
        }
        let mut better = [false; 16];
        for g in 0..16 {
            let first = step == 0;
            better[g] = first | ((sum_qq[g] > 0.0) & (sum_xq[g] * sum_xq[g] > best[g] * sum_qq[g]));
            let new = if sum_qq[g] == 0.0 {
                0.0
            } else {
                sum_xq[g] / sum_qq[g]
            };
            scale[g] = if better[g] { new } else { scale[g] };
            best[g] = if better[g] { new * sum_xq[g] } else { best[g] };
        }
        for i in 0..16 {
            for g in 0..16 {
                q[i][g] = if better[g] { tried[i][g] } else { q[i][g] };
            }
        }
    }
    for g in 0..16 {
        let tiny = largest[g].abs() < TINY;
        scale[g] = if tiny { 0.0 } else { scale[g] };
        for q in q.iter_mut() {
            q[g] = if tiny { 0.0 } else { q[g] };
        }
    }
    scale
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

/// Scales of sixteen groups of 16 with `(q - 4) * scale` close to `x`: from the plain scale, number after number is
/// moved where that helps.
#[inline(always)]
fn refined(x: &Lanes<16, 16>, q: &mut Lanes<16, 16>) -> [f32; 16] {
    const TOP: f32 = 4.0;
    let mut largest = [0.0f32; 16];
    for x in x {
        for g in 0..16 {
            let more = x[g].abs() > largest[g].abs();
            largest[g] = if more { x[g] } else { largest[g] };
        }
    }
    let (mut sum_xq, mut sum_qq) = ([0.0; 16], [0.0; 16]);
    for i in 0..16 {
        for g in 0..16 {
            let (x, w) = (x[i][g], x[i][g] * x[i][g]);
            let new = clamp(nearest(-TOP / largest[g] * x), -TOP, TOP - 1.0);
            q[i][g] = new;
            sum_xq[g] += w * x * new;
            sum_qq[g] += w * new * new;
        }
    }
    for _ in 0..5 {
        for i in 0..16 {
            for g in 0..16 {
                let (x, w, old) = (x[i][g], x[i][g] * x[i][g], q[i][g]);
                let others_xq = sum_xq[g] - w * x * old;
                let others_qq = sum_qq[g] - w * old * old;
                let new = clamp(nearest(x * others_qq / others_xq), -TOP, TOP - 1.0);
                let new_xq = others_xq + w * x * new;
                let new_qq = others_qq + w * new * new;
                let helps = (others_xq > 0.0)
                    & (new != old)
                    & (new_qq > 0.0)
                    & (new_xq * new_xq * sum_qq[g] > sum_xq[g] * sum_xq[g] * new_qq);
                q[i][g] = if helps { new } else { old };
                sum_xq[g] = if helps { new_xq } else { sum_xq[g] };
                sum_qq[g] = if helps { new_qq } else { sum_qq[g] };
            }
        }
    }
    let mut scale = [0.0; 16];
    for g in 0..16 {
        let tiny = largest[g].abs() < TINY;
        let found = sum_qq[g] > 0.0 && !tiny;
        scale[g] = if found { sum_xq[g] / sum_qq[g] } else { 0.0 };
        for q in q.iter_mut() {
            q[g] = if tiny { 0.0 } else { q[g] + TOP };
        }
    }
    scale
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
