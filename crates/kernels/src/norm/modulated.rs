//! What depends on the batch entry in a transformer of images, adaptive layer norm zero (Peebles and Xie 2023): the
//! factor and summand of norms, and the gates of what is added back.

use super::rows::{Rows, run_rows};
use crate::Isa;
use crate::error::{KernelError, exactly, product};
use crate::simd::{Job, Simd};
use crate::threads::for_row_groups;

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

/// `x += gate * y` with a gate of each batch entry, in place.
#[derive(Debug)]
pub struct AddGated<'a> {
    /// What is added to, `[batch, tokens, cols]`.
    pub x: &'a mut [f32],
    /// What is added, shape of `x`.
    pub y: &'a [f32],
    /// Rows of a batch entry.
    pub tokens: usize,
    /// Elements of a row.
    pub cols: usize,
    /// `[batch, cols]`.
    pub gate: &'a [f32],
}

/// Computes a gated sum, see [`AddGated`].
///
/// # Errors
/// [`KernelError::Length`] when a slice does not have the length of its shape.
pub fn add_gated(add: AddGated<'_>) -> Result<(), KernelError> {
    add.run(Isa::best())
}

impl AddGated<'_> {
    /// [`add_gated`] with the instructions of `isa`.
    ///
    /// # Errors
    /// As [`add_gated`].
    pub fn run(self, isa: Isa) -> Result<(), KernelError> {
        let Self {
            x,
            y,
            tokens,
            cols,
            gate,
        } = self;
        let entry = product(&[tokens, cols]);
        let batch = x.len().checked_div(entry).unwrap_or(0);
        exactly("x", x.len(), product(&[batch, entry]))?;
        exactly("y", y.len(), x.len())?;
        exactly("gate", gate.len(), product(&[batch, cols]))?;
        for_row_groups(x, cols, cols * 2, |first, x| {
            let y = &y[first * cols..][..x.len()];
            isa.run(AddRows {
                x,
                y,
                first,
                tokens,
                cols,
                gate,
            });
        });
        Ok(())
    }
}

struct AddRows<'a> {
    x: &'a mut [f32],
    y: &'a [f32],
    /// Number of the first row.
    first: usize,
    tokens: usize,
    cols: usize,
    gate: &'a [f32],
}

impl Job for AddRows<'_> {
    type Output = ();
    // Plain loops: the compiler vectorises them for the job's instruction set, and memory bounds them.
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let rows = self.x.chunks_exact_mut(self.cols);
        for (row, (x, y)) in (self.first..).zip(rows.zip(self.y.chunks_exact(self.cols))) {
            let gate = &self.gate[row / self.tokens * self.cols..][..self.cols];
            for ((x, &y), &gate) in x.iter_mut().zip(y).zip(gate) {
                *x += gate * y;
            }
        }
    }
}
