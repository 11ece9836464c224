//! The layers of a model that can be added to, found by building it on nothing.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use aquatint_ops::{Device, LowRank, ParamSource, Params, RawTensor, Storage};

use crate::ModelError;
use crate::checkpoint::Part;
use crate::flux::Flux;
use crate::mmdit::Mmdit;
use crate::network::NetworkConfig;
use crate::source::CheckpointSource;
use crate::text::{ClipTextConfig, ClipTextEncoder};
use crate::unet::UNet2DCondition;

/// A linear layer or a convolution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Site {
    /// In diffusers' naming.
    pub name: String,
    /// Of its weight: `[out, in]` or `[out, in, kh, kw]`.
    pub shape: Vec<usize>,
}

/// The layers of the network.
pub(super) fn network(
    source: &CheckpointSource,
    config: &NetworkConfig,
) -> Result<Vec<Site>, ModelError> {
    let probe = Probe::new(source);
    let device = Device::flex();
    let params = Params::new(&probe, &device);
    match config {
        NetworkConfig::UNet(config) => drop(UNet2DCondition::load(&params, config)?),
        NetworkConfig::Mmdit(config) => drop(Mmdit::load(&params, config)?),
        NetworkConfig::Flux(config) => drop(Flux::load(&params, config)?),
    }
    Ok(probe.found())
}

/// The layers of a text encoder.
pub(super) fn text(part: &Part<ClipTextConfig>) -> Result<Vec<Site>, ModelError> {
    let probe = Probe::new(&part.source);
    ClipTextEncoder::load(&Params::new(&probe, &Device::flex()), &part.config)?;
    Ok(probe.found())
}

/// Bytes of an element of f16.
const F16: usize = 2;

/// Gives zeros for every tensor, all views of one untouched buffer, so that a model is built without its weights being
/// read or converted; and notes which layers ask for an addition.
struct Probe<'a> {
    base: &'a CheckpointSource,
    zeros: bytes::Bytes,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    shapes: BTreeMap<String, Vec<usize>>,
    sites: Vec<Site>,
}

impl<'a> Probe<'a> {
    fn new(base: &'a CheckpointSource) -> Self {
        let largest = base.weights().iter();
        let largest = largest.map(|(_, info)| info.shape.iter().product::<usize>());
        let bytes = largest.max().unwrap_or(0) * F16;
        Probe {
            base,
            // The system gives pages of zeros when they are touched, which only those of vectors are.
            zeros: vec![0u8; bytes].into(),
            seen: Mutex::default(),
        }
    }

    fn found(self) -> Vec<Site> {
        let seen = self.seen.into_inner();
        seen.unwrap_or_else(PoisonError::into_inner).sites
    }
}

impl ParamSource for Probe<'_> {
    fn tensor(
        &self,
        name: &str,
        shape: &[usize],
    ) -> Result<RawTensor, Box<dyn std::error::Error + Send + Sync>> {
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let bytes = elements.and_then(|n| n.checked_mul(F16));
        let Some(bytes) = bytes.filter(|n| *n <= self.zeros.len()) else {
            // Larger than everything in the file: it says so itself.
            return self.base.tensor(name, shape);
        };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.shapes.insert(name.to_owned(), shape.to_vec());
        Ok(RawTensor {
            bytes: self.zeros.slice(..bytes),
            storage: Storage::F16,
            shape: shape.to_vec(),
        })
    }

    fn has(&self, name: &str) -> bool {
        self.base.has(name)
    }

    fn low_rank(&self, layer: &str) -> Option<LowRank> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let shape = seen.shapes.get(&format!("{layer}.weight")).cloned();
        if let Some(shape) = shape {
            let name = layer.to_owned();
            seen.sites.push(Site { name, shape });
        }
        None
    }
}
