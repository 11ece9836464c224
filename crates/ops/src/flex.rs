//! Binding of the kernels to burn's `Flex` tensors. Each function gives `None` when an operand is
//! not a plain `Flex` tensor (another device, or tracked by autodiff): the caller then takes the
//! reference.

use aquatint_kernels as kernels;
use aquatint_kernels::{Buffer, MatMut, MatRef, Rhs, RhsData};
use burn::backend::Flex;
use burn::backend::flex::{FlexTensor, Layout};
use burn::tensor::{DType, Tensor};
use half::{bf16, f16};

use crate::PackedWeight;
use crate::fused::{Activation, AttentionMask, Conv2dShape, Epilogue};

mod transformer;

pub(crate) use transformer::{add_gated, modulated_norm, rms_norm, rotary};

/// A contiguous f32 operand.
pub(crate) struct Operand(FlexTensor);

impl Operand {
    fn new<const D: usize>(x: &Tensor<D>) -> Option<Self> {
        Self::from_primitive(x.clone().try_into_primitive::<Flex>().ok()?)
    }

    pub(crate) fn from_primitive(x: FlexTensor) -> Option<Self> {
        if x.dtype() != DType::F32 {
            return None;
        }
        Some(Operand(if x.as_slice::<f32>().is_some() {
            x
        } else {
            x.to_contiguous()
        }))
    }

    fn optional<const D: usize>(x: &Option<Tensor<D>>) -> Option<Option<Self>> {
        match x {
            None => Some(None),
            Some(x) => Operand::new(x).map(Some),
        }
    }

    pub(crate) fn values(&self) -> &[f32] {
        // Contiguous and f32, by construction.
        self.0.as_slice::<f32>().unwrap_or_default()
    }
}

/// A contiguous weight in its storage type.
pub(crate) struct Weight(FlexTensor);

impl Weight {
    fn new<const D: usize>(x: &Tensor<D>) -> Option<Self> {
        Self::from_primitive(x.clone().try_into_primitive::<Flex>().ok()?)
    }

    pub(crate) fn from_primitive(x: FlexTensor) -> Option<Self> {
        let contiguous = x.layout().contiguous_offsets().is_some();
        let x = if contiguous { x } else { x.to_contiguous() };
        matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16).then_some(Weight(x))
    }

    pub(crate) fn data(&self) -> RhsData<'_> {
        match self.0.dtype() {
            DType::F16 => RhsData::F16(self.0.as_slice::<f16>().unwrap_or_default()),
            DType::BF16 => RhsData::BF16(self.0.as_slice::<bf16>().unwrap_or_default()),
            _ => RhsData::F32(self.0.as_slice::<f32>().unwrap_or_default()),
        }
    }
}

fn wrap<const D: usize>(values: Buffer, shape: [usize; D]) -> Tensor<D> {
    let layout = Layout::contiguous(shape.to_vec().into());
    let primitive = FlexTensor::new(values.into_bytes(), layout, DType::F32);
    Tensor::from_primitive::<Flex>(primitive)
}

#[allow(
    clippy::result_large_err,
    reason = "the tensor comes back, and no error is made"
)]
/// `work` on the values of a tensor that nobody else holds, in place; the tensor back when that cannot be.
fn in_place<const D: usize>(
    x: Tensor<D>,
    work: impl FnOnce(&mut [f32]),
) -> Result<Tensor<D>, Tensor<D>> {
    // A tensor of another device, or one that autodiff tracks, is not taken apart.
    let Ok(mut inner) = x.clone().try_into_primitive::<Flex>() else {
        return Err(x);
    };
    let bytes = x.dims().iter().product::<usize>() * size_of::<f32>();
    let whole =
        inner.is_contiguous() && inner.layout().start_offset() == 0 && inner.bytes().len() == bytes;
    if inner.dtype() != DType::F32 || !whole {
        return Err(x);
    }
    drop(x);
    match inner.try_storage_mut::<f32>() {
        Some(values) => {
            work(values);
            Ok(Tensor::from_primitive::<Flex>(inner))
        }
        None => Err(Tensor::from_primitive::<Flex>(inner)),
    }
}

/// Kernels check lengths; the shapes handed to them come from the tensors themselves.
pub(crate) fn done(result: Result<(), kernels::KernelError>) {
    if let Err(error) = result {
        panic!("shape mismatch in a fused operation: {error}");
    }
}

pub(crate) fn linear<const D: usize>(
    x: &Tensor<D>,
    weight: &Tensor<2>,
    epilogue: &Epilogue<D>,
) -> Option<Tensor<D>> {
    let data = Weight::new(weight)?;
    linear_of(x, data.data(), weight.dims(), epilogue, false)
}

pub(crate) fn linear_packed<const D: usize>(
    x: &Tensor<D>,
    weight: &PackedWeight,
    epilogue: &Epilogue<D>,
) -> Option<Tensor<D>> {
    linear_of(x, weight.data()?, weight.dims(), epilogue, false)
}

/// [`geglu`] of a product, whose values and gates are never stored.
pub(crate) fn linear_geglu<const D: usize>(
    x: &Tensor<D>,
    weight: &Tensor<2>,
    bias: &Option<Tensor<1>>,
) -> Option<Tensor<D>> {
    let data = Weight::new(weight)?;
    linear_of(x, data.data(), weight.dims(), &gelu_of(bias), true)
}

pub(crate) fn linear_geglu_packed<const D: usize>(
    x: &Tensor<D>,
    weight: &PackedWeight,
    bias: &Option<Tensor<1>>,
) -> Option<Tensor<D>> {
    linear_of(x, weight.data()?, weight.dims(), &gelu_of(bias), true)
}

fn gelu_of<const D: usize>(bias: &Option<Tensor<1>>) -> Epilogue<D> {
    Epilogue {
        bias: bias.clone(),
        activation: Activation::Gelu,
        residual: None,
    }
}

fn linear_of<const D: usize>(
    x: &Tensor<D>,
    weight: RhsData<'_>,
    [outputs, k]: [usize; 2],
    epilogue: &Epilogue<D>,
    gated: bool,
) -> Option<Tensor<D>> {
    let n = if gated { outputs / 2 } else { outputs };
    let input = Operand::new(x)?;
    let bias = Operand::optional(&epilogue.bias)?;
    let residual = Operand::optional(&epilogue.residual)?;
    let mut shape = x.dims();
    let m = shape[..D - 1].iter().product();
    shape[D - 1] = n;
    let mut out = Buffer::new(m * n);
    done(kernels::gemm(kernels::Gemm {
        batch: 1,
        m,
        n,
        k,
        a: MatRef::new(input.values(), k),
        b: Rhs::weight(weight, k),
        c: MatMut::new(&mut out, m, n),
        epilogue: kernels::Epilogue {
            bias: bias.as_ref().map(Operand::values),
            activation: epilogue.activation,
            gated,
            residual: residual.as_ref().map(|r| MatRef::new(r.values(), n)),
            ..Default::default()
        },
    }));
    Some(wrap(out, shape))
}

pub(crate) fn conv2d(
    x: &Tensor<4>,
    weight: &Tensor<4>,
    shape: Conv2dShape,
    epilogue: &Epilogue<4>,
) -> Option<Tensor<4>> {
    let (input, weight_data) = (Operand::new(x)?, Weight::new(weight)?);
    let bias = Operand::optional(&epilogue.bias)?;
    let residual = Operand::optional(&epilogue.residual)?;
    let [batch, height, width, in_channels] = x.dims();
    let [out_channels, _, kh, kw] = weight.dims();
    let [oh, ow] = shape.output(height, width, [kh, kw]);
    let [top, bottom, left, right] = shape.padding;
    let mut out = Buffer::new(batch * oh * ow * out_channels);
    done(kernels::conv2d(kernels::Conv2d {
        x: input.values(),
        batch,
        height,
        width,
        in_channels,
        out_channels,
        kernel: (kh, kw),
        weight: weight_data.data(),
        bias: bias.as_ref().map(Operand::values),
        stride: shape.stride,
        padding: kernels::Padding {
            top,
            bottom,
            left,
            right,
        },
        upsample: shape.upsample,
        activation: epilogue.activation,
        residual: residual.as_ref().map(Operand::values),
        out: &mut out,
        algorithm: kernels::ConvAlgorithm::Auto,
    }));
    Some(wrap(out, [batch, oh, ow, out_channels]))
}

pub(crate) fn attention(
    q: &Tensor<3>,
    k: &Tensor<3>,
    v: &Tensor<3>,
    heads: usize,
    mask: &AttentionMask,
) -> Option<Tensor<3>> {
    attention_of([q, k, v], heads, mask, None)
}

/// [`attention`], and for its backward pass the log-sum-exp of each query's scores, `[batch, heads, queries]`.
pub(crate) fn attention_with_lse(
    [q, k, v]: [&Tensor<3>; 3],
    heads: usize,
    mask: &AttentionMask,
) -> Option<(Tensor<3>, Tensor<3>)> {
    let [batch, queries, _] = q.dims();
    let mut lse = Buffer::new(batch * heads * queries);
    let y = attention_of([q, k, v], heads, mask, Some(&mut lse))?;
    Some((y, wrap(lse, [batch, heads, queries])))
}

fn attention_of(
    [q, k, v]: [&Tensor<3>; 3],
    heads: usize,
    mask: &AttentionMask,
    lse: Option<&mut Buffer>,
) -> Option<Tensor<3>> {
    let (qs, ks, vs) = (Operand::new(q)?, Operand::new(k)?, Operand::new(v)?);
    let additive = match mask {
        AttentionMask::Additive(m) => Some(Operand::new(m)?),
        _ => None,
    };
    let [batch, queries, channels] = q.dims();
    let keys = k.dims()[1];
    let head_dim = channels / heads;
    let view = |data, tokens| kernels::HeadsRef::new(data, tokens, heads, head_dim);
    let mut out = Buffer::new(batch * queries * channels);
    let attention = kernels::Attention {
        batch,
        heads,
        queries,
        keys,
        head_dim,
        q: view(qs.values(), queries),
        k: view(ks.values(), keys),
        v: view(vs.values(), keys),
        scale: 1.0 / (head_dim as f32).sqrt(),
        causal: matches!(mask, AttentionMask::Causal),
        mask: additive
            .as_ref()
            .map(|m| kernels::Mask::queries_keys(m.values(), keys)),
        out: &mut out,
    };
    done(match lse {
        Some(lse) => kernels::attention_with_lse(attention, lse),
        None => kernels::attention(attention),
    });
    Some(wrap(out, [batch, queries, channels]))
}

pub(crate) fn group_norm<const D: usize>(
    x: &Tensor<D>,
    groups: usize,
    eps: f64,
    gamma: &Tensor<1>,
    beta: &Tensor<1>,
    silu: bool,
) -> Option<Tensor<D>> {
    let (input, gamma, beta) = (Operand::new(x)?, Operand::new(gamma)?, Operand::new(beta)?);
    let shape = x.dims();
    let mut out = Buffer::new(input.values().len());
    done(kernels::group_norm(kernels::GroupNorm {
        x: input.values(),
        batch: shape[0],
        pixels: shape[1..D - 1].iter().product(),
        channels: shape[D - 1],
        groups,
        eps: eps as f32,
        gamma: Some(gamma.values()),
        beta: Some(beta.values()),
        activation: silu_if(silu),
        out: &mut out,
    }));
    Some(wrap(out, shape))
}

fn silu_if(silu: bool) -> Activation {
    match silu {
        true => Activation::Silu,
        false => Activation::None,
    }
}

/// [`group_norm`] in the place of `x`; `x` back when somebody else holds it too.
#[allow(
    clippy::result_large_err,
    reason = "the tensor comes back, and no error is made"
)]
pub(crate) fn group_norm_in_place<const D: usize>(
    x: Tensor<D>,
    groups: usize,
    eps: f64,
    gamma: &Tensor<1>,
    beta: &Tensor<1>,
    silu: bool,
) -> Result<Tensor<D>, Tensor<D>> {
    let (Some(gamma), Some(beta)) = (Operand::new(gamma), Operand::new(beta)) else {
        return Err(x);
    };
    let shape = x.dims();
    in_place(x, |x| {
        done(kernels::group_norm_in_place(kernels::GroupNormInPlace {
            x,
            batch: shape[0],
            pixels: shape[1..D - 1].iter().product(),
            channels: shape[D - 1],
            groups,
            eps: eps as f32,
            gamma: Some(gamma.values()),
            beta: Some(beta.values()),
            activation: silu_if(silu),
        }));
    })
}

pub(crate) fn layer_norm<const D: usize>(
    x: &Tensor<D>,
    eps: f64,
    gamma: &Tensor<1>,
    beta: &Tensor<1>,
) -> Option<Tensor<D>> {
    let (input, gamma, beta) = (Operand::new(x)?, Operand::new(gamma)?, Operand::new(beta)?);
    let shape = x.dims();
    let mut out = Buffer::new(input.values().len());
    done(kernels::layer_norm(kernels::LayerNorm {
        x: input.values(),
        cols: shape[D - 1],
        eps: eps as f32,
        gamma: Some(gamma.values()),
        beta: Some(beta.values()),
        out: &mut out,
    }));
    Some(wrap(out, shape))
}

/// In place where nobody else holds `x`, else to a new tensor; `x` back when it is not a plain `Flex` tensor.
#[allow(
    clippy::result_large_err,
    reason = "the tensor comes back, and no error is made"
)]
pub(crate) fn activate<const D: usize>(
    x: Tensor<D>,
    kind: Activation,
) -> Result<Tensor<D>, Tensor<D>> {
    in_place_or_copy(x, |values| kernels::activate(values, kind))
}

/// `work` in place where nobody else holds `x`, else on a copy; `x` back when it is not a plain `Flex` tensor.
#[allow(
    clippy::result_large_err,
    reason = "the tensor comes back, and no error is made"
)]
fn in_place_or_copy<const D: usize>(
    x: Tensor<D>,
    work: impl Fn(&mut [f32]),
) -> Result<Tensor<D>, Tensor<D>> {
    let x = match in_place(x, &work) {
        Ok(y) => return Ok(y),
        Err(x) => x,
    };
    let Some(input) = Operand::new(&x) else {
        return Err(x);
    };
    let mut out = Buffer::new(input.values().len());
    out.copy_from_slice(input.values());
    work(&mut out);
    Ok(wrap(out, x.dims()))
}

/// The channels of `a`, then those of `b`.
pub(crate) fn join_channels<const D: usize>(a: &Tensor<D>, b: &Tensor<D>) -> Option<Tensor<D>> {
    let (first, second) = (Operand::new(a)?, Operand::new(b)?);
    let (mut shape, more) = (a.dims(), b.dims()[D - 1]);
    let columns = [shape[D - 1], more];
    shape[D - 1] += more;
    let mut out = Buffer::new(shape.iter().product());
    done(kernels::join_rows(
        [first.values(), second.values()],
        columns,
        &mut out,
    ));
    Some(wrap(out, shape))
}

pub(crate) fn geglu<const D: usize>(x: &Tensor<D>) -> Option<Tensor<D>> {
    let input = Operand::new(x)?;
    let mut shape = x.dims();
    shape[D - 1] /= 2;
    let mut out = Buffer::new(shape.iter().product());
    done(kernels::geglu(input.values(), shape[D - 1], &mut out));
    Some(wrap(out, shape))
}

fn widen<T: Copy>(row: &mut [f32], from: &[T], to_f32: impl Fn(T) -> f32) {
    row.iter_mut().zip(from).for_each(|(r, &v)| *r = to_f32(v));
}

/// The rows that are asked for, and no copy of the table.
pub(crate) fn embedding(table: &Tensor<2>, ids: &[Vec<u32>]) -> Option<Tensor<3>> {
    let weight = Weight::new(table)?;
    let [_, channels] = table.dims();
    let tokens = ids.first().map_or(0, Vec::len);
    let mut out = Buffer::new(ids.len() * tokens * channels);
    for (row, &id) in out.chunks_exact_mut(channels).zip(ids.iter().flatten()) {
        let range = id as usize * channels..(id as usize + 1) * channels;
        match weight.data() {
            RhsData::F16(d) => widen(row, &d[range], f16::to_f32),
            RhsData::BF16(d) => widen(row, &d[range], bf16::to_f32),
            RhsData::F32(d) => row.copy_from_slice(&d[range]),
            _ => return None,
        }
    }
    Some(wrap(out, [ids.len(), tokens, channels]))
}
