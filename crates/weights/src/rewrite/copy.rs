//! One tensor from a set into a file, a piece at a time.

use super::{Fate, Sink};
use crate::convert::{convert, widen};
use crate::{DType, Error, TensorView, WeightSet, first_non_finite, scan};
use aquatint_kernels::blocks::encode_into;
use std::ops::ControlFlow;
use std::path::Path;

/// Numbers of a piece: 16 MiB as f32, and whole blocks of any format.
const PIECE: usize = 4 << 20;

pub(super) fn tensor(
    set: &WeightSet,
    fate: &Fate,
    path: &Path,
    sink: &mut Sink,
    told: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, Error> {
    let mut before = 0;
    for row in &fate.parts {
        let view = TensorView {
            name: fate.name.clone(),
            ..set.get_remapped(row)?
        };
        let copied = part(set, fate, (&view, before), path, sink, told)?;
        before += view.len();
        drop(view);
        // What a copy was made of: a scaled or transposed tensor is no part of the file.
        set.release_pages(&row.from);
        if copied.is_break() {
            return Ok(copied);
        }
    }
    if before == 0 {
        sink.append(&fate.name, &[])?;
    }
    Ok(ControlFlow::Continue(()))
}

/// One part, before which come so many numbers.
fn part(
    set: &WeightSet,
    fate: &Fate,
    (view, before): (&TensorView, usize),
    path: &Path,
    sink: &mut Sink,
    told: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, Error> {
    let len = view.len();
    let bytes_to = |n: usize| n / view.dtype.block_len() * view.dtype.block_bytes();
    for at in (0..len).step_by(PIECE) {
        let numbers = PIECE.min(len - at);
        let piece = TensorView {
            name: fate.name.clone(),
            dtype: view.dtype,
            shape: vec![numbers],
            data: view.data.slice(bytes_to(at)..bytes_to(at + numbers)),
        };
        let written = match as_stored(&piece, fate.to) {
            Ok(new) if new.dtype == piece.dtype => new,
            Ok(new) => finite(new, &piece, before + at, path)?,
            Err(index) => return Err(non_finite(set, &piece, before + at, index)),
        };
        sink.append(&fate.name, &written.data)?;
        set.release(&piece.data);
        if told(written.data.len()).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// The piece in its new type, or where it is not finite and has to be.
fn as_stored(piece: &TensorView, to: DType) -> Result<TensorView, usize> {
    if piece.dtype == to {
        return Ok(piece.clone());
    }
    let Some(format) = to.blocks() else {
        // What cannot be converted was refused when the plan was made.
        return convert(piece, to).map_err(|_| 0);
    };
    let mut numbers = vec![0.0; piece.len()];
    widen(&piece.aligned(), 0, &mut numbers);
    if let Some(index) = numbers.iter().position(|x| !x.is_finite()) {
        return Err(index);
    }
    let mut data = vec![0; to.byte_size(piece.len()).unwrap_or(0)];
    encode_into(format, &numbers, &mut data).map_err(|_| 0usize)?;
    Ok(TensorView {
        data: data.into(),
        dtype: to,
        ..piece.clone()
    })
}

fn non_finite(set: &WeightSet, piece: &TensorView, at: usize, index: usize) -> Error {
    match scan::check_finite(piece, set.path()) {
        Err(Error::NonFinite {
            path,
            name,
            index,
            value,
        }) => Error::NonFinite {
            path,
            name,
            index: at + index,
            value,
        },
        _ => Error::NonFinite {
            path: set.path().into(),
            name: piece.name.clone(),
            index: at + index,
            value: f64::NAN,
        },
    }
}

/// The converted piece, unless a number has become infinite that was finite.
fn finite(
    new: TensorView,
    piece: &TensorView,
    at: usize,
    path: &Path,
) -> Result<TensorView, Error> {
    match first_non_finite(&new) {
        Some(index) if first_non_finite(piece) != Some(index) => Err(Error::Write {
            path: path.into(),
            name: new.name.clone(),
            problem: format!(
                "its number {} is too large for {}; store this tensor as BF16 or F32",
                at + index,
                new.dtype
            ),
        }),
        _ => Ok(new),
    }
}
