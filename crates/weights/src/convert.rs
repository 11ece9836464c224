//! Storage types into each other.

use crate::view::aligned_bytes;
use crate::{DType, Error, TensorView};
use aquatint_kernels::blocks::{decode, decode_f8_e4m3};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// The same tensor stored as `to`, which must be F64, F32, F16, BF16 or F8_E4M3; the source may be any floating
/// type, blocks included. Of the same type it is the same bytes, without a copy.
///
/// Widening is exact. Narrowing rounds to the nearest, ties to even, as IEEE 754 and PyTorch's `.to()`
/// do (from F64 to the half types by way of F32, also like PyTorch). Nothing saturates: what is too large
/// for F16 (65520 and more) becomes an infinity, and what is too large for F8_E4M3 (more than 464) a NaN, so that
/// [`crate::first_non_finite`] can find it; what is too small becomes a subnormal number or zero; a NaN stays one.
///
/// # Errors
///
/// [`Error::Conversion`] from an integer, or to a type not listed.
pub fn convert(view: &TensorView, to: DType) -> Result<TensorView, Error> {
    if view.dtype == to {
        return Ok(view.clone());
    }
    let possible = matches!(
        to,
        DType::F64 | DType::F32 | DType::F16 | DType::Bf16 | DType::F8E4M3
    );
    if !view.dtype.is_float() || !possible {
        return Err(Error::Conversion {
            name: view.name.clone(),
            from: view.dtype,
            to,
        });
    }
    let (source, len) = (view.aligned(), view.len());
    let bytes = len * to.block_bytes();
    let data = aligned_bytes(bytes, |out| match to {
        // `aligned_bytes` starts at a multiple of 8, so none of these casts can fail.
        DType::F64 => to_f64(&source, bytemuck::cast_slice_mut(out)),
        DType::F32 => to_f32(&source, bytemuck::cast_slice_mut(out)),
        DType::F16 => narrow(&source, bytemuck::cast_slice_mut::<u8, f16>(out)),
        DType::F8E4M3 => to_f8(&source, out),
        _ => narrow(&source, bytemuck::cast_slice_mut::<u8, bf16>(out)),
    });
    Ok(TensorView {
        name: view.name.clone(),
        dtype: to,
        shape: view.shape.clone(),
        data,
    })
}

/// The elements as f32, rounded to the nearest where they are F64.
///
/// # Errors
///
/// [`Error::Conversion`] from an integer.
pub fn to_f32_vec(view: &TensorView) -> Result<Vec<f32>, Error> {
    if !view.dtype.is_float() {
        return Err(Error::Conversion {
            name: view.name.clone(),
            from: view.dtype,
            to: DType::F32,
        });
    }
    let mut out = vec![0.0; view.len()];
    to_f32(&view.aligned(), &mut out);
    Ok(out)
}

/// Elements to widen at a time: 16 KiB of f32, which stay in the first cache; whole blocks of any format.
const BLOCK: usize = 4096;

/// An aligned float tensor to f32.
fn to_f32(source: &TensorView, out: &mut [f32]) {
    for (i, block) in out.chunks_mut(BLOCK).enumerate() {
        widen(source, i * BLOCK, block);
    }
}

/// An aligned float tensor, which is none of F64, to f64.
fn to_f64(source: &TensorView, out: &mut [f64]) {
    let mut buffer = [0.0; BLOCK];
    for (i, block) in out.chunks_mut(BLOCK).enumerate() {
        let buffer = &mut buffer[..block.len()];
        widen(source, i * BLOCK, buffer);
        for (o, x) in block.iter_mut().zip(buffer) {
            *o = f64::from(*x);
        }
    }
}

/// The elements from `at` on to f32, as many as `out` takes; both are whole blocks.
pub(crate) fn widen(source: &TensorView, at: usize, out: &mut [f32]) {
    let bytes_to = |n: usize| n / source.dtype.block_len() * source.dtype.block_bytes();
    let bytes = &source.data[bytes_to(at)..bytes_to(at + out.len())];
    match source.dtype {
        DType::F64 => {
            for (o, x) in out.iter_mut().zip(bytemuck::cast_slice::<u8, f64>(bytes)) {
                *o = *x as f32;
            }
        }
        DType::F32 => out.copy_from_slice(bytemuck::cast_slice(bytes)),
        DType::F16 => bytemuck::cast_slice::<u8, f16>(bytes).convert_to_f32_slice(out),
        DType::Bf16 => bytemuck::cast_slice::<u8, bf16>(bytes).convert_to_f32_slice(out),
        DType::F8E4M3 => by_table(bytes, out, decode_f8_e4m3),
        DType::Blocks(format) => {
            // Whole blocks in, as many numbers out: nothing is left that could fail.
            let decoded = decode(format, bytes, out);
            debug_assert!(decoded.is_ok(), "{decoded:?}");
        }
        // The upper half of an f16.
        _ => by_table(bytes, out, |b| f16::from_bits(u16::from(b) << 8).to_f32()),
    }
}

fn by_table(bytes: &[u8], out: &mut [f32], one: impl Fn(u8) -> f32) {
    let table: [f32; 256] = std::array::from_fn(|b| one(b as u8));
    for (o, b) in out.iter_mut().zip(bytes) {
        *o = table[usize::from(*b)];
    }
}

/// An aligned float tensor to F8_E4M3.
fn to_f8(source: &TensorView, out: &mut [u8]) {
    let mut buffer = [0.0; BLOCK];
    for (i, block) in out.chunks_mut(BLOCK).enumerate() {
        let buffer = &mut buffer[..block.len()];
        widen(source, i * BLOCK, buffer);
        for (o, x) in block.iter_mut().zip(buffer) {
            *o = f8_e4m3(*x);
        }
    }
}

/// The nearest F8_E4M3, ties to even; NaN from 464 on, as torch has it.
fn f8_e4m3(x: f32) -> u8 {
    let sign = (x.to_bits() >> 24) as u8 & 0x80;
    let magnitude = x.abs();
    let code = if magnitude.is_nan() || magnitude > 464.0 {
        0x7f
    } else if magnitude < 2f32.powi(-6) {
        // Subnormal: steps of 2^-9. Eight of them are the first normal number, and its code.
        (magnitude * 512.0).round_ties_even() as u8
    } else {
        let bits = magnitude.to_bits();
        let rounded = bits + 0x7_ffff + (bits >> 20 & 1);
        // The exponent's bias becomes 7 in the place of 127.
        ((rounded >> 20) - ((127 - 7) << 3)) as u8
    };
    sign | code
}

/// An aligned float tensor to a half type.
fn narrow<H>(source: &TensorView, out: &mut [H])
where
    [H]: HalfFloatSliceExt,
{
    let mut buffer = [0.0; BLOCK];
    for (i, block) in out.chunks_mut(BLOCK).enumerate() {
        let buffer = &mut buffer[..block.len()];
        widen(source, i * BLOCK, buffer);
        block.convert_from_f32_slice(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f8_rounds_to_the_nearest() {
        let numbers: Vec<f32> = (0..0x7f).map(decode_f8_e4m3).collect();
        for (code, pair) in numbers.windows(2).enumerate() {
            let (low, high) = (code as u8, code as u8 + 1);
            let middle = (pair[0] + pair[1]) / 2.0;
            let even = if low.is_multiple_of(2) { low } else { high };
            let next = |x: f32, by: i32| f32::from_bits(x.to_bits().wrapping_add_signed(by));
            for (x, want) in [
                (pair[0], low),
                (pair[1], high),
                (middle, even),
                (next(middle, 1), high),
            ] {
                assert_eq!(f8_e4m3(x), want, "{x}");
                assert_eq!(f8_e4m3(-x), want | 0x80, "-{x}");
            }
            assert_eq!(f8_e4m3(next(middle, -1)), low, "below {middle}");
        }
        for x in [465.0, 1e30, f32::INFINITY, f32::NAN] {
            assert_eq!(f8_e4m3(x) & 0x7f, 0x7f, "{x}");
        }
        assert_eq!(f8_e4m3(464.0), 0x7e);
    }
}
