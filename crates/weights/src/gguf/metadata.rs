//! Typed metadata of a GGUF file.

use super::cursor::Cursor;
use super::{MAX_HEADER, Problem};
use std::collections::BTreeMap;
use std::fmt;

/// The longest key that the format allows.
pub(super) const LONGEST_KEY: u64 = 65_535;

/// How deep arrays may lie in arrays. GGML itself reads none in another.
const DEEPEST: usize = 4;

/// Keys and values, sorted by key.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata(BTreeMap<String, Value>);

/// One value.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// Values of one kind.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<String>),
    Array(Vec<Array>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

impl Metadata {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// All of them, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// Sets the value of a key.
    pub fn insert(&mut self, key: impl Into<String>, value: Value) {
        self.0.insert(key.into(), value);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Every value as a short text, for people.
    pub(super) fn as_text(&self) -> BTreeMap<String, String> {
        self.0
            .iter()
            .map(|(k, v)| (k.clone(), v.to_string()))
            .collect()
    }

    pub(super) fn read(cursor: &mut Cursor<'_>, pairs: u64) -> Result<Metadata, Problem> {
        let mut metadata = Metadata::default();
        for i in 0..pairs {
            cursor.what = super::cursor::What::Pair(i);
            let key = cursor.text(LONGEST_KEY)?;
            let value = Value::read(cursor, key)?;
            if metadata.0.insert(key.into(), value).is_some() {
                return Err(Problem::RepeatedKey { key: key.into() });
            }
            if cursor.at() > MAX_HEADER {
                return Err(Problem::HeaderTooLong);
            }
        }
        Ok(metadata)
    }
}

impl FromIterator<(String, Value)> for Metadata {
    fn from_iter<I: IntoIterator<Item = (String, Value)>>(pairs: I) -> Metadata {
        Metadata(pairs.into_iter().collect())
    }
}

impl Value {
    /// The text, of a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(s) => Some(s),
            _ => None,
        }
    }

    /// The number, of any whole number that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::U8(n) => Some(n.into()),
            Value::U16(n) => Some(n.into()),
            Value::U32(n) => Some(n.into()),
            Value::U64(n) => Some(n),
            Value::I8(n) => n.try_into().ok(),
            Value::I16(n) => n.try_into().ok(),
            Value::I32(n) => n.try_into().ok(),
            Value::I64(n) => n.try_into().ok(),
            _ => None,
        }
    }

    /// The number, of a float or a whole number.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Value::F32(x) => Some(x.into()),
            Value::F64(x) => Some(x),
            Value::I64(n) => Some(n as f64),
            Value::I32(n) => Some(n.into()),
            _ => self.as_u64().map(|n| n as f64),
        }
    }

    /// The truth value.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Value::Bool(b) => Some(b),
            _ => None,
        }
    }

    /// The strings, of an array of strings such as `tokenizer.ggml.tokens`.
    pub fn as_strings(&self) -> Option<&[String]> {
        match self {
            Value::Array(Array::String(s)) => Some(s),
            _ => None,
        }
    }

    /// The numbers, of an array of f32 such as `tokenizer.ggml.scores`.
    pub fn as_f32s(&self) -> Option<&[f32]> {
        match self {
            Value::Array(Array::F32(x)) => Some(x),
            _ => None,
        }
    }

    /// The numbers, of an array of whole numbers such as `tokenizer.ggml.token_type`.
    pub fn as_i64s(&self) -> Option<Vec<i64>> {
        let Value::Array(array) = self else {
            return None;
        };
        match array {
            Array::U8(n) => Some(n.iter().map(|n| i64::from(*n)).collect()),
            Array::I8(n) => Some(n.iter().map(|n| i64::from(*n)).collect()),
            Array::U16(n) => Some(n.iter().map(|n| i64::from(*n)).collect()),
            Array::I16(n) => Some(n.iter().map(|n| i64::from(*n)).collect()),
            Array::U32(n) => Some(n.iter().map(|n| i64::from(*n)).collect()),
            Array::I32(n) => Some(n.iter().map(|n| i64::from(*n)).collect()),
            Array::I64(n) => Some(n.clone()),
            Array::U64(n) => n.iter().map(|n| i64::try_from(*n).ok()).collect(),
            _ => None,
        }
    }

    fn read(cursor: &mut Cursor<'_>, key: &str) -> Result<Value, Problem> {
        Ok(match cursor.u32()? {
            0 => Value::U8(cursor.u8()?),
            1 => Value::I8(cursor.u8()?.cast_signed()),
            2 => Value::U16(cursor.u16()?),
            3 => Value::I16(cursor.u16()?.cast_signed()),
            4 => Value::U32(cursor.u32()?),
            5 => Value::I32(cursor.u32()?.cast_signed()),
            6 => Value::F32(f32::from_bits(cursor.u32()?)),
            7 => Value::Bool(truth(cursor.u8()?, key)?),
            8 => Value::String(cursor.text(MAX_HEADER as u64)?.into()),
            9 => Value::Array(Array::read(cursor, key, 1)?),
            10 => Value::U64(cursor.u64()?),
            11 => Value::I64(cursor.u64()?.cast_signed()),
            12 => Value::F64(f64::from_bits(cursor.u64()?)),
            kind => {
                return Err(Problem::ValueKind {
                    key: key.into(),
                    kind,
                });
            }
        })
    }

    /// Kind and value as the file has them.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let (kind, bytes): (u32, Vec<u8>) = match self {
            Value::U8(n) => (0, n.to_le_bytes().into()),
            Value::I8(n) => (1, n.to_le_bytes().into()),
            Value::U16(n) => (2, n.to_le_bytes().into()),
            Value::I16(n) => (3, n.to_le_bytes().into()),
            Value::U32(n) => (4, n.to_le_bytes().into()),
            Value::I32(n) => (5, n.to_le_bytes().into()),
            Value::F32(x) => (6, x.to_le_bytes().into()),
            Value::Bool(b) => (7, vec![u8::from(*b)]),
            Value::String(s) => (8, text(s)),
            Value::Array(a) => (9, a.bytes()),
            Value::U64(n) => (10, n.to_le_bytes().into()),
            Value::I64(n) => (11, n.to_le_bytes().into()),
            Value::F64(x) => (12, x.to_le_bytes().into()),
        };
        out.extend(kind.to_le_bytes());
        out.extend(bytes);
    }
}

/// A text with its length before it.
pub(super) fn text(s: &str) -> Vec<u8> {
    let mut out = (s.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(s.as_bytes());
    out
}

fn truth(found: u8, key: &str) -> Result<bool, Problem> {
    match found {
        0 | 1 => Ok(found == 1),
        _ => Err(Problem::Bool {
            key: key.into(),
            found,
        }),
    }
}

impl Array {
    /// How many values there are.
    pub fn len(&self) -> usize {
        self.facts().1
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the values are, how many, and the kind's number.
    fn facts(&self) -> (&'static str, usize, u32) {
        match self {
            Array::U8(v) => ("u8", v.len(), 0),
            Array::I8(v) => ("i8", v.len(), 1),
            Array::U16(v) => ("u16", v.len(), 2),
            Array::I16(v) => ("i16", v.len(), 3),
            Array::U32(v) => ("u32", v.len(), 4),
            Array::I32(v) => ("i32", v.len(), 5),
            Array::F32(v) => ("f32", v.len(), 6),
            Array::Bool(v) => ("bool", v.len(), 7),
            Array::String(v) => ("string", v.len(), 8),
            Array::Array(v) => ("array", v.len(), 9),
            Array::U64(v) => ("u64", v.len(), 10),
            Array::I64(v) => ("i64", v.len(), 11),
            Array::F64(v) => ("f64", v.len(), 12),
        }
    }

    fn read(cursor: &mut Cursor<'_>, key: &str, depth: usize) -> Result<Array, Problem> {
        if depth > DEEPEST {
            return Err(Problem::Nested {
                key: key.into(),
                deepest: DEEPEST,
            });
        }
        /// `count` values of `size` bytes each, whose bytes are all there.
        fn plain<const N: usize, T>(
            cursor: &mut Cursor<'_>,
            one: impl Fn([u8; N]) -> T,
        ) -> Result<Vec<T>, Problem> {
            let count = cursor.count(N)?;
            let (values, _) = cursor.take(count * N)?.as_chunks::<N>();
            Ok(values.iter().copied().map(one).collect())
        }
        Ok(match cursor.u32()? {
            0 => Array::U8(plain(cursor, u8::from_le_bytes)?),
            1 => Array::I8(plain(cursor, i8::from_le_bytes)?),
            2 => Array::U16(plain(cursor, u16::from_le_bytes)?),
            3 => Array::I16(plain(cursor, i16::from_le_bytes)?),
            4 => Array::U32(plain(cursor, u32::from_le_bytes)?),
            5 => Array::I32(plain(cursor, i32::from_le_bytes)?),
            6 => Array::F32(plain(cursor, f32::from_le_bytes)?),
            7 => {
                let bytes = plain(cursor, |[b]| b)?;
                Array::Bool(
                    bytes
                        .into_iter()
                        .map(|b| truth(b, key))
                        .collect::<Result<_, _>>()?,
                )
            }
            8 => {
                let count = cursor.count(8)?;
                let mut texts = Vec::with_capacity(count.min(1 << 20));
                for _ in 0..count {
                    texts.push(cursor.text(MAX_HEADER as u64)?.into());
                }
                Array::String(texts)
            }
            9 => {
                let count = cursor.count(12)?;
                let mut arrays = Vec::new();
                for _ in 0..count {
                    arrays.push(Array::read(cursor, key, depth + 1)?);
                }
                Array::Array(arrays)
            }
            10 => Array::U64(plain(cursor, u64::from_le_bytes)?),
            11 => Array::I64(plain(cursor, i64::from_le_bytes)?),
            12 => Array::F64(plain(cursor, f64::from_le_bytes)?),
            kind => {
                return Err(Problem::ValueKind {
                    key: key.into(),
                    kind,
                });
            }
        })
    }

    fn bytes(&self) -> Vec<u8> {
        let (_, len, kind) = self.facts();
        let mut out = kind.to_le_bytes().to_vec();
        out.extend((len as u64).to_le_bytes());
        match self {
            Array::U8(v) => out.extend(v),
            Array::I8(v) => out.extend(v.iter().flat_map(|n| n.to_le_bytes())),
            Array::U16(v) => out.extend(v.iter().flat_map(|n| n.to_le_bytes())),
            Array::I16(v) => out.extend(v.iter().flat_map(|n| n.to_le_bytes())),
            Array::U32(v) => out.extend(v.iter().flat_map(|n| n.to_le_bytes())),
            Array::I32(v) => out.extend(v.iter().flat_map(|n| n.to_le_bytes())),
            Array::F32(v) => out.extend(v.iter().flat_map(|n| n.to_le_bytes())),
            Array::Bool(v) => out.extend(v.iter().map(|b| u8::from(*b))),
            Array::String(v) => out.extend(v.iter().flat_map(|s| text(s))),
            Array::Array(v) => out.extend(v.iter().flat_map(Array::bytes)),
            Array::U64(v) => out.extend(v.iter().flat_map(|n| n.to_le_bytes())),
            Array::I64(v) => out.extend(v.iter().flat_map(|n| n.to_le_bytes())),
            Array::F64(v) => out.extend(v.iter().flat_map(|n| n.to_le_bytes())),
        }
        out
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LONGEST: usize = 400;
        match self {
            Value::U8(n) => write!(f, "{n}"),
            Value::I8(n) => write!(f, "{n}"),
            Value::U16(n) => write!(f, "{n}"),
            Value::I16(n) => write!(f, "{n}"),
            Value::U32(n) => write!(f, "{n}"),
            Value::I32(n) => write!(f, "{n}"),
            Value::F32(x) => write!(f, "{x}"),
            Value::Bool(b) => write!(f, "{b}"),
            Value::U64(n) => write!(f, "{n}"),
            Value::I64(n) => write!(f, "{n}"),
            Value::F64(x) => write!(f, "{x}"),
            Value::Array(a) => write!(f, "{a}"),
            Value::String(s) => match s.char_indices().nth(LONGEST) {
                None => f.write_str(s),
                Some((at, _)) => write!(f, "{}... ({} bytes)", &s[..at], s.len()),
            },
        }
    }
}

impl fmt::Display for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, len, _) = self.facts();
        let few = Value::Array(self.clone_few());
        match few.as_i64s() {
            Some(numbers) if len <= 8 => write!(f, "{numbers:?}"),
            _ => write!(f, "{len} of {kind}"),
        }
    }
}

impl Array {
    /// Itself when it is short, else nothing of it.
    fn clone_few(&self) -> Array {
        match self.len() <= 8 {
            true => self.clone(),
            false => Array::U8(Vec::new()),
        }
    }
}
