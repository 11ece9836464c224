//! From the objects of a pickle to tensors by name.

use super::Problem;
use super::machine::{Id, Node, Objects, Storage, Tensor};
use crate::view::aligned_bytes;
use crate::{DType, TensorView};
use bytes::Bytes;
use std::collections::HashSet;

/// Under which keys trainers put the weights beside other things, the most particular first.
const NESTS: [&str; 7] = [
    "state_dict",
    "model_state_dict",
    "params_ema",
    "params",
    "model",
    "module",
    "net",
];
/// How deep dictionaries of tensors may lie in each other.
const DEEPEST: usize = 6;
/// The most entries that are looked at.
const MOST: usize = 1 << 20;

/// Where the bytes of storages come from.
pub(super) trait Storages {
    /// The whole storage of that key.
    fn bytes(&mut self, tensor: &str, storage: &Storage) -> Result<Bytes, Problem>;
    /// The file's length, by which copies are bounded.
    fn file_len(&self) -> u64;
}

/// All tensors that the weights' dictionary holds.
pub(super) fn collect(
    objects: &Objects,
    storages: &mut dyn Storages,
) -> Result<Vec<TensorView>, Problem> {
    let mut tensors = Vec::new();
    let mut names = HashSet::new();
    let mut budget = storages
        .file_len()
        .saturating_mul(4)
        .saturating_add(1 << 20);
    let most = budget;
    for (name, tensor) in named(objects)? {
        if !names.insert(name.clone()) {
            return Err(Problem::Repeated { name });
        }
        let Node::Storage(storage) = objects.get(tensor.storage) else {
            continue;
        };
        let view = view(name, tensor, storage, storages, &mut budget, most)?;
        tensors.push(view);
    }
    if tensors.is_empty() {
        return Err(Problem::NoTensors);
    }
    Ok(tensors)
}

/// The dictionary that holds the weights: the root, or what lies in it under one of the usual keys.
fn weights(objects: &Objects) -> Id {
    let mut at = objects.root;
    for _ in 0..DEEPEST {
        let Node::Dict(pairs) = objects.get(at) else {
            break;
        };
        let nest = |key: &str| {
            let found = pairs.iter().find(|(k, _)| objects.text(*k) == Some(key));
            let found = found.map(|(_, value)| *value);
            found.filter(|id| matches!(objects.get(*id), Node::Dict(inner) if !inner.is_empty()))
        };
        match NESTS.iter().find_map(|key| nest(key)) {
            Some(inner) => at = inner,
            None => break,
        }
    }
    at
}

/// Every tensor of the weights, by the keys on the way to it.
fn named(objects: &Objects) -> Result<Vec<(String, &Tensor)>, Problem> {
    let mut found = Vec::new();
    let mut todo = vec![(String::new(), weights(objects), 0)];
    let mut seen = 0;
    while let Some((name, id, depth)) = todo.pop() {
        seen += 1;
        if seen > MOST {
            return Err(Problem::TooMany { most: MOST });
        }
        match objects.get(id) {
            Node::Tensor(tensor) if !name.is_empty() => found.push((name, tensor)),
            Node::Tensor(tensor) => found.push(("tensor".into(), tensor)),
            Node::Dict(pairs) if depth < DEEPEST => {
                if todo.len() + pairs.len() > MOST {
                    return Err(Problem::TooMany { most: MOST });
                }
                // The last is taken first.
                for (key, value) in pairs.iter().rev() {
                    let key = match objects.get(*key) {
                        Node::Text(key) => key.clone(),
                        Node::Int(key) => key.to_string(),
                        _ => continue,
                    };
                    let holds = matches!(objects.get(*value), Node::Tensor(_) | Node::Dict(_));
                    if !holds {
                        continue;
                    }
                    let name = match name.is_empty() {
                        true => key,
                        false => format!("{name}.{key}"),
                    };
                    todo.push((name, *value, depth + 1));
                }
            }
            _ => {}
        }
    }
    Ok(found)
}

fn view(
    name: String,
    tensor: &Tensor,
    storage: &Storage,
    storages: &mut dyn Storages,
    budget: &mut u64,
    most: u64,
) -> Result<TensorView, Problem> {
    let wrong = |name: &str| Problem::OutOfStorage {
        name: name.into(),
        shape: tensor.sizes.clone(),
    };
    let dtype = tensor.dtype.or(storage.class).unwrap_or(DType::U8);
    let bytes = storages.bytes(&name, storage)?;
    let held = bytes.len() / dtype.block_bytes();
    let place = Place::new(tensor, held).ok_or_else(|| wrong(&name))?;
    let size = dtype.block_bytes();
    let data = if place.is_whole() {
        let begin = place.offset * size;
        bytes.slice(begin..begin + place.elements * size)
    } else {
        let len = place.elements * size;
        *budget = budget
            .checked_sub(len as u64)
            .ok_or(Problem::Memory { most })?;
        place.gathered(&bytes, size)
    };
    TensorView::new(name.clone(), dtype, place.shape, data).ok_or_else(|| wrong(&name))
}

/// Where a tensor's numbers lie in its storage, all of them inside.
struct Place {
    shape: Vec<usize>,
    strides: Vec<usize>,
    offset: usize,
    elements: usize,
}

impl Place {
    /// `None` when it does not fit `held` numbers, or would repeat them.
    fn new(tensor: &Tensor, held: usize) -> Option<Place> {
        let whole = |n: &[i64]| n.iter().map(|n| usize::try_from(*n).ok()).collect();
        let shape: Vec<usize> = Option::<Vec<usize>>::clone(&whole(&tensor.sizes))?;
        let strides: Vec<usize> = Option::<Vec<usize>>::clone(&whole(&tensor.strides))?;
        let offset = usize::try_from(tensor.offset).ok()?;
        if shape.len() != strides.len() {
            return None;
        }
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
        // A tensor that repeats its storage's numbers could be of any size.
        if elements > held || offset > held {
            return None;
        }
        if elements > 0 {
            let last = shape
                .iter()
                .zip(&strides)
                .try_fold(offset, |at, (n, stride)| {
                    at.checked_add((n - 1).checked_mul(*stride)?)
                })?;
            if last >= held {
                return None;
            }
        }
        Some(Place {
            shape,
            strides,
            offset,
            elements,
        })
    }

    /// Whether the numbers lie one after another.
    fn is_whole(&self) -> bool {
        let mut expected = 1;
        let axes = self.shape.iter().zip(&self.strides).rev();
        self.elements == 0
            || axes.filter(|(n, _)| **n != 1).all(|(n, stride)| {
                let fits = *stride == expected;
                expected *= n;
                fits
            })
    }

    /// A copy in row-major order.
    fn gathered(&self, bytes: &[u8], size: usize) -> Bytes {
        aligned_bytes(self.elements * size, |out| {
            let mut index = vec![0usize; self.shape.len()];
            let mut at = self.offset;
            for out in out.chunks_exact_mut(size) {
                out.copy_from_slice(&bytes[at * size..][..size]);
                for axis in (0..index.len()).rev() {
                    index[axis] += 1;
                    at += self.strides[axis];
                    if index[axis] < self.shape[axis] {
                        break;
                    }
                    at -= self.strides[axis] * self.shape[axis];
                    index[axis] = 0;
                }
            }
        })
    }
}
