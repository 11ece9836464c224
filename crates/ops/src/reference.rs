//! The plain references: burn operations only. They run on every device and under autodiff.

use burn::tensor::{
    DType, FloatDType, Int, Tensor, TensorData, activation, module,
    ops::{AttentionModuleOptions, ConvOptions},
};

use crate::fused::{
    Activation, AttentionMask, Conv2dShape, Epilogue, Modulation, RotaryPairs, RowNorm,
};

fn widen<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if x.dtype() == DType::F32 {
        x
    } else {
        x.cast(FloatDType::F32)
    }
}

fn finish<const D: usize>(y: Tensor<D>, epilogue: Epilogue<D>) -> Tensor<D> {
    let y = match epilogue.bias {
        Some(bias) => {
            let channels = y.dims()[D - 1];
            let mut shape = [1; D];
            shape[0] = bias.dims()[0] / channels.max(1);
            shape[D - 1] = channels;
            y + bias.reshape(shape)
        }
        None => y,
    };
    let y = activate(y, epilogue.activation);
    match epilogue.residual {
        Some(residual) => y + residual,
        None => y,
    }
}

/// See [`crate::fused::linear`].
pub fn linear<const D: usize>(x: Tensor<D>, weight: Tensor<2>, epilogue: Epilogue<D>) -> Tensor<D> {
    let y = module::linear(x, widen(weight).transpose(), None);
    finish(y, epilogue)
}

/// See [`crate::fused::conv2d`].
pub fn conv2d(
    x: Tensor<4>,
    weight: Tensor<4>,
    shape: Conv2dShape,
    epilogue: Epilogue<4>,
) -> Tensor<4> {
    let x = if shape.upsample {
        let [b, h, w, c] = x.dims();
        x.reshape([b, h, 1, w, 1, c])
            .expand([b, h, 2, w, 2, c])
            .reshape([b, 2 * h, 2 * w, c])
    } else {
        x
    };
    let x = x.permute([0, 3, 1, 2]);
    let [top, bottom, left, right] = shape.padding;
    let mut options = ConvOptions::new([shape.stride; 2], [0, 0], [1, 1], 1);
    options.padding = [(top, bottom), (left, right)];
    let y = module::conv2d(x, widen(weight), None, options);
    finish(y.permute([0, 2, 3, 1]), epilogue)
}

/// See [`crate::fused::attention`].
pub fn attention(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    heads: usize,
    mask: AttentionMask,
) -> Tensor<3> {
    let [batch, queries, channels] = q.dims();
    let keys = k.dims()[1];
    let split = |t: Tensor<3>| {
        let [b, n, c] = t.dims();
        t.reshape([b, n, heads, c / heads]).swap_dims(1, 2)
    };
    let mut options = AttentionModuleOptions::default();
    let bias = match mask {
        AttentionMask::None => None,
        AttentionMask::Causal => {
            options.is_causal = true;
            None
        }
        AttentionMask::Additive(m) => Some(
            m.reshape([1, 1, queries, keys])
                .expand([batch, heads, queries, keys]),
        ),
    };
    module::attention(split(q), split(k), split(v), None, bias, options)
        .swap_dims(1, 2)
        .reshape([batch, queries, channels])
}

/// See [`crate::fused::group_norm`].
pub fn group_norm<const D: usize>(
    x: Tensor<D>,
    groups: usize,
    eps: f64,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    silu: bool,
) -> Tensor<D> {
    let dims = x.dims();
    let (batch, channels) = (dims[0], dims[D - 1]);
    let positions: usize = dims[1..D - 1].iter().product();
    let size = channels / groups;
    let grouped = x
        .reshape([batch, positions, groups, size])
        .swap_dims(1, 2)
        .reshape([batch, groups, positions * size]);
    let (var, mean) = grouped.clone().var_mean_bias(2);
    let normed = ((grouped - mean) / (var + eps).sqrt())
        .reshape([batch, groups, positions, size])
        .swap_dims(1, 2)
        .reshape(dims);
    let y = normed * gamma.unsqueeze() + beta.unsqueeze();
    if silu { activation::silu(y) } else { y }
}

/// See [`crate::fused::layer_norm`].
pub fn layer_norm<const D: usize>(
    x: Tensor<D>,
    eps: f64,
    gamma: Tensor<1>,
    beta: Tensor<1>,
) -> Tensor<D> {
    let (var, mean) = x.clone().var_mean_bias(D - 1);
    (x - mean) / (var + eps).sqrt() * gamma.unsqueeze() + beta.unsqueeze()
}

/// See [`crate::fused::rms_norm`].
pub fn rms_norm<const D: usize>(x: Tensor<D>, eps: f64, gamma: Tensor<1>) -> Tensor<D> {
    let square = (x.clone() * x.clone()).mean_dim(D - 1);
    x / (square + eps).sqrt() * gamma.unsqueeze()
}

/// See [`crate::fused::modulated_norm`].
pub fn modulated_norm(
    x: Tensor<3>,
    norm: RowNorm,
    eps: f64,
    gamma: Option<Tensor<1>>,
    modulation: Modulation,
) -> Tensor<3> {
    let x = match norm {
        RowNorm::Layer => x.clone() - x.mean_dim(2),
        RowNorm::Rms => x,
    };
    let square = (x.clone() * x.clone()).mean_dim(2);
    let y = x / (square + eps).sqrt();
    let y = match gamma {
        Some(gamma) => y * gamma.unsqueeze(),
        None => y,
    };
    modulate(y, modulation)
}

pub(crate) fn modulate(y: Tensor<3>, modulation: Modulation) -> Tensor<3> {
    let y = y * (modulation.scale + 1.0).unsqueeze_dim(1);
    match modulation.shift {
        Some(shift) => y + shift.unsqueeze_dim(1),
        None => y,
    }
}

/// See [`crate::fused::add_gated`].
pub fn add_gated(x: Tensor<3>, y: Tensor<3>, gate: Tensor<2>) -> Tensor<3> {
    x + y * gate.unsqueeze_dim(1)
}

/// See [`crate::fused::rotary`].
pub fn rotary(x: Tensor<4>, cos: Tensor<2>, sin: Tensor<2>, pairs: RotaryPairs) -> Tensor<4> {
    let shape = x.dims();
    let [batch, tokens, heads, head_dim] = shape;
    let half = head_dim / 2;
    // Pairs along one axis, their two elements along another.
    let (apart, axis) = match pairs {
        RotaryPairs::Neighbours => ([batch, tokens, heads, half, 2], 4),
        RotaryPairs::Halves => ([batch, tokens, heads, 2, half], 3),
    };
    let x = x.reshape(apart);
    let (a, b) = (x.clone().narrow(axis, 0, 1), x.narrow(axis, 1, 1));
    let along = match pairs {
        RotaryPairs::Neighbours => [1, tokens, 1, half, 1],
        RotaryPairs::Halves => [1, tokens, 1, 1, half],
    };
    let (cos, sin): (Tensor<5>, Tensor<5>) = (cos.reshape(along), sin.reshape(along));
    let turned = vec![
        a.clone() * cos.clone() - b.clone() * sin.clone(),
        a * sin + b * cos,
    ];
    Tensor::cat(turned, axis).reshape(shape)
}

/// See [`crate::fused::activate`].
pub fn activate<const D: usize>(x: Tensor<D>, kind: Activation) -> Tensor<D> {
    match kind {
        Activation::None => x,
        Activation::Relu => activation::relu(x),
        Activation::Silu => activation::silu(x),
        Activation::Gelu => activation::gelu(x),
        Activation::GeluTanh => activation::gelu_approximate(x),
        Activation::QuickGelu => x.clone() * activation::sigmoid(x * 1.702),
    }
}

/// See [`crate::fused::geglu`].
pub fn geglu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let n = x.dims()[D - 1] / 2;
    let value = x.clone().narrow(D - 1, 0, n);
    let gate = x.narrow(D - 1, n, n);
    value * activation::gelu(gate)
}

/// See [`crate::fused::join_channels`].
pub fn join_channels<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
    Tensor::cat(vec![a, b], D - 1)
}

/// See [`crate::fused::embedding`].
pub fn embedding(table: Tensor<2>, ids: &[Vec<u32>]) -> Tensor<3> {
    let tokens = ids.first().map_or(0, Vec::len);
    let flat: Vec<i32> = ids.iter().flatten().map(|&id| id as i32).collect();
    let data = TensorData::new(flat, [ids.len(), tokens]);
    let indices = Tensor::<2, Int>::from_data(data, (&table.device(), DType::I32));
    widen(module::embedding(table, indices))
}
