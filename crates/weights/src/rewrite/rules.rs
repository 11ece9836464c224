//! Which type each tensor gets.

use crate::{BlockFormat, DType, Error, Remap, TensorInfo, TensorSpec};
use std::fmt;

/// The format of the file that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// Plain types.
    Safetensors,
    /// Plain and quantised types, at most four axes.
    Gguf,
}

/// How types are chosen.
pub struct Rules<'a> {
    /// What is written.
    pub container: Container,
    /// The type of weights that no other rule speaks of.
    pub default: DType,
    /// The user's own choice for a name; goes before every other rule.
    pub chosen: &'a dyn Fn(&str) -> Option<DType>,
    /// Whether a tensor of that name loses too much when it is narrow (what is first and last in a network).
    pub delicate: &'a dyn Fn(&str) -> bool,
}

/// What becomes of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Fate {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its shape in the file, where that takes fewer axes.
    pub stored: Vec<usize>,
    /// Its type in the source.
    pub from: DType,
    /// Its type in the file.
    pub to: DType,
    /// Why that is another type than was asked for.
    pub why: Option<Why>,
    /// What it is made of.
    pub(super) parts: Vec<Remap>,
}

/// Why a tensor gets another type than was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// A vector, or few numbers: it costs nothing as it is.
    Small,
    /// A tensor whose exactness the whole network depends on.
    Delicate,
    /// Rows that are no whole number of the format's blocks.
    Rows,
    /// It is quantised already, and would only lose.
    Quantised,
    /// It holds whole numbers.
    Integers,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Why::Small => "vectors and small tensors",
            Why::Delicate => "what the network begins and ends with",
            Why::Rows => "rows that are no whole number of blocks",
            Why::Quantised => "quantised already",
            Why::Integers => "whole numbers",
        })
    }
}

impl Fate {
    /// The tensors of the source that it is made of, in their order.
    pub fn sources(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().map(|part| part.from.as_str())
    }

    /// Bytes in the file.
    pub fn bytes(&self) -> u64 {
        let elements = self.shape.iter().product();
        self.to.byte_size(elements).unwrap_or(0) as u64
    }

    pub(super) fn spec(&self) -> TensorSpec {
        TensorSpec {
            name: self.name.clone(),
            dtype: self.to,
            shape: self.stored.clone(),
        }
    }
}

/// Tensors of at most as many numbers stay as they are.
const SMALL: usize = 1024;

/// The most axes of a tensor in GGML.
const GGML_AXES: usize = 4;

impl Rules<'_> {
    /// What becomes of a tensor; `None` when the container has no type for it.
    pub(super) fn fate(&self, name: &str, info: &TensorInfo) -> Result<Option<Fate>, Error> {
        let Some((to, why)) = self.kind(name, info)? else {
            return Ok(None);
        };
        let shape = info.shape.clone();
        let stored = match (self.container, shape.len()) {
            (Container::Gguf, 5..) => {
                let (outer, inner) = shape.split_at(shape.len() - (GGML_AXES - 1));
                let outer = outer.iter().product();
                [&[outer], inner].concat()
            }
            _ => shape.clone(),
        };
        Ok(Some(Fate {
            name: name.into(),
            stored: self.blocked(stored, to),
            shape,
            from: info.dtype,
            to,
            why,
            parts: Vec::new(),
        }))
    }

    /// The shape in the file of blocks that run over the ends of rows: one row a block.
    fn blocked(&self, stored: Vec<usize>, to: DType) -> Vec<usize> {
        let inner = stored.last().copied().unwrap_or(1);
        if inner.is_multiple_of(to.block_len()) {
            return stored;
        }
        let elements: usize = stored.iter().product();
        vec![elements / to.block_len(), to.block_len()]
    }

    fn kind(&self, name: &str, info: &TensorInfo) -> Result<Option<(DType, Option<Why>)>, Error> {
        let refused = |to| Error::Conversion {
            name: name.into(),
            from: info.dtype,
            to,
        };
        if !info.dtype.is_float() {
            let fits = self.container == Container::Safetensors
                || crate::gguf::TypeId::of(info.dtype).is_some();
            return Ok(fits.then_some((info.dtype, Some(Why::Integers))));
        }
        let chosen = (self.chosen)(name);
        let wanted = chosen.unwrap_or(self.default);
        let possible = match self.container {
            Container::Safetensors => wanted.blocks().is_none(),
            Container::Gguf => crate::gguf::TypeId::of(wanted).is_some(),
        };
        if !possible || !wanted.is_float() || wanted == DType::F8E5M2 {
            return Err(refused(wanted));
        }
        // GGML multiplies by vectors of F32 alone, and they take next to nothing.
        let widened = self.container == Container::Gguf && info.shape.len() <= 1;
        if info.dtype == wanted && !(widened && chosen.is_none()) {
            return Ok(Some((wanted, None)));
        }
        if chosen.is_none()
            && let Some((to, why)) = self.spared(name, info, wanted)
        {
            return Ok(Some((to, (to != wanted).then_some(why))));
        }
        let to = by_rows(wanted, &info.shape);
        Ok(Some((to, (to != wanted).then_some(Why::Rows))))
    }

    /// The type of a tensor that the default is not for.
    fn spared(&self, name: &str, info: &TensorInfo, wanted: DType) -> Option<(DType, Why)> {
        let narrow = wanted.blocks().is_some() || wanted == DType::F8E4M3;
        if narrow && info.dtype.blocks().is_some() && self.container == Container::Gguf {
            return Some((info.dtype, Why::Quantised));
        }
        let elements: usize = info.shape.iter().product();
        let small = info.shape.len() <= 1 || elements <= SMALL;
        let why = match (small, narrow) {
            (true, _) => Why::Small,
            (false, true) if (self.delicate)(name) => Why::Delicate,
            _ => return None,
        };
        // BF16 widens without loss, and not every program reads it.
        let exact = match (self.container, info.dtype) {
            (Container::Gguf, _) if info.shape.len() <= 1 => DType::F32,
            (_, DType::F16) => DType::F16,
            (Container::Safetensors, DType::Bf16) => DType::Bf16,
            _ => DType::F32,
        };
        match (self.container, narrow) {
            (_, true) => Some((exact, why)),
            (Container::Gguf, false) => Some((exact, why)),
            (Container::Safetensors, false) => None,
        }
    }
}

/// The type, or the next that takes rows of this length: Q8_0 for blocks of 256, then F16.
fn by_rows(wanted: DType, shape: &[usize]) -> DType {
    let row = shape.last().copied().unwrap_or(1);
    [wanted, DType::Blocks(BlockFormat::Q8_0)]
        .into_iter()
        .find(|to| row.is_multiple_of(to.block_len()))
        .unwrap_or(DType::F16)
}
