//! How far a result is from its reference.

use crate::Tensor;

/// What [`compare`] finds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Comparison {
    /// `max |got - want| / max |want|`.
    pub relative: f64,
    /// `max |got - want|`.
    pub absolute: f64,
    /// The cosine of the angle between the two.
    pub cosine: f64,
    /// Where the difference is largest (row-major), 0 for empty tensors.
    pub worst: usize,
}

/// Compares values with their reference. A NaN on either side makes both errors infinite, and its
/// place the worst.
///
/// # Panics
/// When the lengths differ.
#[track_caller]
pub fn compare(got: &[f32], want: &[f32]) -> Comparison {
    assert_eq!(got.len(), want.len(), "the numbers of values differ");
    let (mut absolute, mut worst, mut scale) = (0.0f64, 0, 0.0f64);
    for (i, (&a, &b)) in got.iter().zip(want).enumerate() {
        let (a, b) = (f64::from(a), f64::from(b));
        let difference = if a == b { 0.0 } else { (a - b).abs() };
        let difference = if difference.is_nan() {
            f64::INFINITY
        } else {
            difference
        };
        if difference > absolute {
            (absolute, worst) = (difference, i);
        }
        scale = scale.max(b.abs());
    }
    Comparison {
        relative: if absolute == 0.0 {
            0.0
        } else {
            absolute / scale
        },
        absolute,
        cosine: cosine(got, want),
        worst,
    }
}

/// `max |got - want| / max |want|`: 0 when equal, infinite when a value is NaN.
///
/// # Panics
/// When the lengths differ.
#[track_caller]
pub fn relative_error(got: &[f32], want: &[f32]) -> f64 {
    compare(got, want).relative
}

/// The cosine of the angle between two tensors seen as vectors; 1 when both are zero.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |x: &[f32], y: &[f32]| -> f64 {
        x.iter()
            .zip(y)
            .map(|(&x, &y)| f64::from(x) * f64::from(y))
            .sum()
    };
    let (aa, bb) = (dot(a, a), dot(b, b));
    if aa == 0.0 && bb == 0.0 {
        return 1.0;
    }
    dot(a, b) / (aa * bb).sqrt()
}

/// Holds that `got` is within `tolerance` of `want`, relative to the largest reference value.
///
/// # Panics
/// When it is not, or the lengths differ: the message names the stage, the worst place (as a flat
/// index and by axes), both values there, and the cosine, which tells noise from a wrong layout.
#[track_caller]
pub fn assert_close(stage: &str, got: &[f32], want: &Tensor, tolerance: f64) {
    let reference = want.f32();
    assert_eq!(
        got.len(),
        reference.len(),
        "{stage}: {} values, but the golden of shape {:?} has {}",
        got.len(),
        want.shape(),
        reference.len()
    );
    let found = compare(got, reference);
    // Written so that a NaN in the error fails too.
    let close = found.relative <= tolerance;
    assert!(
        close,
        "{stage}: relative error {:.3e} > {tolerance:.1e}; worst at {} = {:?} of {:?}: got {}, want {}; \
         absolute {:.3e}, cosine {:.9}",
        found.relative,
        found.worst,
        unravel(found.worst, want.shape()),
        want.shape(),
        got[found.worst],
        reference[found.worst],
        found.absolute,
        found.cosine
    );
}

/// Holds that integers (token ids, timesteps) equal the golden's.
///
/// # Panics
/// When they do not, with the first place where they differ.
#[track_caller]
pub fn assert_exact(stage: &str, got: &[i64], want: &Tensor) {
    let want = want.i64();
    assert_eq!(
        got.len(),
        want.len(),
        "{stage}: the numbers of values differ"
    );
    if let Some(i) = (0..got.len()).find(|&i| got[i] != want[i]) {
        panic!("{stage}: at {i} got {}, want {}", got[i], want[i]);
    }
}

/// Holds that two 8-bit pictures agree within 1/255 on at least `fraction` of the values.
///
/// # Panics
/// When they do not, with the fraction found, the largest difference and the PSNR.
#[track_caller]
pub fn assert_pixels(stage: &str, got: &[u8], want: &Tensor, fraction: f64) {
    let want = want.u8();
    let found = pixels_within(got, want, 1);
    let largest = got.iter().zip(want).map(|(&a, &b)| a.abs_diff(b)).max();
    assert!(
        found >= fraction,
        "{stage}: {:.4} of the pixels are within 1/255, wanted {fraction}; largest difference {}, PSNR {:.2} dB",
        found,
        largest.unwrap_or(0),
        psnr(got, want)
    );
}

/// Peak signal-to-noise ratio of two 8-bit pictures in dB; infinite when equal.
///
/// # Panics
/// When the lengths differ.
#[track_caller]
pub fn psnr(a: &[u8], b: &[u8]) -> f64 {
    assert_eq!(a.len(), b.len(), "the pictures' sizes differ");
    let squares: f64 = a
        .iter()
        .zip(b)
        .map(|(&a, &b)| f64::from(a.abs_diff(b)).powi(2))
        .sum();
    let mean = squares / a.len().max(1) as f64;
    if mean == 0.0 {
        f64::INFINITY
    } else {
        10.0 * (255.0 * 255.0 / mean).log10()
    }
}

/// The fraction of pixels (three channels each) of which every channel differs by at most `distance`.
///
/// # Panics
/// When the lengths differ or are no multiple of three.
#[track_caller]
pub fn pixels_within(a: &[u8], b: &[u8], distance: u8) -> f64 {
    assert_eq!(a.len(), b.len(), "the pictures' sizes differ");
    let (a, rest) = a.as_chunks::<3>();
    assert!(rest.is_empty(), "not RGB: the length is no multiple of 3");
    let near = a
        .iter()
        .zip(b.as_chunks::<3>().0)
        .filter(|(a, b)| (0..3).all(|c| a[c].abs_diff(b[c]) <= distance))
        .count();
    if a.is_empty() {
        1.0
    } else {
        near as f64 / a.len() as f64
    }
}

fn unravel(index: usize, shape: &[usize]) -> Vec<usize> {
    let mut rest = index;
    let mut place: Vec<usize> = shape
        .iter()
        .rev()
        .map(|&size| {
            let at = rest % size.max(1);
            rest /= size.max(1);
            at
        })
        .collect();
    place.reverse();
    place
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_is_relative_to_the_largest_reference() {
        let found = compare(&[1.0, 2.0, -8.0], &[1.0, 2.5, -10.0]);
        assert_eq!(found.relative, 0.2);
        assert_eq!(found.absolute, 2.0);
        assert_eq!(found.worst, 2);
        assert_eq!(relative_error(&[0.0], &[0.0]), 0.0);
    }

    #[test]
    #[should_panic(expected = "unet/mid: relative error inf")]
    fn a_nan_is_never_close() {
        let want = Tensor::from_f32(&[2], vec![1.0, 2.0]);
        assert_close("unet/mid", &[f32::NAN, 2.0], &want, 1e9);
    }

    #[test]
    #[should_panic(expected = "worst at 3 = [1, 1] of [2, 2]: got 5, want 4")]
    fn the_message_names_the_worst_place() {
        let want = Tensor::from_f32(&[2, 2], vec![1.0, 2.0, 3.0, 4.0]);
        assert_close("x", &[1.0, 2.0, 3.0, 5.0], &want, 0.1);
    }

    #[test]
    #[should_panic(expected = "2 values, but the golden of shape [3] has 3")]
    fn lengths_must_agree() {
        let want = Tensor::from_f32(&[3], vec![1.0, 2.0, 3.0]);
        assert_close("x", &[1.0, 2.0], &want, 1.0);
    }

    #[test]
    fn close_values_pass() {
        let want = Tensor::from_f32(&[2], vec![1.0, 2.0]);
        assert_close("x", &[1.0, 2.00001], &want, 1e-5);
    }

    #[test]
    fn cosine_tells_noise_from_disorder() {
        assert!((cosine(&[1.0, 2.0], &[2.0, 4.0]) - 1.0).abs() < 1e-12);
        assert!(cosine(&[1.0, 0.0], &[0.0, 1.0]).abs() < 1e-12);
        assert_eq!(cosine(&[0.0], &[0.0]), 1.0);
    }

    #[test]
    fn picture_measures() {
        assert_eq!(psnr(&[1, 2, 3], &[1, 2, 3]), f64::INFINITY);
        assert!((psnr(&[0; 6], &[255; 6])).abs() < 1e-12);
        let (a, b) = ([10, 10, 10, 20, 20, 20], [11, 9, 10, 20, 22, 20]);
        assert_eq!(pixels_within(&a, &b, 1), 0.5);
        assert_eq!(pixels_within(&a, &b, 2), 1.0);
    }
}
