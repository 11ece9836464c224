//! The formats of 256 numbers, GGML's K-quants: a block holds eight groups of 32, or sixteen of 16, whose scales are
//! small integers and share an f16 scale of their own.

use super::formats::{half, scaled, scaled_less};
use super::{Format, GROUP};
use crate::simd::Simd;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Q2K;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Q3K;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Q4K;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Q5K;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Q6K;

/// Two bits of each of 32 bytes: four groups share their bytes, from the low bits up, and the next four follow.
#[inline(always)]
fn pairs(bytes: &[u8], group: usize) -> [u8; GROUP] {
    let shift = group % 4 * 2;
    let mut q = [0; GROUP];
    for (q, byte) in q.iter_mut().zip(&bytes[group / 4 * GROUP..][..GROUP]) {
        *q = byte >> shift & 3;
    }
    q
}

/// The 6-bit pair of a group: the first four lie in the low bits of bytes 0..4 and 4..8, the last four are put
/// together from the nibbles of bytes 8..12 and the high bits of the first eight.
#[inline(always)]
pub(super) fn scale_and_minimum(packed: &[u8], group: usize) -> (u8, u8) {
    if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        let (nibbles, i) = (packed[group + 4], group - 4);
        (
            nibbles & 15 | packed[i] >> 6 << 4,
            nibbles >> 4 | packed[i + 4] >> 6 << 4,
        )
    }
}

impl Format for Q2K {
    const LEN: usize = 256;
    const BYTES: usize = 84;

    #[inline(always)]
    fn group<S: Simd>(s: S, block: &[u8], group: usize, out: &mut [f32]) {
        let (scale, minimum) = (half(&block[80..]), half(&block[82..]));
        let q = pairs(&block[16..80], group);
        for (i, out) in out[..GROUP].chunks_exact_mut(16).enumerate() {
            let packed = block[2 * group + i];
            let (scale, minimum) = (
                scale * f32::from(packed & 15),
                minimum * f32::from(packed >> 4),
            );
            scaled_less(s, scale, minimum, &q[16 * i..][..16], out);
        }
    }
}

/// The 6-bit scale of 16 numbers: its low nibble lies in bytes 0..8, its two high bits in bytes 8..12.
#[inline(always)]
pub(super) fn scale_of_q3(packed: &[u8], i: usize) -> i8 {
    let low = packed[i % 8] >> (i / 8 * 4) & 15;
    let high = packed[8 + i % 4] >> (i / 4 * 2) & 3;
    (low | high << 4).cast_signed() - 32
}

impl Format for Q3K {
    const LEN: usize = 256;
    const BYTES: usize = 110;

    #[inline(always)]
    fn group<S: Simd>(s: S, block: &[u8], group: usize, out: &mut [f32]) {
        let scale = half(&block[108..]);
        let mut q = pairs(&block[32..96], group);
        // A high bit that is set takes nothing away; one that is not takes 4.
        for (q, high) in q.iter_mut().zip(&block[..GROUP]) {
            *q = q.wrapping_sub((!high >> group & 1) << 2);
        }
        for (i, out) in out[..GROUP].chunks_exact_mut(16).enumerate() {
            let scale = scale * f32::from(scale_of_q3(&block[96..108], 2 * group + i));
            scaled(s, scale, &q[16 * i..][..16], out);
        }
    }
}

impl Format for Q4K {
    const LEN: usize = 256;
    const BYTES: usize = 144;

    #[inline(always)]
    fn group<S: Simd>(s: S, block: &[u8], group: usize, out: &mut [f32]) {
        let (scale, minimum) = scale_and_minimum(&block[4..16], group);
        let scale = s.splat(half(block) * f32::from(scale));
        let minimum = s.splat(half(&block[2..]) * f32::from(minimum));
        // Two groups share their bytes: low nibbles first, then high ones.
        let bytes = &block[16 + group / 2 * GROUP..][..GROUP];
        for (out, bytes) in out[..GROUP]
            .chunks_exact_mut(S::LANES)
            .zip(bytes.chunks_exact(S::LANES))
        {
            // SAFETY: the chunk is LANES long.
            let (low, high) = unsafe { s.load_nibbles(bytes.as_ptr()) };
            let q = if group.is_multiple_of(2) { low } else { high };
            // Rounded twice, as the reference does; not fused.
            s.store_slice(out, s.sub(s.mul(scale, q), minimum));
        }
    }
}

impl Format for Q5K {
    const LEN: usize = 256;
    const BYTES: usize = 176;

    #[inline(always)]
    fn group<S: Simd>(s: S, block: &[u8], group: usize, out: &mut [f32]) {
        let (scale, minimum) = scale_and_minimum(&block[4..16], group);
        let scale = half(block) * f32::from(scale);
        let minimum = half(&block[2..]) * f32::from(minimum);
        let shift = group % 2 * 4;
        let bytes = &block[48 + group / 2 * GROUP..][..GROUP];
        let mut q = [0; GROUP];
        for ((q, byte), high) in q.iter_mut().zip(bytes).zip(&block[16..48]) {
            *q = byte >> shift & 15 | (high >> group & 1) << 4;
        }
        scaled_less(s, scale, minimum, &q, &mut out[..GROUP]);
    }
}

impl Format for Q6K {
    const LEN: usize = 256;
    const BYTES: usize = 210;

    #[inline(always)]
    fn group<S: Simd>(s: S, block: &[u8], group: usize, out: &mut [f32]) {
        let scale = half(&block[208..]);
        // Of four groups the first two lie in low nibbles and the last two in the high ones of the same bytes.
        let (four, of_four) = (group / 4, group % 4);
        let low = &block[64 * four + of_four % 2 * GROUP..][..GROUP];
        let high = &block[128 + 32 * four..][..GROUP];
        let mut q = [0u8; GROUP];
        for ((q, low), high) in q.iter_mut().zip(low).zip(high) {
            let number = low >> (of_four / 2 * 4) & 15 | (high >> (of_four * 2) & 3) << 4;
            *q = number.wrapping_sub(32);
        }
        for (i, out) in out[..GROUP].chunks_exact_mut(16).enumerate() {
            let scale = scale * f32::from(block[192 + 2 * group + i].cast_signed());
            scaled(s, scale, &q[16 * i..][..16], out);
        }
    }
}
