//! The table of file formats, those that are only recognised included.

use crate::{Error, WeightFile, gguf, pickle, safetensors};
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

const CONVERT: &str =
    "this version reads safetensors, GGUF and PyTorch files; convert it to one of them first";
const NOT_WEIGHTS: &str = "give a .safetensors file or a model folder as diffusers saves it";
const PICTURE: &str = "give a weight file; `aquatint inspect` shows the parameters stored in a PNG";

const fn refused(
    name: &'static str,
    what: &'static str,
    extensions: &'static [&'static str],
    matches: fn(&[u8]) -> bool,
    hint: &'static str,
) -> Format {
    Format {
        name,
        what,
        extensions,
        matches,
        opener: Opener::Refuse(hint),
    }
}

/// Every format that is known, by content; the first row that matches wins. Safetensors comes first
/// because its first bytes are a number, which can look like any short magic.
pub static FORMATS: &[Format] = &[
    Format {
        name: "safetensors",
        what: "a safetensors file",
        extensions: &["safetensors"],
        matches: |b| b.len() > 8 && b[8] == b'{' && b[4..8] == [0; 4],
        opener: Opener::Read(safetensors::read),
    },
    Format {
        name: "gguf",
        what: "a GGUF file",
        extensions: &["gguf"],
        matches: |b| b.starts_with(b"GGUF"),
        opener: Opener::Read(gguf::read),
    },
    refused(
        "ggml",
        "a GGML file of before GGUF",
        &["ggml", "bin"],
        is_ggml,
        CONVERT,
    ),
    Format {
        name: "pickle",
        what: "a PyTorch checkpoint (pickle in a zip archive)",
        extensions: PICKLE,
        matches: is_torch_zip,
        opener: Opener::Read(pickle::read_zip),
    },
    Format {
        name: "pickle-legacy",
        what: "a PyTorch checkpoint (pickle)",
        extensions: PICKLE,
        matches: is_pickle,
        opener: Opener::Read(pickle::read_legacy),
    },
    refused(
        "npz",
        "a NumPy archive",
        &["npz"],
        |b| is_zip(b) && head_holds(b, b".npy"),
        CONVERT,
    ),
    refused(
        "zip",
        "a zip archive",
        &["zip"],
        is_zip,
        "unpack it and give the weight file in it",
    ),
    refused(
        "npy",
        "a NumPy array",
        &["npy"],
        |b| b.starts_with(b"\x93NUMPY"),
        CONVERT,
    ),
    refused(
        "hdf5",
        "an HDF5 file",
        &["h5"],
        |b| b.starts_with(b"\x89HDF\r\n\x1a\n"),
        CONVERT,
    ),
    refused(
        "gzip",
        "a gzip archive",
        &["gz", "tgz"],
        |b| b.starts_with(b"\x1f\x8b"),
        "unpack it first",
    ),
    refused(
        "tar",
        "a tar archive",
        &["tar"],
        |b| b.get(257..262) == Some(b"ustar"),
        "unpack it first",
    ),
    refused(
        "png",
        "a PNG picture",
        &["png"],
        |b| b.starts_with(b"\x89PNG\r\n\x1a\n"),
        PICTURE,
    ),
    refused(
        "jpeg",
        "a JPEG picture",
        &["jpg", "jpeg"],
        |b| b.starts_with(b"\xff\xd8\xff"),
        PICTURE,
    ),
    refused(
        "webp",
        "a WebP picture",
        &["webp"],
        |b| b.starts_with(b"RIFF") && b.get(8..12) == Some(b"WEBP"),
        PICTURE,
    ),
    refused(
        "lfs-pointer",
        "a git-lfs pointer, not the file itself",
        &[],
        |b| b.starts_with(b"version https://git-lfs"),
        "run `git lfs pull` in that folder to fetch the real file",
    ),
    refused(
        "html",
        "a web page",
        &["html", "htm"],
        is_html,
        "the download gave a page instead of the file, perhaps because it asks for a login",
    ),
    refused(
        "json",
        "a JSON file",
        &["json"],
        is_json,
        "give the model folder that holds it",
    ),
    refused("text", "a text file", &["txt", "md"], is_text, NOT_WEIGHTS),
];

const PICKLE: &[&str] = &["ckpt", "pt", "pth", "bin"];

/// Opens a whole file's bytes by what they are; what nothing recognises but is called `.safetensors` is
/// read as such, for the message about its header.
pub(crate) fn open(path: &Path, bytes: Bytes) -> Result<WeightFile, Error> {
    if bytes.is_empty() {
        return Err(Error::Empty { path: path.into() });
    }
    let extension = path.extension().and_then(|e| e.to_str());
    let is_named = |f: &&Format| {
        f.name == "safetensors" && extension.is_some_and(|e| e.eq_ignore_ascii_case(f.name))
    };
    let by_content = FORMATS.iter().find(|f| (f.matches)(&bytes));
    match by_content.or_else(|| FORMATS.iter().find(is_named)) {
        Some(Format {
            opener: Opener::Read(read),
            ..
        }) => read(path, bytes),
        Some(Format {
            opener: Opener::Refuse(hint),
            what,
            ..
        }) => Err(Error::Format {
            path: path.into(),
            found: what,
            hint,
        }),
        None => Err(Error::Format {
            path: path.into(),
            found: "of no known format",
            hint: NOT_WEIGHTS,
        }),
    }
}

fn is_zip(b: &[u8]) -> bool {
    b.starts_with(b"PK\x03\x04")
}

fn is_torch_zip(b: &[u8]) -> bool {
    is_zip(b) && (head_holds(b, b"data.pkl") || head_holds(b, b".format_version"))
}

/// The opcode PROTO with a protocol that PyTorch has used, and an opcode after it.
fn is_pickle(b: &[u8]) -> bool {
    matches!(b, [0x80, 2..=5, opcode, ..] if *opcode != 0)
}

/// The magic numbers of GGML's first three formats, as they lie in a little-endian file.
fn is_ggml(b: &[u8]) -> bool {
    [b"lmgg", b"fmgg", b"tjgg"]
        .iter()
        .any(|m| b.starts_with(*m))
}

fn head_holds(b: &[u8], what: &[u8]) -> bool {
    b[..b.len().min(1024)]
        .windows(what.len())
        .any(|w| w == what)
}

/// The start of a text, or `None` where it is none: not UTF-8, or with control characters.
fn text(b: &[u8]) -> Option<&str> {
    let head = &b[..b.len().min(4096)];
    let text = match std::str::from_utf8(head) {
        Ok(t) => t,
        // A character that the cut at 4096 bytes went through.
        Err(e) if e.error_len().is_none() && head.len() < b.len() => {
            std::str::from_utf8(&head[..e.valid_up_to()]).ok()?
        }
        Err(_) => return None,
    };
    let is_control = |c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r' | '\x0c' | '\x1b');
    (!text.contains(is_control)).then(|| text.trim_start_matches('\u{feff}').trim_start())
}

fn is_html(b: &[u8]) -> bool {
    let starts = |t: &str, tag: &str| {
        t.get(..tag.len())
            .is_some_and(|s| s.eq_ignore_ascii_case(tag))
    };
    text(b).is_some_and(|t| starts(t, "<!doctype html") || starts(t, "<html"))
}

fn is_json(b: &[u8]) -> bool {
    text(b).is_some_and(|t| t.starts_with(['{', '[']))
}

fn is_text(b: &[u8]) -> bool {
    text(b).is_some()
}
