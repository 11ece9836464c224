//! What can be wrong with a checkpoint, and what is refused in one.

use crate::error::Name;

/// Why a checkpoint is not read.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// A class or function that a checkpoint of weights has no use for. Nothing was run.
    #[error(
        "its pickle asks for {}, which is no part of a checkpoint of weights; nothing was run",
        Name(name)
    )]
    Global {
        /// Module and name.
        name: String,
    },
    /// An opcode outside the list. Nothing was run.
    #[error("its pickle has the opcode {}{} at byte {at}, which is not allowed; nothing was run", Hex(*code), Name(name))]
    Opcode {
        /// Its name, as Python's `pickletools` has it, or nothing.
        name: &'static str,
        /// Its byte.
        code: u8,
        /// Where.
        at: usize,
    },
    /// A call of what is neither class nor function.
    #[error("its pickle calls {what} at byte {at}; nothing was run")]
    Call {
        /// What it is.
        what: &'static str,
        /// Where.
        at: usize,
    },
    /// The pickle ends before it is finished.
    #[error("its pickle ends at byte {at} without being finished")]
    Cut {
        /// Where.
        at: usize,
    },
    /// An opcode that finds other things on the stack than it needs.
    #[error("its pickle is damaged at byte {at}: {what}")]
    Damaged {
        /// What.
        what: &'static str,
        /// Where.
        at: usize,
    },
    /// Larger than any pickle of tensor descriptions is.
    #[error("its pickle has {len} bytes, expected at most {most}")]
    Long {
        /// Its length.
        len: u64,
        /// The limit.
        most: u64,
    },
    /// A zip archive that is none, or is cut.
    #[error("its zip archive is damaged: {what}")]
    Zip {
        /// What.
        what: String,
    },
    /// A big-endian checkpoint.
    #[error("its tensors are big-endian, expected little-endian ones")]
    BigEndian,
    /// A pickle that is no checkpoint of PyTorch's older format.
    #[error("it is a pickle, but no checkpoint that PyTorch saved")]
    NotTorch,
    /// A checkpoint without tensors.
    #[error("it holds no tensors by name")]
    NoTensors,
    /// More entries than any checkpoint has.
    #[error("it names more than {most} tensors")]
    TooMany {
        /// The limit.
        most: usize,
    },
    /// A storage that the file does not hold.
    #[error(
        "the storage {} of tensor {} is not in the file",
        Name(storage),
        Name(name)
    )]
    NoStorage {
        /// The tensor.
        name: String,
        /// The storage's key.
        storage: String,
    },
    /// A storage of another length.
    #[error("the storage {} has {found} bytes, expected {expected}", Name(storage))]
    StorageSize {
        /// The storage's key.
        storage: String,
        /// Bytes in the file.
        found: u64,
        /// Bytes that the pickle says.
        expected: u64,
    },
    /// A tensor that reaches out of its storage, or whose sizes make no sense.
    #[error("tensor {} of shape {shape:?} does not fit its storage", Name(name))]
    OutOfStorage {
        /// The tensor.
        name: String,
        /// Its sizes.
        shape: Vec<i64>,
    },
    /// A name that two tensors have.
    #[error("tensor {} is there twice", Name(name))]
    Repeated {
        /// The name.
        name: String,
    },
    /// Copies that would take more memory than the file could explain.
    #[error("unpacking it would take more than {most} bytes of memory")]
    Memory {
        /// The limit.
        most: u64,
    },
}

struct Hex(u8);

impl std::fmt::Display for Hex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "0x{:02x} ", self.0)
    }
}

impl Problem {
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Problem::Global { .. } | Problem::Opcode { .. } | Problem::Call { .. } => {
                "do not load this file with other programs either unless you trust it; look for a .safetensors of the model"
            }
            Problem::NotTorch | Problem::NoTensors => {
                "give a checkpoint of a model, or a .safetensors file"
            }
            Problem::BigEndian => "save it again on a little-endian machine",
            _ => "the file is probably cut short or damaged; download or copy it again",
        }
    }
}
