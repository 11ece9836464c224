//! Sources of parameters for networks of several parts.

use std::collections::BTreeMap;

use aquatint_ops::{LowRank, ParamSource, RawTensor};

type Boxed = Box<dyn std::error::Error + Send + Sync>;

/// Hands the names below `unet.` to the source of the UNet, and so on.
#[derive(Default)]
pub(crate) struct Router<'a>(Vec<(&'a str, &'a dyn ParamSource)>);

impl<'a> Router<'a> {
    /// With the source of the part `name`.
    pub fn with(mut self, name: &'a str, source: &'a dyn ParamSource) -> Self {
        self.0.push((name, source));
        self
    }

    fn of<'n>(&self, name: &'n str) -> Option<(&dyn ParamSource, &'n str)> {
        let (part, rest) = name.split_once('.')?;
        let (_, source) = self.0.iter().find(|(known, _)| *known == part)?;
        Some((*source, rest))
    }
}

impl ParamSource for Router<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<RawTensor, Boxed> {
        match self.of(name) {
            Some((source, rest)) => source.tensor(rest, shape),
            None => Err(format!("no part of the model holds {name}").into()),
        }
    }

    fn has(&self, name: &str) -> bool {
        self.of(name).is_some_and(|(source, rest)| source.has(rest))
    }
}

/// A tensor that is kept by a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// As in the checkpoint.
    pub shape: Vec<usize>,
    /// Row by row.
    pub values: Vec<f32>,
}

/// Trained tensors by their names, over a source for those that are not trained.
pub(crate) struct Trained<'a> {
    pub tensors: &'a BTreeMap<String, Stored>,
    pub frozen: &'a dyn ParamSource,
}

impl ParamSource for Trained<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<RawTensor, Boxed> {
        match self.tensors.get(name) {
            Some(stored) => Ok(RawTensor::from_f32(&stored.values, &stored.shape)),
            None => self.frozen.tensor(name, shape),
        }
    }

    fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name) || self.frozen.has(name)
    }

    fn low_rank(&self, layer: &str) -> Option<LowRank> {
        self.frozen.low_rank(layer)
    }
}
