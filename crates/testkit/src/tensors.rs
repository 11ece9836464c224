//! Reading goldens: named tensors of a `.safetensors` file, and 8-bit pictures.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};

/// Why a golden could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is not there or not readable.
    #[error("cannot read {path}: {source}; the scripts in golden/ make it (see golden/README.md)")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is there and is not what its name says.
    #[error("{path} is not a readable golden: {what}; make it again with the scripts in golden/")]
    Format {
        /// The file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
}

/// The values of a tensor, widened to the type that tests compute with.
#[derive(Debug, Clone, PartialEq)]
enum Values {
    F32(Vec<f32>),
    F64(Vec<f64>),
    I64(Vec<i64>),
    U8(Vec<u8>),
}

/// A golden tensor: its shape and its values in row-major order.
///
/// f16 and bf16 are widened to f32; signed integers to i64; bool and u8 are u8.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    shape: Vec<usize>,
    values: Values,
}

impl Tensor {
    /// A tensor of f32 values in row-major order.
    ///
    /// # Panics
    /// When the number of values is not the product of the shape.
    pub fn from_f32(shape: &[usize], values: Vec<f32>) -> Self {
        assert_eq!(
            shape.iter().product::<usize>(),
            values.len(),
            "shape {shape:?} and values disagree"
        );
        Self {
            shape: shape.to_vec(),
            values: Values::F32(values),
        }
    }

    /// The shape, outermost axis first, as PyTorch stored it (images and activations in NCHW).
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The f32 values.
    ///
    /// # Panics
    /// When the tensor holds integers or f64, with a message that names what it holds.
    #[track_caller]
    pub fn f32(&self) -> &[f32] {
        match &self.values {
            Values::F32(values) => values,
            other => panic!("the golden holds {}, not f32", other.kind()),
        }
    }

    /// The f64 values.
    ///
    /// # Panics
    /// When the tensor holds another type.
    #[track_caller]
    pub fn f64(&self) -> &[f64] {
        match &self.values {
            Values::F64(values) => values,
            other => panic!("the golden holds {}, not f64", other.kind()),
        }
    }

    /// The integer values (token ids, timesteps).
    ///
    /// # Panics
    /// When the tensor holds floating-point values.
    #[track_caller]
    pub fn i64(&self) -> &[i64] {
        match &self.values {
            Values::I64(values) => values,
            other => panic!("the golden holds {}, not i64", other.kind()),
        }
    }

    /// The bytes (8-bit pictures, `[height, width, 3]`).
    ///
    /// # Panics
    /// When the tensor holds another type.
    #[track_caller]
    pub fn u8(&self) -> &[u8] {
        match &self.values {
            Values::U8(values) => values,
            other => panic!("the golden holds {}, not u8", other.kind()),
        }
    }

    /// The tensor with its axes reordered: axis `i` of the result is axis `axes[i]` of this one.
    /// f32 only.
    ///
    /// # Panics
    /// When `axes` is not a permutation of the tensor's axes.
    #[track_caller]
    pub fn permuted(&self, axes: &[usize]) -> Self {
        let mut sorted = axes.to_vec();
        sorted.sort_unstable();
        assert!(
            sorted.iter().copied().eq(0..self.shape.len()),
            "{axes:?} is no permutation of the axes of {:?}",
            self.shape
        );
        let strides = row_major_strides(&self.shape);
        let shape: Vec<usize> = axes.iter().map(|&axis| self.shape[axis]).collect();
        let strides: Vec<usize> = axes.iter().map(|&axis| strides[axis]).collect();
        let source = self.f32();
        let new_strides = row_major_strides(&shape);
        let values = (0..source.len())
            .map(|i| {
                let offset: usize = (0..shape.len())
                    .map(|axis| i / new_strides[axis] % shape[axis] * strides[axis])
                    .sum();
                source[offset]
            })
            .collect();
        Self {
            shape,
            values: Values::F32(values),
        }
    }

    /// PyTorch's `[batch, channels, height, width]` as Aquatint's `[batch, height, width, channels]`.
    ///
    /// # Panics
    /// When the tensor has not four axes.
    #[track_caller]
    pub fn channels_last(&self) -> Self {
        self.permuted(&[0, 2, 3, 1])
    }
}

impl Values {
    fn kind(&self) -> &'static str {
        match self {
            Self::F32(_) => "f32",
            Self::F64(_) => "f64",
            Self::I64(_) => "i64",
            Self::U8(_) => "u8",
        }
    }
}

fn row_major_strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    strides
}

/// The tensors of one golden file, by name.
#[derive(Debug, Clone)]
pub struct Tensors {
    path: PathBuf,
    by_name: BTreeMap<String, Tensor>,
}

impl Tensors {
    /// Reads every tensor of a `.safetensors` file.
    ///
    /// # Errors
    /// When the file is missing or malformed, or holds a type that no golden uses.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref().to_path_buf();
        let bytes = std::fs::read(&path).map_err(|source| Error::Io {
            path: path.clone(),
            source,
        })?;
        let format = |what: String| Error::Format {
            path: path.clone(),
            what,
        };
        let file = SafeTensors::deserialize(&bytes).map_err(|e| format(e.to_string()))?;
        let mut by_name = BTreeMap::new();
        for (name, view) in file.iter() {
            let values = decode(view.dtype(), view.data())
                .ok_or_else(|| format(format!("{name} has the type {:?}", view.dtype())))?;
            let shape = view.shape().to_vec();
            by_name.insert(name.to_string(), Tensor { shape, values });
        }
        Ok(Self { path, by_name })
    }

    /// The tensor of that name.
    ///
    /// # Panics
    /// When there is none; the message lists the names that come nearest.
    #[track_caller]
    pub fn get(&self, name: &str) -> &Tensor {
        self.by_name.get(name).unwrap_or_else(|| {
            let head = name.rsplit_once('/').map_or("", |(head, _)| head);
            let near: Vec<_> = self.names().filter(|n| n.starts_with(head)).collect();
            panic!(
                "{} has no tensor {name:?}; it has {:?}",
                self.path.display(),
                &near[..near.len().min(40)]
            )
        })
    }

    /// Whether there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// All names, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }

    /// All tensors with their names, in alphabetical order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.by_name.iter().map(|(name, t)| (name.as_str(), t))
    }
}

fn decode(dtype: Dtype, data: &[u8]) -> Option<Values> {
    Some(match dtype {
        Dtype::F32 => Values::F32(words(data, f32::from_le_bytes)),
        Dtype::F16 => Values::F32(words(data, |b| f16::from_le_bytes(b).to_f32())),
        Dtype::BF16 => Values::F32(words(data, |b| bf16::from_le_bytes(b).to_f32())),
        Dtype::F64 => Values::F64(words(data, f64::from_le_bytes)),
        Dtype::I64 => Values::I64(words(data, i64::from_le_bytes)),
        Dtype::I32 => Values::I64(words(data, |b| i64::from(i32::from_le_bytes(b)))),
        Dtype::I16 => Values::I64(words(data, |b| i64::from(i16::from_le_bytes(b)))),
        Dtype::U8 | Dtype::BOOL => Values::U8(data.to_vec()),
        _ => return None,
    })
}

fn words<const N: usize, T>(data: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    data.as_chunks::<N>().0.iter().map(|&b| read(b)).collect()
}

/// Reads a PNG as 8-bit RGB: `(width, height, bytes)`, bytes in `[height, width, 3]` order.
///
/// # Errors
/// When the file is missing or not a picture.
pub fn read_png(path: impl AsRef<Path>) -> Result<(u32, u32, Vec<u8>), Error> {
    let path = path.as_ref().to_path_buf();
    let bytes = std::fs::read(&path).map_err(|source| Error::Io {
        path: path.clone(),
        source,
    })?;
    let picture = image::load_from_memory(&bytes)
        .map_err(|e| Error::Format {
            path,
            what: e.to_string(),
        })?
        .to_rgb8();
    Ok((picture.width(), picture.height(), picture.into_raw()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::{TensorView, serialize_to_file};

    fn view(dtype: Dtype, shape: &[usize], data: &[u8]) -> TensorView<'static> {
        let data: &'static [u8] = Box::leak(data.to_vec().into_boxed_slice());
        TensorView::new(dtype, shape.to_vec(), data).unwrap()
    }

    #[test]
    fn every_type_is_widened_as_documented() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.safetensors");
        let f32s: Vec<u8> = [1.5f32, -2.0]
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect();
        let f16s: Vec<u8> = [1.5f32, -2.0]
            .iter()
            .flat_map(|&v| f16::from_f32(v).to_le_bytes())
            .collect();
        let i32s: Vec<u8> = [7i32, -3].iter().flat_map(|v| v.to_le_bytes()).collect();
        let tensors = [
            ("a", view(Dtype::F32, &[2], &f32s)),
            ("b", view(Dtype::F16, &[1, 2], &f16s)),
            ("c", view(Dtype::I32, &[2], &i32s)),
            ("d", view(Dtype::U8, &[3], &[1, 2, 255])),
        ];
        serialize_to_file(tensors, None, &path).unwrap();
        let read = Tensors::read(&path).unwrap();
        assert_eq!(read.get("a").f32(), [1.5, -2.0]);
        assert_eq!(read.get("b").f32(), [1.5, -2.0]);
        assert_eq!(read.get("b").shape(), [1, 2]);
        assert_eq!(read.get("c").i64(), [7, -3]);
        assert_eq!(read.get("d").u8(), [1, 2, 255]);
        assert_eq!(read.names().collect::<Vec<_>>(), ["a", "b", "c", "d"]);
    }

    #[test]
    fn channels_last_moves_the_second_axis_to_the_end() {
        let nchw = Tensor::from_f32(&[1, 2, 2, 3], (0..12).map(|v| v as f32).collect());
        let nhwc = nchw.channels_last();
        assert_eq!(nhwc.shape(), [1, 2, 3, 2]);
        let want = [0., 6., 1., 7., 2., 8., 3., 9., 4., 10., 5., 11.];
        assert_eq!(nhwc.f32(), want);
    }

    #[test]
    fn a_missing_file_says_how_to_make_it() {
        let error = Tensors::read("/nowhere/x.safetensors").unwrap_err();
        assert!(error.to_string().contains("golden/README.md"));
    }

    #[test]
    fn a_truncated_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.safetensors");
        std::fs::write(&path, [9, 0, 0, 0, 0, 0, 0, 0, b'{']).unwrap();
        assert!(matches!(Tensors::read(&path), Err(Error::Format { .. })));
    }
}
