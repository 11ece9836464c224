//! A named tensor as a view of a file's bytes.

use crate::DType;
use bytes::Bytes;
use std::fmt;

/// A tensor as a file stores it: row-major elements in little-endian order.
///
/// `data` is a counted reference into the mapped file, so a clone or a slice copies nothing and keeps
/// the file mapped. Its address is a multiple of the element size in almost every file, but nothing in
/// the format promises it: ask [`TensorView::is_aligned`], or take [`TensorView::aligned`], which copies
/// only where it must.
#[derive(Clone, PartialEq)]
pub struct TensorView {
    /// The name under which it was found.
    pub name: String,
    /// How the elements are stored.
    pub dtype: DType,
    /// Axis lengths, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// The elements; exactly `dtype.byte_size(product of shape)` bytes.
    pub data: Bytes,
}

impl TensorView {
    /// A view of `data`, or `None` when its length is not what the shape and type say.
    pub fn new(
        name: impl Into<String>,
        dtype: DType,
        shape: Vec<usize>,
        data: Bytes,
    ) -> Option<TensorView> {
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
        (dtype.byte_size(elements)? == data.len()).then(|| TensorView {
            name: name.into(),
            dtype,
            shape,
            data,
        })
    }

    /// The number of elements: 1 for a scalar, 0 when an axis is 0 long.
    pub fn len(&self) -> usize {
        self.data.len() / self.dtype.block_bytes() * self.dtype.block_len()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// Whether the elements can be read in place as their own type.
    pub fn is_aligned(&self) -> bool {
        self.data
            .as_ptr()
            .addr()
            .is_multiple_of(self.dtype.alignment())
    }

    /// The same tensor at an aligned address: itself when it is there already (no copy, the usual case),
    /// else one copy in memory.
    pub fn aligned(&self) -> TensorView {
        let data = if self.is_aligned() {
            self.data.clone()
        } else {
            aligned_copy(&self.data)
        };
        TensorView {
            data,
            ..self.clone()
        }
    }

    /// The elements in place, when they are F32 and aligned.
    pub fn as_f32(&self) -> Option<&[f32]> {
        self.cast(DType::F32)
    }

    /// The elements in place, when they are F16 and aligned.
    pub fn as_f16(&self) -> Option<&[half::f16]> {
        self.cast(DType::F16)
    }

    /// The elements in place, when they are BF16 and aligned.
    pub fn as_bf16(&self) -> Option<&[half::bf16]> {
        self.cast(DType::Bf16)
    }

    fn cast<T: bytemuck::AnyBitPattern>(&self, dtype: DType) -> Option<&[T]> {
        if self.dtype != dtype {
            return None;
        }
        bytemuck::try_cast_slice(&self.data).ok()
    }
}

impl fmt::Debug for TensorView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "TensorView({} {} {:?}, {} bytes)",
            self.name,
            self.dtype,
            self.shape,
            self.data.len()
        )
    }
}

/// Bytes whose storage is a `Vec<u64>`, so that they start at a multiple of 8.
struct Aligned {
    words: Vec<u64>,
    len: usize,
}

impl AsRef<[u8]> for Aligned {
    fn as_ref(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.len]
    }
}

/// `len` bytes at an address that is a multiple of 8, filled by `fill` (which gets zeros).
pub(crate) fn aligned_bytes(len: usize, fill: impl FnOnce(&mut [u8])) -> Bytes {
    let mut words = vec![0u64; len.div_ceil(8)];
    fill(&mut bytemuck::cast_slice_mut(&mut words)[..len]);
    Bytes::from_owner(Aligned { words, len })
}

fn aligned_copy(data: &[u8]) -> Bytes {
    aligned_bytes(data.len(), |out| out.copy_from_slice(data))
}
