//! The zip format of checkpoints: a central directory at the end, and entries that almost always are stored as they
//! are. Checksums are not looked at, since that would read every byte of the file.

use super::Problem;
use super::machine::{Storage, run};
use super::tensors::{Storages, collect};
use crate::{DType, TensorView};
use bytes::Bytes;
use flate2::read::DeflateDecoder;
use std::collections::HashMap;
use std::io::Read;

/// The longest pickle: descriptions of tensors, and what trainers note.
const LONGEST: u64 = 256 << 20;
/// The most entries of an archive.
const MOST: u64 = 1 << 20;

/// One entry of the central directory.
#[derive(Clone, Debug)]
struct Entry {
    method: u16,
    encrypted: bool,
    packed: u64,
    size: u64,
    /// Where its local header is.
    header: u64,
}

struct Archive<'a> {
    bytes: &'a Bytes,
    entries: HashMap<String, Entry>,
    /// What all names start with: the name that the file had when it was saved.
    prefix: String,
    /// Bytes that unpacking may still take.
    budget: u64,
    /// Storages that several tensors share, and that are packed.
    unpacked: HashMap<String, Bytes>,
}

pub(super) fn tensors(bytes: &Bytes) -> Result<Vec<TensorView>, Problem> {
    let entries = directory(bytes)?;
    let pickle = entries.keys().find(|name| {
        let end = name.strip_suffix("data.pkl");
        end.is_some_and(|head| {
            head.is_empty() || head.ends_with('/') && head.matches('/').count() == 1
        })
    });
    let Some(pickle) = pickle.cloned() else {
        return Err(damaged("it holds no data.pkl"));
    };
    let prefix = pickle[..pickle.len() - "data.pkl".len()].to_string();
    let mut archive = Archive {
        bytes,
        entries,
        prefix,
        budget: (bytes.len() as u64)
            .saturating_mul(64)
            .saturating_add(64 << 20),
        unpacked: HashMap::new(),
    };
    let order = format!("{}byteorder", archive.prefix);
    if archive.entries.contains_key(&order) && archive.entry(&order)?[..] == *b"big" {
        return Err(Problem::BigEndian);
    }
    let len = archive.entries.get(&pickle).map_or(0, |e| e.size);
    if len > LONGEST {
        return Err(Problem::Long { len, most: LONGEST });
    }
    let program = archive.entry(&pickle)?;
    let objects = run(&program, 0)?;
    collect(&objects, &mut archive)
}

fn damaged(what: impl Into<String>) -> Problem {
    Problem::Zip { what: what.into() }
}

/// Numbers out of bytes, or that they are not there.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn number(&self, at: usize, len: usize) -> Result<u64, Problem> {
        let bytes = at.checked_add(len).and_then(|end| self.0.get(at..end));
        let bytes = bytes.ok_or_else(|| damaged("it is cut short"))?;
        Ok(bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
    }
}

/// The table of entries: from the end of the file to the central directory, then along it.
fn directory(bytes: &[u8]) -> Result<HashMap<String, Entry>, Problem> {
    const END: &[u8] = b"PK\x05\x06";
    let tail = bytes.len().saturating_sub(22 + 65_535);
    let found = bytes[tail..].windows(4).rposition(|w| w == END);
    let end = tail + found.ok_or_else(|| damaged("its end is missing"))?;
    let file = Fields(bytes);
    // The length of the archive's note ends the record.
    file.number(end + 20, 2)?;
    let (mut count, mut at) = (file.number(end + 10, 2)?, file.number(end + 16, 4)?);
    let is_64 = end >= 20 && bytes[end - 20..].starts_with(b"PK\x06\x07");
    if is_64 {
        let place = file.number(end - 20 + 8, 8)?;
        let place = usize::try_from(place).map_err(|_| damaged("it is cut short"))?;
        if file.number(place, 4)? != 0x0606_4b50 {
            return Err(damaged("its large end is missing"));
        }
        let count_at = place.saturating_add(32);
        (count, at) = (
            file.number(count_at, 8)?,
            file.number(place.saturating_add(48), 8)?,
        );
    }
    if count > MOST.min(bytes.len() as u64 / 46) {
        return Err(damaged(format!("it announces {count} entries")));
    }
    let mut at = usize::try_from(at).map_err(|_| damaged("it is cut short"))?;
    let mut entries = HashMap::new();
    for _ in 0..count {
        let (name, entry, next) = central(&file, bytes, at)?;
        if entries.insert(name, entry).is_some() {
            return Err(damaged("it holds a name twice"));
        }
        at = next;
    }
    Ok(entries)
}

/// A row of the central directory, and where the next one is.
fn central(file: &Fields<'_>, bytes: &[u8], at: usize) -> Result<(String, Entry, usize), Problem> {
    if file.number(at, 4)? != 0x0201_4b50 {
        return Err(damaged("a row of its directory is missing"));
    }
    let lens = [28, 30, 32].map(|place| file.number(at + place, 2));
    let [name_len, extra_len, note_len] = lens;
    let (name_len, extra_len, note_len) =
        (name_len? as usize, extra_len? as usize, note_len? as usize);
    let name = bytes.get(at + 46..at + 46 + name_len);
    let name = name.ok_or_else(|| damaged("it is cut short"))?;
    let name = std::str::from_utf8(name).map_err(|_| damaged("a name that is not UTF-8"))?;
    let mut entry = Entry {
        method: file.number(at + 10, 2)? as u16,
        encrypted: file.number(at + 8, 2)? & 1 != 0,
        packed: file.number(at + 20, 4)?,
        size: file.number(at + 24, 4)?,
        header: file.number(at + 42, 4)?,
    };
    let extra = at + 46 + name_len;
    large(file, extra, extra + extra_len, &mut entry)?;
    Ok((name.into(), entry, extra + extra_len + note_len))
}

/// Numbers that did not fit in 32 bits stand in a field of their own, in a fixed order.
fn large(file: &Fields<'_>, from: usize, end: usize, entry: &mut Entry) -> Result<(), Problem> {
    let mut at = from;
    while at + 4 <= end {
        let (kind, len) = (file.number(at, 2)?, file.number(at + 2, 2)? as usize);
        let mut place = at + 4;
        if kind == 1 {
            for value in [&mut entry.size, &mut entry.packed, &mut entry.header] {
                if *value == u64::from(u32::MAX) && place + 8 <= at + 4 + len {
                    *value = file.number(place, 8)?;
                    place += 8;
                }
            }
        }
        at += 4 + len;
    }
    Ok(())
}

impl Archive<'_> {
    /// An entry's bytes: a view where it is stored as it is, unpacked where it is packed.
    fn entry(&mut self, name: &str) -> Result<Bytes, Problem> {
        let entry = self.entries.get(name).cloned();
        let entry = entry.ok_or_else(|| damaged("an entry is missing"))?;
        let cut = || damaged("an entry reaches past the end of the file");
        let file = Fields(self.bytes);
        let header = usize::try_from(entry.header).map_err(|_| cut())?;
        if file.number(header, 4)? != 0x0403_4b50 {
            return Err(damaged("an entry's head is missing"));
        }
        let name_len = file.number(header.saturating_add(26), 2)? as usize;
        let extra_len = file.number(header.saturating_add(28), 2)? as usize;
        let begin = header + 30 + name_len + extra_len;
        let end = usize::try_from(entry.packed)
            .ok()
            .and_then(|len| begin.checked_add(len))
            .filter(|end| *end <= self.bytes.len())
            .ok_or_else(cut)?;
        if entry.encrypted {
            return Err(damaged("an entry is encrypted"));
        }
        match entry.method {
            0 if entry.packed == entry.size => Ok(self.bytes.slice(begin..end)),
            8 => {
                let most = self.budget;
                let left = most.checked_sub(entry.size);
                self.budget = left.ok_or(Problem::Memory { most })?;
                unpack(&self.bytes[begin..end], entry.size)
            }
            _ => Err(damaged("an entry is packed in a way that is not read")),
        }
    }
}

fn unpack(packed: &[u8], size: u64) -> Result<Bytes, Problem> {
    let mut out = Vec::new();
    // One byte more, to see whether there is more than announced.
    let read = DeflateDecoder::new(packed)
        .take(size.saturating_add(1))
        .read_to_end(&mut out);
    match read {
        Ok(n) if n as u64 == size => Ok(out.into()),
        _ => Err(damaged("a packed entry is not what it announces")),
    }
}

impl Storages for Archive<'_> {
    fn bytes(&mut self, tensor: &str, storage: &Storage) -> Result<Bytes, Problem> {
        let name = format!("{}data/{}", self.prefix, storage.key);
        if !self.entries.contains_key(&name) {
            return Err(Problem::NoStorage {
                name: tensor.into(),
                storage: storage.key.clone(),
            });
        }
        let bytes = match self.unpacked.get(&name) {
            Some(bytes) => bytes.clone(),
            None => self.entry(&name)?,
        };
        if self.entries.get(&name).is_some_and(|e| e.method != 0) {
            self.unpacked.insert(name, bytes.clone());
        }
        let size = storage.class.unwrap_or(DType::U8).block_bytes() as u64;
        let expected = storage.len.saturating_mul(size);
        if bytes.len() as u64 != expected {
            return Err(Problem::StorageSize {
                storage: storage.key.clone(),
                found: bytes.len() as u64,
                expected,
            });
        }
        Ok(bytes)
    }

    fn file_len(&self) -> u64 {
        self.bytes.len() as u64
    }
}
