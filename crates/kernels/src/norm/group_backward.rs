//! The backward pass of GroupNorm: `dx = r (g dz - mean(g dz) - n mean(n g dz))`, where `n` is the normalised input,
//! `r` one over the deviation, `g` gamma, `dz` the gradient before the activation, and the means are over the group.

use std::ops::Range;

use super::group::{Groups, PIXELS_AT_ONCE, SUM_PARTS, Sums};
use super::write_sums;
use crate::error::{KernelError, exactly, product};
use crate::gemm::driver::{SharedOut, for_each};
use crate::gemm::params::split;
use crate::scratch::Scratch;
use crate::simd::{Job, Simd, math};
use crate::threads::for_row_groups;
use crate::{Activation, Isa};

/// Gradients of [`crate::group_norm`] by its input, factor and summand. The statistics are computed again.
#[derive(Debug)]
pub struct GroupNormBackward<'a> {
    /// As in the forward pass, `[batch, pixels, channels]`.
    pub x: &'a [f32],
    /// Gradient by the output, shape of `x`.
    pub dy: &'a [f32],
    /// Images.
    pub batch: usize,
    /// Height times width.
    pub pixels: usize,
    /// Channels, a multiple of `groups`.
    pub channels: usize,
    /// Groups.
    pub groups: usize,
    /// As in the forward pass.
    pub eps: f32,
    /// As in the forward pass, `[channels]`.
    pub gamma: Option<&'a [f32]>,
    /// As in the forward pass, `[channels]`; read only when there is an activation.
    pub beta: Option<&'a [f32]>,
    /// As in the forward pass.
    pub activation: Activation,
    /// Gradient by the input, shape of `x`; overwritten.
    pub dx: &'a mut [f32],
    /// Gradient by the factor, `[channels]`; overwritten.
    pub dgamma: Option<&'a mut [f32]>,
    /// Gradient by the summand, `[channels]`; overwritten.
    pub dbeta: Option<&'a mut [f32]>,
}

/// Computes the gradients of GroupNorm, see [`GroupNormBackward`]. The same numbers come out whatever the number of
/// threads.
///
/// # Errors
/// [`KernelError`] when a slice does not have the length of its shape, or the groups do not divide the channels.
pub fn group_norm_backward(norm: GroupNormBackward<'_>) -> Result<(), KernelError> {
    norm.run(Isa::best())
}

impl GroupNormBackward<'_> {
    /// [`group_norm_backward`] with the instructions of `isa`.
    ///
    /// # Errors
    /// As [`group_norm_backward`].
    pub fn run(self, isa: Isa) -> Result<(), KernelError> {
        let Self { x, dy, dx, .. } = self;
        let channels = self.channels;
        let groups = Groups {
            channels,
            groups: self.groups,
            eps: self.eps,
            gamma: self.gamma,
            beta: self.beta,
        };
        groups.check()?;
        exactly("x", x.len(), product(&[self.batch, self.pixels, channels]))?;
        exactly("dy", dy.len(), x.len())?;
        exactly("dx", dx.len(), x.len())?;
        for (what, sums) in [("dgamma", &self.dgamma), ("dbeta", &self.dbeta)] {
            sums.as_ref()
                .map_or(Ok(()), |sums| exactly(what, sums.len(), channels))?;
        }
        let mut total = vec![0.0f64; 2 * channels];
        let image = self.pixels * channels;
        if !x.is_empty() {
            let inputs = x.chunks_exact(image).zip(dy.chunks_exact(image));
            for ((x, dy), dx) in inputs.zip(dx.chunks_exact_mut(image)) {
                let image = Image {
                    isa,
                    groups: &groups,
                    activation: self.activation,
                    x,
                    dy,
                };
                image.run(dx, &mut total);
            }
        }
        let (beta, gamma) = total.split_at(channels);
        write_sums(self.dbeta, beta);
        write_sums(self.dgamma, gamma);
        Ok(())
    }
}

/// One image.
struct Image<'a> {
    isa: Isa,
    groups: &'a Groups<'a>,
    activation: Activation,
    x: &'a [f32],
    dy: &'a [f32],
}

impl Image<'_> {
    /// Writes `dx`; adds the sums of `dz` and of `dz n` over the pixels to `total`.
    fn run(&self, dx: &mut [f32], total: &mut [f64]) {
        let channels = self.groups.channels;
        let mut terms = Scratch::new(TERMS * channels);
        let (normal, factors) = terms.as_mut_slice().split_at_mut(3 * channels);
        self.statistics(normal);
        let mut sums = self.collect(normal, dx);
        let sums = &sums.as_mut_f64()[..2 * channels];
        self.factors(normal, sums, factors);
        total.iter_mut().zip(sums).for_each(|(t, s)| *t += s);
        let terms = terms.as_slice();
        let dz = (self.activation == Activation::None).then_some(self.dy);
        for_row_groups(dx, channels, channels * 4, |first, dx| {
            self.isa.run(Finish {
                x: &self.x[first * channels..],
                dz: dz.map(|dz| &dz[first * channels..]),
                terms,
                dx,
            });
        });
    }

    /// Mean, what rounding took from it, and one over the deviation of each channel's group, `[3, channels]`. Where the
    /// mean is large beside the deviation, its rounding alone would shift all of the normalised input.
    fn statistics(&self, normal: &mut [f32]) {
        let Groups {
            channels, groups, ..
        } = *self.groups;
        let mut sums = Sums::collect(self.isa, self.x, channels);
        let (means, rest) = normal.split_at_mut(channels);
        let (lows, rates) = rest.split_at_mut(channels);
        let width = channels / groups;
        for range in (0..groups).map(|g| g * width..(g + 1) * width) {
            let (mean, variance) = sums.moments(range.clone(), self.x);
            let rounded = mean as f32;
            means[range.clone()].fill(rounded);
            lows[range.clone()].fill((mean - f64::from(rounded)) as f32);
            rates[range].fill((1.0 / (variance + f64::from(self.groups.eps)).sqrt()) as f32);
        }
    }

    /// Sums of `dz` and of `dz n`, `[2, channels]` of `f64`; writes `dz` to `dx` when there is an activation.
    fn collect(&self, normal: &[f32], dx: &mut [f32]) -> Scratch {
        let channels = self.groups.channels;
        let pixels = self.x.len() / channels;
        // As many parts whatever the number of threads: the order of the sums decides the last bits.
        let large = self.x.len() >= 1 << 15;
        let tasks = if large { SUM_PARTS.min(pixels) } else { 1 };
        let parallel = large && rayon::current_num_threads() > 1;
        let size = 4 * channels;
        let mut totals = Scratch::new(tasks * size);
        let out = SharedOut::new(totals.as_mut_slice());
        let dz = SharedOut::new(dx);
        for_each(tasks, parallel, |task| {
            let pixels = split(pixels, tasks, task);
            // SAFETY: each task has its own part of the totals, and its own pixels.
            let (part, dz) = unsafe {
                (
                    out.part(task * size, size),
                    dz.part(pixels.start * channels, pixels.len() * channels),
                )
            };
            self.isa.run(Collect {
                image: self,
                normal,
                pixels,
                dz,
                part,
            });
        });
        let (first, rest) = totals.as_mut_f64().split_at_mut(2 * channels);
        for part in rest.chunks_exact(2 * channels) {
            first.iter_mut().zip(part).for_each(|(a, b)| *a += b);
        }
        totals
    }

    /// `r g`, `r mean(n g dz)` and `r mean(g dz)` of each channel, `[3, channels]`.
    fn factors(&self, normal: &[f32], sums: &[f64], factors: &mut [f32]) {
        let Groups {
            channels,
            groups,
            gamma,
            ..
        } = *self.groups;
        let width = channels / groups;
        let count = (self.x.len() / channels * width) as f64;
        let gamma = |c: usize| gamma.map_or(1.0, |g| f64::from(g[c]));
        for range in (0..groups).map(|g| g * width..(g + 1) * width) {
            let mean =
                |sums: &[f64]| range.clone().map(|c| gamma(c) * sums[c]).sum::<f64>() / count;
            let (mean_d, mean_dn) = (mean(&sums[..channels]), mean(&sums[channels..]));
            for c in range.clone() {
                let rate = f64::from(normal[2 * channels + c]);
                factors[c] = (rate * gamma(c)) as f32;
                factors[channels + c] = (rate * mean_dn) as f32;
                factors[2 * channels + c] = (rate * mean_d) as f32;
            }
        }
    }
}

struct Collect<'a> {
    image: &'a Image<'a>,
    /// Means, what rounding took from them, and rates.
    normal: &'a [f32],
    pixels: Range<usize>,
    /// Of these pixels; written when there is an activation.
    dz: &'a mut [f32],
    /// Room for `[2, channels]` of `f64`.
    part: &'a mut [f32],
}

impl Job for Collect<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Groups {
            channels,
            gamma,
            beta,
            ..
        } = *self.image.groups;
        let activation = self.image.activation;
        // SAFETY: `part` is 4 * channels floats at a multiple of 4 * channels floats into an aligned buffer, hence
        // aligned to 8 bytes and as large as 2 * channels f64.
        let totals = unsafe {
            std::slice::from_raw_parts_mut(self.part.as_mut_ptr().cast::<f64>(), 2 * channels)
        };
        totals.fill(0.0);
        let (means, rest) = self.normal.split_at(channels);
        let (lows, rates) = rest.split_at(channels);
        let first = self.pixels.start;
        for start in self.pixels.clone().step_by(PIXELS_AT_ONCE) {
            let block = start..self.pixels.end.min(start + PIXELS_AT_ONCE);
            for c in (0..channels).step_by(S::LANES) {
                let width = S::LANES.min(channels - c);
                let (mean, low) = (s.load_some(&means[c..]), s.load_some(&lows[c..]));
                let rate = s.load_some(&rates[c..channels]);
                let gamma = gamma.map_or(s.splat(1.0), |g| s.load_some(&g[c..]));
                let beta = beta.map_or(s.zero(), |b| s.load_some(&b[c..]));
                let (mut sum, mut dot) = (s.zero(), s.zero());
                for pixel in block.clone() {
                    let at = pixel * channels + c..(pixel + 1) * channels;
                    let x = s.load_some(&self.image.x[at.clone()]);
                    let mut dz = s.load_some(&self.image.dy[at]);
                    let n = s.mul(s.sub(s.sub(x, mean), low), rate);
                    if activation != Activation::None {
                        let z = s.fma(n, gamma, beta);
                        dz = s.mul(dz, math::derivative(s, activation, z));
                        let to = &mut self.dz[(pixel - first) * channels + c..][..width];
                        s.store_some(to, dz);
                    }
                    sum = s.add(sum, dz);
                    dot = s.fma(dz, n, dot);
                }
                let (sum, dot) = (s.to_array(sum), s.to_array(dot));
                for i in 0..width {
                    totals[c + i] += f64::from(sum[i]);
                    totals[channels + c + i] += f64::from(dot[i]);
                }
            }
        }
    }
}

/// Of each channel: mean, what rounding took from it, rate, and the factors a, b, d.
const TERMS: usize = 6;

/// `dx = dz a - n b - d`, for the [`TERMS`]; `dz` is in `dx` unless given.
struct Finish<'a> {
    x: &'a [f32],
    dz: Option<&'a [f32]>,
    terms: &'a [f32],
    dx: &'a mut [f32],
}

impl Job for Finish<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let channels = self.terms.len() / TERMS;
        let term = |i: usize| &self.terms[i * channels..(i + 1) * channels];
        let [mean, low, rate, a, b, d] = std::array::from_fn(term);
        for (i, dx) in self.dx.chunks_exact_mut(channels).enumerate() {
            let row = i * channels..(i + 1) * channels;
            let x = &self.x[row.clone()];
            for c in (0..channels).step_by(S::LANES) {
                let width = S::LANES.min(channels - c);
                let dz = match self.dz {
                    Some(dz) => s.load_some(&dz[row.clone()][c..]),
                    None => s.load_some(&dx[c..]),
                };
                let n = s.sub(s.load_some(&x[c..]), s.load_some(&mean[c..]));
                let n = s.mul(s.sub(n, s.load_some(&low[c..])), s.load_some(&rate[c..]));
                let value = s.mul(dz, s.load_some(&a[c..]));
                let value = s.sub(value, s.mul(n, s.load_some(&b[c..])));
                let value = s.sub(value, s.load_some(&d[c..]));
                s.store_some(&mut dx[c..c + width], value);
            }
        }
    }
}
