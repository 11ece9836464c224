//! The header: parsed strictly, every number checked before it is used.

use super::{MAX_AXES, MAX_HEADER};
use crate::DType;
use crate::error::{Name, shorten};
use crate::strict::{Object, Texts};
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Range;

/// The rule of the format that a safetensors file breaks.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderProblem {
    /// Not even the eight bytes of the header's length.
    #[error("it has {len} bytes, expected at least 8 for the length of its header")]
    TooShort {
        /// Bytes in the file.
        len: usize,
    },
    /// A header longer than the format allows.
    #[error("its first 8 bytes announce a header of {len} bytes, expected at most {MAX_HEADER}")]
    HeaderTooLong {
        /// The announced length.
        len: u64,
    },
    /// A header longer than the file.
    #[error(
        "its first 8 bytes announce a header of {announced} bytes, but only {available} follow"
    )]
    HeaderCut {
        /// The announced length.
        announced: u64,
        /// Bytes after the length.
        available: usize,
    },
    /// A header that is not UTF-8.
    #[error("its header is not UTF-8 text (byte {at})")]
    NotUtf8 {
        /// Offset of the first wrong byte in the header.
        at: usize,
    },
    /// A header that does not start with a brace.
    #[error("its header starts with {found:?}, expected '{{'")]
    NoBrace {
        /// What it starts with.
        found: Option<char>,
    },
    /// A header that is not the JSON that the format wants.
    #[error("its header is not a valid table of tensors: {message}")]
    Json {
        /// What the JSON reader says, with line and column.
        message: String,
    },
    /// Two tensors of one name.
    #[error("its header lists tensor {} twice", Name(name))]
    Repeated {
        /// The name.
        name: String,
    },
    /// A storage type that is not known.
    #[error(
        "tensor {} has the storage type {}, expected one of {}",
        Name(name),
        Name(dtype),
        known()
    )]
    DType {
        /// The tensor.
        name: String,
        /// The type in the header.
        dtype: String,
    },
    /// Sizes whose product no computer can hold.
    #[error("tensor {} has shape {shape:?}, whose size overflows", Name(name))]
    ShapeOverflow {
        /// The tensor.
        name: String,
        /// Its shape.
        shape: Vec<u64>,
    },
    /// A tensor that ends before it starts.
    #[error(
        "tensor {} lies at bytes {begin} to {end}, which is backwards",
        Name(name)
    )]
    Backwards {
        /// The tensor.
        name: String,
        /// First byte.
        begin: u64,
        /// Past the last byte.
        end: u64,
    },
    /// A byte range that is not as long as shape and type say.
    #[error(
        "tensor {} of {dtype} {shape:?} takes {expected} bytes, but the header gives it {found}",
        Name(name)
    )]
    SizeMismatch {
        /// The tensor.
        name: String,
        /// Its type.
        dtype: DType,
        /// Its shape.
        shape: Vec<usize>,
        /// Bytes that shape and type take.
        expected: usize,
        /// Bytes between the offsets.
        found: u64,
    },
    /// Tensors past the end of the file.
    #[error(
        "tensor {} ends at byte {end} of the data, but the file holds {available}",
        Name(name)
    )]
    PastEnd {
        /// The tensor that ends last.
        name: String,
        /// Where it ends.
        end: u64,
        /// Bytes after the header.
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
    /// Bytes between tensors that belong to none.
    #[error("{bytes} bytes before tensor {} belong to no tensor", Name(name))]
    Hole {
        /// The tensor after the hole.
        name: String,
        /// Its size.
        bytes: u64,
    },
    /// Bytes after the last tensor.
    #[error("{bytes} bytes after the last tensor belong to none")]
    Trailing {
        /// How many.
        bytes: u64,
    },
}

impl HeaderProblem {
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            HeaderProblem::DType { .. } => "use a file that stores its weights as F32, F16 or BF16",
            HeaderProblem::PastEnd { .. }
            | HeaderProblem::HeaderCut { .. }
            | HeaderProblem::TooShort { .. } => {
                "the file is probably cut short; download or copy it again"
            }
            HeaderProblem::HeaderTooLong { .. } | HeaderProblem::NoBrace { .. } => {
                "this is probably not a safetensors file, whatever its name says"
            }
            _ => "download the file again, or save it again with the program that made it",
        }
    }
}

fn known() -> String {
    DType::PLAIN
        .iter()
        .map(|d| d.name())
        .collect::<Vec<_>>()
        .join(", ")
}

/// One row of the table.
#[derive(Debug)]
pub(super) struct Entry {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<usize>,
    /// Bytes counted from the end of the header.
    pub range: Range<usize>,
}

#[derive(Debug)]
pub(super) struct Header {
    /// In the order of their bytes.
    pub tensors: Vec<Entry>,
    pub metadata: BTreeMap<String, String>,
    /// Where the tensors' bytes start in the file.
    pub payload_start: usize,
}

pub(super) fn parse(file: &[u8]) -> Result<Header, HeaderProblem> {
    let (text, payload_start) = header_text(file)?;
    let raw: RawHeader = serde_json::from_str(text).map_err(|e| HeaderProblem::Json {
        message: shorten(&e.to_string()),
    })?;
    let mut tensors = Vec::with_capacity(raw.tensors.len());
    for (name, info) in raw.tensors {
        tensors.push(check_entry(name, info)?);
    }
    tensors.sort_by(|a, b| (a.begin, a.end, &a.name).cmp(&(b.begin, b.end, &b.name)));
    check_layout(&tensors, file.len() - payload_start)?;
    check_names(&tensors)?;
    Ok(Header {
        tensors: tensors.into_iter().map(Checked::into_entry).collect(),
        metadata: raw.metadata,
        payload_start,
    })
}

fn header_text(file: &[u8]) -> Result<(&str, usize), HeaderProblem> {
    let (length, rest) = file
        .split_first_chunk::<8>()
        .ok_or(HeaderProblem::TooShort { len: file.len() })?;
    let announced = u64::from_le_bytes(*length);
    if announced > MAX_HEADER {
        return Err(HeaderProblem::HeaderTooLong { len: announced });
    }
    // At most MAX_HEADER, so it fits a usize.
    let len = announced as usize;
    let header = rest.get(..len).ok_or(HeaderProblem::HeaderCut {
        announced,
        available: rest.len(),
    })?;
    let text = std::str::from_utf8(header).map_err(|e| HeaderProblem::NotUtf8 {
        at: e.valid_up_to(),
    })?;
    if !text.starts_with('{') {
        return Err(HeaderProblem::NoBrace {
            found: text.chars().next(),
        });
    }
    Ok((text, 8 + len))
}

/// An entry whose size fits its shape, but whose place is not checked yet.
struct Checked {
    name: String,
    dtype: DType,
    shape: Vec<usize>,
    begin: u64,
    end: u64,
}

impl Checked {
    /// Only after [`check_layout`], which proves that both ends lie in the file.
    fn into_entry(self) -> Entry {
        let range = self.begin as usize..self.end as usize;
        Entry {
            name: self.name,
            dtype: self.dtype,
            shape: self.shape,
            range,
        }
    }
}

fn check_entry(name: String, info: RawTensor) -> Result<Checked, HeaderProblem> {
    let [begin, end] = info.data_offsets;
    let Some(dtype) = DType::from_name(&info.dtype) else {
        return Err(HeaderProblem::DType {
            name,
            dtype: info.dtype,
        });
    };
    // Zero-long axes do not excuse the others: [0, 2^63, 2^63] is refused, as the reference does.
    let mut elements = Some(1usize);
    let mut shape = Vec::with_capacity(info.shape.0.len());
    for &axis in &info.shape.0 {
        let axis = usize::try_from(axis).ok();
        elements = elements.zip(axis).and_then(|(n, d)| n.checked_mul(d));
        shape.extend(axis);
    }
    let Some(expected) = elements.and_then(|n| dtype.byte_size(n)) else {
        return Err(HeaderProblem::ShapeOverflow {
            name,
            shape: info.shape.0,
        });
    };
    let Some(found) = end.checked_sub(begin) else {
        return Err(HeaderProblem::Backwards { name, begin, end });
    };
    if found != expected as u64 {
        return Err(HeaderProblem::SizeMismatch {
            name,
            dtype,
            shape,
            expected,
            found,
        });
    }
    Ok(Checked {
        name,
        dtype,
        shape,
        begin,
        end,
    })
}

/// Sorted by place, the tensors must follow each other without a gap and end with the file.
fn check_layout(tensors: &[Checked], available: usize) -> Result<(), HeaderProblem> {
    if let Some(last) = tensors.iter().max_by_key(|t| t.end)
        && last.end > available as u64
    {
        return Err(HeaderProblem::PastEnd {
            name: last.name.clone(),
            end: last.end,
            available,
        });
    }
    let mut at = 0;
    for (i, t) in tensors.iter().enumerate() {
        if t.begin > at {
            return Err(HeaderProblem::Hole {
                name: t.name.clone(),
                bytes: t.begin - at,
            });
        }
        if t.begin < at {
            // `at` is past zero, so there is a tensor before this one.
            let first = tensors[i - 1].name.clone();
            return Err(match first == t.name {
                true => HeaderProblem::Repeated { name: first },
                false => HeaderProblem::Overlap {
                    first,
                    second: t.name.clone(),
                },
            });
        }
        at = t.end;
    }
    match available as u64 - at {
        0 => Ok(()),
        bytes => Err(HeaderProblem::Trailing { bytes }),
    }
}

fn check_names(tensors: &[Checked]) -> Result<(), HeaderProblem> {
    let mut seen = HashMap::with_capacity(tensors.len());
    for t in tensors {
        if seen.insert(t.name.as_str(), ()).is_some() {
            return Err(HeaderProblem::Repeated {
                name: t.name.clone(),
            });
        }
    }
    Ok(())
}

/// The JSON as it stands: every tensor in order, repeated names included.
#[derive(Default)]
struct RawHeader {
    tensors: Vec<(String, RawTensor)>,
    metadata: BTreeMap<String, String>,
}

#[derive(serde::Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Axes,
    data_offsets: [u64; 2],
}

impl<'de> de::Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RawHeader, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut header = RawHeader::default();
        let mut metadata = None;
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                let table = map
                    .next_value::<Option<Texts>>()
                    .map_err(|e| de::Error::custom(format_args!("__metadata__: {e}")))?;
                if metadata.replace(table).is_some() {
                    return Err(de::Error::custom("__metadata__ is there twice"));
                }
            } else {
                let info = map
                    .next_value::<Object<RawTensor>>()
                    .map_err(|e| de::Error::custom(format_args!("tensor {}: {e}", Name(&name))))?;
                header.tensors.push((name, info.0));
            }
        }
        header.metadata = metadata.flatten().map(|t| t.0).unwrap_or_default();
        Ok(header)
    }
}

/// A shape of at most [`MAX_AXES`] axes, so that a hostile header cannot fill the memory with one.
struct Axes(Vec<u64>);

impl<'de> de::Deserialize<'de> for Axes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Axes, D::Error> {
        deserializer.deserialize_seq(AxesVisitor)
    }
}

struct AxesVisitor;

impl<'de> Visitor<'de> for AxesVisitor {
    type Value = Axes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a shape of at most {MAX_AXES} whole numbers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Axes, A::Error> {
        let mut axes = Vec::new();
        while let Some(axis) = seq.next_element::<u64>()? {
            if axes.len() == MAX_AXES {
                return Err(de::Error::custom(format_args!("more than {MAX_AXES} axes")));
            }
            axes.push(axis);
        }
        Ok(Axes(axes))
    }
}
