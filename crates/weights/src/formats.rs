//! The table of file formats.

use crate::{Error, WeightFile, safetensors};
use bytes::Bytes;
use std::path::Path;

/// What is done with a file of some format.
pub enum Opener {
    /// It is read. The path is for messages, the bytes are the whole file.
    Read(fn(&Path, Bytes) -> Result<WeightFile, Error>),
    /// It is recognised so that the message can say what it is; this is the hint of that message.
    Refuse(&'static str),
}

/// One row of [`FORMATS`].
pub struct Format {
    /// Short name, such as `safetensors`.
    pub name: &'static str,
    /// What a file of it is called in messages, with its article.
    pub what: &'static str,
    /// Usual extensions, without the dot.
    pub extensions: &'static [&'static str],
    /// Whether a whole file's bytes look like this format.
    pub matches: fn(&[u8]) -> bool,
    /// What to do with it.
    pub opener: Opener,
}

/// Every format that is known, by content; the first row that matches wins.
pub static FORMATS: &[Format] = &[Format {
    name: "safetensors",
    what: "a safetensors file",
    extensions: &["safetensors"],
    matches: |b| b.len() > 8 && b[8] == b'{' && b[6] == 0 && b[7] == 0,
    opener: Opener::Read(safetensors::read),
}];

/// Opens a whole file's bytes by what they are.
pub(crate) fn open(path: &Path, bytes: Bytes) -> Result<WeightFile, Error> {
    safetensors::read(path, bytes)
}
