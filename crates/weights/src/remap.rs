//! Giving tensors other names, and the small turns that another layout of the same model needs.
//!
//! The maps themselves (which name of which layout becomes which) belong to the model families; this is
//! the mechanism. Everything is lazy: a row is checked against the tensor's shape at once, and its bytes
//! are touched only when the tensor is taken.

use crate::view::aligned_bytes;
use crate::{DType, TensorView};
use std::ops::Range;

/// One row of a key map: a tensor of the file, or a part of it, under another name.
///
/// The turns are applied in the order of the fields: slice, transpose, reshape.
///
/// ```
/// use aquatint_weights::{Remap, Reshape};
/// // OpenCLIP keeps query, key and value in one matrix; diffusers in three.
/// let key = Remap::new("attn.in_proj_weight", "self_attn.k_proj.weight").part(1, 3);
/// // The LDM autoencoder's attention has 1x1 convolutions where diffusers has linear layers.
/// let query = Remap::new("q.weight", "to_q.weight").reshaped(Reshape::Linear);
/// assert!(key.slice.is_some() && query.reshape.is_some());
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Remap {
    /// The name in the file (or in the set being remapped).
    pub from: String,
    /// The name that it gets.
    pub to: String,
    /// Only these rows of axis 0; no copy.
    pub slice: Option<Slice>,
    /// Swap the two axes of a matrix; one copy, made when the tensor is taken.
    pub transpose: bool,
    /// Another shape for the same elements; no copy.
    pub reshape: Option<Reshape>,
}

/// Rows of axis 0.
#[derive(Clone, Debug, PartialEq)]
pub enum Slice {
    /// The `index`-th of `of` parts of equal length.
    Part {
        /// Which part, from 0.
        index: usize,
        /// How many parts.
        of: usize,
    },
    /// A range of rows.
    Rows(Range<usize>),
}

/// Another shape for the same elements.
#[derive(Clone, Debug, PartialEq)]
pub enum Reshape {
    /// A 1x1 convolution as the matrix of a linear layer: `[out, in, 1, 1]` or `[out, in, 1]` becomes
    /// `[out, in]`, which stays.
    Linear,
    /// A linear layer as a 1x1 convolution: `[out, in]` becomes `[out, in, 1, 1]`, which stays.
    Conv1x1,
    /// Exactly this shape.
    To(Vec<usize>),
}

impl Remap {
    /// A plain renaming.
    pub fn new(from: impl Into<String>, to: impl Into<String>) -> Remap {
        Remap {
            from: from.into(),
            to: to.into(),
            slice: None,
            transpose: false,
            reshape: None,
        }
    }

    /// Takes the `index`-th of `of` equal parts of axis 0.
    pub fn part(self, index: usize, of: usize) -> Remap {
        Remap {
            slice: Some(Slice::Part { index, of }),
            ..self
        }
    }

    /// Takes these rows of axis 0.
    pub fn rows(self, rows: Range<usize>) -> Remap {
        Remap {
            slice: Some(Slice::Rows(rows)),
            ..self
        }
    }

    /// Swaps the two axes.
    pub fn transposed(self) -> Remap {
        Remap {
            transpose: true,
            ..self
        }
    }

    /// Gives the elements another shape.
    pub fn reshaped(self, reshape: Reshape) -> Remap {
        Remap {
            reshape: Some(reshape),
            ..self
        }
    }

    pub(crate) fn turn(&self) -> Option<Turn> {
        (self.slice.is_some() || self.transpose || self.reshape.is_some()).then(|| Turn {
            slice: self.slice.clone(),
            transpose: self.transpose,
            reshape: self.reshape.clone(),
        })
    }
}

/// What a row does to a tensor besides naming it.
#[derive(Clone, Debug)]
pub(crate) struct Turn {
    slice: Option<Slice>,
    transpose: bool,
    reshape: Option<Reshape>,
}

impl Turn {
    /// The shape after the turn, or why it cannot be done.
    pub(crate) fn shape(&self, dtype: DType, shape: &[usize]) -> Result<Vec<usize>, String> {
        let mut shape = shape.to_vec();
        if let Some(slice) = &self.slice {
            let rows = slice.rows(&shape)?;
            shape[0] = rows.len();
        }
        if self.transpose {
            if shape.len() != 2 || dtype.block_len() != 1 {
                return Err("only a matrix of a plain type can be transposed".into());
            }
            shape.swap(0, 1);
        }
        match &self.reshape {
            Some(reshape) => reshape.shape(&shape),
            None => Ok(shape),
        }
    }

    /// The tensor after the turn, or why it cannot be done.
    pub(crate) fn apply(&self, view: TensorView) -> Result<TensorView, String> {
        let shape = self.shape(view.dtype, &view.shape)?;
        let TensorView {
            name,
            dtype,
            shape: mut now,
            mut data,
        } = view;
        if let Some(slice) = &self.slice {
            let rows = slice.rows(&now)?;
            // Of zero rows there is no row length; then there are no bytes either.
            let row = data.len().checked_div(now[0]).unwrap_or(0);
            if row * now[0] != data.len() || !row.is_multiple_of(dtype.block_bytes()) {
                return Err("its rows are no whole number of blocks".into());
            }
            data = data.slice(rows.start * row..rows.end * row);
            now[0] = rows.len();
        }
        if self.transpose {
            let (rows, cols) = (now[0], now[1]);
            data = aligned_bytes(data.len(), |out| match dtype.block_bytes() {
                1 => transpose::<1>(&data, out, rows, cols),
                2 => transpose::<2>(&data, out, rows, cols),
                4 => transpose::<4>(&data, out, rows, cols),
                _ => transpose::<8>(&data, out, rows, cols),
            });
        }
        Ok(TensorView {
            name,
            dtype,
            shape,
            data,
        })
    }
}

impl Slice {
    fn rows(&self, shape: &[usize]) -> Result<Range<usize>, String> {
        let Some(&len) = shape.first() else {
            return Err("a scalar has no rows".into());
        };
        match self {
            Slice::Part { index, of } if *of > 0 && index < of && len.is_multiple_of(*of) => {
                let part = len / of;
                Ok(index * part..(index + 1) * part)
            }
            Slice::Part { index, of } => Err(format!("part {index} of {of} of its {len} rows")),
            Slice::Rows(rows) if rows.start <= rows.end && rows.end <= len => Ok(rows.clone()),
            Slice::Rows(rows) => Err(format!("rows {} to {} of {len}", rows.start, rows.end)),
        }
    }
}

impl Reshape {
    fn shape(&self, shape: &[usize]) -> Result<Vec<usize>, String> {
        match (self, shape) {
            (Reshape::Linear, [o, i] | [o, i, 1] | [o, i, 1, 1]) => Ok(vec![*o, *i]),
            (Reshape::Linear, _) => Err("a linear layer needs [out, in] or [out, in, 1, 1]".into()),
            (Reshape::Conv1x1, [o, i] | [o, i, 1, 1]) => Ok(vec![*o, *i, 1, 1]),
            (Reshape::Conv1x1, _) => {
                Err("a 1x1 convolution needs [out, in] or [out, in, 1, 1]".into())
            }
            (Reshape::To(to), _) => {
                let count = |s: &[usize]| s.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
                if count(to) == count(shape) {
                    return Ok(to.clone());
                }
                Err(format!(
                    "{to:?} has another number of elements than {shape:?}"
                ))
            }
        }
    }
}

/// `[rows, cols]` elements of `N` bytes to `[cols, rows]`, in tiles that stay in the cache.
fn transpose<const N: usize>(from: &[u8], to: &mut [u8], rows: usize, cols: usize) {
    const TILE: usize = 32;
    let (from, _) = from.as_chunks::<N>();
    let (to, _) = to.as_chunks_mut::<N>();
    for r0 in (0..rows).step_by(TILE) {
        for c0 in (0..cols).step_by(TILE) {
            for r in r0..rows.min(r0 + TILE) {
                for c in c0..cols.min(c0 + TILE) {
                    to[c * rows + r] = from[r * cols + c];
                }
            }
        }
    }
}
