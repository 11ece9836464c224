//! The operations' formulas in f64, and their gradients by central differences.

use aquatint_ops::{Activation, Conv2dShape};

pub fn finish(mut y: Vec<f64>, activation: Activation, residual: Option<&Vec<f64>>) -> Vec<f64> {
    y.iter_mut().for_each(|y| *y = activate(*y, activation));
    if let Some(residual) = residual {
        y.iter_mut().zip(residual).for_each(|(y, r)| *y += r);
    }
    y
}

fn activate(x: f64, activation: Activation) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match activation {
        Activation::None => x,
        Activation::Silu => x * sigmoid(x),
        Activation::QuickGelu => x * sigmoid(1.702 * x),
        Activation::Relu => x.max(0.0),
        Activation::Gelu => {
            x * 0.5 * aquatint_kernels::reference::erfc(-x / std::f64::consts::SQRT_2)
        }
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
    }
}

pub fn linear(x: &[f64], weight: &[f64], bias: &[f64], k: usize) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let row = |x| weight.chunks(k).zip(bias).map(move |(w, b)| dot(x, w) + b);
    x.chunks(k).flat_map(row).collect()
}

#[derive(Clone, Copy)]
pub struct Conv {
    /// batch, height, width, in, out.
    pub sizes: [usize; 5],
    pub kernel: usize,
    pub shape: Conv2dShape,
}

pub fn conv2d(x: &[f64], weight: &[f64], bias: &[f64], conv: Conv) -> Vec<f64> {
    let ([b, h, w, c, o], k) = (conv.sizes, conv.kernel);
    let [oh, ow] = conv.shape.output(h, w, [k, k]);
    let [top, _, left, _] = conv.shape.padding;
    let scale = if conv.shape.upsample { 2 } else { 1 };
    let mut y = vec![0.0; b * oh * ow * o];
    for (at, y) in y.iter_mut().enumerate() {
        let (image, row, column) = (at / o / ow / oh, at / o / ow % oh, at / o % ow);
        // One for all images, or one for each.
        *y = bias[(image * o + at % o) % bias.len()];
        for (r, s) in (0..k).flat_map(|r| (0..k).map(move |s| (r, s))) {
            let i = (row * conv.shape.stride + r).wrapping_sub(top);
            let j = (column * conv.shape.stride + s).wrapping_sub(left);
            if i < h * scale && j < w * scale {
                let pixel = (image * h + i / scale) * w + j / scale;
                for p in 0..c {
                    *y += x[pixel * c + p] * weight[((at % o * c + p) * k + r) * k + s];
                }
            }
        }
    }
    y
}

/// sizes: queries, keys, heads, channels of a head.
pub fn attention(t: &[Vec<f64>], sizes: [usize; 4], bias: &[f64]) -> Vec<f64> {
    let [n, m, heads, d] = sizes;
    let c = heads * d;
    let mut y = vec![0.0; t[0].len()];
    for at in (0..y.len()).step_by(d) {
        let (image, query, head) = (at / c / n, at / c % n, at % c / d);
        let key = |j: usize| (image * m + j) * c + head * d;
        let scores: Vec<f64> = (0..m)
            .map(|j| {
                let dot: f64 = (0..d).map(|p| t[0][at + p] * t[1][key(j) + p]).sum();
                dot / (d as f64).sqrt() + bias[query * m + j]
            })
            .collect();
        let weights = aquatint_kernels::reference::softmax(&scores);
        for p in 0..d {
            y[at + p] = (0..m).map(|j| weights[j] * t[2][key(j) + p]).sum();
        }
    }
    y
}

/// sizes: batch, positions, channels. A layer norm has one position and one group.
pub fn group_norm(t: &[Vec<f64>], sizes: [usize; 3], groups: usize) -> Vec<f64> {
    let [batch, positions, c] = sizes;
    let size = c / groups;
    let mut y = vec![0.0; t[0].len()];
    for (image, group) in (0..batch).flat_map(|b| (0..groups).map(move |g| (b, g))) {
        let at = |i: usize| (image * positions + i / size) * c + group * size + i % size;
        let count = positions * size;
        let mean = (0..count).map(|i| t[0][at(i)]).sum::<f64>() / count as f64;
        let square = |i| (t[0][at(i)] - mean).powi(2);
        let deviation = ((0..count).map(square).sum::<f64>() / count as f64 + 1e-5).sqrt();
        for i in 0..count {
            let channel = at(i) % c;
            y[at(i)] = (t[0][at(i)] - mean) / deviation * t[1][channel] + t[2][channel];
        }
    }
    y
}

/// A layer norm when `centre`, else an RMS norm, of rows of `c` and without factors.
pub fn row_norm(x: &[f64], c: usize, centre: bool) -> Vec<f64> {
    let norm = |row: &[f64]| {
        let mean = if centre {
            row.iter().sum::<f64>() / c as f64
        } else {
            0.0
        };
        let square = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / c as f64;
        let root = (square + 1e-5).sqrt();
        row.iter().map(|v| (v - mean) / root).collect::<Vec<_>>()
    };
    x.chunks(c).flat_map(norm).collect()
}

pub fn geglu(x: &[f64], columns: usize) -> Vec<f64> {
    let row = |row: &[f64]| {
        let (value, gate) = row.split_at(columns);
        let gated = value.iter().zip(gate);
        gated
            .map(|(v, g)| v * activate(*g, Activation::Gelu))
            .collect::<Vec<_>>()
    };
    x.chunks(2 * columns).flat_map(row).collect()
}

/// The gradient of `sum(dy * f(t))` for operand `i`. A step of 1e-5 leaves about 1e-10.
pub fn gradient(
    f: &dyn Fn(&[Vec<f64>]) -> Vec<f64>,
    t: &[Vec<f64>],
    i: usize,
    dy: &[f32],
) -> Vec<f32> {
    const STEP: f64 = 1e-5;
    let loss =
        |t: &[Vec<f64>]| -> f64 { f(t).iter().zip(dy).map(|(y, dy)| y * f64::from(*dy)).sum() };
    let mut t = t.to_vec();
    (0..t[i].len())
        .map(|j| {
            let x = t[i][j];
            t[i][j] = x + STEP;
            let above = loss(&t);
            t[i][j] = x - STEP;
            let below = loss(&t);
            t[i][j] = x;
            ((above - below) / (2.0 * STEP)) as f32
        })
        .collect()
}
