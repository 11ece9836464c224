//! The types in which a file stores the elements of a tensor.

use aquatint_kernels::BlockFormat;
use serde::{Serialize, Serializer};
use std::fmt;

/// How the elements of a tensor are stored.
///
/// Of the plain types a block is one element. GGUF's quantised types are blocks of 32 or 256 elements, so
/// sizes are asked through [`DType::byte_size`], never multiplied by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum DType {
    /// 64-bit float.
    F64,
    /// 32-bit float.
    F32,
    /// 16-bit IEEE float.
    F16,
    /// The upper half of a 32-bit float.
    Bf16,
    /// 8-bit float, 4 exponent and 3 mantissa bits, no infinity (torch's `float8_e4m3fn`).
    F8E4M3,
    /// 8-bit float, 5 exponent and 2 mantissa bits (torch's `float8_e5m2`).
    F8E5M2,
    /// 64-bit signed integer.
    I64,
    /// 64-bit unsigned integer.
    U64,
    /// 32-bit signed integer.
    I32,
    /// 32-bit unsigned integer.
    U32,
    /// 16-bit signed integer.
    I16,
    /// 16-bit unsigned integer.
    U16,
    /// 8-bit signed integer.
    I8,
    /// 8-bit unsigned integer.
    U8,
    /// One byte, 0 or 1.
    Bool,
    /// Blocks of quantised numbers, each block of consecutive elements.
    Blocks(BlockFormat),
}

/// What is known of each type: name in safetensors, elements in a block, bytes in a block.
struct Facts {
    name: &'static str,
    block_len: usize,
    block_bytes: usize,
}

impl DType {
    /// Every plain type, widest floats first: those that safetensors files have.
    pub const PLAIN: &'static [DType] = &[
        DType::F64,
        DType::F32,
        DType::F16,
        DType::Bf16,
        DType::F8E4M3,
        DType::F8E5M2,
        DType::I64,
        DType::U64,
        DType::I32,
        DType::U32,
        DType::I16,
        DType::U16,
        DType::I8,
        DType::U8,
        DType::Bool,
    ];

    /// Every type: the plain ones, then [`BlockFormat::ALL`].
    pub fn all() -> impl Iterator<Item = DType> {
        let blocks = BlockFormat::ALL.into_iter().map(DType::Blocks);
        DType::PLAIN.iter().copied().chain(blocks)
    }

    const fn facts(self) -> Facts {
        let (name, block_bytes) = match self {
            DType::Blocks(format) => {
                return Facts {
                    name: format.name(),
                    block_len: format.block_len(),
                    block_bytes: format.block_bytes(),
                };
            }
            DType::F64 => ("F64", 8),
            DType::F32 => ("F32", 4),
            DType::F16 => ("F16", 2),
            DType::Bf16 => ("BF16", 2),
            DType::F8E4M3 => ("F8_E4M3", 1),
            DType::F8E5M2 => ("F8_E5M2", 1),
            DType::I64 => ("I64", 8),
            DType::U64 => ("U64", 8),
            DType::I32 => ("I32", 4),
            DType::U32 => ("U32", 4),
            DType::I16 => ("I16", 2),
            DType::U16 => ("U16", 2),
            DType::I8 => ("I8", 1),
            DType::U8 => ("U8", 1),
            DType::Bool => ("BOOL", 1),
        };
        Facts {
            name,
            block_len: 1,
            block_bytes,
        }
    }

    /// The name that safetensors headers use, such as `F16`, or GGML's, such as `Q4_K`.
    pub const fn name(self) -> &'static str {
        self.facts().name
    }

    /// The plain type of that safetensors name, if Aquatint stores it.
    pub fn from_name(name: &str) -> Option<DType> {
        DType::PLAIN.iter().copied().find(|d| d.name() == name)
    }

    /// The block format, of a quantised type.
    pub const fn blocks(self) -> Option<BlockFormat> {
        match self {
            DType::Blocks(format) => Some(format),
            _ => None,
        }
    }

    /// Elements in one block; 1 for every plain type.
    pub const fn block_len(self) -> usize {
        self.facts().block_len
    }

    /// Bytes in one block.
    pub const fn block_bytes(self) -> usize {
        self.facts().block_bytes
    }

    /// Bytes that `elements` elements take, or `None` when that overflows or is no whole number of blocks.
    pub const fn byte_size(self, elements: usize) -> Option<usize> {
        let f = self.facts();
        if !elements.is_multiple_of(f.block_len) {
            return None;
        }
        (elements / f.block_len).checked_mul(f.block_bytes)
    }

    /// The alignment in bytes at which the elements can be read in place. Blocks are read byte by byte.
    pub const fn alignment(self) -> usize {
        match self {
            DType::Blocks(_) => 1,
            _ => self.facts().block_bytes,
        }
    }

    /// Whether the elements are floating-point numbers, those of blocks included.
    pub const fn is_float(self) -> bool {
        matches!(
            self,
            DType::F64
                | DType::F32
                | DType::F16
                | DType::Bf16
                | DType::F8E4M3
                | DType::F8E5M2
                | DType::Blocks(_)
        )
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for DType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_come_back() {
        for &d in DType::PLAIN {
            assert_eq!(DType::from_name(d.name()), Some(d));
        }
        let names: std::collections::BTreeSet<_> = DType::all().map(DType::name).collect();
        assert_eq!(names.len(), DType::all().count());
        assert_eq!(DType::from_name("Q4_K"), None, "no type of safetensors");
        assert_eq!(DType::from_name("f16"), None);
        assert_eq!(DType::from_name(""), None);
    }

    #[test]
    fn sizes_are_checked() {
        assert_eq!(DType::F16.byte_size(3), Some(6));
        assert_eq!(DType::F8E4M3.byte_size(3), Some(3));
        assert_eq!(DType::F64.byte_size(usize::MAX / 4), None);
        let q4 = DType::Blocks(BlockFormat::Q4K);
        assert_eq!(
            [q4.byte_size(512), q4.byte_size(100)],
            [Some(288), None],
            "whole blocks only"
        );
    }
}
