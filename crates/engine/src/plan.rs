//! What a run will take, told before it starts.

use std::fmt;
use std::time::{Duration, Instant};

use aquatint_models::families::{GuidanceUse, TextUse};
use aquatint_models::unet::Cost;
use aquatint_models::{Checkpoint, NetworkConfig};
use aquatint_ops::fused::{self, Epilogue};
use aquatint_ops::{Device, Tensor};
use burn::tensor::DType;
use serde::Serialize;

use crate::decode::uses_tiles;
use crate::request::Request;
use crate::schedule::{layout, needs_uncond};
use crate::text::t5_tokens;
use crate::{EngineError, memory};

/// Memory that the program takes besides weights and activations, in bytes: code, buffers of the
/// kernels, the tokenizer. Measured on the small models.
const BASE: u64 = 60_000_000;

/// An estimate of a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// Bytes of the weights, in the storage type that they are used in, of the stage that takes the most memory:
    /// each stage lets go of its own before the next.
    pub weight_bytes: u64,
    /// Most bytes of that stage's activations alive at once.
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
            "about {} and {} ({} weights, {} working memory)",
            duration(self.seconds),
            bytes(self.peak_bytes()),
            bytes(self.weight_bytes),
            bytes(self.activation_bytes)
        )?;
        match self.available_bytes {
            Some(free) if self.fits() => {
                write!(f, "; fits into the {:.1} GB that are free", gb(free))
            }
            Some(free) => write!(
                f,
                "; MORE than the {:.1} GB that are free: take a smaller picture or --vae-tiling on",
                gb(free)
            ),
            None => Ok(()),
        }
    }
}

/// A time as rough as an estimate is.
fn duration(seconds: f64) -> String {
    match seconds.max(1.0).round() as u64 {
        s @ 0..120 => format!("{s} s"),
        s @ 120..7200 => format!("{} min", s.div_ceil(60)),
        s => format!("{:.1} h", s as f64 / 3600.0),
    }
}

/// Bytes in MB or GB.
fn bytes(n: u64) -> String {
    match n {
        0..1_000_000_000 => format!("{:.0} MB", n as f64 / 1e6),
        _ => format!("{:.2} GB", n as f64 / 1e9),
    }
}

/// Checks what a request and a model must agree on.
fn check_agreement(model: &Checkpoint, request: &Request) -> Result<(), EngineError> {
    let layers = model
        .text
        .iter()
        .map(|t| t.encoder.config.num_hidden_layers);
    let layers = layers.min().unwrap_or(0);
    check_of_family(model, request)?;
    match request.clip_skip {
        Some(skip) if layers > 0 && skip as usize > layers => Err(EngineError::Usage {
            message: format!(
                "clip skip is {skip}, expected 1 to {layers}, the text encoder's layers"
            ),
            hint: "1 is the last layer, 2 the one before it".into(),
        }),
        _ => Ok(()),
    }
}

/// Refuses what the model's family has no use for.
pub(crate) fn check_of_family(model: &Checkpoint, request: &Request) -> Result<(), EngineError> {
    let usage = |message: String, hint: &str| {
        Err(EngineError::Usage {
            message,
            hint: hint.into(),
        })
    };
    let title = model.family.title;
    if request.t5_tokens.is_some() && model.family.t5.is_none() {
        return usage(
            format!("T5 tokens are given, but {title} reads no T5"),
            "leave --t5-tokens out",
        );
    }
    if request.true_guidance.is_some() && model.spec.guidance == GuidanceUse::ClassifierFree {
        return usage(
            format!("true guidance is given, but {title} has no other"),
            "say --guidance; --true-guidance is for models that are told their guidance scale, as FLUX is",
        );
    }
    check_skip_layers(model, request)
}

/// Skip-layer guidance is for networks whose layers can be left out.
fn check_skip_layers(model: &Checkpoint, request: &Request) -> Result<(), EngineError> {
    let Some(skip) = &request.skip_layers else {
        return Ok(());
    };
    let NetworkConfig::Mmdit(config) = &model.network.config else {
        return Err(EngineError::Usage {
            message: format!("{} has no skip-layer guidance", model.family.title),
            hint: "leave --skip-layers out; it is for Stable Diffusion 3 and 3.5".into(),
        });
    };
    match skip.layers.iter().find(|layer| **layer >= config.layers()) {
        None => Ok(()),
        Some(layer) => Err(EngineError::Usage {
            message: format!(
                "skip-layer guidance leaves out layer {layer}, expected 0 to {}",
                config.layers() - 1
            ),
            hint: "7, 8 and 9 are usual for Stable Diffusion 3.5 Medium".into(),
        }),
    }
}

/// Estimates the run of a request.
///
/// # Errors
/// As [`crate::generate`] before it loads anything; and when the activations alone are larger than
/// the machine's memory.
pub fn estimate(model: &Checkpoint, request: &Request) -> Result<Estimate, EngineError> {
    request.check()?;
    check_agreement(model, request)?;
    let plan = layout(model, request)?;
    let calls = plan.network_calls();
    let (step, decode) = costs(model, request)?;
    let reading = reading(model, request)?;
    let [text, unet, decoder] = model.stage_weight_bytes();
    // Weights that are converted lie in memory beside each other: the decoder is loaded before the loop.
    let kept = match model.vae.source.converts() {
        true => model.vae.source.bytes(),
        false => 0,
    };
    let stages = [
        (text, reading.activation_bytes),
        (unet + kept, step.activation_bytes),
        (decoder, decode.activation_bytes),
    ];
    let loops = step.times(calls).then(decode.times(request.batch as usize));
    Work {
        stages: &stages,
        calls,
        total: reading.then(loops),
    }
    .estimate()
}

/// What an estimate is made of.
pub(crate) struct Work<'a> {
    /// Bytes of weights and of activations of each stage.
    pub stages: &'a [(u64, u64)],
    /// Network calls.
    pub calls: usize,
    /// The work of the whole run.
    pub total: Cost,
}

impl Work<'_> {
    pub fn estimate(&self) -> Result<Estimate, EngineError> {
        let stages = self.stages.iter().copied();
        let largest = stages.clone().max_by_key(|(weights, work)| weights + work);
        let (weight_bytes, activation_bytes) = largest.unwrap_or_default();
        let needed = stages.map(|(_, work)| work).max().unwrap_or(0);
        if let Some(total) = memory::total()
            && needed > total
        {
            return Err(EngineError::TooLarge { needed, total });
        }
        Ok(Estimate {
            weight_bytes,
            activation_bytes,
            available_bytes: memory::available(),
            network_calls: self.calls,
            seconds: 2.0 * self.total.multiply_adds() as f64 / speed(),
        })
    }
}

/// Cost of reading the prompts. CLIP encoders are small beside T5 and everything else.
fn reading(model: &Checkpoint, request: &Request) -> Result<Cost, EngineError> {
    let prompts = if needs_uncond(model, request)? { 2 } else { 1 };
    let t5 = model.t5.as_ref().map(|part| &part.encoder.config);
    let one = t5.map(|config| config.cost(t5_tokens(model, request)));
    Ok(one.unwrap_or_default().times(prompts))
}

/// Cost of one network call, and of decoding one picture.
fn costs(model: &Checkpoint, request: &Request) -> Result<(Cost, Cost), EngineError> {
    let factor = model.vae.config.factor();
    let [height, width] = [request.height, request.width].map(|s| s as usize / factor);
    let guided = needs_uncond(model, request)?;
    // The images of a batch go through the network one after another.
    let branches = if guided { 2 } else { 1 };
    let one = model
        .network
        .config
        .cost(branches, height, width, text_tokens(model, request));
    let step = one.times(request.batch as usize);
    let decode = match uses_tiles(request.vae_tiling, height, width) {
        true => model
            .vae
            .config
            .tiled_decode_cost(1, height, width, Default::default()),
        false => model.vae.config.decode_cost(1, height, width),
    };
    Ok((step, decode))
}

/// Tokens of text that the network attends to, of a prompt of one chunk.
fn text_tokens(model: &Checkpoint, request: &Request) -> usize {
    match model.spec.text {
        TextUse::One | TextUse::Two => 77,
        TextUse::Joint => 77 + t5_tokens(model, request),
        TextUse::T5AndPooled => t5_tokens(model, request),
    }
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
