//! The backward passes of LayerNorm and RMSNorm; statistics are computed again, row by row.

use std::ops::Range;

use super::group::{PIXELS_AT_ONCE as ROWS, SUM_PARTS};
use super::{check_affine, write_sums};
use crate::Isa;
use crate::error::{KernelError, exactly, product};
use crate::gemm::driver::{SharedOut, for_each};
use crate::gemm::params::split;
use crate::scratch::Scratch;
use crate::simd::{Job, Simd, map2, sum_of};

/// Gradients of [`crate::layer_norm`] by its input, factor and summand.
#[derive(Debug)]
pub struct LayerNormBackward<'a> {
    /// As in the forward pass, `[rows, cols]`.
    pub x: &'a [f32],
    /// Gradient by the output, shape of `x`.
    pub dy: &'a [f32],
    /// Elements of a row.
    pub cols: usize,
    /// As in the forward pass.
    pub eps: f32,
    /// As in the forward pass, `[cols]`.
    pub gamma: Option<&'a [f32]>,
    /// Gradient by the input, shape of `x`; overwritten.
    pub dx: &'a mut [f32],
    /// Gradient by the factor, `[cols]`; overwritten.
    pub dgamma: Option<&'a mut [f32]>,
    /// Gradient by the summand, `[cols]`; overwritten.
    pub dbeta: Option<&'a mut [f32]>,
}

/// Computes the gradients of LayerNorm, see [`LayerNormBackward`]. The same numbers come out whatever the number of
/// threads.
///
/// # Errors
/// [`KernelError::Length`] when a slice does not have the length of its shape.
pub fn layer_norm_backward(norm: LayerNormBackward<'_>) -> Result<(), KernelError> {
    norm.run(Isa::best())
}

impl LayerNormBackward<'_> {
    /// [`layer_norm_backward`] with the instructions of `isa`.
    ///
    /// # Errors
    /// As [`layer_norm_backward`].
    pub fn run(self, isa: Isa) -> Result<(), KernelError> {
        let rows = Rows {
            x: self.x,
            dy: self.dy,
            cols: self.cols,
            eps: self.eps,
            centre: true,
            gamma: self.gamma,
        };
        rows.run(isa, self.dx, self.dgamma, self.dbeta)
    }
}

/// Gradients of [`crate::rms_norm`] by its input and factor.
#[derive(Debug)]
pub struct RmsNormBackward<'a> {
    /// As in the forward pass, `[rows, cols]`.
    pub x: &'a [f32],
    /// Gradient by the output, shape of `x`.
    pub dy: &'a [f32],
    /// Elements of a row.
    pub cols: usize,
    /// As in the forward pass.
    pub eps: f32,
    /// As in the forward pass, `[cols]`.
    pub gamma: Option<&'a [f32]>,
    /// Gradient by the input, shape of `x`; overwritten.
    pub dx: &'a mut [f32],
    /// Gradient by the factor, `[cols]`; overwritten.
    pub dgamma: Option<&'a mut [f32]>,
}

/// Computes the gradients of RMSNorm, see [`RmsNormBackward`]. The same numbers come out whatever the number of
/// threads.
///
/// # Errors
/// [`KernelError::Length`] when a slice does not have the length of its shape.
pub fn rms_norm_backward(norm: RmsNormBackward<'_>) -> Result<(), KernelError> {
    norm.run(Isa::best())
}

impl RmsNormBackward<'_> {
    /// [`rms_norm_backward`] with the instructions of `isa`.
    ///
    /// # Errors
    /// As [`rms_norm_backward`].
    pub fn run(self, isa: Isa) -> Result<(), KernelError> {
        let rows = Rows {
            x: self.x,
            dy: self.dy,
            cols: self.cols,
            eps: self.eps,
            centre: false,
            gamma: self.gamma,
        };
        rows.run(isa, self.dx, self.dgamma, None)
    }
}

/// What both share.
#[derive(Debug, Clone, Copy)]
struct Rows<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    cols: usize,
    eps: f32,
    centre: bool,
    gamma: Option<&'a [f32]>,
}

impl Rows<'_> {
    fn run(
        &self,
        isa: Isa,
        dx: &mut [f32],
        dgamma: Option<&mut [f32]>,
        dbeta: Option<&mut [f32]>,
    ) -> Result<(), KernelError> {
        let (x, cols) = (self.x, self.cols);
        let rows = x.len().checked_div(cols).unwrap_or(0);
        exactly("x", x.len(), product(&[rows, cols]))?;
        exactly("dy", self.dy.len(), x.len())?;
        exactly("dx", dx.len(), x.len())?;
        check_affine(self.gamma, None, cols)?;
        for (what, sums) in [("dgamma", &dgamma), ("dbeta", &dbeta)] {
            sums.as_ref()
                .map_or(Ok(()), |sums| exactly(what, sums.len(), cols))?;
        }
        let large = x.len() >= 1 << 15;
        let parts = if large { SUM_PARTS.min(rows) } else { 1 };
        let parallel = large && rayon::current_num_threads() > 1;
        // An f64 takes two floats; two of them for each column and part.
        let size = 4 * cols;
        let mut totals = Scratch::new(parts * size);
        let out = SharedOut::new(totals.as_mut_slice());
        let dx = SharedOut::new(dx);
        for_each(parts, parallel, |part| {
            let rows = split(rows, parts, part);
            // SAFETY: each part has its own totals and its own rows.
            let (sums, dx) = unsafe {
                (
                    out.part(part * size, size),
                    dx.part(rows.start * cols, rows.len() * cols),
                )
            };
            isa.run(Part {
                all: self,
                rows,
                dx,
                sums,
            });
        });
        let (beta, rest) = totals.as_mut_f64().split_at_mut(2 * cols);
        if cols > 0 {
            for part in rest.chunks_exact(2 * cols) {
                beta.iter_mut().zip(part).for_each(|(a, b)| *a += b);
            }
        }
        let (beta, gamma) = beta.split_at(cols);
        write_sums(dbeta, beta);
        write_sums(dgamma, gamma);
        Ok(())
    }
}

struct Part<'a> {
    all: &'a Rows<'a>,
    rows: Range<usize>,
    /// Of these rows.
    dx: &'a mut [f32],
    /// Room for `[2, cols]` of `f64`: sums of `dy` and of `dy n`.
    sums: &'a mut [f32],
}

impl Job for Part<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Rows { x, dy, cols, .. } = *self.all;
        // SAFETY: `sums` is 4 * cols floats at a multiple of 4 * cols floats into an aligned buffer, hence aligned to
        // 8 bytes and as large as 2 * cols f64.
        let totals =
            unsafe { std::slice::from_raw_parts_mut(self.sums.as_mut_ptr().cast(), 2 * cols) };
        totals.fill(0.0);
        let first = self.rows.start;
        for start in self.rows.clone().step_by(ROWS) {
            let block = start..self.rows.end.min(start + ROWS);
            let mut moments = [Moments::default(); ROWS];
            for (moments, row) in moments.iter_mut().zip(block.clone()) {
                let at = row * cols..(row + 1) * cols;
                let dx = &mut self.dx[(row - first) * cols..][..cols];
                *moments = self.all.row(s, &x[at.clone()], &dy[at], dx);
            }
            for c in (0..cols).step_by(S::LANES) {
                let (mut sum, mut dot) = (s.zero(), s.zero());
                for (row, moments) in block.clone().zip(moments) {
                    let at = row * cols + c..(row + 1) * cols;
                    let d = s.load_some(&dy[at.clone()]);
                    sum = s.add(sum, d);
                    dot = s.fma(d, moments.normal(s, s.load_some(&x[at])), dot);
                }
                add_lanes(s, &mut totals[..cols], c, sum);
                add_lanes(s, &mut totals[cols..], c, dot);
            }
        }
    }
}

/// Adds the lanes to `totals` from `at` on.
#[inline(always)]
fn add_lanes<S: Simd>(s: S, totals: &mut [f64], at: usize, v: S::V) {
    let width = S::LANES.min(totals.len() - at);
    for (t, v) in totals[at..][..width].iter_mut().zip(s.to_array(v)) {
        *t += f64::from(v);
    }
}

/// Of a row.
#[derive(Debug, Clone, Copy, Default)]
struct Moments {
    mean: f32,
    /// What rounding took from the mean. Where the mean is large beside the deviation, it would shift all of the row.
    low: f32,
    /// One over the deviation.
    rate: f32,
}

impl Moments {
    /// Of a row that is not empty; the mean is 0 unless it is to be taken away.
    #[inline(always)]
    fn new<S: Simd>(s: S, x: &[f32], centre: bool, eps: f32) -> Self {
        let count = x.len() as f32;
        let mean = if centre {
            sum_of!(s, x, |v| v) / count
        } else {
            0.0
        };
        let m = s.splat(mean);
        let low = if centre {
            sum_of!(s, x, |v| s.sub(v, m)) / count
        } else {
            0.0
        };
        let l = s.splat(low);
        let square = sum_of!(s, x, |v| {
            let d = s.sub(s.sub(v, m), l);
            s.mul(d, d)
        });
        let rate = 1.0 / (square / count + eps).sqrt();
        Self { mean, low, rate }
    }

    /// The normalised input.
    #[inline(always)]
    fn normal<S: Simd>(self, s: S, x: S::V) -> S::V {
        let d = s.sub(s.sub(x, s.splat(self.mean)), s.splat(self.low));
        s.mul(d, s.splat(self.rate))
    }
}

impl Rows<'_> {
    /// Writes `dx` of one row.
    #[inline(always)]
    fn row<S: Simd>(&self, s: S, x: &[f32], dy: &[f32], dx: &mut [f32]) -> Moments {
        let count = self.cols as f32;
        let moments = Moments::new(s, x, self.centre, self.eps);
        let r = s.splat(moments.rate);
        dx.copy_from_slice(dy);
        if let Some(gamma) = self.gamma {
            map2!(s, dx, gamma, |d, g| s.mul(d, g));
        }
        let mean_d = if self.centre {
            sum_of!(s, dx, |d| d) / count
        } else {
            0.0
        };
        let mut dot = s.zero();
        for (d, x) in dx.chunks(S::LANES).zip(x.chunks(S::LANES)) {
            // Lanes behind the end are 0 in `d`.
            dot = s.fma(s.load_some(d), moments.normal(s, s.load_some(x)), dot);
        }
        let (mean_d, mean_dn) = (s.splat(mean_d), s.splat(s.sum(dot) / count));
        map2!(s, dx, x, |d, x| {
            let n = moments.normal(s, x);
            s.mul(r, s.sub(s.sub(d, mean_d), s.mul(n, mean_dn)))
        });
        moments
    }
}
