//! Weight files of Aquatint: files to named tensors and back.
//!
//! A file is mapped, not read: [`WeightFile::open`] touches the header only, and a [`TensorView`] is a
//! counted reference into the mapping, in the storage type of the file.

#![deny(unsafe_code)]

#[cfg(target_endian = "big")]
compile_error!(
    "weight files are little-endian and are used in place; big-endian machines need a copying reader"
);

mod component;
mod convert;
mod dtype;
mod error;
mod file;
mod formats;
pub mod gguf;
mod inspect;
mod mmap;
mod output;
pub mod pickle;
mod remap;
mod report;
pub mod rewrite;
pub mod safetensors;
mod scaled;
mod scan;
mod set;
mod strict;
mod view;

pub use aquatint_kernels::BlockFormat;
pub use convert::{convert, to_f32_vec};
pub use dtype::DType;
pub use error::Error;
pub use file::WeightFile;
pub use formats::{FORMATS, Format, Opener};
pub use inspect::{DTypeRow, FileRow, Inspection, TensorRow};
pub use mmap::map_file;
pub use remap::{Remap, Reshape, Slice};
pub use report::{Applied, LoadReport, WrongShape};
pub use safetensors::{TensorSpec, Writer};
pub use scan::{check_finite, first_non_finite};
pub use set::{TensorInfo, WeightSet};
pub use view::TensorView;
