//! The numbers by which GGUF files name storage types.

use crate::DType;
use aquatint_kernels::BlockFormat;
use std::fmt;

/// GGML's number of a storage type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TypeId(pub u32);

/// Number, GGML's name, our type where there is one.
const TABLE: &[(u32, &str, Option<DType>)] = &[
    (0, "F32", Some(DType::F32)),
    (1, "F16", Some(DType::F16)),
    (2, "Q4_0", Some(DType::Blocks(BlockFormat::Q4_0))),
    (3, "Q4_1", Some(DType::Blocks(BlockFormat::Q4_1))),
    (6, "Q5_0", Some(DType::Blocks(BlockFormat::Q5_0))),
    (7, "Q5_1", Some(DType::Blocks(BlockFormat::Q5_1))),
    (8, "Q8_0", Some(DType::Blocks(BlockFormat::Q8_0))),
    (9, "Q8_1", None),
    (10, "Q2_K", Some(DType::Blocks(BlockFormat::Q2K))),
    (11, "Q3_K", Some(DType::Blocks(BlockFormat::Q3K))),
    (12, "Q4_K", Some(DType::Blocks(BlockFormat::Q4K))),
    (13, "Q5_K", Some(DType::Blocks(BlockFormat::Q5K))),
    (14, "Q6_K", Some(DType::Blocks(BlockFormat::Q6K))),
    (15, "Q8_K", None),
    (16, "IQ2_XXS", None),
    (17, "IQ2_XS", None),
    (18, "IQ3_XXS", None),
    (19, "IQ1_S", None),
    (20, "IQ4_NL", None),
    (21, "IQ3_S", None),
    (22, "IQ2_S", None),
    (23, "IQ4_XS", None),
    (24, "I8", Some(DType::I8)),
    (25, "I16", Some(DType::I16)),
    (26, "I32", Some(DType::I32)),
    (27, "I64", Some(DType::I64)),
    (28, "F64", Some(DType::F64)),
    (29, "IQ1_M", None),
    (30, "BF16", Some(DType::Bf16)),
    (34, "TQ1_0", None),
    (35, "TQ2_0", None),
    (39, "MXFP4", None),
    (40, "NVFP4", None),
];

impl TypeId {
    /// Our type, where it is read.
    pub fn dtype(self) -> Option<DType> {
        TABLE
            .iter()
            .find(|row| row.0 == self.0)
            .and_then(|row| row.2)
    }

    /// The number of a type; `None` where GGUF has none, as for F8.
    pub fn of(dtype: DType) -> Option<TypeId> {
        TABLE
            .iter()
            .find(|row| row.2 == Some(dtype))
            .map(|row| TypeId(row.0))
    }

    /// The names of all types that are read.
    pub(super) fn known() -> String {
        let names = TABLE.iter().filter(|row| row.2.is_some()).map(|row| row.1);
        names.collect::<Vec<_>>().join(", ")
    }
}

impl fmt::Display for TypeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match TABLE.iter().find(|row| row.0 == self.0) {
            Some((_, name, _)) => f.write_str(name),
            None => write!(f, "type {}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_come_back_under_their_ggml_names() {
        for (id, name, dtype) in TABLE {
            let Some(dtype) = dtype else { continue };
            assert_eq!(dtype.name(), *name);
            assert_eq!(TypeId::of(*dtype), Some(TypeId(*id)));
            assert_eq!(TypeId(*id).dtype(), Some(*dtype));
        }
        assert!(
            BlockFormat::ALL
                .map(DType::Blocks)
                .into_iter()
                .all(|d| TypeId::of(d).is_some())
        );
        assert_eq!(TypeId::of(DType::F8E4M3), None);
        assert_eq!(TypeId(9999).to_string(), "type 9999");
    }
}
