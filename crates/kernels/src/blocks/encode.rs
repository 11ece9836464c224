//! Numbers to blocks: bit for bit what GGML's `quantize_row_*_ref` make of them (`golden/gguf_files.py`).

use half::f16;
use rayon::prelude::*;

use super::encode_super::{encode_q2_k, encode_q3_k, encode_q4_k, encode_q5_k, encode_q6_k};
use super::{BlockFormat, Format, GROUP, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
use crate::Isa;
use crate::error::{KernelError, exactly};
use crate::simd::{Job, Simd};

/// Numbers that a thread takes at once: whole blocks of any format.
const RUN: usize = 1 << 14;

/// Encodes whole blocks of numbers, on the threads of the current pool. Numbers that are not finite give
/// blocks without meaning.
///
/// # Errors
/// [`KernelError::Size`] when there is not a whole number of blocks.
pub fn encode(format: BlockFormat, values: &[f32]) -> Result<Vec<u8>, KernelError> {
    let blocks = values.len() / format.block_len();
    let mut bytes = vec![0; blocks * format.block_bytes()];
    encode_into(format, values, &mut bytes)?;
    Ok(bytes)
}

/// As [`encode`], into bytes of the right number.
///
/// # Errors
/// [`KernelError`] when there is not a whole number of blocks, or `out` has another length.
pub fn encode_into(format: BlockFormat, values: &[f32], out: &mut [u8]) -> Result<(), KernelError> {
    if !values.len().is_multiple_of(format.block_len()) {
        return Err(KernelError::Size {
            what: "the number of values to quantise",
            expected: "be whole blocks of the format",
            found: values.len(),
        });
    }
    let bytes_of = |n: usize| n / format.block_len() * format.block_bytes();
    exactly("quantised bytes", out.len(), bytes_of(values.len()))?;
    let isa = Isa::best();
    values
        .par_chunks(RUN)
        .zip(out.par_chunks_mut(bytes_of(RUN)))
        .for_each(|(values, out)| {
            isa.run(Encode {
                format,
                values,
                out,
            })
        });
    Ok(())
}

/// [`encode`] as Q8_0.
///
/// # Errors
/// As [`encode`].
pub fn encode_q8_0(values: &[f32]) -> Result<Vec<u8>, KernelError> {
    encode(BlockFormat::Q8_0, values)
}

/// Encodes whole blocks. There are no vectors in it by hand: the loops run over groups side by side, and the
/// compiler makes vectors of them for each instruction set.
struct Encode<'a> {
    format: BlockFormat,
    values: &'a [f32],
    out: &'a mut [u8],
}

impl Job for Encode<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Encode {
            format,
            values,
            out,
        } = self;
        match format {
            BlockFormat::Q8_0 => each::<Q8_0, 32>(values, out, encode_8_0),
            BlockFormat::Q4_0 => each::<Q4_0, 32>(values, out, encode_symmetric::<4>),
            BlockFormat::Q5_0 => each::<Q5_0, 32>(values, out, encode_symmetric::<5>),
            BlockFormat::Q4_1 => each::<Q4_1, 32>(values, out, encode_affine::<4>),
            BlockFormat::Q5_1 => each::<Q5_1, 32>(values, out, encode_affine::<5>),
            BlockFormat::Q2K => each::<super::Q2K, 256>(values, out, encode_q2_k),
            BlockFormat::Q3K => each::<super::Q3K, 256>(values, out, encode_q3_k),
            BlockFormat::Q4K => each::<super::Q4K, 256>(values, out, encode_q4_k),
            BlockFormat::Q5K => each::<super::Q5K, 256>(values, out, encode_q5_k),
            BlockFormat::Q6K => each::<super::Q6K, 256>(values, out, encode_q6_k),
        }
    }
}

#[inline(always)]
fn each<F: Format, const N: usize>(
    values: &[f32],
    out: &mut [u8],
    one: impl Fn(&[f32; N], &mut [u8]),
) {
    let (blocks, _) = values.as_chunks::<N>();
    for (block, out) in blocks.iter().zip(out.chunks_exact_mut(F::BYTES)) {
        one(block, out);
    }
}

/// The two bytes of a number as f16.
#[inline(always)]
pub(super) fn half_bytes(x: f32) -> [u8; 2] {
    f16::from_f32_const(x).to_le_bytes()
}

#[inline(always)]
pub(super) fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// The first number of the largest magnitude.
#[inline(always)]
fn largest(block: &[f32]) -> f32 {
    let mut largest = 0.0f32;
    for &x in block {
        if x.abs() > largest.abs() {
            largest = x;
        }
    }
    largest
}

/// The largest magnitude becomes 127; halves round away from zero.
#[inline(always)]
fn encode_8_0(block: &[f32; GROUP], out: &mut [u8]) {
    let scale = largest(block).abs() / 127.0;
    let inverse = inverse(scale);
    out[..2].copy_from_slice(&half_bytes(scale));
    for (out, x) in out[2..].iter_mut().zip(block) {
        let scaled = x * inverse;
        // What `round` does, without a call: half of the way and more goes away from zero.
        let whole = scaled.trunc();
        let away = if (scaled - whole).abs() >= 0.5 {
            1.0f32.copysign(scaled)
        } else {
            0.0
        };
        *out = ((whole + away) as i8).cast_unsigned();
    }
}

/// `BITS` bits: the largest magnitude becomes the lowest number.
#[inline(always)]
fn encode_symmetric<const BITS: u32>(block: &[f32; GROUP], out: &mut [u8]) {
    let middle = (1 << (BITS - 1)) as f32;
    let scale = largest(block) / -middle;
    let inverse = inverse(scale);
    out[..2].copy_from_slice(&half_bytes(scale));
    let top = ((1 << BITS) - 1) as i8;
    let q = block.map(|x| {
        ((x * inverse + (middle + 0.5)) as i8)
            .min(top)
            .cast_unsigned()
    });
    pack::<BITS>(&q, &mut out[2..]);
}

/// `BITS` bits above the smallest number.
#[inline(always)]
fn encode_affine<const BITS: u32>(block: &[f32; GROUP], out: &mut [u8]) {
    let (mut low, mut high) = (f32::MAX, -f32::MAX);
    for &x in block {
        low = if x < low { x } else { low };
        high = if x > high { x } else { high };
    }
    let top = ((1 << BITS) - 1) as f32;
    let scale = (high - low) / top;
    let inverse = inverse(scale);
    out[..2].copy_from_slice(&half_bytes(scale));
    out[2..4].copy_from_slice(&half_bytes(low));
    let q = block.map(|x| (((x - low) * inverse + 0.5) as u8).min(top as u8));
    pack::<BITS>(&q, &mut out[4..]);
}

/// Nibbles, the first half of the numbers in the low ones; before them, of five bits, the fifth ones.
#[inline(always)]
fn pack<const BITS: u32>(q: &[u8; GROUP], out: &mut [u8]) {
    let nibbles = if BITS == 5 {
        let high = q
            .iter()
            .enumerate()
            .fold(0u32, |high, (i, q)| high | u32::from(q >> 4 & 1) << i);
        out[..4].copy_from_slice(&high.to_le_bytes());
        &mut out[4..]
    } else {
        out
    };
    for (i, out) in nibbles[..GROUP / 2].iter_mut().enumerate() {
        *out = q[i] & 15 | (q[i + GROUP / 2] & 15) << 4;
    }
}
