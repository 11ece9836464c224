//! The head of the file and its table of tensors, every number checked before it is used.

use super::cursor::{Cursor, What};
use super::{ALIGNMENT, MAX_AXES, MAX_HEADER, Metadata, ORIGINAL_SHAPE, Problem, TypeId, Value};
use crate::DType;
use std::collections::HashSet;
use std::ops::Range;

/// One row of the table.
#[derive(Debug)]
pub(super) struct Entry {
    pub name: String,
    pub dtype: DType,
    /// Outermost first.
    pub shape: Vec<usize>,
    /// Bytes of the file.
    pub range: Range<usize>,
}

#[derive(Debug)]
pub(super) struct Header {
    /// In the order of the table.
    pub tensors: Vec<Entry>,
    pub metadata: Metadata,
}

/// A row of the table as it is written.
struct Row {
    name: String,
    id: TypeId,
    dtype: DType,
    /// Outermost first.
    shape: Vec<usize>,
    size: usize,
    offset: u64,
}

/// The least bytes of a row: lengths of name and shape, type, offset.
const SHORTEST_ROW: usize = 24;
/// The least bytes of a metadata pair: length of its key, kind, one byte.
const SHORTEST_PAIR: usize = 13;
/// The longest name of a tensor.
const LONGEST_NAME: u64 = 65_535;

pub(super) fn parse(file: &[u8]) -> Result<Header, Problem> {
    let mut cursor = Cursor::new(file);
    cursor.take(4)?;
    match cursor.u32()? {
        2 | 3 => {}
        version if matches!(version.swap_bytes(), 1..=3) => return Err(Problem::BigEndian),
        found => return Err(Problem::Version { found }),
    }
    let tensors = cursor.u64()?;
    let pairs = cursor.u64()?;
    for (count, least) in [(tensors, SHORTEST_ROW), (pairs, SHORTEST_PAIR)] {
        if count > (cursor.left() / least) as u64 {
            return Err(Problem::Count {
                place: cursor.place(),
                count,
                left: cursor.left(),
            });
        }
    }
    let metadata = Metadata::read(&mut cursor, pairs)?;
    let alignment = alignment(&metadata)?;
    let mut rows = Vec::new();
    let mut names = HashSet::new();
    for i in 0..tensors {
        cursor.what = What::Tensor(i);
        let row = row(&mut cursor, &metadata)?;
        if !names.insert(row.name.clone()) {
            return Err(Problem::Repeated { name: row.name });
        }
        if cursor.at() > MAX_HEADER {
            return Err(Problem::HeaderTooLong);
        }
        rows.push(row);
    }
    // A file without tensors may end without the padding.
    let start = cursor.at().next_multiple_of(alignment).min(file.len());
    let tensors = place(rows, start, file.len() - start, alignment)?;
    Ok(Header { tensors, metadata })
}

fn alignment(metadata: &Metadata) -> Result<usize, Problem> {
    match metadata.get("general.alignment") {
        None => Ok(ALIGNMENT),
        Some(Value::U32(n)) if n.is_power_of_two() && *n <= 1 << 20 => Ok(*n as usize),
        Some(other) => Err(Problem::Alignment {
            found: other.to_string(),
        }),
    }
}

fn row(cursor: &mut Cursor<'_>, metadata: &Metadata) -> Result<Row, Problem> {
    let name = cursor.text(LONGEST_NAME)?.to_string();
    let axes = cursor.u32()?;
    if axes as usize > MAX_AXES {
        return Err(Problem::Axes { name, axes });
    }
    let mut inner_first = Vec::with_capacity(axes as usize);
    for _ in 0..axes {
        inner_first.push(cursor.u64()?);
    }
    let id = TypeId(cursor.u32()?);
    let offset = cursor.u64()?;
    let Some(dtype) = id.dtype() else {
        return Err(Problem::Type { name, found: id });
    };
    let (shape, size) = size(&name, id, dtype, &inner_first)?;
    let shape = noted_shape(&name, shape, metadata)?;
    Ok(Row {
        name,
        id,
        dtype,
        shape,
        size,
        offset,
    })
}

/// The shape, outermost first, and the bytes that it takes.
fn size(
    name: &str,
    id: TypeId,
    dtype: DType,
    inner_first: &[u64],
) -> Result<(Vec<usize>, usize), Problem> {
    let row = inner_first.first().copied().unwrap_or(1);
    let block = dtype.block_len();
    if !row.is_multiple_of(block as u64) {
        return Err(Problem::PartOfBlock {
            name: name.into(),
            row,
            found: id,
            block,
        });
    }
    let overflow = || Problem::ShapeOverflow {
        name: name.into(),
        shape: inner_first.to_vec(),
    };
    let shape: Option<Vec<usize>> = inner_first
        .iter()
        .rev()
        .map(|&n| usize::try_from(n).ok())
        .collect();
    let shape = shape.ok_or_else(overflow)?;
    let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let size = elements
        .and_then(|n| dtype.byte_size(n))
        .ok_or_else(overflow)?;
    Ok((shape, size))
}

/// The shape that the metadata note, where they do.
fn noted_shape(name: &str, shape: Vec<usize>, metadata: &Metadata) -> Result<Vec<usize>, Problem> {
    let Some(noted) = metadata.get(&format!("{ORIGINAL_SHAPE}{name}")) else {
        return Ok(shape);
    };
    let product = |s: &[usize]| s.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let axes: Option<Vec<usize>> = noted.as_i64s().and_then(|axes| {
        let axes = axes.into_iter().map(|n| usize::try_from(n).ok());
        axes.collect()
    });
    match axes {
        Some(axes) if product(&axes) == product(&shape) && axes.len() <= MAX_AXES => Ok(axes),
        _ => Err(Problem::NotedShape {
            name: name.into(),
            found: shape,
            noted: noted.to_string(),
        }),
    }
}

/// Where in the file each tensor lies: aligned, inside, and none over another.
fn place(
    rows: Vec<Row>,
    start: usize,
    available: usize,
    alignment: usize,
) -> Result<Vec<Entry>, Problem> {
    let mut tensors = Vec::with_capacity(rows.len());
    for row in rows {
        if !row.offset.is_multiple_of(alignment as u64) {
            return Err(Problem::Misaligned {
                name: row.name,
                offset: row.offset,
                alignment,
            });
        }
        let begin = usize::try_from(row.offset).ok().filter(|b| *b <= available);
        let end = begin
            .and_then(|b| b.checked_add(row.size))
            .filter(|end| *end <= available);
        let (Some(begin), Some(end)) = (begin, end) else {
            return Err(Problem::PastEnd {
                name: row.name,
                offset: row.offset,
                size: row.size,
                available,
            });
        };
        debug_assert_eq!(row.id.dtype(), Some(row.dtype));
        tensors.push(Entry {
            name: row.name,
            dtype: row.dtype,
            shape: row.shape,
            range: start + begin..start + end,
        });
    }
    let mut order: Vec<&Entry> = tensors.iter().filter(|t| !t.range.is_empty()).collect();
    order.sort_by_key(|t| t.range.start);
    if let Some([first, second]) = order
        .array_windows()
        .find(|[a, b]| b.range.start < a.range.end)
    {
        return Err(Problem::Overlap {
            first: first.name.clone(),
            second: second.name.clone(),
        });
    }
    Ok(tensors)
}
