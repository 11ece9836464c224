//! Where a layer's parameters come from.
//!
//! A [`ParamSource`] gives raw tensors by name: a checkpoint, or an initializer when a model is
//! trained from scratch. [`Params`] is a place within one, so that a model is built by walking the
//! names of its checkpoint.

use burn::module::{Param, ParamId};
use burn::tensor::{Bytes, DType, Device, Tensor, TensorData};

use aquatint_kernels::BlockFormat;

use crate::packed::{PackedWeight, Weight, widen};
use crate::{OpsError, Trainable};

/// Storage type of a parameter in memory. Matrices of linear layers and embeddings keep every type; what has no
/// tensor type (8-bit floats, blocks) is widened to f32 elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// 32-bit floats.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// 8-bit floats as `torch.float8_e4m3fn`.
    F8E4M3,
    /// Blocks of quantised numbers, each row a whole number of them.
    Blocks(BlockFormat),
}

impl Storage {
    /// Bytes of that many elements, blocks rounded up.
    pub fn bytes(self, elements: usize) -> usize {
        match self {
            Storage::F32 => elements * 4,
            Storage::F16 | Storage::Bf16 => elements * 2,
            Storage::F8E4M3 => elements,
            Storage::Blocks(format) => elements.div_ceil(format.block_len()) * format.block_bytes(),
        }
    }

    /// Elements that are stored together.
    pub(crate) fn block_len(self) -> usize {
        match self {
            Storage::Blocks(format) => format.block_len(),
            _ => 1,
        }
    }

    /// Its type and alignment as a tensor, when there is one.
    fn float(self) -> Option<(DType, usize)> {
        match self {
            Storage::F32 => Some((DType::F32, 4)),
            Storage::F16 => Some((DType::F16, 2)),
            Storage::Bf16 => Some((DType::BF16, 2)),
            Storage::F8E4M3 | Storage::Blocks(_) => None,
        }
    }
}

/// A parameter as a source gives it: refcounted bytes (often a view of a memory-mapped file),
/// aligned for the element type.
#[derive(Debug, Clone)]
pub struct RawTensor {
    /// Little-endian payload.
    pub bytes: bytes::Bytes,
    /// Element type of the payload.
    pub storage: Storage,
    /// Shape, in the checkpoint's layout.
    pub shape: Vec<usize>,
}

impl RawTensor {
    /// A raw f32 tensor from values.
    pub fn from_f32(values: &[f32], shape: &[usize]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        RawTensor {
            bytes: bytes.into(),
            storage: Storage::F32,
            shape: shape.to_vec(),
        }
    }
}

/// Gives parameters by their full dotted name.
pub trait ParamSource {
    /// The tensor `name` of shape `shape`; the source records and reports absences and mismatches.
    ///
    /// # Errors
    /// When the tensor is missing or has another shape or an unusable storage type.
    fn tensor(
        &self,
        name: &str,
        shape: &[usize],
    ) -> Result<RawTensor, Box<dyn std::error::Error + Send + Sync>>;

    /// Whether the source has a tensor of that name.
    fn has(&self, name: &str) -> bool;

    /// The low-rank addition to the linear layer or convolution of that full name, when the source has one: it
    /// then gives `<layer>.lora_A.weight` and `<layer>.lora_B.weight` too. A layer asks after it has taken its
    /// weight.
    fn low_rank(&self, layer: &str) -> Option<LowRank> {
        let _ = layer;
        None
    }
}

/// Size of a low-rank addition, see [`crate::nn::LowRankAddition`] and [`crate::nn::LowRankConv`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LowRank {
    /// Its rank.
    pub rank: usize,
    /// Its factor: alpha over rank.
    pub scale: f64,
}

/// A place in a [`ParamSource`]: a name prefix and the device that tensors go to.
#[derive(Clone)]
pub struct Params<'a> {
    source: &'a dyn ParamSource,
    path: String,
    device: Device,
    trainable: Option<&'a Trainable>,
}

impl<'a> Params<'a> {
    /// The root of a source.
    pub fn new(source: &'a dyn ParamSource, device: &Device) -> Self {
        Params {
            source,
            path: String::new(),
            device: device.clone(),
            trainable: None,
        }
    }

    /// The place `name` below this one (`name` may hold dots).
    pub fn at(&self, name: impl AsRef<str>) -> Params<'a> {
        Params {
            source: self.source,
            path: self.name(name.as_ref()),
            device: self.device.clone(),
            trainable: self.trainable,
        }
    }

    /// The same place, for a model whose parameters are trained as `trainable` selects.
    pub fn training(self, trainable: &'a Trainable) -> Self {
        Params {
            trainable: Some(trainable),
            ..self
        }
    }

    /// Full name of `name` below this place.
    pub fn name(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        }
    }

    /// The device that tensors go to.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Whether there is a tensor `name` below this place.
    pub fn has(&self, name: &str) -> bool {
        self.source.has(&self.name(name))
    }

    /// The low-rank addition to the layer of this place.
    pub fn low_rank(&self) -> Option<LowRank> {
        self.source.low_rank(&self.path)
    }

    fn raw(&self, name: &str, shape: &[usize]) -> Result<(String, RawTensor), OpsError> {
        let full = self.name(name);
        let raw = self.source.tensor(&full, shape).map_err(OpsError::Source)?;
        if raw.shape != shape {
            return Err(OpsError::Shape {
                name: full,
                found: raw.shape,
                expected: shape.to_vec(),
            });
        }
        let expected = raw.storage.bytes(shape.iter().product());
        if raw.bytes.len() != expected {
            return Err(OpsError::Length {
                name: full,
                found: raw.bytes.len(),
                expected,
            });
        }
        Ok((full, raw))
    }

    /// A weight. When it is frozen it has its storage type, with no copy of the payload where that is
    /// aligned; when it is trained it is f32.
    pub fn weight<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
    ) -> Result<Param<Tensor<D>>, OpsError> {
        self.weight_as(name, &shape, shape)
    }

    /// The matrix of a layer that takes every storage type, stored as `stored` and used as `shape`, of as many
    /// elements. As [`Params::weight`], but what has no tensor type stays packed when it is frozen.
    pub fn matrix(
        &self,
        name: &str,
        stored: &[usize],
        shape: [usize; 2],
    ) -> Result<Weight, OpsError> {
        let (full, raw) = self.raw(name, stored)?;
        let packed = raw.storage.float().is_none() && !self.trains(&full);
        Ok(if packed {
            Weight::Packed(PackedWeight::new(&full, raw, shape, &self.device)?)
        } else {
            Weight::Float(self.weight_of(&full, raw, stored, shape))
        })
    }

    /// As [`Params::weight`], stored as `stored` and used as `shape`, of as many elements.
    pub fn weight_as<const D: usize>(
        &self,
        name: &str,
        stored: &[usize],
        shape: [usize; D],
    ) -> Result<Param<Tensor<D>>, OpsError> {
        let (full, raw) = self.raw(name, stored)?;
        Ok(self.weight_of(&full, raw, stored, shape))
    }

    fn weight_of<const D: usize>(
        &self,
        full: &str,
        raw: RawTensor,
        stored: &[usize],
        shape: [usize; D],
    ) -> Param<Tensor<D>> {
        self.param(full, stored, |trained| match trained {
            true => widened(&raw, shape),
            false => as_stored(raw, shape),
        })
    }

    fn trains(&self, full: &str) -> bool {
        self.trainable.is_some_and(|t| t.selects(full))
    }

    /// A small parameter (bias, norm, position) widened to f32.
    pub fn vector<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
    ) -> Result<Param<Tensor<D>>, OpsError> {
        let (full, raw) = self.raw(name, &shape)?;
        Ok(self.param(&full, &shape, |_| widened(&raw, shape)))
    }

    fn param<const D: usize>(
        &self,
        full: &str,
        stored: &[usize],
        data: impl FnOnce(bool) -> TensorData,
    ) -> Param<Tensor<D>> {
        let id = ParamId::new();
        let trained = self.trainable.is_some_and(|t| t.enter(id, full, stored));
        let data = data(trained);
        let dtype = data.dtype();
        let tensor = Tensor::from_data(data, (&self.device, dtype));
        Param::initialized(id, tensor).set_require_grad(trained)
    }
}

/// With no copy of the payload where it is aligned; widened when tensors do not have its type.
fn as_stored<const D: usize>(raw: RawTensor, shape: [usize; D]) -> TensorData {
    let Some((dtype, align)) = raw.storage.float() else {
        return widened(&raw, shape);
    };
    let aligned = (raw.bytes.as_ptr() as usize).is_multiple_of(align);
    let bytes = match aligned {
        true => Bytes::from_shared(raw.bytes, burn::tensor::AllocationProperty::File),
        false => Bytes::from_bytes_vec(raw.bytes.to_vec()),
    };
    TensorData::from_bytes(bytes, shape.to_vec(), dtype)
}

fn widened<const D: usize>(raw: &RawTensor, shape: [usize; D]) -> TensorData {
    let mut values = vec![0f32; shape.iter().product()];
    widen(&raw.bytes, raw.storage, &mut values);
    TensorData::new(values, shape.to_vec())
}
