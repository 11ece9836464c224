//! Reading numbers and texts one after another, never past the end.

use super::{MAX_HEADER, Problem};

pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    /// What is being read, for messages.
    pub what: What,
}

/// The part of the file that a number or text belongs to.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum What {
    Start,
    /// The metadata pair of that place in the list.
    Pair(u64),
    /// The row of the table of tensors.
    Tensor(u64),
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Cursor {
            bytes,
            at: 0,
            what: What::Start,
        }
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], Problem> {
        let taken = self
            .bytes
            .get(self.at..)
            .and_then(|rest| rest.get(..len))
            .ok_or_else(|| self.cut())?;
        self.at += len;
        Ok(taken)
    }

    pub(super) fn cut(&self) -> Problem {
        Problem::Cut {
            place: self.place(),
            len: self.bytes.len(),
        }
    }

    /// The place in the file in words.
    pub(super) fn place(&self) -> String {
        match self.what {
            What::Start => "its first 24 bytes".into(),
            What::Pair(i) => format!("metadata pair {i}"),
            What::Tensor(i) => format!("row {i} of its table of tensors"),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Problem> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Problem> {
        self.array().map(u8::from_le_bytes)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Problem> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Problem> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Problem> {
        self.array().map(u64::from_le_bytes)
    }

    /// A length and as many bytes of UTF-8.
    pub(super) fn text(&mut self, longest: u64) -> Result<&'a str, Problem> {
        let len = self.u64()?;
        if len > longest {
            return Err(Problem::LongText {
                place: self.place(),
                len,
                longest,
            });
        }
        let bytes = self.take(usize::try_from(len).map_err(|_| self.cut())?)?;
        std::str::from_utf8(bytes).map_err(|_| Problem::NotUtf8 {
            place: self.place(),
        })
    }

    /// A count of things that take at least `least` bytes each: refused when they cannot all be there.
    pub(super) fn count(&mut self, least: usize) -> Result<usize, Problem> {
        let count = self.u64()?;
        let most = self.left() / least.max(1);
        match usize::try_from(count) {
            Ok(n) if n <= most && n > MAX_HEADER / least.max(1) => Err(Problem::HeaderTooLong),
            Ok(n) if n <= most => Ok(n),
            _ => Err(Problem::Count {
                place: self.place(),
                count,
                left: self.left(),
            }),
        }
    }
}
