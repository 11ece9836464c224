//! Weights in types that tensors do not have: 8-bit floats, blocks of quantised numbers.

use std::fmt;

use aquatint_kernels::{RhsData, blocks};
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};

use crate::fused::{self, Epilogue};
use crate::{OpsError, RawTensor, Storage};

/// A matrix `[rows, columns]` in its storage type, which no tensor has. It stays as it is, often a part of a mapped
/// file: products on the CPU widen it while they pack, other devices get it widened for each product. It is a
/// constant: nothing trains it.
#[derive(Module, Debug)]
pub struct PackedWeight {
    #[module(skip)]
    inner: Inner,
    #[module(skip)]
    device: Device,
    rows: usize,
    columns: usize,
}

#[derive(Clone)]
struct Inner {
    bytes: bytes::Bytes,
    storage: Storage,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of {:?}", self.bytes.len(), self.storage)
    }
}

impl PackedWeight {
    /// A matrix `[rows, columns]` of a raw tensor of as many elements, for a layer on `device`.
    ///
    /// # Errors
    /// [`OpsError::Length`] when the bytes are not those of the shape; [`OpsError::NotDivisible`] when a row is not
    /// a whole number of blocks.
    pub fn new(
        name: &str,
        raw: RawTensor,
        [rows, columns]: [usize; 2],
        device: &Device,
    ) -> Result<Self, OpsError> {
        let (len, by) = (raw.bytes.len(), raw.storage.block_len());
        if !columns.is_multiple_of(by) {
            return Err(OpsError::NotDivisible {
                what: "columns of a quantised weight by its blocks",
                value: columns,
                by,
            });
        }
        let expected = raw.storage.bytes(rows * columns);
        if len != expected {
            return Err(OpsError::Length {
                name: name.to_owned(),
                found: len,
                expected,
            });
        }
        let (bytes, storage) = (raw.bytes, raw.storage);
        let inner = Inner { bytes, storage };
        Ok(PackedWeight {
            inner,
            device: device.clone(),
            rows,
            columns,
        })
    }

    /// `[rows, columns]`.
    pub fn dims(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    /// How its numbers are stored.
    pub fn storage(&self) -> Storage {
        self.inner.storage
    }

    /// For a product.
    pub(crate) fn data(&self) -> Option<RhsData<'_>> {
        match self.inner.storage {
            Storage::F8E4M3 => Some(RhsData::F8E4M3(&self.inner.bytes)),
            Storage::Blocks(format) => Some(RhsData::Blocks(format, &self.inner.bytes)),
            Storage::F32 | Storage::F16 | Storage::Bf16 => None,
        }
    }

    /// Row `row`, widened; `out` is as long as a row, and the row exists.
    pub(crate) fn widen_row(&self, row: usize, out: &mut [f32]) {
        let len = self.inner.storage.bytes(self.columns);
        widen(&self.inner.bytes[row * len..][..len], self.storage(), out);
    }

    /// Where the layer computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The whole matrix in f32.
    pub fn widened(&self) -> Tensor<2> {
        let mut values = vec![0.0; self.rows * self.columns];
        widen(&self.inner.bytes, self.storage(), &mut values);
        let data = TensorData::new(values, self.dims());
        Tensor::from_data(data, (&self.device, burn::tensor::DType::F32))
    }
}

/// Widens numbers of any storage type.
pub(crate) fn widen(bytes: &[u8], storage: Storage, out: &mut [f32]) {
    match storage {
        Storage::F32 => {
            for (out, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                *out = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            }
        }
        Storage::F16 => {
            for (out, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                *out = half::f16::from_le_bytes([b[0], b[1]]).to_f32();
            }
        }
        Storage::Bf16 => {
            for (out, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                *out = half::bf16::from_le_bytes([b[0], b[1]]).to_f32();
            }
        }
        Storage::F8E4M3 => {
            for (out, &b) in out.iter_mut().zip(bytes) {
                *out = blocks::decode_f8_e4m3(b);
            }
        }
        Storage::Blocks(format) => {
            crate::flex::done(blocks::decode(format, bytes, out));
        }
    }
}

/// A matrix as a layer holds it.
#[derive(Module, Debug)]
// The larger is the usual one.
#[allow(clippy::large_enum_variant)]
pub enum Weight {
    /// A tensor in f32, f16 or bf16, trained or frozen.
    Float(Param<Tensor<2>>),
    /// In a type that tensors do not have.
    Packed(PackedWeight),
}

impl Weight {
    /// The matrix as a tensor: in its own type, or in f32 when no tensor has that.
    pub fn val(&self) -> Tensor<2> {
        match self {
            Weight::Float(weight) => weight.val(),
            Weight::Packed(weight) => weight.widened(),
        }
    }

    /// Where the layer computes.
    pub fn device(&self) -> Device {
        match self {
            Weight::Float(weight) => weight.val().device(),
            Weight::Packed(weight) => weight.device().clone(),
        }
    }

    /// See [`fused::linear`] and [`fused::linear_packed`].
    pub fn linear<const D: usize>(&self, x: Tensor<D>, epilogue: Epilogue<D>) -> Tensor<D> {
        match self {
            Weight::Float(weight) => fused::linear(x, weight.val(), epilogue),
            Weight::Packed(weight) => fused::linear_packed(x, weight, epilogue),
        }
    }

    /// See [`fused::linear_geglu`].
    pub fn linear_geglu<const D: usize>(&self, x: Tensor<D>, bias: Option<Tensor<1>>) -> Tensor<D> {
        match self {
            Weight::Float(weight) => fused::linear_geglu(x, weight.val(), bias),
            Weight::Packed(weight) => fused::linear_geglu_packed(x, weight, bias),
        }
    }
}
