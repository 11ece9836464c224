//! Sums over latents. Latents are small beside a network call, so plain loops serve.

/// `Σ coefficient · slice`, summed in f64 and rounded once, over slices of the same length.
///
/// One rounding at the end keeps a step within half a unit in the last place of exact arithmetic,
/// whatever order the reference adds its terms in.
pub(crate) fn combine<const N: usize>(terms: [(f64, &[f32]); N]) -> Vec<f32> {
    let len = terms
        .iter()
        .map(|(_, slice)| slice.len())
        .min()
        .unwrap_or(0);
    debug_assert!(terms.iter().all(|(_, slice)| slice.len() == len));
    (0..len)
        .map(|i| {
            terms
                .iter()
                .map(|(c, slice)| c * f64::from(slice[i]))
                .sum::<f64>() as f32
        })
        .collect()
}

/// An Euler step `x + (x - denoised) / sigma · dt`, with the order and the rounding of torch's f32.
///
/// At zero terminal SNR sigma begins at 4096, and the step subtracts numbers of that size to leave one
/// of size 1: the reference's rounding there is part of its picture.
pub(crate) fn euler_step(x: &[f32], denoised: &[f32], sigma: f64, dt: f64) -> Vec<f32> {
    let (sigma, dt) = (sigma as f32, dt as f32);
    x.iter()
        .zip(denoised)
        .map(|(x, d)| x + (x - d) / sigma * dt)
        .collect()
}

/// `e^x - 1` over `x`, with its limit 1 at zero.
pub(crate) fn phi1(x: f64) -> f64 {
    if x == 0.0 { 1.0 } else { x.exp_m1() / x }
}

/// `(phi1(x) - 1) / x`, with its limit 1/2 at zero, where the quotient would cancel.
pub(crate) fn phi2(x: f64) -> f64 {
    if x.abs() < 1e-4 {
        0.5 + x / 6.0 + x * x / 24.0
    } else {
        (phi1(x) - 1.0) / x
    }
}

/// `(phi2(x) - 1/2) / x`, with its limit 1/6 at zero.
pub(crate) fn phi3(x: f64) -> f64 {
    if x.abs() < 1e-3 {
        1.0 / 6.0 + x / 24.0 + x * x / 120.0
    } else {
        (phi2(x) - 0.5) / x
    }
}

/// Linear interpolation of `values` at a fractional index, clamped to the ends.
pub(crate) fn interpolate(values: &[f64], index: f64) -> f64 {
    let Some(last) = values.len().checked_sub(1) else {
        return f64::NAN;
    };
    let index = index.clamp(0.0, last as f64);
    let low = (index as usize).min(last.saturating_sub(1));
    let high = (low + 1).min(last);
    (values[high] - values[low]) * (index - low as f64) + values[low]
}

/// `count` values from `start` to `end`, both included, as `numpy.linspace` gives them.
pub(crate) fn linspace(start: f64, end: f64, count: usize) -> Vec<f64> {
    if count == 1 {
        return vec![start];
    }
    let step = (end - start) / (count.max(2) - 1) as f64;
    (0..count)
        .map(|i| {
            if i + 1 == count {
                end
            } else {
                start + step * i as f64
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phi_functions_are_continuous_where_they_switch_to_their_series() {
        for (f, at) in [(phi2 as fn(f64) -> f64, 1e-4), (phi3, 1e-3)] {
            for sign in [-1.0, 1.0] {
                let (a, b) = (f(sign * at * 0.999_999), f(sign * at * 1.000_001));
                assert!((a - b).abs() < 1e-8, "{a} {b}");
            }
        }
    }

    #[test]
    fn interpolation_clamps_to_the_ends() {
        let v = [1.0, 3.0, 4.0];
        assert_eq!(interpolate(&v, -1.0), 1.0);
        assert_eq!(interpolate(&v, 0.5), 2.0);
        assert_eq!(interpolate(&v, 2.0), 4.0);
        assert_eq!(interpolate(&v, 9.0), 4.0);
        assert_eq!(interpolate(&[7.0], 0.3), 7.0);
    }
}
