//! Normalisations over rows.

use super::check_affine;
use crate::Isa;
use crate::error::{KernelError, exactly, product};
use crate::simd::{Job, Simd, map, map2, sum_of};
use crate::threads::for_row_groups;

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

/// Computes LayerNorm, see [`LayerNorm`]: the mean first, then the variance around it.
///
/// # Errors
/// [`KernelError::Length`] when a slice does not have the length of its shape.
pub fn layer_norm(norm: LayerNorm<'_>) -> Result<(), KernelError> {
    norm.run(Isa::best())
}

impl LayerNorm<'_> {
    /// [`layer_norm`] with the instructions of `isa`.
    ///
    /// # Errors
    /// As [`layer_norm`].
    pub fn run(self, isa: Isa) -> Result<(), KernelError> {
        let Self {
            x,
            cols,
            eps,
            gamma,
            beta,
            out,
        } = self;
        run_rows(
            isa,
            x,
            cols,
            Rows {
                eps,
                centre: true,
                gamma,
                beta,
            },
            out,
        )
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

/// Computes RMSNorm, see [`RmsNorm`].
///
/// # Errors
/// [`KernelError::Length`] when a slice does not have the length of its shape.
pub fn rms_norm(norm: RmsNorm<'_>) -> Result<(), KernelError> {
    norm.run(Isa::best())
}

impl RmsNorm<'_> {
    /// [`rms_norm`] with the instructions of `isa`.
    ///
    /// # Errors
    /// As [`rms_norm`].
    pub fn run(self, isa: Isa) -> Result<(), KernelError> {
        let Self {
            x,
            cols,
            eps,
            gamma,
            out,
        } = self;
        run_rows(
            isa,
            x,
            cols,
            Rows {
                eps,
                centre: false,
                gamma,
                beta: None,
            },
            out,
        )
    }
}

/// What the norms over rows share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows<'a> {
    pub eps: f32,
    pub centre: bool,
    pub gamma: Option<&'a [f32]>,
    pub beta: Option<&'a [f32]>,
}

pub(super) fn run_rows(
    isa: Isa,
    x: &[f32],
    cols: usize,
    rows: Rows<'_>,
    out: &mut [f32],
) -> Result<(), KernelError> {
    exactly(
        "x",
        x.len(),
        product(&[x.len().checked_div(cols).unwrap_or(0), cols]),
    )?;
    exactly("out", out.len(), x.len())?;
    check_affine(rows.gamma, rows.beta, cols)?;
    for_row_groups(out, cols, cols * 8, |first, out| {
        isa.run(NormRows {
            x: &x[first * cols..],
            cols,
            rows,
            out,
        });
    });
    Ok(())
}

struct NormRows<'a> {
    x: &'a [f32],
    cols: usize,
    rows: Rows<'a>,
    out: &'a mut [f32],
}

impl Job for NormRows<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Rows {
            eps,
            centre,
            gamma,
            beta,
        } = self.rows;
        let count = self.cols as f32;
        for (x, out) in self
            .x
            .chunks_exact(self.cols)
            .zip(self.out.chunks_exact_mut(self.cols))
        {
            let mean = s.splat(if centre {
                sum_of!(s, x, |v| v) / count
            } else {
                0.0
            });
            let square = sum_of!(s, x, |v| {
                let d = s.sub(v, mean);
                s.mul(d, d)
            });
            let inverse = s.splat(1.0 / (square / count + eps).sqrt());
            out.copy_from_slice(x);
            match gamma {
                Some(gamma) => {
                    map2!(s, out, gamma, |v, g| s
                        .mul(s.mul(s.sub(v, mean), inverse), g));
                }
                None => map!(s, out, |v| s.mul(s.sub(v, mean), inverse)),
            }
            if let Some(beta) = beta {
                map2!(s, out, beta, |v, b| s.add(v, b));
            }
        }
    }
}
