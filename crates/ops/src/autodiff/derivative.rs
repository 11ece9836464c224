//! Derivatives of activations, from the vectorised activations themselves: `f(x) / x` is the gate, and every
//! derivative is made of it.

use aquatint_kernels::{self as kernels, Buffer};
use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

use super::values::{values, wrap};
use crate::fused::Activation;

/// Elements of a task: its values stay in cache.
const PART: usize = 4096;

/// `dy * activation'(z)`.
pub(super) fn activation_gradient(z: FlexTensor, dy: FlexTensor, kind: Activation) -> FlexTensor {
    let shape = z.layout().shape().to_vec();
    let (z, dy) = (values(z), values(dy));
    let mut out = Buffer::new(z.values().len());
    out.par_chunks_mut(PART)
        .zip(z.values().par_chunks(PART))
        .zip(dy.values().par_chunks(PART))
        .for_each(|((out, z), dy)| {
            out.copy_from_slice(z);
            scale_by_derivative(z, dy, kind, out);
        });
    wrap(out, &shape)
}

/// `out = dy * activation'(out)`; `z` is what `out` holds.
pub(super) fn scale_by_derivative(z: &[f32], dy: &[f32], kind: Activation, out: &mut [f32]) {
    kernels::activate(out, kind);
    let each = out.iter_mut().zip(z).zip(dy);
    match kind {
        Activation::None => each.for_each(|((out, _), dy)| *out = *dy),
        Activation::Relu => each.for_each(|((y, x), dy)| *y = if *x > 0.0 { *dy } else { 0.0 }),
        Activation::Silu => each.for_each(|((y, x), dy)| {
            let gate = gate(*x, *y, 0.25);
            *y = dy * gate * (1.0 + x - *y);
        }),
        Activation::QuickGelu => each.for_each(|((y, x), dy)| {
            let gate = gate(*x, *y, 0.25 * 1.702);
            *y = dy * gate * (1.0 + 1.702 * (x - *y));
        }),
        Activation::GeluTanh => each.for_each(|((y, x), dy)| {
            let gate = gate(*x, *y, DENSITY);
            let inner = 2.0 * DENSITY * (1.0 + 3.0 * 0.044_715 * x * x);
            *y = dy * (gate + 2.0 * gate * (1.0 - gate) * x * inner);
        }),
        Activation::Gelu => {
            let density = Densities::new(z);
            each.zip(density.0).for_each(|(((y, x), dy), density)| {
                *y = dy * (gate(*x, *y, DENSITY) + x * density);
            });
        }
    }
}

/// `1 / sqrt(2 pi)`.
const DENSITY: f32 = 0.398_942_3;

/// `y / x` for an activation `y = x * gate(x)`, whose slope at 0, where it is 1/2, is `slope`.
fn gate(x: f32, y: f32, slope: f32) -> f32 {
    match x.abs() < 1e-4 {
        true => 0.5 + slope * x,
        false => y / x,
    }
}

/// The normal density at each `x`: the exponential is made of SiLU's gate, the logistic function.
struct Densities(Vec<f32>);

impl Densities {
    fn new(x: &[f32]) -> Self {
        let power: Vec<f32> = x.iter().map(|x| -0.5 * x * x).collect();
        let mut density = power.clone();
        kernels::activate(&mut density, Activation::Silu);
        for (y, power) in density.iter_mut().zip(power) {
            let logistic = gate(power, *y, 0.25);
            *y = DENSITY * logistic / (1.0 - logistic);
        }
        Densities(density)
    }
}

/// The gradient of `value * gelu(gate)` for rows of `columns` values and as many gates.
pub(super) fn geglu(x: &[f32], dy: &[f32], columns: usize, out: &mut [f32]) {
    if columns == 0 {
        return;
    }
    let rows = PART.div_ceil(columns);
    out.par_chunks_mut(rows * 2 * columns)
        .zip(x.par_chunks(rows * 2 * columns))
        .zip(dy.par_chunks(rows * columns))
        .for_each(|((out, x), dy)| geglu_rows(x, dy, columns, out));
}

fn geglu_rows(x: &[f32], dy: &[f32], columns: usize, out: &mut [f32]) {
    let rows = || x.chunks_exact(2 * columns).map(|row| row.split_at(columns));
    let gates: Vec<f32> = rows().flat_map(|(_, gate)| gate.iter().copied()).collect();
    let mut gelu = gates.clone();
    kernels::activate(&mut gelu, Activation::Gelu);
    let density = Densities::new(&gates).0;
    let parts = rows()
        .zip(dy.chunks_exact(columns))
        .zip(gelu.chunks_exact(columns))
        .zip(density.chunks_exact(columns));
    for (out, (((x, dy), gelu), density)) in out.chunks_exact_mut(2 * columns).zip(parts) {
        let (value, gates) = x;
        let (dvalue, dgate) = out.split_at_mut(columns);
        for j in 0..columns {
            let slope = gate(gates[j], gelu[j], DENSITY) + gates[j] * density[j];
            dvalue[j] = dy[j] * gelu[j];
            dgate[j] = dy[j] * value[j] * slope;
        }
    }
}
