//! What can be wrong with a GGUF file.

use super::{MAX_AXES, MAX_HEADER, TypeId};
use crate::error::Name;

/// The rule of the format that a GGUF file breaks.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The file ends inside its metadata or table.
    #[error("it ends in {place}, after {len} bytes")]
    Cut {
        /// Where.
        place: String,
        /// Bytes that there are.
        len: usize,
    },
    /// A version that is not read.
    #[error("it is of version {found}, expected 2 or 3")]
    Version {
        /// The version.
        found: u32,
    },
    /// Written on a big-endian machine.
    #[error("its numbers are big-endian, expected little-endian ones")]
    BigEndian,
    /// A count that the rest of the file cannot hold.
    #[error("{place} announces {count} entries, but only {left} bytes follow")]
    Count {
        /// Where the count stands.
        place: String,
        /// The count.
        count: u64,
        /// Bytes after it.
        left: usize,
    },
    /// A text longer than any such text is.
    #[error("{place} has a text of {len} bytes, expected at most {longest}")]
    LongText {
        /// Where.
        place: String,
        /// Its announced length.
        len: u64,
        /// The limit.
        longest: u64,
    },
    /// A text that is not UTF-8.
    #[error("{place} has a text that is not UTF-8")]
    NotUtf8 {
        /// Where.
        place: String,
    },
    /// Metadata and table longer than any are.
    #[error("its metadata and table take more than {MAX_HEADER} bytes")]
    HeaderTooLong,
    /// A kind of value that is not known.
    #[error("metadata {} is of kind {kind}, expected one of 0 to 12", Name(key))]
    ValueKind {
        /// The key.
        key: String,
        /// The number in the file.
        kind: u32,
    },
    /// A truth value that is neither 0 nor 1.
    #[error(
        "metadata {} holds the truth value {found}, expected 0 or 1",
        Name(key)
    )]
    Bool {
        /// The key.
        key: String,
        /// The byte.
        found: u8,
    },
    /// Arrays in arrays without end.
    #[error("metadata {} nests arrays more than {deepest} deep", Name(key))]
    Nested {
        /// The key.
        key: String,
        /// The limit.
        deepest: usize,
    },
    /// A key that is there twice.
    #[error("metadata {} is there twice", Name(key))]
    RepeatedKey {
        /// The key.
        key: String,
    },
    /// An alignment that is none.
    #[error("its general.alignment is {}, expected a power of two up to {most} as a u32", Name(found), most = 1 << 20)]
    Alignment {
        /// The value.
        found: String,
    },
    /// A name that two tensors have.
    #[error("its table lists tensor {} twice", Name(name))]
    Repeated {
        /// The name.
        name: String,
    },
    /// More axes than tensors have.
    #[error("tensor {} has {axes} axes, expected at most {MAX_AXES}", Name(name))]
    Axes {
        /// The tensor.
        name: String,
        /// How many.
        axes: u32,
    },
    /// A storage type that is not read.
    #[error(
        "tensor {} is stored as {found}, expected one of {}",
        Name(name),
        TypeId::known()
    )]
    Type {
        /// The tensor.
        name: String,
        /// The type in the file.
        found: TypeId,
    },
    /// Rows that are no whole number of blocks.
    #[error(
        "tensor {} has rows of {row} numbers, but {found} comes in blocks of {block}",
        Name(name)
    )]
    PartOfBlock {
        /// The tensor.
        name: String,
        /// Numbers of a row.
        row: u64,
        /// The type.
        found: TypeId,
        /// Numbers of a block.
        block: usize,
    },
    /// Sizes whose product no computer can hold.
    #[error("tensor {} has shape {shape:?}, whose size overflows", Name(name))]
    ShapeOverflow {
        /// The tensor.
        name: String,
        /// The shape, innermost first as in the file.
        shape: Vec<u64>,
    },
    /// A noted shape of another number of elements.
    #[error(
        "tensor {} of {found:?} is noted to have the shape {noted:?}, of another size",
        Name(name)
    )]
    NotedShape {
        /// The tensor.
        name: String,
        /// The shape in the table.
        found: Vec<usize>,
        /// The shape in the metadata.
        noted: String,
    },
    /// A tensor that does not start where tensors may.
    #[error(
        "tensor {} starts at byte {offset} of the data, expected a multiple of {alignment}",
        Name(name)
    )]
    Misaligned {
        /// The tensor.
        name: String,
        /// Its place.
        offset: u64,
        /// The file's alignment.
        alignment: usize,
    },
    /// A tensor past the end of the file.
    #[error(
        "tensor {} takes {size} bytes from byte {offset} of the data, but the file holds {available}",
        Name(name)
    )]
    PastEnd {
        /// The tensor.
        name: String,
        /// Its place in the data.
        offset: u64,
        /// Its bytes.
        size: usize,
        /// Bytes of data in the file.
        available: usize,
    },
    /// Two tensors that share bytes.
    #[error("tensors {} and {} overlap", Name(first), Name(second))]
    Overlap {
        /// The one that starts first.
        first: String,
        /// The other.
        second: String,
    },
}

impl Problem {
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Problem::Cut { .. } | Problem::PastEnd { .. } => {
                "the file is probably cut short; download or copy it again"
            }
            Problem::Version { found: 1 } => {
                "convert the original weights again with a current program"
            }
            Problem::Version { .. } => "this version of Aquatint does not know that format yet",
            Problem::BigEndian => "convert the original weights on a little-endian machine",
            Problem::Type { .. } => "use a file of a quantisation such as Q8_0, Q5_K or Q4_K",
            _ => "download the file again, or convert it again with the program that made it",
        }
    }
}
