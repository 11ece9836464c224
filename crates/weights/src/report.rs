//! What became of every tensor of a model and of its file.

use crate::error::{List, Name};
use crate::{DType, Error};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// What a [`crate::Loader`] did: which tensors the model took, and what did not fit.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LoadReport {
    /// The file or folder.
    pub path: PathBuf,
    /// Tensors that were taken, by name.
    pub applied: BTreeMap<String, Applied>,
    /// Tensors that the model needs and the file does not hold.
    pub missing: Vec<String>,
    /// Tensors that the model could use and the file does not hold.
    pub absent_optional: Vec<String>,
    /// Tensors of the file that nothing asked for; empty until [`crate::Loader::finish`].
    pub unused: Vec<String>,
    /// Unused tensors that the caller knows to be harmless.
    pub ignored: Vec<String>,
    /// Tensors of another shape than the model's.
    pub wrong_shape: Vec<WrongShape>,
    /// Tensors of another kind of storage type than the model's.
    pub wrong_dtype: Vec<WrongDType>,
}

/// A tensor that was taken.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Applied {
    /// How it is stored.
    pub dtype: DType,
    /// Its number of elements.
    pub elements: usize,
    /// Its bytes in the file.
    pub bytes: usize,
}

/// A tensor of another shape than expected.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WrongShape {
    /// Its name.
    pub name: String,
    /// Its shape in the file.
    pub found: Vec<usize>,
    /// The model's shape.
    pub expected: Vec<usize>,
}

/// A tensor of another storage type than expected.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WrongDType {
    /// Its name.
    pub name: String,
    /// Its type in the file.
    pub found: DType,
    /// What would have done.
    pub expected: &'static str,
}

impl LoadReport {
    /// Whether every tensor that the model needs was there and fitted. Unused ones are no fault.
    pub fn is_complete(&self) -> bool {
        self.problems() == 0
    }

    pub(crate) fn problems(&self) -> usize {
        self.missing.len() + self.wrong_shape.len() + self.wrong_dtype.len()
    }

    /// Parameters taken: the elements of all applied tensors.
    pub fn parameters(&self) -> u64 {
        self.applied.values().map(|a| a.elements as u64).sum()
    }

    /// Bytes that the applied tensors take in their files.
    pub fn bytes(&self) -> u64 {
        self.applied.values().map(|a| a.bytes as u64).sum()
    }

    /// Adds another component's report to this one.
    pub fn merge(&mut self, other: LoadReport) {
        self.applied.extend(other.applied);
        self.missing.extend(other.missing);
        self.absent_optional.extend(other.absent_optional);
        self.unused.extend(other.unused);
        self.ignored.extend(other.ignored);
        self.wrong_shape.extend(other.wrong_shape);
        self.wrong_dtype.extend(other.wrong_dtype);
    }

    /// The faults as an error.
    ///
    /// # Errors
    ///
    /// [`Error::Incomplete`] when [`LoadReport::is_complete`] is false.
    pub fn check(&self) -> Result<(), Error> {
        if self.is_complete() {
            return Ok(());
        }
        let summary = self.faults().join("; ");
        Err(Error::Incomplete {
            path: self.path.clone(),
            summary,
        })
    }

    fn faults(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if !self.missing.is_empty() {
            lines.push(format!(
                "missing tensors ({}): {}",
                self.missing.len(),
                List(&self.missing)
            ));
        }
        if !self.wrong_shape.is_empty() {
            let each = |w: &WrongShape| {
                format!(
                    "{} is {:?}, expected {:?}",
                    Name(&w.name),
                    w.found,
                    w.expected
                )
            };
            lines.push(format!(
                "tensors of another shape ({}): {}",
                self.wrong_shape.len(),
                first(&self.wrong_shape, each)
            ));
        }
        if !self.wrong_dtype.is_empty() {
            let each = |w: &WrongDType| {
                format!("{} is {}, expected {}", Name(&w.name), w.found, w.expected)
            };
            lines.push(format!(
                "tensors of another type ({}): {}",
                self.wrong_dtype.len(),
                first(&self.wrong_dtype, each)
            ));
        }
        lines
    }
}

/// The first ten rows and how many more there are.
fn first<T>(rows: &[T], each: impl Fn(&T) -> String) -> String {
    let texts: Vec<String> = rows.iter().take(10).map(each).collect();
    let more = rows.len() - texts.len();
    let texts = texts.join(", ");
    if more == 0 {
        texts
    } else {
        format!("{texts} and {more} more")
    }
}

/// One line for what was applied and one for each kind of fault, with the first ten names of each.
impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (tensors, parameters, bytes) = (self.applied.len(), self.parameters(), self.bytes());
        write!(
            f,
            "applied tensors: {tensors}, {parameters} parameters in {bytes} bytes"
        )?;
        for line in self.faults() {
            write!(f, "\n{line}")?;
        }
        if !self.unused.is_empty() {
            write!(
                f,
                "\nunused tensors ({}): {}",
                self.unused.len(),
                List(&self.unused)
            )?;
        }
        if !self.ignored.is_empty() {
            write!(
                f,
                "\nunused and known to be harmless: {}",
                self.ignored.len()
            )?;
        }
        Ok(())
    }
}
