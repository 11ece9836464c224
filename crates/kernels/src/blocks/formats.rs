//! The formats one by one: GGML's `block_q8_0`, `block_q4_0` and `block_q4_K`.

use half::f16;

use super::{Format, GROUP};
use crate::error::KernelError;
use crate::simd::{Simd, half_to_f32};

#[derive(Debug, Clone, Copy)]
pub(crate) struct Q8_0;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Q4_0;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Q4K;

/// The f16 at the start of `bytes`.
#[inline(always)]
fn half(bytes: &[u8]) -> f32 {
    half_to_f32(u16::from_le_bytes([bytes[0], bytes[1]]))
}

impl Format for Q8_0 {
    const LEN: usize = 32;
    const BYTES: usize = 34;

    #[inline(always)]
    fn group<S: Simd>(s: S, block: &[u8], _: usize, out: &mut [f32]) {
        let scale = s.splat(half(block));
        let numbers = &block[2..34];
        for (out, q) in out[..GROUP]
            .chunks_exact_mut(S::LANES)
            .zip(numbers.chunks_exact(S::LANES))
        {
            // SAFETY: the chunk is LANES long.
            let q = unsafe { s.load_i8(q.as_ptr()) };
            s.store_slice(out, s.mul(scale, q));
        }
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

/// The 6-bit pair of a group: the first four lie in the low bits of bytes 0..4 and 4..8, the last four are put
/// together from the nibbles of bytes 8..12 and the high bits of the first eight.
#[inline(always)]
fn scale_and_minimum(packed: &[u8], group: usize) -> (u8, u8) {
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

/// Encodes numbers as Q8_0, as GGML's reference does: the largest magnitude becomes 127, halves round away from
/// zero.
///
/// # Errors
/// [`KernelError::Size`] when there is not a whole number of blocks.
pub fn encode_q8_0(values: &[f32]) -> Result<Vec<u8>, KernelError> {
    if !values.len().is_multiple_of(Q8_0::LEN) {
        return Err(KernelError::Size {
            what: "the number of values for Q8_0",
            expected: "be a multiple of 32",
            found: values.len(),
        });
    }
    let mut bytes = Vec::with_capacity(values.len() / Q8_0::LEN * Q8_0::BYTES);
    for block in values.chunks_exact(Q8_0::LEN) {
        let largest = block.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let scale = largest / 127.0;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        bytes.extend(f16::from_f32(scale).to_le_bytes());
        bytes.extend(
            block
                .iter()
                .map(|v| ((v * inverse).round() as i8).cast_unsigned()),
        );
    }
    Ok(bytes)
}
