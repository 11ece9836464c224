//! Norms whose factor and summand depend on the batch entry: adaptive layer norm (Peebles and Xie 2023).

use super::rows::{Rows, run_rows};
use crate::Isa;
use crate::error::{KernelError, exactly, product};

/// LayerNorm or RMSNorm over the last axis, then `y (1 + scale) + shift` with a scale and a shift of each batch entry,
/// in one pass over memory.
#[derive(Debug)]
pub struct ModulatedNorm<'a> {
    /// Input, `[batch, tokens, cols]`.
    pub x: &'a [f32],
    /// Rows of a batch entry.
    pub tokens: usize,
    /// Elements of a row.
    pub cols: usize,
    /// Added to the variance or the mean square.
    pub eps: f32,
    /// LayerNorm when set, else RMSNorm.
    pub centre: bool,
    /// Factor after the normalisation and before the modulation, `[cols]`.
    pub gamma: Option<&'a [f32]>,
    /// `[batch, cols]`.
    pub scale: &'a [f32],
    /// `[batch, cols]`.
    pub shift: Option<&'a [f32]>,
    /// Output, shape of `x`.
    pub out: &'a mut [f32],
}

/// Computes a modulated norm, see [`ModulatedNorm`].
///
/// # Errors
/// [`KernelError::Length`] when a slice does not have the length of its shape.
pub fn modulated_norm(norm: ModulatedNorm<'_>) -> Result<(), KernelError> {
    norm.run(Isa::best())
}

impl ModulatedNorm<'_> {
    /// [`modulated_norm`] with the instructions of `isa`.
    ///
    /// # Errors
    /// As [`modulated_norm`].
    pub fn run(self, isa: Isa) -> Result<(), KernelError> {
        let Self {
            x,
            tokens,
            cols,
            eps,
            centre,
            gamma,
            scale,
            shift,
            out,
        } = self;
        let entry = product(&[tokens, cols]);
        let batch = x.len().checked_div(entry).unwrap_or(0);
        exactly("x", x.len(), product(&[batch, entry]))?;
        exactly("out", out.len(), x.len())?;
        exactly("scale", scale.len(), product(&[batch, cols]))?;
        if let Some(shift) = shift {
            exactly("shift", shift.len(), scale.len())?;
        }
        if let Some(gamma) = gamma {
            exactly("gamma", gamma.len(), cols)?;
        }
        if batch == 0 {
            return Ok(());
        }
        let rows = x.chunks_exact(entry).zip(out.chunks_exact_mut(entry));
        for (b, (x, out)) in rows.enumerate() {
            let own = b * cols..(b + 1) * cols;
            // Factor and modulation are one factor.
            let mut factor: Vec<f32> = scale[own.clone()].iter().map(|s| 1.0 + s).collect();
            if let Some(gamma) = gamma {
                factor.iter_mut().zip(gamma).for_each(|(f, g)| *f *= g);
            }
            let rows = Rows {
                eps,
                centre,
                gamma: Some(&factor),
                beta: shift.map(|shift| &shift[own.clone()]),
            };
            run_rows(isa, x, cols, rows, out)?;
        }
        Ok(())
    }
}
