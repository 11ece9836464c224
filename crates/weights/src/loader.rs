//! Handing a model its tensors by path, and keeping the account.

use crate::report::{Applied, LoadReport, WrongDType, WrongShape};
use crate::view::aligned_bytes;
use crate::{DType, Error, TensorInfo, TensorView, WeightSet, scan};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A place in a [`WeightSet`] from which a module takes its tensors. Clones and children share one
/// [`LoadReport`].
///
/// ```no_run
/// # use aquatint_weights::{Loader, WeightSet};
/// # fn main() -> Result<(), aquatint_weights::Error> {
/// let loader = Loader::new(WeightSet::open("unet.safetensors")?);
/// let conv = loader.at("conv_in");
/// let weight = conv.tensor("weight", &[320, 4, 3, 3])?;
/// let bias = conv.optional_tensor("bias", &[320])?;
/// let report = loader.finish(&["*.position_ids"])?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Loader {
    set: Arc<WeightSet>,
    path: String,
    mode: Mode,
    report: Arc<Mutex<LoadReport>>,
}

#[derive(Clone, Copy, Debug)]
struct Mode {
    collect: bool,
    finite: bool,
}

/// In collecting mode, the number of faults after which the file is plainly of another model.
const MAX_COLLECTED: usize = 1000;

impl Loader {
    /// A loader that answers the first fault with an error.
    pub fn new(set: WeightSet) -> Loader {
        let report = LoadReport {
            path: set.path().into(),
            ..LoadReport::default()
        };
        let mode = Mode {
            collect: false,
            finite: false,
        };
        Loader {
            set: Arc::new(set),
            path: String::new(),
            mode,
            report: Arc::new(Mutex::new(report)),
        }
    }

    /// A loader that answers a fault with zeros of the expected shape and goes on, so that the error of
    /// [`Loader::finish`] tells of all faults at once. A model whose `finish` failed must not be used.
    pub fn collecting(set: WeightSet) -> Loader {
        let loader = Loader::new(set);
        Loader {
            mode: Mode {
                collect: true,
                ..loader.mode
            },
            ..loader
        }
    }

    /// Also looks for NaN and infinities in each tensor taken, which reads all of its bytes.
    pub fn checking_finite(self) -> Loader {
        Loader {
            mode: Mode {
                finite: true,
                ..self.mode
            },
            ..self
        }
    }

    /// The loader of a part: `at("down_blocks.0")`, or in steps `at("down_blocks").at(0)`.
    pub fn at(&self, part: impl std::fmt::Display) -> Loader {
        Loader {
            path: self.name(&part.to_string()),
            ..self.clone()
        }
    }

    /// The path of this part, "" at the root.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The whole name of a tensor of this part.
    pub fn name(&self, name: &str) -> String {
        match (self.path.is_empty(), name.is_empty()) {
            (true, _) => name.to_string(),
            (_, true) => self.path.clone(),
            _ => format!("{}.{name}", self.path),
        }
    }

    /// The set that it takes from.
    pub fn weights(&self) -> &WeightSet {
        &self.set
    }

    /// Whether a tensor of this part is there.
    pub fn has(&self, name: &str) -> bool {
        self.set.contains(&self.name(name))
    }

    /// Whether any tensor lies under this part's `part`.
    pub fn has_part(&self, part: &str) -> bool {
        self.set.has_prefix(&format!("{}.", self.name(part)))
    }

    /// Type and shape of a tensor of this part, without taking it.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.set.info(&self.name(name))
    }

    /// Takes a floating-point tensor of exactly that shape.
    ///
    /// # Errors
    ///
    /// [`Error::MissingTensor`], [`Error::WrongShape`], [`Error::WrongDType`]; with
    /// [`Loader::checking_finite`] also [`Error::NonFinite`].
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<TensorView, Error> {
        let name = self.name(name);
        match self.take(&name, shape) {
            Err(error) if self.mode.collect => self.placeholder(name, shape, error),
            result => result,
        }
    }

    /// Takes a floating-point tensor of exactly that shape if it is there.
    ///
    /// # Errors
    ///
    /// As [`Loader::tensor`], but absence is `None`.
    pub fn optional_tensor(
        &self,
        name: &str,
        shape: &[usize],
    ) -> Result<Option<TensorView>, Error> {
        if self.has(name) {
            return self.tensor(name, shape).map(Some);
        }
        self.account().absent_optional.push(self.name(name));
        Ok(None)
    }

    /// Takes a tensor of any type and shape.
    ///
    /// # Errors
    ///
    /// [`Error::MissingTensor`], in collecting mode too.
    pub fn raw_tensor(&self, name: &str) -> Result<TensorView, Error> {
        let name = self.name(name);
        let view = self
            .set
            .get(&name)
            .inspect_err(|_| self.account().missing.push(name.clone()))?;
        self.applied(&view);
        Ok(view)
    }

    /// The account so far; `unused` is still empty.
    pub fn report(&self) -> LoadReport {
        self.account().clone()
    }

    fn account(&self) -> MutexGuard<'_, LoadReport> {
        // The report stays whole whatever a panicking holder did between two pushes.
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the account: what nothing took is unused, or ignored where one of the patterns matches it
    /// (`*` stands for any characters, as in `*.position_ids`).
    ///
    /// # Errors
    ///
    /// [`Error::Incomplete`] when tensors were missing or did not fit (in collecting mode the only place
    /// that says so).
    pub fn finish(&self, harmless: &[&str]) -> Result<LoadReport, Error> {
        let mut report = self.report();
        let refused = |n: &str| {
            report.wrong_shape.iter().any(|w| w.name == n)
                || report.wrong_dtype.iter().any(|w| w.name == n)
        };
        let left = self
            .set
            .names()
            .filter(|n| !report.applied.contains_key(*n) && !refused(n));
        let (ignored, unused) = left
            .map(String::from)
            .partition(|n| harmless.iter().any(|p| matches_pattern(p, n)));
        (report.ignored, report.unused) = (ignored, unused);
        report.check()?;
        Ok(report)
    }

    fn take(&self, name: &str, shape: &[usize]) -> Result<TensorView, Error> {
        let Some(info) = self.set.info(name) else {
            self.account().missing.push(name.into());
            return Err(Error::MissingTensor {
                path: self.set.path().into(),
                name: name.into(),
            });
        };
        let path = || {
            self.set
                .origin(name)
                .map_or(self.set.path(), |(file, _)| file)
                .to_path_buf()
        };
        if !info.dtype.is_float() {
            let (name, found, expected) = (name.to_string(), info.dtype, "a floating-point type");
            self.account().wrong_dtype.push(WrongDType {
                name: name.clone(),
                found,
                expected,
            });
            return Err(Error::WrongDType {
                path: path(),
                name,
                found,
                expected,
            });
        }
        if info.shape != shape {
            let (name, found, expected) = (name.to_string(), info.shape.clone(), shape.to_vec());
            let row = WrongShape {
                name: name.clone(),
                found: found.clone(),
                expected: expected.clone(),
            };
            self.account().wrong_shape.push(row);
            return Err(Error::WrongShape {
                path: path(),
                name,
                found,
                expected,
            });
        }
        let view = self.set.get(name)?;
        if self.mode.finite {
            scan::check_finite(&view, &path())?;
        }
        self.applied(&view);
        Ok(view)
    }

    fn applied(&self, view: &TensorView) {
        let row = Applied {
            dtype: view.dtype,
            elements: view.len(),
            bytes: view.data.len(),
        };
        self.account().applied.insert(view.name.clone(), row);
    }

    /// Zeros in the place of a faulty tensor, or the fault itself when zeros are no answer.
    fn placeholder(
        &self,
        name: String,
        shape: &[usize],
        error: Error,
    ) -> Result<TensorView, Error> {
        let collected = matches!(
            error,
            Error::MissingTensor { .. } | Error::WrongShape { .. } | Error::WrongDType { .. }
        );
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let bytes = elements.and_then(|n| DType::F16.byte_size(n));
        match bytes {
            Some(bytes) if collected && self.account().problems() <= MAX_COLLECTED => {
                let data = aligned_bytes(bytes, |_| ());
                Ok(TensorView {
                    name,
                    dtype: DType::F16,
                    shape: shape.to_vec(),
                    data,
                })
            }
            _ => Err(error),
        }
    }
}

/// Whether a name fits a pattern in which `*` stands for any run of characters.
fn matches_pattern(pattern: &str, name: &str) -> bool {
    let Some((head, tail)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(mut rest) = name.strip_prefix(head) else {
        return false;
    };
    let mut parts: Vec<&str> = tail.split('*').collect();
    let Some(last) = parts.pop() else { return true };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name) in [
            ("logit_scale", "logit_scale"),
            ("*.position_ids", "text_model.embeddings.position_ids"),
            ("*", ""),
            ("a*b*c", "a.x.b.b.c"),
            ("a**c", "ac"),
            (
                "first_stage_model.*",
                "first_stage_model.encoder.conv_in.bias",
            ),
        ] {
            assert!(matches_pattern(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("logit_scale", "logit_scale2"),
            ("*.position_ids", "position_ids"),
            ("a*a", "a"),
            ("a*b*b", "a.b"),
            ("", "a"),
        ] {
            assert!(!matches_pattern(pattern, name), "{pattern} {name}");
        }
    }
}
