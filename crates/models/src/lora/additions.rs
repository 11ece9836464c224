//! Additions beside the weights of a part: these stay mapped as they are.

use std::collections::BTreeMap;

use aquatint_ops::{LowRank, ParamSource, RawTensor, Storage};
use aquatint_weights::{DType, TensorView, convert, to_f32_vec};

use super::file::Module;
use super::{LoraFile, Target};
use crate::ModelError;
use crate::keys::Place;
use crate::source::CheckpointSource;

/// Ends of the names that layers ask for.
const DOWN: &str = ".lora_A.weight";
const UP: &str = ".lora_B.weight";

/// The additions to the layers of one part, by the layers' names.
#[derive(Debug, Clone, Default)]
pub(crate) struct Additions {
    layers: BTreeMap<String, Addition>,
}

/// One layer's, of one file or of several beside each other.
#[derive(Debug, Clone)]
pub(super) struct Addition {
    rank: usize,
    scale: f64,
    /// `[rank, in..]`.
    down: RawTensor,
    /// `[out, rank]`.
    up: RawTensor,
}

impl Additions {
    /// Adds to a layer, beside what is added already.
    pub(super) fn add(&mut self, layer: &str, addition: Addition) {
        let sum = match self.layers.remove(layer) {
            None => addition,
            Some(before) => before.beside(&addition),
        };
        self.layers.insert(layer.to_owned(), sum);
    }

    /// Bytes of all matrices.
    pub(crate) fn bytes(&self) -> u64 {
        let each = |a: &Addition| (a.down.bytes.len() + a.up.bytes.len()) as u64;
        self.layers.values().map(each).sum()
    }

    /// Each layer and its addition.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Addition)> {
        self.layers.iter().map(|(name, a)| (name.as_str(), a))
    }

    fn half(&self, name: &str) -> Option<&RawTensor> {
        if let Some(layer) = name.strip_suffix(DOWN) {
            return self.layers.get(layer).map(|a| &a.down);
        }
        let layer = name.strip_suffix(UP)?;
        self.layers.get(layer).map(|a| &a.up)
    }
}

impl Addition {
    /// A module of a file as the addition to one of its layers, times `weight`.
    pub(super) fn new(
        file: &LoraFile,
        module: &Module,
        target: &Target,
        weight: f64,
    ) -> Result<Self, ModelError> {
        let rank = module.rank();
        let site = &target.site;
        let down = match &module.mid {
            None => module.down.clone(),
            Some(mid) => folded(&module.down, mid).ok_or_else(|| ModelError::Lora {
                path: file.path().to_owned(),
                found: format!(
                    "{} with matrices of shapes {:?}, {:?} and {:?}",
                    module.spelled, module.down.shape, mid.shape, module.up.shape
                ),
                expected: "[rank, in, 1, 1], [rank, rank, kh, kw] and [out, rank, 1, 1]".into(),
                hint: String::new(),
            })?,
        };
        let rows = target
            .place
            .as_ref()
            .map_or(site.shape[0], |place| rows_of_all(place, site.shape[0]));
        let (wanted_down, wanted_up) = (with_first(rank, &site.shape[1..]), [rows, rank]);
        if trimmed(&down.shape) != trimmed(&wanted_down)
            || trimmed(&module.up.shape) != trimmed(&wanted_up)
        {
            return Err(ModelError::Lora {
                path: file.path().to_owned(),
                found: format!(
                    "{} with matrices of shapes {:?} and {:?}",
                    module.spelled, down.shape, module.up.shape
                ),
                expected: format!("{wanted_down:?} and {wanted_up:?} for this model's layer"),
                hint: file.made_for_hint(),
            });
        }
        Ok(Addition {
            rank,
            scale: module.scale * weight,
            down: raw(&down)?,
            up: raw(&match &target.place {
                Some(place) => rows_of_one(place, &module.up, rows),
                None => module.up.clone(),
            })?,
        })
    }

    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    /// Both additions as one: the ranks side by side, the factors multiplied in.
    fn beside(&self, other: &Addition) -> Addition {
        let down = [values(&self.down), values(&other.down)].concat();
        let rank = self.rank + other.rank;
        let (a, b) = (self.scaled_up(), other.scaled_up());
        let rows = a
            .chunks_exact(self.rank)
            .zip(b.chunks_exact(other.rank))
            .flat_map(|(a, b)| a.iter().chain(b));
        let up: Vec<f32> = rows.copied().collect();
        let out = up.len() / rank;
        Addition {
            rank,
            scale: 1.0,
            down: RawTensor::from_f32(&down, &with_first(rank, &self.down.shape[1..])),
            up: RawTensor::from_f32(&up, &[out, rank]),
        }
    }

    /// `[rank, ..]` in f32.
    pub(super) fn down(&self) -> Vec<f32> {
        values(&self.down)
    }

    /// `[out, rank]` in f32, times the factor.
    pub(super) fn scaled_up(&self) -> Vec<f32> {
        let scale = self.scale as f32;
        values(&self.up).into_iter().map(|v| v * scale).collect()
    }
}

/// A part's own source, with its additions.
pub(crate) struct Adapted<'a> {
    pub base: &'a CheckpointSource,
    pub additions: &'a Additions,
}

impl ParamSource for Adapted<'_> {
    fn tensor(
        &self,
        name: &str,
        shape: &[usize],
    ) -> Result<RawTensor, Box<dyn std::error::Error + Send + Sync>> {
        match self.additions.half(name) {
            // The elements are as many: the shapes were compared when it was added.
            Some(half) => Ok(RawTensor {
                shape: shape.to_vec(),
                ..half.clone()
            }),
            None => self.base.tensor(name, shape),
        }
    }

    fn has(&self, name: &str) -> bool {
        self.additions.half(name).is_some() || self.base.has(name)
    }

    fn low_rank(&self, layer: &str) -> Option<LowRank> {
        let Addition { rank, scale, .. } = *self.additions.layers.get(layer)?;
        Some(LowRank { rank, scale })
    }
}

/// A 1x1 convolution to few channels and a wide one between them, as one.
fn folded(down: &TensorView, mid: &TensorView) -> Option<TensorView> {
    let (&[rank, inner, kh, kw], &[first, input, ..]) = (&mid.shape[..], &down.shape[..]) else {
        return None;
    };
    if inner != first || down.len() != first * input {
        return None;
    }
    let (down, mid) = (to_f32_vec(down).ok()?, to_f32_vec(mid).ok()?);
    let taps = kh * kw;
    let mut out = vec![0f32; rank * input * taps];
    for r in 0..rank {
        for j in 0..inner {
            let kernel = &mid[(r * inner + j) * taps..][..taps];
            for i in 0..input {
                let factor = down[j * input + i];
                let to = &mut out[(r * input + i) * taps..][..taps];
                for (to, k) in to.iter_mut().zip(kernel) {
                    *to += factor * k;
                }
            }
        }
    }
    let bytes: Vec<u8> = out.iter().flat_map(|v| v.to_le_bytes()).collect();
    TensorView::new("", DType::F32, vec![rank, input, kh, kw], bytes.into())
}

fn with_first(first: usize, rest: &[usize]) -> Vec<usize> {
    [&[first], rest].concat()
}

/// Rows of a tensor in the original naming, of which the layer at `place` has `own`.
fn rows_of_all(place: &Place, own: usize) -> usize {
    place.part.map_or(own, |(_, of)| own / place.span * of)
}

/// Those of its `rows` rows that are the layer's, in the layer's order.
fn rows_of_one(place: &Place, up: &TensorView, rows: usize) -> TensorView {
    let row = up.data.len() / rows.max(1);
    let taken = match place.part {
        Some((part, of)) => {
            let one = rows / of;
            part * one..(part + place.span) * one
        }
        None => 0..rows,
    };
    let data = up.data.slice(taken.start * row..taken.end * row);
    let data = match place.swapped {
        true => {
            let (first, second) = data.split_at(data.len() / 2);
            [second, first].concat().into()
        }
        false => data,
    };
    TensorView {
        name: up.name.clone(),
        dtype: up.dtype,
        shape: with_first(taken.len(), &up.shape[1..]),
        data,
    }
}

/// A matrix or convolution without the ones at its end beyond two axes: 1x1 convolutions are matrices.
fn trimmed(shape: &[usize]) -> &[usize] {
    let mut end = shape.len();
    while end > 2 && shape[end - 1] == 1 {
        end -= 1;
    }
    &shape[..end]
}

/// In its storage type where layers take that, else in f32.
fn raw(view: &TensorView) -> Result<RawTensor, ModelError> {
    let wanted = match view.dtype {
        DType::F16 | DType::Bf16 => view.dtype,
        _ => DType::F32,
    };
    let view = convert(view, wanted)?.aligned();
    Ok(RawTensor {
        storage: match view.dtype {
            DType::F16 => Storage::F16,
            DType::Bf16 => Storage::Bf16,
            _ => Storage::F32,
        },
        bytes: view.data,
        shape: view.shape,
    })
}

fn values(raw: &RawTensor) -> Vec<f32> {
    let dtype = match raw.storage {
        Storage::F16 => DType::F16,
        Storage::Bf16 => DType::Bf16,
        // Others than these three are f32 here.
        _ => DType::F32,
    };
    let view = TensorView::new("", dtype, raw.shape.clone(), raw.bytes.clone());
    view.and_then(|view| to_f32_vec(&view).ok())
        .expect("it was a tensor of that type and shape")
}
