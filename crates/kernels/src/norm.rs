//! Normalisations over groups of channels and over rows.

use crate::Activation;
use crate::elementwise::activate_slice;
use crate::error::{KernelError, exactly, product};
use crate::threads::for_row_groups;

/// GroupNorm over channels-last images: each group of `channels / groups` channels of an image is brought to
/// mean 0 and variance 1 over all its pixels.
#[derive(Debug)]
pub struct GroupNorm<'a> {
    /// Input, `[batch, pixels, channels]`.
    pub x: &'a [f32],
    /// Images.
    pub batch: usize,
    /// Height times width.
    pub pixels: usize,
    /// Channels, a multiple of `groups`.
    pub channels: usize,
    /// Groups.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
    /// Factor after the normalisation, `[channels]`.
    pub gamma: Option<&'a [f32]>,
    /// Summand after the factor, `[channels]`.
    pub beta: Option<&'a [f32]>,
    /// Applied last; usually SiLU.
    pub activation: Activation,
    /// Output, shape of `x`.
    pub out: &'a mut [f32],
}

/// Computes GroupNorm, see [`GroupNorm`]; sums are kept in `f64`.
///
/// # Errors
/// [`KernelError`] when a slice does not have the length of its shape, or the groups do not divide the channels.
pub fn group_norm(norm: GroupNorm<'_>) -> Result<(), KernelError> {
    let GroupNorm {
        x,
        batch,
        pixels,
        channels,
        groups,
        eps,
        gamma,
        beta,
        activation,
        out,
    } = norm;
    if groups == 0 || !channels.is_multiple_of(groups) {
        let expected = "be a divisor of the channels";
        return Err(KernelError::Size {
            what: "groups",
            expected,
            found: groups,
        });
    }
    exactly("x", x.len(), product(&[batch, pixels, channels]))?;
    exactly("out", out.len(), x.len())?;
    check_affine(gamma, beta, channels)?;
    if x.is_empty() {
        return Ok(());
    }
    let mut scale = vec![0.0f32; batch * channels];
    let mut shift = vec![0.0f32; batch * channels];
    let width = channels / groups;
    for b in 0..batch {
        let image = &x[b * pixels * channels..][..pixels * channels];
        let mut sums = vec![0.0f64; channels];
        let mut squares = vec![0.0f64; channels];
        for pixel in image.chunks_exact(channels) {
            for ((s, q), &v) in sums.iter_mut().zip(&mut squares).zip(pixel) {
                *s += f64::from(v);
                *q += f64::from(v) * f64::from(v);
            }
        }
        for g in 0..groups {
            let range = g * width..(g + 1) * width;
            let count = (width * pixels) as f64;
            let mean = sums[range.clone()].iter().sum::<f64>() / count;
            let variance =
                (squares[range.clone()].iter().sum::<f64>() / count - mean * mean).max(0.0);
            let inverse = 1.0 / (variance + f64::from(eps)).sqrt();
            for c in range {
                let factor = gamma.map_or(1.0, |g| f64::from(g[c])) * inverse;
                scale[b * channels + c] = factor as f32;
                shift[b * channels + c] =
                    (beta.map_or(0.0, |b| f64::from(b[c])) - mean * factor) as f32;
            }
        }
    }
    for_row_groups(out, channels, channels * 4, |first, rows| {
        for (i, row) in rows.chunks_exact_mut(channels).enumerate() {
            let at = (first + i) / pixels * channels;
            let (scale, shift) = (&scale[at..][..channels], &shift[at..][..channels]);
            for (c, o) in row.iter_mut().enumerate() {
                *o = x[(first + i) * channels + c] * scale[c] + shift[c];
            }
            activate_slice(row, activation);
        }
    });
    Ok(())
}

fn check_affine(gamma: Option<&[f32]>, beta: Option<&[f32]>, n: usize) -> Result<(), KernelError> {
    gamma.map_or(Ok(()), |g| exactly("gamma", g.len(), n))?;
    beta.map_or(Ok(()), |b| exactly("beta", b.len(), n))
}

/// LayerNorm over the last axis.
#[derive(Debug)]
pub struct LayerNorm<'a> {
    /// Input, `[rows, cols]`.
    pub x: &'a [f32],
    /// Elements of a row.
    pub cols: usize,
    /// Added to the variance.
    pub eps: f32,
    /// Factor after the normalisation, `[cols]`.
    pub gamma: Option<&'a [f32]>,
    /// Summand after the factor, `[cols]`.
    pub beta: Option<&'a [f32]>,
    /// Output, shape of `x`.
    pub out: &'a mut [f32],
}

/// Computes LayerNorm, see [`LayerNorm`]; sums are kept in `f64`.
///
/// # Errors
/// [`KernelError::Length`] when a slice does not have the length of its shape.
pub fn layer_norm(norm: LayerNorm<'_>) -> Result<(), KernelError> {
    let LayerNorm {
        x,
        cols,
        eps,
        gamma,
        beta,
        out,
    } = norm;
    exactly(
        "x",
        x.len(),
        product(&[x.len().checked_div(cols).unwrap_or(0), cols]),
    )?;
    exactly("out", out.len(), x.len())?;
    check_affine(gamma, beta, cols)?;
    for_row_groups(out, cols, cols * 8, |first, rows| {
        for (i, row) in rows.chunks_exact_mut(cols).enumerate() {
            let x = &x[(first + i) * cols..][..cols];
            let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / cols as f64;
            let square = x
                .iter()
                .map(|&v| (f64::from(v) - mean).powi(2))
                .sum::<f64>();
            let inverse = 1.0 / (square / cols as f64 + f64::from(eps)).sqrt();
            for (c, o) in row.iter_mut().enumerate() {
                *o = ((f64::from(x[c]) - mean) * inverse) as f32;
            }
            apply_affine(row, gamma, beta);
        }
    });
    Ok(())
}

fn apply_affine(row: &mut [f32], gamma: Option<&[f32]>, beta: Option<&[f32]>) {
    if let Some(gamma) = gamma {
        row.iter_mut().zip(gamma).for_each(|(o, g)| *o *= g);
    }
    if let Some(beta) = beta {
        row.iter_mut().zip(beta).for_each(|(o, b)| *o += b);
    }
}

/// RMSNorm over the last axis.
#[derive(Debug)]
pub struct RmsNorm<'a> {
    /// Input, `[rows, cols]`.
    pub x: &'a [f32],
    /// Elements of a row.
    pub cols: usize,
    /// Added to the mean square.
    pub eps: f32,
    /// Factor after the normalisation, `[cols]`.
    pub gamma: Option<&'a [f32]>,
    /// Output, shape of `x`.
    pub out: &'a mut [f32],
}

/// Computes RMSNorm, see [`RmsNorm`]; sums are kept in `f64`.
///
/// # Errors
/// [`KernelError::Length`] when a slice does not have the length of its shape.
pub fn rms_norm(norm: RmsNorm<'_>) -> Result<(), KernelError> {
    let RmsNorm {
        x,
        cols,
        eps,
        gamma,
        out,
    } = norm;
    exactly(
        "x",
        x.len(),
        product(&[x.len().checked_div(cols).unwrap_or(0), cols]),
    )?;
    exactly("out", out.len(), x.len())?;
    check_affine(gamma, None, cols)?;
    for_row_groups(out, cols, cols * 6, |first, rows| {
        for (i, row) in rows.chunks_exact_mut(cols).enumerate() {
            let x = &x[(first + i) * cols..][..cols];
            let square = x.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>();
            let inverse = 1.0 / (square / cols as f64 + f64::from(eps)).sqrt();
            for (o, &v) in row.iter_mut().zip(x) {
                *o = (f64::from(v) * inverse) as f32;
            }
            apply_affine(row, gamma, None);
        }
    });
    Ok(())
}
