//! What can go wrong between a path and its tensors.

use crate::DType;
use crate::safetensors::HeaderProblem;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Errors of this crate. `Display` is one line that names the path, what was found and what was
/// expected; [`Error::hint`] says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nothing is at the path.
    #[error("{}: no such file or folder", path.display())]
    NotFound {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// A folder where a file was expected.
    #[error("{}: is a folder, expected a weight file", path.display())]
    Directory {
        /// The folder.
        path: PathBuf,
    },
    /// A file where a folder was expected.
    #[error("{}: is not a folder, expected one that holds weight files", path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// A device, pipe or socket.
    #[error("{}: is a device or a pipe, expected a regular file", path.display())]
    NotRegular {
        /// The path.
        path: PathBuf,
    },
    /// A file of no bytes.
    #[error("{}: the file is empty, expected a weight file", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The file's length changed while it was in use.
    #[error("{}: the file changed while in use: it had {before} bytes and has {now} now", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// Bytes when it was opened.
        before: u64,
        /// Bytes now.
        now: u64,
    },
    /// The operating system refused.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried, a verb.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// A file of a kind that this version does not read.
    #[error("{}: is {found}, expected a safetensors, GGUF or PyTorch file", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What it is, with its article.
        found: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// A safetensors file whose header breaks the format's rules.
    #[error("{}: damaged safetensors file: {problem}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// The rule that it breaks.
        problem: HeaderProblem,
    },
    /// A GGUF file that breaks the format's rules.
    #[error("{}: damaged GGUF file: {problem}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// The rule that it breaks.
        problem: Box<crate::gguf::Problem>,
    },
    /// A PyTorch checkpoint that is damaged, or asks for what no checkpoint of weights needs.
    #[error("{}: PyTorch checkpoint not read: {problem}", path.display())]
    Pickle {
        /// The file.
        path: PathBuf,
        /// What is wrong or refused.
        problem: Box<crate::pickle::Problem>,
    },
    /// A `*.safetensors.index.json` that cannot be used.
    #[error("{}: damaged index of shards: {problem}", path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// What is wrong in it.
        problem: String,
    },
    /// Shards that an index names and the folder does not hold.
    #[error("{}: {} of {total} shards are missing: {}", path.display(), missing.len(), List(missing))]
    MissingShards {
        /// The index file.
        path: PathBuf,
        /// The names of the missing shards.
        missing: Vec<String>,
        /// How many shards the index names.
        total: usize,
    },
    /// No weight file with one of the expected names.
    #[error("{}: no weights here, expected {}{}", folder.display(), expected, Found(found))]
    NoWeights {
        /// The folder.
        folder: PathBuf,
        /// The names that would have done.
        expected: String,
        /// Files there that look like weights but cannot be read.
        found: Vec<String>,
    },
    /// Several variants and none without a suffix, or a variant that is not there.
    #[error("{}: {}, found the variants {}", folder.display(), Wanted(wanted), List(choices))]
    Variant {
        /// The folder.
        folder: PathBuf,
        /// The variant that was asked for.
        wanted: Option<String>,
        /// The variants that are there.
        choices: Vec<String>,
    },
    /// One name in two files, or two renamings to one name.
    #[error("{}: tensor {} is there twice ({first} and {second})", path.display(), Name(name))]
    Duplicate {
        /// The file of the second.
        path: PathBuf,
        /// The name.
        name: String,
        /// Where the first comes from.
        first: String,
        /// Where the second comes from.
        second: String,
    },
    /// A tensor that the model needs.
    #[error("{}: tensor {} is missing", path.display(), Name(name))]
    MissingTensor {
        /// The file or folder.
        path: PathBuf,
        /// The tensor's name.
        name: String,
    },
    /// A tensor of another shape.
    #[error("{}: tensor {} has shape {found:?}, expected {expected:?}", path.display(), Name(name))]
    WrongShape {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        name: String,
        /// The shape in the file.
        found: Vec<usize>,
        /// The shape that the model has.
        expected: Vec<usize>,
    },
    /// A value that is no number.
    #[error("{}: tensor {} holds {value} at index {index}, expected finite numbers", path.display(), Name(name))]
    NonFinite {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        name: String,
        /// Where, counted over the flattened tensor.
        index: usize,
        /// `NaN`, `inf` or `-inf`.
        value: f64,
    },
    /// A slice, transpose or reshape that the tensor's shape does not allow.
    #[error("{}: tensor {} of shape {shape:?} cannot be turned as its key map says: {problem}", path.display(), Name(name))]
    Remap {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the file.
        name: String,
        /// Its shape there.
        shape: Vec<usize>,
        /// Why not.
        problem: String,
    },
    /// A conversion between storage types that does not exist.
    #[error(
        "tensor {} is stored as {from}, which cannot be turned into {to}",
        Name(name)
    )]
    Conversion {
        /// The tensor's name.
        name: String,
        /// Its storage type.
        from: DType,
        /// The type asked for.
        to: DType,
    },
    /// A tensor handed to the writer that does not fit what was announced.
    #[error("{}: cannot write tensor {}: {problem}", path.display(), Name(name))]
    Write {
        /// The file being written.
        path: PathBuf,
        /// The tensor's name.
        name: String,
        /// Why not.
        problem: String,
    },
}

impl Error {
    pub(crate) fn io(path: &Path, action: &'static str, source: io::Error) -> Error {
        match source.kind() {
            io::ErrorKind::NotFound => Error::NotFound { path: path.into() },
            _ => Error::Io {
                path: path.into(),
                action,
                source,
            },
        }
    }

    /// What the user can do about it, in one line; `None` when the message says it all.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Error::NotFound { .. } => "check the path",
            Error::Directory { .. } => {
                "name a file in it, or give the folder where a model is expected"
            }
            Error::NotADirectory { .. } => "give the folder that holds the file",
            Error::NotRegular { .. } => "give a path on disk",
            Error::Empty { .. } => "download or copy the file again",
            Error::Changed { .. } => {
                "wait until the other program has finished writing, then run the command again"
            }
            Error::Io { source, .. } => io_hint(source.kind())?,
            Error::Format { hint, .. } => hint,
            Error::Header { problem, .. } => problem.hint(),
            Error::Gguf { problem, .. } => problem.hint(),
            Error::Pickle { problem, .. } => problem.hint(),
            Error::Index { .. } => {
                "download the index file again, or merge the shards into one file"
            }
            Error::MissingShards { .. } => "download the missing shards into the same folder",
            Error::NoWeights { found, .. } if found.is_empty() => {
                "give a model folder as diffusers saves it, or a .safetensors file"
            }
            Error::NoWeights { found, .. } if found.iter().any(|f| f.ends_with(".safetensors")) => {
                "add the .safetensors.index.json that belongs to these shards"
            }
            Error::NoWeights { .. } => {
                "this version reads safetensors, GGUF and PyTorch files; convert the weights first"
            }
            Error::Variant { .. } => "choose one of the variants",
            Error::Duplicate { .. } => "use files that belong to one model",
            Error::MissingTensor { .. } => {
                "the file is of another model or incomplete; `aquatint inspect FILE` lists what it holds"
            }
            Error::WrongShape { .. } | Error::Remap { .. } => {
                "the file is of another model or version; `aquatint inspect FILE` lists what it holds"
            }
            Error::Conversion { .. } => "use a file that stores its weights as F32, F16 or BF16",
            Error::NonFinite { .. } => {
                "the file is damaged or its training diverged; get another copy"
            }
            Error::Write { .. } => return None,
        })
    }
}

fn io_hint(kind: io::ErrorKind) -> Option<&'static str> {
    use io::ErrorKind as K;
    Some(match kind {
        K::PermissionDenied => "change the permissions of the file or of its folder",
        K::StorageFull | K::QuotaExceeded => "free some space or write to another disk",
        K::FileTooLarge => "this file system cannot hold so large a file; write to another disk",
        K::ReadOnlyFilesystem => "write to another folder",
        K::OutOfMemory => "close other programs, or raise the limit of mapped memory",
        _ => return None,
    })
}

/// A name from a file, safe to print: quoted, escaped, and cut when it is absurdly long.
pub(crate) struct Name<'a>(pub &'a str);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LONGEST: usize = 160;
        if self.0.chars().nth(LONGEST).is_none() {
            return write!(f, "\"{}\"", self.0.escape_debug());
        }
        let start: String = self.0.chars().take(LONGEST).collect();
        write!(
            f,
            "\"{}...\" ({} bytes)",
            start.escape_debug(),
            self.0.len()
        )
    }
}

/// A message of the JSON reader, safe to print: it quotes what it found, whatever its length. Its end,
/// which tells the line and column, is kept.
pub(crate) fn shorten(message: &str) -> String {
    const START: usize = 160;
    const END: usize = 60;
    let escape = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let chars = message.chars().count();
    if chars <= START + END {
        return message.chars().map(escape).collect();
    }
    let start = message.chars().take(START);
    let end = message.chars().skip(chars - END);
    start.chain("...".chars()).chain(end).map(escape).collect()
}

/// The first ten names and how many more there are.
pub(crate) struct List<'a>(pub &'a [String]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, name) in self.0.iter().take(10).enumerate() {
            write!(f, "{}{}", if i == 0 { "" } else { ", " }, Name(name))?;
        }
        match self.0.len() {
            n @ 11.. => write!(f, " and {} more", n - 10),
            _ => Ok(()),
        }
    }
}

struct Found<'a>(&'a [String]);

impl fmt::Display for Found<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        write!(f, "; found only {}", List(self.0))
    }
}

struct Wanted<'a>(&'a Option<String>);

impl fmt::Display for Wanted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(v) => write!(f, "no weights of variant {}", Name(v)),
            None => f.write_str("weights of several variants and none without a suffix"),
        }
    }
}
