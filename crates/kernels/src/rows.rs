//! Copies of rows.

use crate::error::{KernelError, exactly, product};
use crate::threads::for_row_groups;

/// Two matrices side by side: each row of `out` is a row of `columns[0]` values of the first, then a row of
/// `columns[1]` values of the second.
///
/// # Errors
/// [`KernelError::Length`] when a slice has not as many rows as the others.
pub fn join_rows(
    inputs: [&[f32]; 2],
    columns: [usize; 2],
    out: &mut [f32],
) -> Result<(), KernelError> {
    let [left, right] = columns;
    let width = left + right;
    let rows = out.len().checked_div(width).unwrap_or(0);
    exactly("out", out.len(), product(&[rows, width]))?;
    exactly("the first input", inputs[0].len(), product(&[rows, left]))?;
    exactly("the second input", inputs[1].len(), product(&[rows, right]))?;
    for_row_groups(out, width, width, |first, out| {
        for (row, out) in (first..).zip(out.chunks_exact_mut(width)) {
            let (a, b) = out.split_at_mut(left);
            a.copy_from_slice(&inputs[0][row * left..][..left]);
            b.copy_from_slice(&inputs[1][row * right..][..right]);
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_joined() {
        let (a, b) = ([1., 2., 3., 4.], [5., 6.]);
        let mut out = [0.0; 6];
        join_rows([&a, &b], [2, 1], &mut out).unwrap();
        assert_eq!(out, [1., 2., 5., 3., 4., 6.]);
        assert!(join_rows([&a, &b], [1, 2], &mut out).is_err());
        assert!(join_rows([&[], &[]], [0, 0], &mut []).is_ok());
        let (n, left, right) = (if cfg!(miri) { 1400 } else { 5000 }, 20, 30);
        let a: Vec<f32> = (0..n * left).map(|i| i as f32).collect();
        let b: Vec<f32> = (0..n * right).map(|i| -(i as f32)).collect();
        let mut out = vec![f32::NAN; n * (left + right)];
        join_rows([&a, &b], [left, right], &mut out).unwrap();
        for (row, out) in out.chunks(left + right).enumerate() {
            assert_eq!(out[..left], a[row * left..][..left]);
            assert_eq!(out[left..], b[row * right..][..right]);
        }
    }
}
