//! Binding of the kernels to burn's `Flex` tensors. Each function gives `None` when an operand is
//! not a plain `Flex` tensor (another device, or tracked by autodiff): the caller then takes the
//! reference.

use burn::tensor::Tensor;

use crate::fused::{Activation, AttentionMask, Conv2dShape, Epilogue};

pub(crate) fn linear<const D: usize>(
    _x: &Tensor<D>,
    _weight: &Tensor<2>,
    _epilogue: &Epilogue<D>,
) -> Option<Tensor<D>> {
    None
}

pub(crate) fn conv2d(
    _x: &Tensor<4>,
    _weight: &Tensor<4>,
    _shape: Conv2dShape,
    _epilogue: &Epilogue<4>,
) -> Option<Tensor<4>> {
    None
}

pub(crate) fn attention(
    _q: &Tensor<3>,
    _k: &Tensor<3>,
    _v: &Tensor<3>,
    _heads: usize,
    _mask: &AttentionMask,
) -> Option<Tensor<3>> {
    None
}

pub(crate) fn group_norm<const D: usize>(
    _x: &Tensor<D>,
    _groups: usize,
    _eps: f64,
    _gamma: &Tensor<1>,
    _beta: &Tensor<1>,
    _silu: bool,
) -> Option<Tensor<D>> {
    None
}

pub(crate) fn layer_norm<const D: usize>(
    _x: &Tensor<D>,
    _eps: f64,
    _gamma: &Tensor<1>,
    _beta: &Tensor<1>,
) -> Option<Tensor<D>> {
    None
}

pub(crate) fn activate<const D: usize>(_x: &Tensor<D>, _kind: Activation) -> Option<Tensor<D>> {
    None
}

pub(crate) fn geglu<const D: usize>(_x: &Tensor<D>) -> Option<Tensor<D>> {
    None
}

pub(crate) fn embedding(_table: &Tensor<2>, _ids: &[Vec<u32>]) -> Option<Tensor<3>> {
    None
}
