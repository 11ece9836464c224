//! Looking for values that are no numbers.

use crate::{DType, Error, TensorView};
use half::{bf16, f16};
use std::path::Path;

/// The index, over the flattened tensor, of the first NaN or infinity; `None` when there is none, which
/// is always so for integers. Reads every byte of the tensor once, at about the speed of memory.
pub fn first_non_finite(view: &TensorView) -> Option<usize> {
    let data = &view.data;
    // An exponent of all ones is an infinity or a NaN, except in E4M3, which has the NaN 0x7f only.
    match view.dtype {
        DType::F64 => first(data, |b: &[u8; 8]| {
            all_ones(u64::from_le_bytes(*b), 0x7ff0_0000_0000_0000)
        }),
        DType::F32 => first(data, |b: &[u8; 4]| {
            all_ones(u32::from_le_bytes(*b), 0x7f80_0000)
        }),
        DType::F16 => first(data, |b: &[u8; 2]| all_ones(u16::from_le_bytes(*b), 0x7c00)),
        DType::Bf16 => first(data, |b: &[u8; 2]| all_ones(u16::from_le_bytes(*b), 0x7f80)),
        DType::F8E5M2 => first(data, |b: &[u8; 1]| all_ones(b[0], 0x7c)),
        DType::F8E4M3 => first(data, |b: &[u8; 1]| all_ones(b[0], 0x7f)),
        DType::Blocks(_) => first_of_blocks(view).map(|(index, _)| index),
        _ => None,
    }
}

fn all_ones<T: Copy + PartialEq + std::ops::BitAnd<Output = T>>(bits: T, mask: T) -> bool {
    bits & mask == mask
}

/// Without a branch inside a block, so that the compiler turns it into vector code.
fn first<const N: usize>(data: &[u8], bad: impl Fn(&[u8; N]) -> bool) -> Option<usize> {
    const BLOCK: usize = 1024;
    let (elements, _) = data.as_chunks::<N>();
    let mut at = 0;
    for block in elements.chunks(BLOCK) {
        if block.iter().fold(false, |any, e| any | bad(e)) {
            return block.iter().position(&bad).map(|i| at + i);
        }
        at += block.len();
    }
    None
}

/// Only a scale can make a number of a block infinite; but which number, decoding tells.
fn first_of_blocks(view: &TensorView) -> Option<(usize, f32)> {
    const RUN: usize = 4096;
    let mut numbers = [0.0; RUN];
    for at in (0..view.len()).step_by(RUN) {
        let numbers = &mut numbers[..RUN.min(view.len() - at)];
        crate::convert::widen(view, at, numbers);
        if let Some(i) = numbers.iter().position(|x| !x.is_finite()) {
            return Some((at + i, numbers[i]));
        }
    }
    None
}

/// Refuses a tensor that holds a NaN or an infinity. `path` is for the message.
///
/// # Errors
///
/// [`Error::NonFinite`] with the tensor's name, the first such index and the value there.
pub fn check_finite(view: &TensorView, path: &Path) -> Result<(), Error> {
    let Some(index) = first_non_finite(view) else {
        return Ok(());
    };
    let size = view.dtype.block_bytes();
    let value = match view.dtype {
        DType::Blocks(_) => first_of_blocks(view).map_or(f64::NAN, |(_, x)| x.into()),
        dtype => value(dtype, &view.data[index * size..(index + 1) * size]),
    };
    Err(Error::NonFinite {
        path: path.into(),
        name: view.name.clone(),
        index,
        value,
    })
}

/// One non-finite element; in the 8-bit types only its sign and whether it is infinite matter.
fn value(dtype: DType, element: &[u8]) -> f64 {
    match (dtype, element) {
        (DType::F64, e) => e.try_into().map_or(f64::NAN, f64::from_le_bytes),
        (DType::F32, e) => e
            .try_into()
            .map_or(f64::NAN, |b| f32::from_le_bytes(b).into()),
        (DType::F16, e) => e
            .try_into()
            .map_or(f64::NAN, |b| f16::from_le_bytes(b).into()),
        (DType::Bf16, e) => e
            .try_into()
            .map_or(f64::NAN, |b| bf16::from_le_bytes(b).into()),
        (DType::F8E5M2, [0x7c]) => f64::INFINITY,
        (DType::F8E5M2, [0xfc]) => f64::NEG_INFINITY,
        _ => f64::NAN,
    }
}
