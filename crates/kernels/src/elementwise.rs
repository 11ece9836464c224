//! Element-wise functions, softmax over rows, nearest resize and timestep embeddings.

use crate::error::{KernelError, exactly, product};
use crate::simd::{Job, Simd, map, map2, math, sum_of};
use crate::threads::for_row_groups;
use crate::{Activation, Isa};

mod backward;
mod rotary;

pub use backward::{ActivateBackward, GegluBackward, activate_backward, geglu_backward};
pub use rotary::{Rotary, RotaryPairs, rotary};

/// Applies an activation in place. Errors against `f64` are below 4e-7 times `|x|`.
pub fn activate(x: &mut [f32], activation: Activation) {
    let isa = Isa::best();
    if activation != Activation::None {
        for_row_groups(x, 1, 16, |_, x| isa.run(ActivateSlice { x, activation }));
    }
}

struct ActivateSlice<'a> {
    x: &'a mut [f32],
    activation: Activation,
}

impl Job for ActivateSlice<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        math::activate_slice(s, self.activation, self.x);
    }
}

impl Activation {
    /// The function in `f64`: the oracle of the vectorised ones.
    pub fn apply(self, x: f64) -> f64 {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        match self {
            Self::None => x,
            Self::Relu => x.max(0.0),
            Self::Silu => x * sigmoid(x),
            Self::Gelu => 0.5 * x * crate::reference::erfc(-x / std::f64::consts::SQRT_2),
            Self::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
                0.5 * x * (1.0 + inner.tanh())
            }
            Self::QuickGelu => x * sigmoid(1.702 * x),
        }
    }

    /// The derivative in `f64`: the oracle of the backward passes.
    pub fn derivative(self, x: f64) -> f64 {
        let gate = |u: f64, slope: f64| {
            let y = 1.0 / (1.0 + (-u).exp());
            y * (1.0 + x * slope / (1.0 + u.exp()))
        };
        match self {
            Self::None => 1.0,
            Self::Relu if x > 0.0 => 1.0,
            Self::Relu => 0.0,
            Self::Silu => gate(x, 1.0),
            Self::Gelu => {
                let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
                0.5 * crate::reference::erfc(-x / std::f64::consts::SQRT_2) + x * density
            }
            Self::GeluTanh => {
                let factor = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
                let cube = 0.044_715 * x * x;
                gate(factor * x * (1.0 + cube), factor * (1.0 + 3.0 * cube))
            }
            Self::QuickGelu => gate(1.702 * x, 1.702),
        }
    }
}

/// `out = a + b`.
///
/// # Errors
/// [`KernelError::Length`] when the three slices differ in length.
pub fn add(a: &[f32], b: &[f32], out: &mut [f32]) -> Result<(), KernelError> {
    exactly("b", b.len(), a.len())?;
    exactly("out", out.len(), a.len())?;
    for_row_groups(out, 1, 2, |first, out| {
        let (a, b) = (&a[first..], &b[first..]);
        out.iter_mut()
            .zip(a)
            .zip(b)
            .for_each(|((o, a), b)| *o = a + b);
    });
    Ok(())
}

/// Gated GELU as in diffusers: for rows of `2 * half` elements, `out = first half * gelu(second half)`,
/// with the erf form of GELU. `x` is `[rows, 2 * half]`, `out` is `[rows, half]`.
///
/// # Errors
/// [`KernelError::Length`] when `x` is not twice as long as `out`, or `out` is no whole number of rows.
pub fn geglu(x: &[f32], half: usize, out: &mut [f32]) -> Result<(), KernelError> {
    exactly("x", x.len(), product(&[out.len(), 2]))?;
    exactly(
        "out",
        out.len(),
        product(&[out.len().checked_div(half).unwrap_or(0), half]),
    )?;
    let isa = Isa::best();
    for_row_groups(out, half, half * 16, |first, out| {
        isa.run(GegluRows {
            x: &x[first * 2 * half..],
            half,
            out,
        });
    });
    Ok(())
}

struct GegluRows<'a> {
    x: &'a [f32],
    half: usize,
    out: &'a mut [f32],
}

impl Job for GegluRows<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (row, out) in self
            .x
            .chunks_exact(2 * self.half)
            .zip(self.out.chunks_exact_mut(self.half))
        {
            let (value, gate) = row.split_at(self.half);
            out.copy_from_slice(value);
            map2!(s, out, gate, |v, g| s.mul(v, math::gelu(s, g)));
        }
    }
}

/// Softmax over each row of `cols` elements, in place. A row of `-inf` becomes zeros.
///
/// # Errors
/// [`KernelError::Length`] when `x` is no whole number of rows.
pub fn softmax_rows(x: &mut [f32], cols: usize) -> Result<(), KernelError> {
    exactly(
        "x",
        x.len(),
        product(&[x.len().checked_div(cols).unwrap_or(0), cols]),
    )?;
    let isa = Isa::best();
    for_row_groups(x, cols, cols * 8, |_, rows| {
        isa.run(SoftmaxRows { rows, cols })
    });
    Ok(())
}

struct SoftmaxRows<'a> {
    rows: &'a mut [f32],
    cols: usize,
}

impl Job for SoftmaxRows<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in self.rows.chunks_exact_mut(self.cols) {
            let max = s.max_of(row);
            if max == f32::NEG_INFINITY {
                row.fill(0.0);
                continue;
            }
            map!(s, row, |v| math::exp(s, s.sub(v, s.splat(max))));
            let inverse = s.splat(1.0 / sum_of!(s, row, |v| v));
            map!(s, row, |v| s.mul(v, inverse));
        }
    }
}

/// Nearest-neighbour resize of `[batch, height, width, channels]` from `from` = (height, width) to `to`,
/// with PyTorch's rule `source = floor(target * from / to)`.
///
/// # Errors
/// [`KernelError`] when a slice does not have the length of its shape, or a non-empty output has an empty
/// input.
pub fn upsample_nearest(
    x: &[f32],
    batch: usize,
    from: (usize, usize),
    to: (usize, usize),
    channels: usize,
    out: &mut [f32],
) -> Result<(), KernelError> {
    exactly("x", x.len(), product(&[batch, from.0, from.1, channels]))?;
    exactly("out", out.len(), product(&[batch, to.0, to.1, channels]))?;
    if !out.is_empty() && x.is_empty() {
        return Err(KernelError::Size {
            what: "input size",
            expected: "be at least 1x1",
            found: 0,
        });
    }
    let source = |i: usize, from: usize, to: usize| {
        ((i as f32 * (from as f32 / to as f32)) as usize).min(from - 1)
    };
    for_row_groups(out, to.1 * channels, to.1 * channels, |first, rows| {
        for (i, row) in rows.chunks_exact_mut(to.1 * channels).enumerate() {
            let (b, y) = ((first + i) / to.0, (first + i) % to.0);
            let line = (b * from.0 + source(y, from.0, to.0)) * from.1;
            for (ox, pixel) in row.chunks_exact_mut(channels).enumerate() {
                let at = (line + source(ox, from.1, to.1)) * channels;
                pixel.copy_from_slice(&x[at..][..channels]);
            }
        }
    });
    Ok(())
}

/// The sinusoidal embedding of diffusion times (diffusers `get_timestep_embedding`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TimestepEmbedding {
    /// Elements of one embedding; an odd last one is 0.
    pub dim: usize,
    /// Cosines first (Stable Diffusion) rather than sines first.
    pub flip_sin_to_cos: bool,
    /// Taken from the number of frequencies before dividing: 0 in Stable Diffusion, 1 in the DDPM paper's code.
    pub downscale_freq_shift: f32,
    /// Longest wavelength over 2 pi.
    pub max_period: f32,
}

impl TimestepEmbedding {
    /// Stable Diffusion's: cosines first, shift 0, period 10000.
    pub fn new(dim: usize) -> Self {
        Self {
            dim,
            flip_sin_to_cos: true,
            downscale_freq_shift: 0.0,
            max_period: 10_000.0,
        }
    }
}

/// Writes the embeddings of `timesteps` to `out`, `[timesteps, dim]`. Rounds to `f32` where PyTorch does, so
/// that large times agree.
///
/// # Errors
/// [`KernelError::Length`] when `out` does not have `timesteps * dim` elements.
pub fn timestep_embedding(
    timesteps: &[f32],
    embedding: TimestepEmbedding,
    out: &mut [f32],
) -> Result<(), KernelError> {
    let TimestepEmbedding {
        dim,
        flip_sin_to_cos,
        downscale_freq_shift,
        max_period,
    } = embedding;
    exactly("out", out.len(), product(&[timesteps.len(), dim]))?;
    if dim == 0 {
        return Ok(());
    }
    let half = dim / 2;
    let log_period = -(f64::from(max_period).ln()) as f32;
    for (row, &t) in out.chunks_exact_mut(dim).zip(timesteps) {
        row.fill(0.0);
        for i in 0..half {
            let exponent = log_period * i as f32 / (half as f32 - downscale_freq_shift);
            let angle = f64::from(t * f64::from(exponent).exp() as f32);
            let (sin, cos) = (angle.sin() as f32, angle.cos() as f32);
            (row[i], row[half + i]) = if flip_sin_to_cos {
                (cos, sin)
            } else {
                (sin, cos)
            };
        }
    }
    Ok(())
}
