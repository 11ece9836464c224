//! The older format: pickles of a magic number, a version, facts of the machine, the objects and the list of
//! storages, then each storage with its length before it.

use super::machine::{Node, Storage, run};
use super::tensors::{Storages, collect};
use super::{Problem, machine::Objects};
use crate::{DType, TensorView};
use bytes::Bytes;
use std::collections::HashMap;
use std::ops::Range;

/// 0x1950a86a20f9469cfc6c, little-endian.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const VERSION: i64 = 1001;

pub(super) fn tensors(bytes: &Bytes) -> Result<Vec<TensorView>, Problem> {
    let magic = run(bytes, 0)?;
    if magic.get(magic.root) != &Node::Long(MAGIC.to_vec()) {
        return Err(Problem::NotTorch);
    }
    let version = run(bytes, magic.end)?;
    if version.get(version.root) != &Node::Int(VERSION) {
        return Err(Problem::NotTorch);
    }
    let system = run(bytes, version.end)?;
    if is_big_endian(&system) {
        return Err(Problem::BigEndian);
    }
    let objects = run(bytes, system.end)?;
    let keys = run(bytes, objects.end)?;
    let mut storages = Raw {
        bytes,
        places: places(bytes, &objects, &keys)?,
    };
    collect(&objects, &mut storages)
}

fn is_big_endian(system: &Objects) -> bool {
    let Node::Dict(pairs) = system.get(system.root) else {
        return false;
    };
    let little = |(key, _): &&(usize, usize)| system.text(*key) == Some("little_endian");
    let value = pairs
        .iter()
        .find(little)
        .map(|(_, value)| system.get(*value));
    value == Some(&Node::Bool(false))
}

/// Where each storage lies.
fn places(
    bytes: &Bytes,
    objects: &Objects,
    keys: &Objects,
) -> Result<HashMap<String, Range<usize>>, Problem> {
    let sizes: HashMap<&str, usize> = objects
        .nodes
        .iter()
        .filter_map(|node| match node {
            Node::Storage(s) => Some((&*s.key, s.class.unwrap_or(DType::U8).block_bytes())),
            _ => None,
        })
        .collect();
    let Node::List(order) = keys.get(keys.root) else {
        return Err(Problem::NotTorch);
    };
    let mut at = keys.end;
    let mut places = HashMap::new();
    for id in order {
        let key = match keys.get(*id) {
            Node::Text(key) => key.clone(),
            Node::Int(key) => key.to_string(),
            _ => return Err(Problem::NotTorch),
        };
        let cut = Problem::Cut { at: bytes.len() };
        let size = *sizes.get(&*key).ok_or(Problem::NotTorch)?;
        let head = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>());
        let count = head.map(|head| u64::from_le_bytes(*head));
        let begin = at + 8;
        let end = count
            .and_then(|n| usize::try_from(n).ok())
            .and_then(|n| n.checked_mul(size))
            .and_then(|len| begin.checked_add(len))
            .filter(|end| *end <= bytes.len());
        let end = end.ok_or(cut)?;
        places.insert(key, begin..end);
        at = end;
    }
    Ok(places)
}

struct Raw<'a> {
    bytes: &'a Bytes,
    places: HashMap<String, Range<usize>>,
}

impl Storages for Raw<'_> {
    fn bytes(&mut self, tensor: &str, storage: &Storage) -> Result<Bytes, Problem> {
        let place = self.places.get(&storage.key);
        let place = place.cloned().ok_or_else(|| Problem::NoStorage {
            name: tensor.into(),
            storage: storage.key.clone(),
        })?;
        let whole = self.bytes.slice(place);
        let size = storage.class.unwrap_or(DType::U8).block_bytes() as u64;
        let wrong = |found: u64, expected: u64| Problem::StorageSize {
            storage: storage.key.clone(),
            found,
            expected,
        };
        let expected = storage.len.saturating_mul(size);
        if whole.len() as u64 != expected {
            return Err(wrong(whole.len() as u64, expected));
        }
        let Some((_, offset, len)) = &storage.view else {
            return Ok(whole);
        };
        // A part of a storage that others share.
        let begin = offset.checked_mul(size);
        let end = offset
            .checked_add(*len)
            .and_then(|end| end.checked_mul(size));
        match (begin, end) {
            (Some(begin), Some(end)) if end <= whole.len() as u64 => {
                Ok(whole.slice(begin as usize..end as usize))
            }
            _ => Err(wrong(whole.len() as u64, end.unwrap_or(u64::MAX))),
        }
    }

    fn file_len(&self) -> u64 {
        self.bytes.len() as u64
    }
}
