//! A naive version of every kernel, with `f64` accumulation: the oracle of the tests.
//!
//! Each function takes the same argument as the kernel of its name and checks nothing beyond it.

mod backward;

pub use backward::{Norm, geglu_backward};

use crate::conv::ConvShape;
use crate::{
    Activation, Attention, Conv2d, Conv2dBackwardData, Conv2dBackwardWeight, Gemm, GroupNorm,
    KernelError, LayerNorm, RhsLayout, RmsNorm,
};

/// The oracle of [`crate::gemm`].
///
/// # Errors
/// As the kernel.
pub fn gemm(g: Gemm<'_>) -> Result<(), KernelError> {
    g.check()?;
    for b in 0..g.batch {
        for i in 0..g.m {
            // One output of the right-hand side, with its bias.
            let output = |j: usize| {
                let sum: f64 = (0..g.k)
                    .map(|p| {
                        let rhs = match g.b.layout {
                            RhsLayout::RowsAreOutputs => j * g.b.row_stride + p,
                            RhsLayout::RowsAreInner => p * g.b.row_stride + j,
                        };
                        let (row, col) = if g.a.transposed { (p, i) } else { (i, p) };
                        let lhs = g.a.data[b * g.a.batch_stride + row * g.a.row_stride + col];
                        f64::from(lhs) * f64::from(g.b.data.get(b * g.b.batch_stride + rhs))
                    })
                    .sum();
                let group = (b * g.m + i)
                    .checked_div(g.epilogue.rows_per_bias)
                    .unwrap_or(0);
                let at = group * g.epilogue.outputs(g.n) + j;
                sum + g.epilogue.bias.map_or(0.0, |bias| f64::from(bias[at]))
            };
            for j in 0..g.n {
                let residual = g.epilogue.residual.map_or(0.0, |r| {
                    f64::from(r.data[b * r.batch_stride + i * r.row_stride + j])
                });
                let activation = g.epilogue.activation;
                let value = if g.epilogue.gated {
                    output(j) * activation.apply(output(g.n + j))
                } else {
                    activation.apply(output(j))
                };
                let value = value + residual;
                let at = if b > 0 { b * g.c.batch_stride } else { 0 };
                g.c.data[at + i * g.c.row_stride + j] = value as f32;
            }
        }
    }
    Ok(())
}

/// The oracle of [`crate::conv2d`].
///
/// # Errors
/// As the kernel.
pub fn conv2d(conv: Conv2d<'_>) -> Result<(), KernelError> {
    conv.check()?;
    let (oh, ow) = conv.out_size();
    let (h, w) = conv.shape().seen_size();
    let scale = if conv.upsample { 2 } else { 1 };
    let (kh, kw) = conv.kernel;
    let cin = conv.in_channels;
    for at in 0..conv.out.len() {
        let (pixel, o) = (at / conv.out_channels, at % conv.out_channels);
        let (b, oy, ox) = (pixel / ow / oh, pixel / ow % oh, pixel % ow);
        let mut sum = conv.bias_of(b).map_or(0.0, |bias| f64::from(bias[o]));
        for (r, s) in (0..kh).flat_map(|r| (0..kw).map(move |s| (r, s))) {
            let y = (oy * conv.stride + r).wrapping_sub(conv.padding.top);
            let x = (ox * conv.stride + s).wrapping_sub(conv.padding.left);
            if y < h && x < w {
                for c in 0..cin {
                    let pixel = (b * conv.height + y / scale) * conv.width + x / scale;
                    let weight = conv.weight.get(((o * cin + c) * kh + r) * kw + s);
                    sum += f64::from(conv.x[pixel * cin + c]) * f64::from(weight);
                }
            }
        }
        let residual = conv.residual.map_or(0.0, |r| f64::from(r[at]));
        conv.out[at] = (conv.activation.apply(sum) + residual) as f32;
    }
    Ok(())
}

/// Calls `f(input pixel, output pixel, tap)` for every place of every window that lies on the image.
fn for_each_place(shape: &ConvShape, mut f: impl FnMut(usize, usize, usize)) {
    let ((oh, ow), (h, w)) = (shape.out_size(), shape.seen_size());
    let scale = if shape.upsample { 2 } else { 1 };
    let taps = shape.kernel.0 * shape.kernel.1;
    for pixel in 0..shape.batch * oh * ow {
        let (b, oy, ox) = (pixel / ow / oh, pixel / ow % oh, pixel % ow);
        for tap in 0..taps {
            let (r, s) = (tap / shape.kernel.1, tap % shape.kernel.1);
            let y = (oy * shape.stride + r).wrapping_sub(shape.padding.top);
            let x = (ox * shape.stride + s).wrapping_sub(shape.padding.left);
            if y < h && x < w {
                let line = b * shape.size.0 + y / scale;
                f(line * shape.size.1 + x / scale, pixel, tap);
            }
        }
    }
}

/// The oracle of [`crate::conv2d_backward_data`].
///
/// # Errors
/// As the kernel.
pub fn conv2d_backward_data(conv: Conv2dBackwardData<'_>) -> Result<(), KernelError> {
    let shape = conv.check()?;
    let (cin, cout) = (shape.in_channels, shape.out_channels);
    let taps = shape.kernel.0 * shape.kernel.1;
    let mut sums = vec![0.0; conv.dx.len()];
    for_each_place(&shape, |input, output, tap| {
        for c in 0..cin {
            for o in 0..cout {
                let weight = conv.weight.get((o * cin + c) * taps + tap);
                sums[input * cin + c] += f64::from(conv.dy[output * cout + o]) * f64::from(weight);
            }
        }
    });
    for (dx, sum) in conv.dx.iter_mut().zip(sums) {
        *dx = sum as f32;
    }
    Ok(())
}

/// The oracle of [`crate::conv2d_backward_weight`].
///
/// # Errors
/// As the kernel.
pub fn conv2d_backward_weight(conv: Conv2dBackwardWeight<'_>) -> Result<(), KernelError> {
    let shape = conv.check()?;
    let (cin, cout) = (shape.in_channels, shape.out_channels);
    let taps = shape.kernel.0 * shape.kernel.1;
    let mut sums = vec![0.0; conv.dw.len()];
    for_each_place(&shape, |input, output, tap| {
        for o in 0..cout {
            let dy = f64::from(conv.dy[output * cout + o]);
            for c in 0..cin {
                sums[(o * cin + c) * taps + tap] += dy * f64::from(conv.x[input * cin + c]);
            }
        }
    });
    for (dw, sum) in conv.dw.iter_mut().zip(sums) {
        *dw = sum as f32;
    }
    if let Some(dbias) = conv.dbias {
        let rows = conv.dy.len() / (dbias.len() / cout.max(1)).max(1);
        for (at, value) in dbias.iter_mut().enumerate() {
            let image = &conv.dy[at / cout * rows..][..rows];
            let column = image.iter().skip(at % cout).step_by(cout);
            *value = column.map(|&v| f64::from(v)).sum::<f64>() as f32;
        }
    }
    Ok(())
}

/// The oracle of [`crate::attention`].
///
/// # Errors
/// As the kernel.
pub fn attention(a: Attention<'_>) -> Result<(), KernelError> {
    a.check()?;
    let d = a.head_dim;
    for row in 0..a.batch * a.queries * a.heads {
        let (b, q, h) = (
            row / a.heads / a.queries,
            row / a.heads % a.queries,
            row % a.heads,
        );
        let query = a.q.row(b, q, h, d);
        let scores: Vec<f64> = (0..a.keys)
            .map(|k| {
                let key = a.k.row(b, k, h, d);
                let dot: f64 = query
                    .iter()
                    .zip(key)
                    .map(|(q, k)| f64::from(*q) * f64::from(*k))
                    .sum();
                let mask = a.mask.map_or(0.0, |m| {
                    f64::from(
                        m.data[b * m.batch_stride + h * m.head_stride + q * m.query_stride + k],
                    )
                });
                if a.causal && k > q {
                    f64::NEG_INFINITY
                } else {
                    dot * f64::from(a.scale) + mask
                }
            })
            .collect();
        let weights = softmax(&scores);
        for c in 0..d {
            let sum: f64 = (0..a.keys)
                .map(|k| weights[k] * f64::from(a.v.row(b, k, h, d)[c]))
                .sum();
            a.out[row * d + c] = sum as f32;
        }
    }
    Ok(())
}

/// Softmax in `f64`; zeros when every score is `-inf`.
pub fn softmax(scores: &[f64]) -> Vec<f64> {
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY {
        return vec![0.0; scores.len()];
    }
    let exps: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
    let sum: f64 = exps.iter().sum();
    exps.iter().map(|e| e / sum).collect()
}

/// The oracle of [`crate::group_norm`]; expects arguments that the kernel accepts.
pub fn group_norm(n: GroupNorm<'_>) {
    let width = n.channels / n.groups;
    for b in 0..n.batch {
        for g in 0..n.groups {
            let at = |p: usize, c: usize| (b * n.pixels + p) * n.channels + g * width + c;
            let indices = || (0..n.pixels).flat_map(|p| (0..width).map(move |c| (p, c)));
            let values: Vec<f64> = indices().map(|(p, c)| f64::from(n.x[at(p, c)])).collect();
            let normal = normalise(&values, f64::from(n.eps), true);
            for ((p, c), value) in indices().zip(normal) {
                let gamma = n.gamma.map_or(1.0, |v| f64::from(v[g * width + c]));
                let beta = n.beta.map_or(0.0, |v| f64::from(v[g * width + c]));
                n.out[at(p, c)] = n.activation.apply(value * gamma + beta) as f32;
            }
        }
    }
}

/// The oracle of [`crate::layer_norm`]; expects arguments that the kernel accepts.
pub fn layer_norm(n: LayerNorm<'_>) {
    rows_norm(n.x, n.cols, f64::from(n.eps), true, n.gamma, n.beta, n.out);
}

/// The oracle of [`crate::rms_norm`]; expects arguments that the kernel accepts.
pub fn rms_norm(n: RmsNorm<'_>) {
    rows_norm(n.x, n.cols, f64::from(n.eps), false, n.gamma, None, n.out);
}

fn rows_norm(
    x: &[f32],
    cols: usize,
    eps: f64,
    centre: bool,
    gamma: Option<&[f32]>,
    beta: Option<&[f32]>,
    out: &mut [f32],
) {
    if x.is_empty() {
        return;
    }
    for (x, out) in x.chunks_exact(cols).zip(out.chunks_exact_mut(cols)) {
        let values: Vec<f64> = x.iter().map(|&v| f64::from(v)).collect();
        for (c, value) in normalise(&values, eps, centre).into_iter().enumerate() {
            let gamma = gamma.map_or(1.0, |v| f64::from(v[c]));
            out[c] = (value * gamma + beta.map_or(0.0, |v| f64::from(v[c]))) as f32;
        }
    }
}

fn normalise(values: &[f64], eps: f64, centre: bool) -> Vec<f64> {
    let count = values.len() as f64;
    let mean = if centre {
        values.iter().sum::<f64>() / count
    } else {
        0.0
    };
    let variance = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / count;
    values
        .iter()
        .map(|v| (v - mean) / (variance + eps).sqrt())
        .collect()
}

/// Complementary error function, relative error below 1e-12 up to `x = 26`.
pub fn erfc(x: f64) -> f64 {
    if x < 2.5 {
        return 1.0 - erf_series(x);
    }
    // Continued fraction exp(-x^2) / sqrt(pi) / (x + (1/2) / (x + 1 / (x + (3/2) / ...))), from its tail on.
    let tail = (1..=60)
        .rev()
        .fold(x, |tail, n| x + f64::from(n) * 0.5 / tail);
    (-x * x).exp() / std::f64::consts::PI.sqrt() / tail
}

/// Error function.
pub fn erf(x: f64) -> f64 {
    if x.abs() < 2.5 {
        erf_series(x)
    } else {
        (1.0 - erfc(x.abs())).copysign(x)
    }
}

/// exp(-x^2) * 2 / sqrt(pi) * sum of 2^n x^(2n+1) / (2n+1)!!, whose terms have one sign.
fn erf_series(x: f64) -> f64 {
    if x < -6.0 {
        return -1.0;
    }
    let (mut term, mut sum, mut n) = (x, x, 1.0);
    while term.abs() > 1e-18 * sum.abs() {
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
        n += 1.0;
    }
    (-x * x).exp() * std::f64::consts::FRAC_2_SQRT_PI * sum
}

/// The oracle of [`crate::geglu`], for one row.
pub fn geglu(row: &[f32]) -> Vec<f32> {
    let (value, gate) = row.split_at(row.len() / 2);
    let gelu = |g: &f32| Activation::Gelu.apply(f64::from(*g));
    value
        .iter()
        .zip(gate)
        .map(|(v, g)| (f64::from(*v) * gelu(g)) as f32)
        .collect()
}

/// The oracle of [`crate::activate`].
pub fn activate(x: &mut [f32], activation: Activation) {
    x.iter_mut()
        .for_each(|x| *x = activation.apply(f64::from(*x)) as f32);
}
