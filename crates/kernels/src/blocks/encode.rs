//! Numbers to blocks, as GGML's `quantize_row_*_ref` do.

use half::f16;

use super::{Format, Q8_0};
use crate::error::KernelError;

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
