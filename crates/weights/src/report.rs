//! What became of every tensor of a model and of its file.

use crate::DType;
use crate::error::{List, Name};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// What became of a model's tensors: which it took, and what did not fit.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LoadReport {
    /// The file or folder.
    pub path: PathBuf,
    /// Tensors that were taken, by name.
    pub applied: BTreeMap<String, Applied>,
    /// Tensors that the model needs and the file does not hold.
    pub missing: Vec<String>,
    /// Tensors of the file that nothing asked for.
    pub unused: Vec<String>,
    /// Unused tensors that the caller knows to be harmless.
    pub ignored: Vec<String>,
    /// Tensors of another shape than the model's.
    pub wrong_shape: Vec<WrongShape>,
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

impl LoadReport {
    /// Whether every tensor that the model needs was there and fitted. Unused ones are no fault.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty() && self.wrong_shape.is_empty()
    }

    /// Parameters taken: the elements of all applied tensors.
    pub fn parameters(&self) -> u64 {
        self.applied.values().map(|a| a.elements as u64).sum()
    }

    /// Bytes that the applied tensors take in their files.
    pub fn bytes(&self) -> u64 {
        self.applied.values().map(|a| a.bytes as u64).sum()
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
