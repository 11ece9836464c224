//! Backward passes of the activations and of GEGLU.

use crate::error::{KernelError, exactly, product};
use crate::simd::{Job, Simd, math};
use crate::threads::for_row_groups;
use crate::{Activation, Isa};

/// Gradient of [`crate::activate`]: `dx = dy * activation'(x)`.
#[derive(Debug)]
pub struct ActivateBackward<'a> {
    /// What the activation was applied to.
    pub x: &'a [f32],
    /// Gradient by the result, shape of `x`.
    pub dy: &'a [f32],
    /// The function.
    pub activation: Activation,
    /// Gradient by the input, shape of `x`; overwritten.
    pub dx: &'a mut [f32],
}

/// Computes the gradient of an activation, see [`ActivateBackward`].
///
/// # Errors
/// [`KernelError::Length`] when the slices differ in length.
pub fn activate_backward(activate: ActivateBackward<'_>) -> Result<(), KernelError> {
    activate.run(Isa::best())
}

impl ActivateBackward<'_> {
    /// [`activate_backward`] with the instructions of `isa`.
    ///
    /// # Errors
    /// As [`activate_backward`].
    pub fn run(self, isa: Isa) -> Result<(), KernelError> {
        let Self {
            x,
            dy,
            activation,
            dx,
        } = self;
        exactly("dy", dy.len(), x.len())?;
        exactly("dx", dx.len(), x.len())?;
        for_row_groups(dx, 1, 16, |first, dx| {
            isa.run(Activated {
                x: &x[first..],
                dy: &dy[first..],
                activation,
                dx,
            });
        });
        Ok(())
    }
}

struct Activated<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    activation: Activation,
    dx: &'a mut [f32],
}

impl Job for Activated<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let inputs = self.x.chunks(S::LANES).zip(self.dy.chunks(S::LANES));
        for ((x, dy), dx) in inputs.zip(self.dx.chunks_mut(S::LANES)) {
            let slope = math::derivative(s, self.activation, s.load_some(x));
            s.store_some(dx, s.mul(s.load_some(dy), slope));
        }
    }
}

/// Gradient of [`crate::geglu`] by both halves.
#[derive(Debug)]
pub struct GegluBackward<'a> {
    /// As in the forward pass, `[rows, 2 * half]`.
    pub x: &'a [f32],
    /// Elements of an output row.
    pub half: usize,
    /// Gradient by the output, `[rows, half]`.
    pub dy: &'a [f32],
    /// Gradient by the input, shape of `x`; overwritten.
    pub dx: &'a mut [f32],
}

/// Computes the gradient of GEGLU, see [`GegluBackward`].
///
/// # Errors
/// [`KernelError::Length`] when `x` and `dx` are not twice as long as `dy`, or `dy` is no whole number of rows.
pub fn geglu_backward(geglu: GegluBackward<'_>) -> Result<(), KernelError> {
    geglu.run(Isa::best())
}

impl GegluBackward<'_> {
    /// [`geglu_backward`] with the instructions of `isa`.
    ///
    /// # Errors
    /// As [`geglu_backward`].
    pub fn run(self, isa: Isa) -> Result<(), KernelError> {
        let Self { x, half, dy, dx } = self;
        let rows = dy.len().checked_div(half).unwrap_or(0);
        exactly("dy", dy.len(), product(&[rows, half]))?;
        exactly("x", x.len(), product(&[dy.len(), 2]))?;
        exactly("dx", dx.len(), x.len())?;
        for_row_groups(dx, 2 * half, half * 24, |first, dx| {
            isa.run(Rows {
                x: &x[first * 2 * half..],
                half,
                dy: &dy[first * half..],
                dx,
            });
        });
        Ok(())
    }
}

struct Rows<'a> {
    x: &'a [f32],
    half: usize,
    dy: &'a [f32],
    dx: &'a mut [f32],
}

impl Job for Rows<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let half = self.half;
        let inputs = self
            .x
            .chunks_exact(2 * half)
            .zip(self.dy.chunks_exact(half));
        for ((x, dy), dx) in inputs.zip(self.dx.chunks_exact_mut(2 * half)) {
            let (value, gate) = x.split_at(half);
            let (dvalue, dgate) = dx.split_at_mut(half);
            for c in (0..half).step_by(S::LANES) {
                let end = half.min(c + S::LANES);
                let (g, d) = (s.load_some(&gate[c..]), s.load_some(&dy[c..]));
                let v = s.load_some(&value[c..]);
                s.store_some(&mut dvalue[c..end], s.mul(d, math::gelu(s, g)));
                let slope = math::derivative(s, Activation::Gelu, g);
                s.store_some(&mut dgate[c..end], s.mul(s.mul(d, v), slope));
            }
        }
    }
}
