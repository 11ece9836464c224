//! The cases, by name; `golden/ops_backward.py` has the same.

use aquatint_ops::fused::{
    self, Activation, AttentionMask, Conv2dShape, Epilogue, Modulation, RotaryPairs, RowNorm,
};
use aquatint_ops::{Tensor, reference};

use super::exact::{self, Conv};

#[derive(Clone, Copy, PartialEq)]
pub enum Path {
    Fused,
    Reference,
}

type Run = Box<dyn Fn(&[Tensor<1>], Path) -> Tensor<1> + Send + Sync>;
type Exact = Box<dyn Fn(&[Vec<f64>]) -> Vec<f64> + Send + Sync>;

pub struct Case {
    pub name: &'static str,
    /// Shapes of the operands.
    pub shapes: Vec<Vec<usize>>,
    pub run: Run,
    /// The formula in f64.
    pub exact: Exact,
}

/// Chooses the function of a path and flattens its output.
macro_rules! call {
    ($path:expr, $op:ident ( $($arg:expr),* $(,)? )) => {{
        let y = match $path {
            Path::Fused => fused::$op($($arg),*),
            Path::Reference => reference::$op($($arg),*),
        };
        let len = y.shape().num_elements();
        y.reshape([len])
    }};
}

fn linear(name: &'static str, activation: Activation, sizes: [usize; 4], residual: bool) -> Case {
    let [batch, tokens, k, n] = sizes;
    let mut shapes = vec![vec![batch, tokens, k], vec![n, k], vec![n]];
    if residual {
        shapes.push(vec![batch, tokens, n]);
    }
    Case {
        name,
        shapes,
        run: Box::new(move |t, path| {
            let epilogue = Epilogue {
                bias: Some(t[2].clone()),
                activation,
                residual: t.get(3).map(|r| r.clone().reshape([batch, tokens, n])),
            };
            let x = t[0].clone().reshape([batch, tokens, k]);
            call!(path, linear(x, t[1].clone().reshape([n, k]), epilogue))
        }),
        exact: Box::new(move |t| {
            let y = exact::linear(&t[0], &t[1], &t[2], k);
            exact::finish(y, activation, t.get(3))
        }),
    }
}

struct ConvCase {
    name: &'static str,
    /// batch, height, width, in, out.
    sizes: [usize; 5],
    kernel: usize,
    shape: Conv2dShape,
    activation: Activation,
    residual: bool,
    /// A bias an image.
    image_biases: bool,
}

impl ConvCase {
    fn case(self) -> Case {
        let ConvCase {
            kernel: k,
            shape,
            activation,
            ..
        } = self;
        let [b, h, w, c, o] = self.sizes;
        let [oh, ow] = shape.output(h, w, [k, k]);
        let biases = if self.image_biases { b * o } else { o };
        let mut shapes = vec![vec![b, h, w, c], vec![o, c, k, k], vec![biases]];
        if self.residual {
            shapes.push(vec![b, oh, ow, o]);
        }
        let conv = Conv {
            sizes: self.sizes,
            kernel: k,
            shape,
        };
        Case {
            name: self.name,
            shapes,
            run: Box::new(move |t, path| {
                let epilogue = Epilogue {
                    bias: Some(t[2].clone()),
                    activation,
                    residual: t.get(3).map(|r| r.clone().reshape([b, oh, ow, o])),
                };
                let x = t[0].clone().reshape([b, h, w, c]);
                let weight = t[1].clone().reshape([o, c, k, k]);
                call!(path, conv2d(x, weight, shape, epilogue))
            }),
            exact: Box::new(move |t| {
                let y = exact::conv2d(&t[0], &t[1], &t[2], conv);
                exact::finish(y, activation, t.get(3))
            }),
        }
    }
}

/// batch, queries, keys, heads, channels of a head.
fn attention(name: &'static str, sizes: [usize; 5], causal: bool, masked: bool) -> Case {
    let [b, n, m, heads, d] = sizes;
    let c = heads * d;
    // Fixed, since masks carry no gradient.
    let bias: Vec<f32> = (0..n * m)
        .map(|i| (i * 7 % 11) as f32 * 0.3 - 1.5)
        .collect();
    let exact_bias: Vec<f64> = (0..n * m)
        .map(|i| match (causal && i % m > i / m, masked) {
            (true, _) => f64::NEG_INFINITY,
            (_, true) => f64::from(bias[i]),
            _ => 0.0,
        })
        .collect();
    Case {
        name,
        shapes: vec![vec![b, n, c], vec![b, m, c], vec![b, m, c]],
        run: Box::new(move |t, path| {
            let mask = match (causal, masked) {
                (true, _) => AttentionMask::Causal,
                (_, true) => {
                    let mask = super::support::flat(&bias, &t[0].device());
                    AttentionMask::Additive(mask.reshape([n, m]))
                }
                _ => AttentionMask::None,
            };
            let q = t[0].clone().reshape([b, n, c]);
            let [k, v] = [1, 2].map(|i| t[i].clone().reshape([b, m, c]));
            call!(path, attention(q, k, v, heads, mask))
        }),
        exact: Box::new(move |t| exact::attention(t, [n, m, heads, d], &exact_bias)),
    }
}

fn group_norm(name: &'static str, sizes: [usize; 4], groups: usize, silu: bool) -> Case {
    let [b, h, w, c] = sizes;
    Case {
        name,
        shapes: vec![sizes.to_vec(), vec![c], vec![c]],
        run: Box::new(move |t, path| {
            let x = t[0].clone().reshape([b, h, w, c]);
            let (gamma, beta) = (t[1].clone(), t[2].clone());
            call!(path, group_norm(x, groups, 1e-5, gamma, beta, silu))
        }),
        exact: Box::new(move |t| {
            let y = exact::group_norm(t, [b, h * w, c], groups);
            let activation = match silu {
                true => Activation::Silu,
                false => Activation::None,
            };
            exact::finish(y, activation, None)
        }),
    }
}

fn layer_norm(name: &'static str, sizes: [usize; 3]) -> Case {
    let [b, n, c] = sizes;
    Case {
        name,
        shapes: vec![sizes.to_vec(), vec![c], vec![c]],
        run: Box::new(move |t, path| {
            let x = t[0].clone().reshape(sizes);
            call!(path, layer_norm(x, 1e-5, t[1].clone(), t[2].clone()))
        }),
        exact: Box::new(move |t| exact::group_norm(t, [b * n, 1, c], 1)),
    }
}

fn rms_norm(name: &'static str, sizes: [usize; 4]) -> Case {
    let c = sizes[3];
    Case {
        name,
        shapes: vec![sizes.to_vec(), vec![c]],
        run: Box::new(move |t, path| {
            let x = t[0].clone().reshape(sizes);
            call!(path, rms_norm(x, 1e-5, t[1].clone()))
        }),
        exact: Box::new(move |t| {
            let mut y = exact::row_norm(&t[0], c, false);
            y.iter_mut()
                .enumerate()
                .for_each(|(i, y)| *y *= t[1][i % c]);
            y
        }),
    }
}

fn modulated_norm(name: &'static str, sizes: [usize; 3], norm: RowNorm) -> Case {
    let [b, n, c] = sizes;
    Case {
        name,
        shapes: vec![sizes.to_vec(), vec![c], vec![b, c], vec![b, c]],
        run: Box::new(move |t, path| {
            let x = t[0].clone().reshape(sizes);
            let [scale, shift] = [2, 3].map(|i| t[i].clone().reshape([b, c]));
            let shift = Some(shift);
            let modulation = Modulation { scale, shift };
            let gamma = Some(t[1].clone());
            call!(path, modulated_norm(x, norm, 1e-5, gamma, modulation))
        }),
        exact: Box::new(move |t| {
            let mut y = exact::row_norm(&t[0], c, norm == RowNorm::Layer);
            for (i, y) in y.iter_mut().enumerate() {
                let at = i / (n * c) * c + i % c;
                *y = *y * t[1][i % c] * (1.0 + t[2][at]) + t[3][at];
            }
            y
        }),
    }
}

fn add_gated(name: &'static str, sizes: [usize; 3]) -> Case {
    let [b, n, c] = sizes;
    Case {
        name,
        shapes: vec![sizes.to_vec(), sizes.to_vec(), vec![b, c]],
        run: Box::new(move |t, path| {
            let [x, y] = [0, 1].map(|i| t[i].clone().reshape(sizes));
            call!(path, add_gated(x, y, t[2].clone().reshape([b, c])))
        }),
        exact: Box::new(move |t| {
            let sum = |(i, x): (usize, &f64)| x + t[2][i / (n * c) * c + i % c] * t[1][i];
            t[0].iter().enumerate().map(sum).collect()
        }),
    }
}

fn rotary(name: &'static str, sizes: [usize; 4], pairs: RotaryPairs) -> Case {
    let [_, n, heads, d] = sizes;
    let half = d / 2;
    // Fixed, since angles carry no gradient.
    let angles: Vec<f32> = (0..n * half).map(|i| (i * 7 % 11) as f32 * 0.3).collect();
    let exact_angles: Vec<f64> = angles.iter().map(|&a| f64::from(a)).collect();
    Case {
        name,
        shapes: vec![sizes.to_vec()],
        run: Box::new(move |t, path| {
            let x = t[0].clone().reshape(sizes);
            let angles = super::support::flat(&angles, &t[0].device()).reshape([n, half]);
            let (cos, sin) = (angles.clone().cos(), angles.sin());
            call!(path, rotary(x, cos, sin, pairs))
        }),
        exact: Box::new(move |t| {
            let mut y = t[0].clone();
            for (row, head) in y.chunks_exact_mut(d).enumerate() {
                for i in 0..half {
                    let (a, b) = match pairs {
                        RotaryPairs::Neighbours => (2 * i, 2 * i + 1),
                        RotaryPairs::Halves => (i, i + half),
                    };
                    let (sin, cos) = exact_angles[row / heads % n * half + i].sin_cos();
                    (head[a], head[b]) =
                        (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
                }
            }
            y
        }),
    }
}

fn activate(name: &'static str, kind: Activation, len: usize) -> Case {
    Case {
        name,
        shapes: vec![vec![len]],
        // Four times as wide as the operands, so that both tails are there.
        run: Box::new(move |t, path| call!(path, activate(t[0].clone() * 4.0, kind))),
        exact: Box::new(move |t| {
            let x = t[0].iter().map(|v| v * 4.0).collect();
            exact::finish(x, kind, None)
        }),
    }
}

fn geglu(name: &'static str, rows: usize, columns: usize) -> Case {
    Case {
        name,
        shapes: vec![vec![rows, 2 * columns]],
        run: Box::new(move |t, path| {
            let x = t[0].clone().reshape([rows, 2 * columns]);
            call!(path, geglu(x * 3.0))
        }),
        exact: Box::new(move |t| {
            let x: Vec<f64> = t[0].iter().map(|v| v * 3.0).collect();
            exact::geglu(&x, columns)
        }),
    }
}

fn join_channels(name: &'static str, rows: usize, columns: [usize; 2]) -> Case {
    let [n, m] = columns;
    Case {
        name,
        shapes: vec![vec![rows, n], vec![rows, m]],
        run: Box::new(move |t, path| {
            let [a, b] = [(0, n), (1, m)].map(|(i, c)| t[i].clone().reshape([rows, c]));
            call!(path, join_channels(a, b))
        }),
        exact: Box::new(move |t| {
            let rows = t[0].chunks(n).zip(t[1].chunks(m));
            rows.flat_map(|(a, b)| [a, b].concat()).collect()
        }),
    }
}

fn embedding(name: &'static str, rows: usize, columns: usize) -> Case {
    let ids = vec![vec![0, 4, 2, 2], vec![2, 1, 0, 4]];
    let flat = ids.concat();
    Case {
        name,
        shapes: vec![vec![rows, columns]],
        run: Box::new(move |t, path| {
            call!(path, embedding(t[0].clone().reshape([rows, columns]), &ids))
        }),
        exact: Box::new(move |t| {
            let row = |&id: &u32| t[0][id as usize * columns..][..columns].to_vec();
            flat.iter().flat_map(row).collect()
        }),
    }
}

/// Small cases, which PyTorch and the formulas check.
pub fn small() -> Vec<Case> {
    use Activation::{Gelu, GeluTanh, None, QuickGelu, Silu};
    let conv = |name, kernel, shape| ConvCase {
        name,
        sizes: [2, 4, 5, 3, 4],
        kernel,
        shape,
        activation: None,
        residual: false,
        image_biases: false,
    };
    let same = Conv2dShape::same(3);
    let strided = Conv2dShape { stride: 2, ..same };
    let uneven = Conv2dShape {
        padding: [0, 1, 0, 1],
        ..strided
    };
    let upsampled = Conv2dShape {
        upsample: true,
        ..same
    };
    vec![
        linear("linear", None, [2, 3, 5, 7], false),
        linear("linear_residual", None, [2, 3, 5, 7], true),
        linear("linear_silu", Silu, [2, 3, 5, 7], true),
        linear("linear_gelu", Gelu, [2, 3, 5, 7], true),
        linear("linear_gelu_tanh", GeluTanh, [2, 3, 5, 7], false),
        linear("linear_quick_gelu", QuickGelu, [2, 3, 5, 7], false),
        conv("conv3", 3, same).case(),
        conv("conv1", 1, Conv2dShape::same(1)).case(),
        conv("conv_strided", 3, strided).case(),
        conv("conv_uneven", 3, uneven).case(),
        conv("conv_upsampled", 3, upsampled).case(),
        ConvCase {
            activation: Silu,
            residual: true,
            ..conv("conv_silu", 3, same)
        }
        .case(),
        ConvCase {
            image_biases: true,
            ..conv("conv_images", 3, same)
        }
        .case(),
        ConvCase {
            activation: Silu,
            residual: true,
            image_biases: true,
            ..conv("conv_images_silu", 3, same)
        }
        .case(),
        attention("attention", [2, 5, 7, 2, 3], false, false),
        attention("attention_causal", [2, 5, 5, 2, 3], true, false),
        attention("attention_masked", [2, 5, 7, 2, 3], false, true),
        group_norm("group_norm", [2, 3, 5, 6], 3, false),
        group_norm("group_norm_silu", [2, 3, 5, 6], 3, true),
        layer_norm("layer_norm", [2, 3, 7]),
        rms_norm("rms_norm", [2, 3, 2, 7]),
        modulated_norm("modulated_layer_norm", [2, 3, 7], RowNorm::Layer),
        modulated_norm("modulated_rms_norm", [2, 3, 7], RowNorm::Rms),
        add_gated("add_gated", [2, 3, 7]),
        rotary("rotary_neighbours", [2, 3, 2, 6], RotaryPairs::Neighbours),
        rotary("rotary_halves", [2, 3, 2, 6], RotaryPairs::Halves),
        activate("silu", Silu, 33),
        activate("gelu", Gelu, 33),
        activate("gelu_tanh", GeluTanh, 33),
        activate("quick_gelu", QuickGelu, 33),
        geglu("geglu", 5, 7),
        join_channels("join_channels", 6, [4, 5]),
        embedding("embedding", 5, 3),
    ]
}

/// Larger and odd ones, which reach the kernels' blocked and threaded paths.
pub fn large() -> Vec<Case> {
    let conv = |name, sizes, kernel, shape| {
        ConvCase {
            name,
            sizes,
            kernel,
            shape,
            activation: Activation::None,
            residual: false,
            image_biases: false,
        }
        .case()
    };
    let same = Conv2dShape::same(3);
    let strided = Conv2dShape { stride: 2, ..same };
    let upsampled = Conv2dShape {
        upsample: true,
        ..same
    };
    vec![
        linear(
            "linear 3x67x129->131",
            Activation::Silu,
            [3, 67, 129, 131],
            true,
        ),
        linear(
            "linear 1x1x33->257",
            Activation::None,
            [1, 1, 33, 257],
            false,
        ),
        conv("conv 2x17x13x37->41", [2, 17, 13, 37, 41], 3, same),
        conv("conv 1x16x16x64->64", [1, 16, 16, 64, 64], 3, same),
        ConvCase {
            name: "conv 3x16x18x64->48 images",
            sizes: [3, 16, 18, 64, 48],
            kernel: 3,
            shape: same,
            activation: Activation::Silu,
            residual: true,
            image_biases: true,
        }
        .case(),
        conv("conv 2x15x16x33->36 s2", [2, 15, 16, 33, 36], 3, strided),
        conv("conv 2x9x7x34->35 up", [2, 9, 7, 34, 35], 3, upsampled),
        conv(
            "conv 2x9x7x34->35 k1",
            [2, 9, 7, 34, 35],
            1,
            Conv2dShape::same(1),
        ),
        attention("attention 2x3x131x40", [2, 131, 131, 3, 40], false, false),
        attention("attention 2x2x67x33 kv77", [2, 67, 77, 2, 33], false, false),
        attention(
            "attention 1x2x129x16 causal",
            [1, 129, 129, 2, 16],
            true,
            false,
        ),
        attention(
            "attention 1x2x65x16 masked",
            [1, 65, 67, 2, 16],
            false,
            true,
        ),
        group_norm("group_norm 2x33x17x96", [2, 33, 17, 96], 32, true),
        group_norm("group_norm 3x7x5x35", [3, 7, 5, 35], 5, false),
        layer_norm("layer_norm 2x131x321", [2, 131, 321]),
        rms_norm("rms_norm 2x67x5x64", [2, 67, 5, 64]),
        rotary("rotary 2x67x5x64", [2, 67, 5, 64], RotaryPairs::Neighbours),
        activate("silu 70001", Activation::Silu, 70_001),
        geglu("geglu 131x333", 131, 333),
    ]
}
