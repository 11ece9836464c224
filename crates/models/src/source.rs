//! Weight files as the source of a model's parameters.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use aquatint_ops::{ParamSource, RawTensor, Storage};
use aquatint_weights::{Applied, DType, Error, LoadReport, TensorView, WeightSet, WrongShape};

use crate::keys::{Layout, Place};

/// The tensors of one component, under diffusers' names whatever the file's own naming, with an
/// account of what was taken.
#[derive(Debug)]
pub struct CheckpointSource {
    set: WeightSet,
    layout: Layout,
    storage: Option<Storage>,
    report: Mutex<LoadReport>,
    taken: Mutex<BTreeSet<String>>,
}

impl CheckpointSource {
    /// A source over `set`, whose names follow `layout`. Matrices and convolutions are converted to
    /// `storage` when it is given, and stay as stored otherwise.
    pub fn new(set: WeightSet, layout: Layout, storage: Option<Storage>) -> Self {
        let report = LoadReport {
            path: set.path().to_owned(),
            ..LoadReport::default()
        };
        CheckpointSource {
            set,
            layout,
            storage,
            report: Mutex::new(report),
            taken: Mutex::default(),
        }
    }

    /// The files behind the source.
    pub fn weights(&self) -> &WeightSet {
        &self.set
    }

    /// Bytes of the component's tensors in the storage type that they are used in.
    pub fn bytes(&self) -> u64 {
        self.bytes_of(|_| true)
    }

    /// As [`CheckpointSource::bytes`], of the tensors whose names, as the file has them, `wanted` picks.
    pub fn bytes_of(&self, wanted: impl Fn(&str) -> bool) -> u64 {
        let tensors = self.set.iter().filter(|(name, _)| self.belongs(name));
        tensors
            .filter(|(name, _)| wanted(name))
            .map(|(_, info)| {
                let elements = info.shape.iter().product::<usize>();
                let size = self.storage.map_or_else(
                    || info.dtype.byte_size(elements).unwrap_or(0),
                    |s| s.bytes(elements),
                );
                size as u64
            })
            .sum()
    }

    /// Whether the weights are converted to another storage type, and so lie in memory of their own.
    pub fn converts(&self) -> bool {
        self.storage.is_some()
    }

    /// Takes the component's pages out of this process's memory, when it is not needed for now. What is read again
    /// comes from the system's cache.
    pub fn release_pages(&self) {
        self.set.release_pages(&self.layout.prefix);
    }

    /// The naming that the files follow.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What was taken, and which tensors of the component nobody asked for.
    pub fn report(&self) -> LoadReport {
        let mut report = locked(&self.report).clone();
        let taken = locked(&self.taken);
        for name in self.set.names() {
            if !taken.contains(name) && self.belongs(name) {
                if is_harmless(name) {
                    report.ignored.push(name.to_owned());
                } else {
                    report.unused.push(name.to_owned());
                }
            }
        }
        report
    }

    /// The first value of the component that is not finite, as an error that names its tensor.
    pub fn non_finite(&self) -> Option<Error> {
        self.non_finite_of(|_| true)
    }

    /// As [`CheckpointSource::non_finite`], in the tensors whose names, as the file has them, `wanted` picks.
    pub fn non_finite_of(&self, wanted: impl Fn(&str) -> bool) -> Option<Error> {
        let taken = locked(&self.taken);
        taken.iter().filter(|name| wanted(name)).find_map(|name| {
            let view = self.set.get(name).ok()?;
            aquatint_weights::check_finite(&view, self.set.path()).err()
        })
    }

    fn belongs(&self, name: &str) -> bool {
        name.starts_with(&self.layout.prefix)
    }

    fn place(&self, name: &str) -> Place {
        self.layout.place(name, &|n| self.set.contains(n))
    }

    fn take(&self, name: &str, shape: &[usize]) -> Result<RawTensor, Error> {
        let place = self.place(name);
        let view = self.view(&place)?;
        locked(&self.taken).insert(place.name.clone());
        if !same_up_to_ones(&view.shape, shape) {
            locked(&self.report).wrong_shape.push(WrongShape {
                name: place.name.clone(),
                found: view.shape.clone(),
                expected: shape.to_vec(),
            });
            return Err(Error::WrongShape {
                path: self.set.path().to_owned(),
                name: place.name,
                found: view.shape,
                expected: shape.to_vec(),
            });
        }
        let applied = Applied {
            dtype: view.dtype,
            elements: view.len(),
            bytes: view.data.len(),
        };
        locked(&self.report)
            .applied
            .insert(name.to_owned(), applied);
        self.raw(view, shape)
    }

    fn view(&self, place: &Place) -> Result<TensorView, Error> {
        if place.swapped {
            return Ok(swapped(self.set.get(&place.name)?));
        }
        if place.part.is_none() && !place.transposed {
            return self.set.get(&place.name);
        }
        let len = self
            .set
            .info(&place.name)
            .and_then(|info| info.shape.first().copied());
        let row = place.row(&place.name, len);
        self.set.get_remapped(&row)
    }

    fn raw(&self, view: TensorView, shape: &[usize]) -> Result<RawTensor, Error> {
        // Matrices of 8-bit floats and of blocks stay as they are: products widen them while they pack.
        let packed = match (self.storage, shape.len(), view.dtype) {
            (None, 2, DType::F8E4M3) => Some(Storage::F8E4M3),
            (None, 2, DType::Blocks(format)) => Some(Storage::Blocks(format)),
            _ => None,
        };
        if let Some(storage) = packed {
            return Ok(RawTensor {
                bytes: view.data,
                storage,
                shape: shape.to_vec(),
            });
        }
        let wanted = match (self.storage, shape.len()) {
            // Vectors are widened by the layers anyhow.
            (Some(Storage::F32), 2..) => DType::F32,
            (Some(Storage::F16), 2..) => DType::F16,
            (Some(Storage::Bf16), 2..) => DType::Bf16,
            _ => match view.dtype {
                DType::F16 | DType::Bf16 => view.dtype,
                _ => DType::F32,
            },
        };
        let view = aquatint_weights::convert(&view, wanted)?.aligned();
        let storage = match view.dtype {
            DType::F16 => Storage::F16,
            DType::Bf16 => Storage::Bf16,
            _ => Storage::F32,
        };
        Ok(RawTensor {
            bytes: view.data,
            storage,
            shape: shape.to_vec(),
        })
    }
}

impl ParamSource for CheckpointSource {
    fn tensor(
        &self,
        name: &str,
        shape: &[usize],
    ) -> Result<RawTensor, Box<dyn std::error::Error + Send + Sync>> {
        self.take(name, shape).map_err(|error| {
            if matches!(error, Error::MissingTensor { .. }) {
                locked(&self.report).missing.push(name.to_owned());
            }
            error.into()
        })
    }

    fn has(&self, name: &str) -> bool {
        self.set.contains(&self.place(name).name)
    }
}

/// The halves of axis 0 the other way round: a copy, of modulations that are small.
fn swapped(view: TensorView) -> TensorView {
    let (first, second) = view.data.split_at(view.data.len() / 2);
    TensorView {
        data: [second, first].concat().into(),
        ..view
    }
}

/// The account is whole after every line that changes it, so a panic elsewhere does not spoil it.
fn locked<T>(account: &Mutex<T>) -> MutexGuard<'_, T> {
    account.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether two shapes differ at most by ones at the ends: a 1x1 convolution and a linear layer, or what GGUF leaves out.
fn same_up_to_ones(a: &[usize], b: &[usize]) -> bool {
    let trim = |s: &[usize]| {
        let before = s.iter().take_while(|&&n| n == 1).count();
        let rest = &s[before..];
        let after = rest.iter().rev().take_while(|&&n| n == 1).count();
        rest[..rest.len() - after].to_vec()
    };
    a == b || (a.len() != b.len() && trim(a) == trim(b))
}

/// Tensors that training left behind and that no picture needs.
fn is_harmless(name: &str) -> bool {
    [
        "position_ids",
        "logit_scale",
        "model_ema.decay",
        "model_ema.num_updates",
        "attn_mask",
    ]
    .iter()
    .any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_match_up_to_trailing_ones() {
        assert!(same_up_to_ones(&[4, 4, 1, 1], &[4, 4]));
        assert!(same_up_to_ones(&[4, 4], &[4, 4, 1, 1]));
        assert!(!same_up_to_ones(&[4, 4, 3, 3], &[4, 4]));
        assert!(!same_up_to_ones(&[1, 4], &[4, 1]));
    }
}
