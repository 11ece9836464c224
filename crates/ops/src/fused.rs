//! The fused operations: kernel on `Flex`, reference elsewhere.

use burn::tensor::{Device, Tensor};

use crate::{PackedWeight, autodiff, flex, reference};

pub use aquatint_kernels::{Activation, RotaryPairs};

/// What is done to a product before it is stored: `activation(x + bias) + residual`.
#[derive(Debug, Clone)]
pub struct Epilogue<const D: usize> {
    /// Added per output channel, `[out]`. A convolution also takes `[batch * out]`, a bias an image.
    pub bias: Option<Tensor<1>>,
    /// Applied after the bias.
    pub activation: Activation,
    /// Added last; has the output's shape.
    pub residual: Option<Tensor<D>>,
}

impl<const D: usize> Default for Epilogue<D> {
    fn default() -> Self {
        Epilogue {
            bias: None,
            activation: Activation::None,
            residual: None,
        }
    }
}

/// Geometry of a 2-d convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2dShape {
    /// Stride in both directions.
    pub stride: usize,
    /// Zero padding: top, bottom, left, right.
    pub padding: [usize; 4],
    /// Nearest 2x upsampling of the input, folded into the convolution.
    pub upsample: bool,
}

impl Conv2dShape {
    /// Stride 1 and the padding that keeps the size, for an odd kernel.
    pub fn same(kernel: usize) -> Self {
        let p = kernel / 2;
        Conv2dShape {
            stride: 1,
            padding: [p; 4],
            upsample: false,
        }
    }

    /// Output height and width for an input of `height` x `width`.
    pub fn output(&self, height: usize, width: usize, kernel: [usize; 2]) -> [usize; 2] {
        let scale = if self.upsample { 2 } else { 1 };
        let [top, bottom, left, right] = self.padding;
        [
            (height * scale + top + bottom - kernel[0]) / self.stride + 1,
            (width * scale + left + right - kernel[1]) / self.stride + 1,
        ]
    }
}

/// Which keys a query may see.
#[derive(Debug, Clone, Default)]
// One is made for each attention; a box would cost more than the bytes.
#[allow(clippy::large_enum_variant)]
pub enum AttentionMask {
    /// All of them.
    #[default]
    None,
    /// Those at or before its own position.
    Causal,
    /// An additive mask `[queries, keys]`, the same for each batch entry and head.
    Additive(Tensor<2>),
}

/// `y = activation(x W^T + b) + residual`.
///
/// # Shapes
/// - x: `[.., in]` f32; weight: `[out, in]` in any storage type (PyTorch's `nn.Linear`)
/// - output: `[.., out]`
pub fn linear<const D: usize>(x: Tensor<D>, weight: Tensor<2>, epilogue: Epilogue<D>) -> Tensor<D> {
    match flex::linear(&x, &weight, &epilogue).or_else(|| autodiff::linear(&x, &weight, &epilogue))
    {
        Some(y) => y,
        None => reference::linear(x, weight, epilogue),
    }
}

/// [`linear`] with a weight that is stored in a type that tensors do not have. Gradients pass through it.
pub fn linear_packed<const D: usize>(
    x: Tensor<D>,
    weight: &PackedWeight,
    epilogue: Epilogue<D>,
) -> Tensor<D> {
    match flex::linear_packed(&x, weight, &epilogue)
        .or_else(|| autodiff::linear_packed(&x, weight, &epilogue))
    {
        Some(y) => y,
        None => reference::linear(x, weight.widened(), epilogue),
    }
}

/// [`geglu`] of [`linear`], in one pass: values and gates are never stored.
///
/// # Shapes
/// - x: `[.., in]`; weight: `[2 n, in]` in any storage type, first values, then gates; bias: `[2 n]`
/// - output: `[.., n]`
pub fn linear_geglu<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    match flex::linear_geglu(&x, &weight, &bias) {
        Some(y) => y,
        None => geglu(linear(x, weight, biased(bias))),
    }
}

/// [`linear_geglu`] with a weight that is stored in a type that tensors do not have.
pub fn linear_geglu_packed<const D: usize>(
    x: Tensor<D>,
    weight: &PackedWeight,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    match flex::linear_geglu_packed(&x, weight, &bias) {
        Some(y) => y,
        None => geglu(linear_packed(x, weight, biased(bias))),
    }
}

fn biased<const D: usize>(bias: Option<Tensor<1>>) -> Epilogue<D> {
    Epilogue {
        bias,
        ..Epilogue::default()
    }
}

/// 2-d convolution, channels last: `activation(conv(x) + bias) + residual`.
///
/// # Shapes
/// - x: `[batch, height, width, in]` f32; weight: `[out, in, kh, kw]` in any storage type
/// - output: `[batch, height', width', out]`
pub fn conv2d(
    x: Tensor<4>,
    weight: Tensor<4>,
    shape: Conv2dShape,
    epilogue: Epilogue<4>,
) -> Tensor<4> {
    match flex::conv2d(&x, &weight, shape, &epilogue)
        .or_else(|| autodiff::conv2d(&x, &weight, shape, &epilogue))
    {
        Some(y) => y,
        None => reference::conv2d(x, weight, shape, epilogue),
    }
}

/// Multi-head scaled dot-product attention: `softmax(q k^T / sqrt(head_dim) + mask) v`.
///
/// # Shapes
/// - q: `[batch, queries, heads * head_dim]`; k, v: `[batch, keys, heads * head_dim]`
/// - output: as q
pub fn attention(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    heads: usize,
    mask: AttentionMask,
) -> Tensor<3> {
    match flex::attention(&q, &k, &v, heads, &mask)
        .or_else(|| autodiff::attention(&q, &k, &v, heads, &mask))
    {
        Some(y) => y,
        None => reference::attention(q, k, v, heads, mask),
    }
}

/// Group normalisation over `[batch, .., channels]`, then SiLU when `silu` is set.
/// Statistics are per batch entry and group of channels, over all positions (PyTorch's `GroupNorm`).
pub fn group_norm<const D: usize>(
    x: Tensor<D>,
    groups: usize,
    eps: f64,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    silu: bool,
) -> Tensor<D> {
    let x = match flex::group_norm_in_place(x, groups, eps, &gamma, &beta, silu) {
        Ok(y) => return y,
        Err(x) => x,
    };
    match flex::group_norm(&x, groups, eps, &gamma, &beta, silu)
        .or_else(|| autodiff::group_norm(&x, groups, eps, &gamma, &beta, silu))
    {
        Some(y) => y,
        None => reference::group_norm(x, groups, eps, gamma, beta, silu),
    }
}

/// Layer normalisation over the last axis (PyTorch's `LayerNorm`).
pub fn layer_norm<const D: usize>(
    x: Tensor<D>,
    eps: f64,
    gamma: Tensor<1>,
    beta: Tensor<1>,
) -> Tensor<D> {
    match flex::layer_norm(&x, eps, &gamma, &beta)
        .or_else(|| autodiff::layer_norm(&x, eps, &gamma, &beta))
    {
        Some(y) => y,
        None => reference::layer_norm(x, eps, gamma, beta),
    }
}

/// Root mean square normalisation over the last axis (Zhang and Sennrich, 2019; PyTorch's `RMSNorm`):
/// of tokens, or of the heads of `[batch, tokens, heads, head_dim]`.
pub fn rms_norm<const D: usize>(x: Tensor<D>, eps: f64, gamma: Tensor<1>) -> Tensor<D> {
    match flex::rms_norm(&x, eps, &gamma).or_else(|| autodiff::rms_norm(&x, eps, &gamma)) {
        Some(y) => y,
        None => reference::rms_norm(x, eps, gamma),
    }
}

/// Which norm over the last axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowNorm {
    /// [`layer_norm`], without its summand.
    Layer,
    /// [`rms_norm`].
    Rms,
}

/// What a norm is multiplied with, and what is added then, a row a batch entry: `y (1 + scale) + shift`
/// (adaptive layer norm; Peebles and Xie, 2023).
#[derive(Debug, Clone)]
pub struct Modulation {
    /// `[batch, channels]`.
    pub scale: Tensor<2>,
    /// `[batch, channels]`.
    pub shift: Option<Tensor<2>>,
}

/// A norm over the last axis and its modulation, in one pass.
///
/// # Shapes
/// - x: `[batch, tokens, channels]`; gamma: `[channels]`, all ones when there is none
/// - output: as x
pub fn modulated_norm(
    x: Tensor<3>,
    norm: RowNorm,
    eps: f64,
    gamma: Option<Tensor<1>>,
    modulation: Modulation,
) -> Tensor<3> {
    if let Some(y) = flex::modulated_norm(&x, norm, eps, &gamma, &modulation) {
        return y;
    }
    // The norm has a rule of its own under autodiff; the modulation is burn's there.
    let (channels, device) = (x.dims()[2], x.device());
    let constant = |value| Tensor::full([channels], value, (&device, burn::tensor::DType::F32));
    let gamma = gamma.unwrap_or_else(|| constant(1.0));
    let y = match norm {
        RowNorm::Layer => layer_norm(x, eps, gamma, constant(0.0)),
        RowNorm::Rms => rms_norm(x, eps, gamma),
    };
    reference::modulate(y, modulation)
}

/// `x + gate y`, with a gate a batch entry: how a block of adaptive layer norm zero adds to its residual.
///
/// # Shapes
/// - x, y: `[batch, tokens, channels]`; gate: `[batch, channels]`; output: as x, in its place when nobody
///   else holds it
pub fn add_gated(x: Tensor<3>, y: Tensor<3>, gate: Tensor<2>) -> Tensor<3> {
    match flex::add_gated(x, &y, &gate) {
        Ok(sum) => sum,
        Err(x) => reference::add_gated(x, y, gate),
    }
}

/// Rotary position embedding (Su et al., 2021): pairs of elements of each head turn by the angles of
/// their token, `(a, b)` to `(a cos - b sin, a sin + b cos)`.
///
/// # Shapes
/// - x: `[batch, tokens, heads, head_dim]`, queries or keys; cos, sin: `[tokens, head_dim / 2]`, without
///   gradients on the kernel's path
/// - output: as x, in its place when nobody else holds it
pub fn rotary(x: Tensor<4>, cos: Tensor<2>, sin: Tensor<2>, pairs: RotaryPairs) -> Tensor<4> {
    let x = match flex::rotary(x, &cos, &sin, pairs) {
        Ok(y) => return y,
        Err(x) => x,
    };
    match autodiff::rotary(&x, &cos, &sin, pairs) {
        Some(y) => y,
        None => reference::rotary(x, cos, sin, pairs),
    }
}

/// An activation, element by element.
pub fn activate<const D: usize>(x: Tensor<D>, activation: Activation) -> Tensor<D> {
    if activation == Activation::None {
        return x;
    }
    match flex::activate(x, activation) {
        Ok(y) => y,
        Err(x) => match autodiff::activate(&x, activation) {
            Some(y) => y,
            None => reference::activate(x, activation),
        },
    }
}

/// SiLU, `x sigmoid(x)`.
pub fn silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    activate(x, Activation::Silu)
}

/// GEGLU (Shazeer, 2020): the first half of the last axis times the GELU of the second half.
///
/// # Shapes
/// - x: `[.., 2 n]`; output: `[.., n]`
pub fn geglu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    match flex::geglu(&x).or_else(|| autodiff::geglu(&x)) {
        Some(y) => y,
        None => reference::geglu(x),
    }
}

/// Two tensors side by side along the last axis.
///
/// # Shapes
/// - a: `[.., n]`; b: `[.., m]`, its other axes as a's; output: `[.., n + m]`
pub fn join_channels<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
    match flex::join_channels(&a, &b).or_else(|| autodiff::join_channels(&a, &b)) {
        Some(y) => y,
        None => reference::join_channels(a, b),
    }
}

/// Rows of an embedding table, widened to f32.
///
/// # Shapes
/// - table: `[vocabulary, channels]` in any storage type; ids: one row of ids a batch entry, all
///   of one length
/// - output: `[batch, tokens, channels]`
///
/// # Panics
/// When an id is outside the vocabulary, or rows differ in length: the caller's tokenizer and
/// model are matched when they are loaded.
pub fn embedding(table: Tensor<2>, ids: &[Vec<u32>]) -> Tensor<3> {
    match flex::embedding(&table, ids).or_else(|| autodiff::embedding(&table, ids)) {
        Some(y) => y,
        None => reference::embedding(table, ids),
    }
}

/// [`embedding`] of a table that is stored in a type that tensors do not have: a constant.
///
/// # Panics
/// As [`embedding`].
pub fn embedding_packed(table: &PackedWeight, ids: &[Vec<u32>]) -> Tensor<3> {
    let channels = table.dims()[1];
    let tokens = ids.first().map_or(0, Vec::len);
    let mut values = vec![0f32; ids.len() * tokens * channels];
    if channels > 0 {
        for (row, &id) in values.chunks_exact_mut(channels).zip(ids.iter().flatten()) {
            table.widen_row(id as usize, row);
        }
    }
    let data = burn::tensor::TensorData::new(values, [ids.len(), tokens, channels]);
    Tensor::from_data(data, (table.device(), burn::tensor::DType::F32))
}

/// Sinusoidal timestep embedding (Vaswani et al., 2017; DDPM), as diffusers' `get_timestep_embedding`
/// with `max_period` 10000 and scale 1.
///
/// # Shapes
/// - timesteps: one a batch entry; output: `[batch, channels]`: cosines first when
///   `flip_sin_to_cos`, else sines first; a zero column when `channels` is odd
pub fn timestep_embedding(
    timesteps: &[f64],
    channels: usize,
    flip_sin_to_cos: bool,
    frequency_shift: f64,
    device: &Device,
) -> Tensor<2> {
    let half = channels / 2;
    let mut values = vec![0f32; timesteps.len() * channels];
    for (row, &t) in values.chunks_exact_mut(channels).zip(timesteps) {
        for i in 0..half {
            // f32 steps in the reference's order, so that large timesteps round alike.
            let exponent = -(10000f32.ln()) * i as f32 / (half as f64 - frequency_shift) as f32;
            let angle = t as f32 * exponent.exp();
            let (sin, cos) = angle.sin_cos();
            let (first, second) = if flip_sin_to_cos {
                (cos, sin)
            } else {
                (sin, cos)
            };
            row[i] = first;
            row[half + i] = second;
        }
    }
    let data = burn::tensor::TensorData::new(values, [timesteps.len(), channels]);
    Tensor::from_data(data, (device, burn::tensor::DType::F32))
}
