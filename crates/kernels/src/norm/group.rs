//! Normalisations over groups of channels.

use std::ops::Range;

use super::check_affine;
use crate::error::{KernelError, exactly, product};
use crate::gemm::driver::{SharedOut, for_each};
use crate::gemm::params::split;
use crate::scratch::Scratch;
use crate::simd::{Job, Simd, math};
use crate::threads::for_row_groups;
use crate::{Activation, Isa};

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

/// Computes GroupNorm, see [`GroupNorm`], in two passes over the image. Sums are taken around the channel's first
/// value and collected in `f64`, so that a large mean costs no digits.
///
/// # Errors
/// [`KernelError`] when a slice does not have the length of its shape, or the groups do not divide the channels.
pub fn group_norm(norm: GroupNorm<'_>) -> Result<(), KernelError> {
    norm.run(Isa::best())
}

impl GroupNorm<'_> {
    /// [`group_norm`] with the instructions of `isa`.
    ///
    /// # Errors
    /// As [`group_norm`].
    pub fn run(self, isa: Isa) -> Result<(), KernelError> {
        let Self { x, out, .. } = self;
        let groups = Groups {
            channels: self.channels,
            groups: self.groups,
            eps: self.eps,
            gamma: self.gamma,
            beta: self.beta,
        };
        groups.check()?;
        let (channels, activation) = (self.channels, self.activation);
        exactly("x", x.len(), product(&[self.batch, self.pixels, channels]))?;
        exactly("out", out.len(), x.len())?;
        if x.is_empty() {
            return Ok(());
        }
        let image = self.pixels * channels;
        for (x, out) in x.chunks_exact(image).zip(out.chunks_exact_mut(image)) {
            let affine = groups.affine(isa, x);
            let (scale, shift) = affine.as_slice().split_at(channels);
            for_row_groups(out, channels, channels * 4, |first, out| {
                isa.run(Affine {
                    x: &x[first * channels..],
                    scale,
                    shift,
                    activation,
                    out,
                });
            });
        }
        Ok(())
    }
}

/// GroupNorm in the place of its input; see [`GroupNorm`].
#[derive(Debug)]
pub struct GroupNormInPlace<'a> {
    /// Input and output, `[batch, pixels, channels]`.
    pub x: &'a mut [f32],
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
}

/// Computes GroupNorm in place, to the same bits as [`group_norm`].
///
/// # Errors
/// As [`group_norm`].
pub fn group_norm_in_place(norm: GroupNormInPlace<'_>) -> Result<(), KernelError> {
    let isa = Isa::best();
    let GroupNormInPlace {
        x,
        batch,
        pixels,
        channels,
        activation,
        ..
    } = norm;
    let groups = Groups {
        channels,
        groups: norm.groups,
        eps: norm.eps,
        gamma: norm.gamma,
        beta: norm.beta,
    };
    groups.check()?;
    exactly("x", x.len(), product(&[batch, pixels, channels]))?;
    if x.is_empty() {
        return Ok(());
    }
    for x in x.chunks_exact_mut(pixels * channels) {
        let affine = groups.affine(isa, x);
        let (scale, shift) = affine.as_slice().split_at(channels);
        for_row_groups(x, channels, channels * 4, |_, x| {
            isa.run(AffineInPlace {
                x,
                scale,
                shift,
                activation,
            });
        });
    }
    Ok(())
}

/// How a GroupNorm is done, whatever to.
pub(super) struct Groups<'a> {
    pub channels: usize,
    pub groups: usize,
    pub eps: f32,
    pub gamma: Option<&'a [f32]>,
    pub beta: Option<&'a [f32]>,
}

impl Groups<'_> {
    pub(super) fn check(&self) -> Result<(), KernelError> {
        if self.groups == 0 || !self.channels.is_multiple_of(self.groups) {
            let expected = "be a divisor of the channels";
            return Err(KernelError::Size {
                what: "groups",
                expected,
                found: self.groups,
            });
        }
        check_affine(self.gamma, self.beta, self.channels)
    }

    /// Scale and shift of each channel of an image, `[2, channels]`.
    fn affine(&self, isa: Isa, x: &[f32]) -> Scratch {
        let channels = self.channels;
        let mut affine = Scratch::new(2 * channels);
        let (scale, shift) = affine.as_mut_slice().split_at_mut(channels);
        let mut sums = Sums::collect(isa, x, channels);
        let width = channels / self.groups;
        for range in (0..self.groups).map(|g| g * width..(g + 1) * width) {
            let (mean, variance) = sums.moments(range.clone(), x);
            let inverse = 1.0 / (variance + f64::from(self.eps)).sqrt();
            for c in range {
                let factor = self.gamma.map_or(1.0, |g| f64::from(g[c])) * inverse;
                scale[c] = factor as f32;
                shift[c] = (self.beta.map_or(0.0, |b| f64::from(b[c])) - mean * factor) as f32;
            }
        }
        affine
    }
}

/// Sums and sums of squares of each channel, around the channel's value at the first pixel.
pub(super) struct Sums {
    channels: usize,
    pixels: usize,
    /// `[2, channels]`
    totals: Scratch,
}

impl Sums {
    pub(super) fn collect(isa: Isa, x: &[f32], channels: usize) -> Self {
        let pixels = x.len() / channels;
        // As many parts whatever the number of threads: the order of the sums decides the last bits.
        let large = x.len() >= 1 << 15;
        let tasks = if large { SUM_PARTS.min(pixels) } else { 1 };
        let parallel = large && rayon::current_num_threads() > 1;
        // An f64 takes two floats; two of them for each channel and task.
        let size = 4 * channels;
        let mut totals = Scratch::new(tasks * size);
        let out = SharedOut::new(totals.as_mut_slice());
        for_each(tasks, parallel, |task| {
            // SAFETY: each task has its own part.
            let part = unsafe { out.part(task * size, size) };
            isa.run(Collect {
                x,
                channels,
                pixels: split(pixels, tasks, task),
                part,
            });
        });
        let (first, rest) = totals.as_mut_f64().split_at_mut(2 * channels);
        for part in rest.chunks_exact(2 * channels) {
            first.iter_mut().zip(part).for_each(|(a, b)| *a += b);
        }
        Self {
            channels,
            pixels,
            totals,
        }
    }

    /// Mean and variance of a group of channels, from each channel's own.
    pub(super) fn moments(&mut self, range: Range<usize>, x: &[f32]) -> (f64, f64) {
        let count = self.pixels as f64;
        let (sums, squares) = self.totals.as_mut_f64().split_at(self.channels);
        let channel_mean = |c: usize| f64::from(x[c]) + sums[c] / count;
        let width = range.len() as f64;
        let mean = range.clone().map(channel_mean).sum::<f64>() / width;
        let spread = |c: usize| {
            squares[c] - sums[c] * sums[c] / count + count * (channel_mean(c) - mean).powi(2)
        };
        (
            mean,
            (range.map(spread).sum::<f64>() / (width * count)).max(0.0),
        )
    }
}

struct Collect<'a> {
    x: &'a [f32],
    channels: usize,
    pixels: Range<usize>,
    /// Room for `[2, channels]` of `f64`.
    part: &'a mut [f32],
}

/// Parts that a large image is summed in.
pub(super) const SUM_PARTS: usize = 16;
/// Pixels that are summed in `f32` before they are added to the `f64` totals.
pub(super) const PIXELS_AT_ONCE: usize = 16;

impl Job for Collect<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self {
            x,
            channels,
            pixels,
            part,
        } = self;
        // SAFETY: `part` is 4 * channels floats at a multiple of 4 * channels floats into an aligned buffer, hence
        // aligned to 8 bytes and as large as 2 * channels f64.
        let totals = unsafe {
            std::slice::from_raw_parts_mut(part.as_mut_ptr().cast::<f64>(), 2 * channels)
        };
        totals.fill(0.0);
        for start in pixels.clone().step_by(PIXELS_AT_ONCE) {
            let block = &x[start * channels..pixels.end.min(start + PIXELS_AT_ONCE) * channels];
            for c in (0..channels).step_by(S::LANES) {
                let width = S::LANES.min(channels - c);
                let pivot = s.load_some(&x[c..channels]);
                let (mut sum, mut square) = (s.zero(), s.zero());
                for row in block.chunks_exact(channels) {
                    let d = s.sub(s.load_some(&row[c..]), pivot);
                    sum = s.add(sum, d);
                    square = s.fma(d, d, square);
                }
                let (sum, square) = (s.to_array(sum), s.to_array(square));
                for i in 0..width {
                    totals[c + i] += f64::from(sum[i]);
                    totals[channels + c + i] += f64::from(square[i]);
                }
            }
        }
    }
}

/// `out = activation(x * scale + shift)` for rows of `scale.len()`.
struct Affine<'a> {
    x: &'a [f32],
    scale: &'a [f32],
    shift: &'a [f32],
    activation: Activation,
    out: &'a mut [f32],
}

impl Job for Affine<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let channels = self.scale.len();
        for (x, out) in self
            .x
            .chunks_exact(channels)
            .zip(self.out.chunks_exact_mut(channels))
        {
            for c in (0..channels / S::LANES * S::LANES).step_by(S::LANES) {
                let scale = s.load_slice(&self.scale[c..]);
                let shift = s.load_slice(&self.shift[c..]);
                s.store_slice(&mut out[c..], s.fma(s.load_slice(&x[c..]), scale, shift));
            }
            for c in channels / S::LANES * S::LANES..channels {
                out[c] = x[c] * self.scale[c] + self.shift[c];
            }
            math::activate_slice(s, self.activation, out);
        }
    }
}

/// As [`Affine`], in place.
struct AffineInPlace<'a> {
    x: &'a mut [f32],
    scale: &'a [f32],
    shift: &'a [f32],
    activation: Activation,
}

impl Job for AffineInPlace<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let channels = self.scale.len();
        for row in self.x.chunks_exact_mut(channels) {
            for c in (0..channels / S::LANES * S::LANES).step_by(S::LANES) {
                let scale = s.load_slice(&self.scale[c..]);
                let shift = s.load_slice(&self.shift[c..]);
                let y = s.fma(s.load_slice(&row[c..]), scale, shift);
                s.store_slice(&mut row[c..], y);
            }
            let rest = channels / S::LANES * S::LANES;
            let affine = self.scale[rest..].iter().zip(&self.shift[rest..]);
            for (y, (scale, shift)) in row[rest..].iter_mut().zip(affine) {
                *y = *y * scale + shift;
            }
            math::activate_slice(s, self.activation, row);
        }
    }
}
