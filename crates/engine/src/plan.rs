//! What a run will take, told before it starts.

use std::fmt;
use std::time::{Duration, Instant};

use aquatint_models::Checkpoint;
use aquatint_models::unet::Cost;
use aquatint_ops::fused::{self, Epilogue};
use aquatint_ops::{Device, Tensor};
use burn::tensor::DType;
use serde::Serialize;

use crate::decode::uses_tiles;
use crate::request::Request;
use crate::schedule::{layout, needs_uncond};
use crate::{EngineError, memory};

/// Memory that the program takes besides weights and activations, in bytes: code, buffers of the
/// kernels, the tokenizer. Measured on the small models.
const BASE: u64 = 60_000_000;

/// An estimate of a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// Bytes of the weights, in the storage type that they are used in.
    pub weight_bytes: u64,
    /// Most bytes of activations alive at once.
    pub activation_bytes: u64,
    /// Memory that is free now, when the system tells.
    pub available_bytes: Option<u64>,
    /// Network calls of the denoising loop.
    pub network_calls: usize,
    /// Expected time, from the work and the speed of a short test.
    pub seconds: f64,
}

impl Estimate {
    /// Bytes at the peak.
    pub fn peak_bytes(&self) -> u64 {
        BASE + self.weight_bytes + self.activation_bytes
    }

    /// Whether the run fits into the memory that is free; true when that is not known.
    pub fn fits(&self) -> bool {
        self.available_bytes
            .is_none_or(|free| self.peak_bytes() <= free)
    }
}

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gb = |n: u64| n as f64 / 1e9;
        write!(
            f,
            "about {:.0} s and {:.2} GB ({:.2} GB weights, {:.2} GB working memory)",
            self.seconds.max(1.0),
            gb(self.peak_bytes()),
            gb(self.weight_bytes),
            gb(self.activation_bytes)
        )?;
        match self.available_bytes {
            Some(free) if self.fits() => {
                write!(f, "; fits into the {:.1} GB that are free", gb(free))
            }
            Some(free) => write!(
                f,
                "; MORE than the {:.1} GB that are free: take a smaller picture, --batch 1 or --vae-tiling on",
                gb(free)
            ),
            None => Ok(()),
        }
    }
}

/// Estimates the run of a request.
///
/// # Errors
/// As [`crate::generate`] before it loads anything; and when the activations alone are larger than
/// the machine's memory.
pub fn estimate(model: &Checkpoint, request: &Request) -> Result<Estimate, EngineError> {
    request.check()?;
    let plan = layout(model, request)?;
    let calls = plan.network_calls();
    let (step, decode) = costs(model, request)?;
    let weight_bytes = model.weight_bytes();
    let work = step.times(calls).then(decode.times(request.batch as usize));
    let estimate = Estimate {
        weight_bytes,
        activation_bytes: step.activation_bytes.max(decode.activation_bytes),
        available_bytes: memory::available(),
        network_calls: calls,
        seconds: 2.0 * work.multiply_adds() as f64 / speed(),
    };
    if let Some(total) = memory::total()
        && estimate.activation_bytes > total
    {
        return Err(EngineError::TooLarge {
            needed: estimate.activation_bytes,
            total,
        });
    }
    Ok(estimate)
}

/// Cost of one network call, and of decoding one picture.
fn costs(model: &Checkpoint, request: &Request) -> Result<(Cost, Cost), EngineError> {
    let factor = model.vae.config.factor();
    let [height, width] = [request.height, request.width].map(|s| s as usize / factor);
    let guided = needs_uncond(request)?;
    let batch = request.batch as usize * if guided { 2 } else { 1 };
    let step = model.unet.config.cost(batch, height, width, 77);
    let decode = match uses_tiles(request.vae_tiling, height, width) {
        true => model
            .vae
            .config
            .tiled_decode_cost(1, height, width, Default::default()),
        false => model.vae.config.decode_cost(1, height, width),
    };
    Ok((step, decode))
}

/// The decode's work as a share of the denoising loop's.
pub(crate) fn decode_share(model: &Checkpoint, request: &Request, calls: usize) -> f64 {
    let Ok((step, decode)) = costs(model, request) else {
        return 0.0;
    };
    let loop_work = step.times(calls).multiply_adds().max(1) as f64;
    decode.times(request.batch as usize).multiply_adds() as f64 / loop_work
}

/// Operations a second of this machine, by a short product of matrices.
fn speed() -> f64 {
    const N: usize = 512;
    let device = Device::flex();
    let a = Tensor::<2>::ones([N, N], (&device, DType::F32));
    let work = 2.0 * (N as f64).powi(3);
    let start = Instant::now();
    let mut best = f64::INFINITY;
    while start.elapsed() < Duration::from_millis(20) {
        let begun = Instant::now();
        fused::linear(a.clone(), a.clone(), Epilogue::default());
        best = best.min(begun.elapsed().as_secs_f64());
    }
    work / best.max(1e-9)
}
