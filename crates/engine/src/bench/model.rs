//! Timing the stages of a model, each done as [`crate::generate`] does it.

use std::time::Instant;

use aquatint_diffusion::{Branches, Network};
use aquatint_models::Checkpoint;
use aquatint_models::text::Encoded;
use aquatint_ops::{Device, buffer};
use serde::Serialize;

use super::median;
use crate::decode::Decoder;
use crate::network::AnyNetwork;
use crate::noise::BatchNoise;
use crate::request::Request;
use crate::schedule::needs_uncond;
use crate::{EngineError, RunOptions, memory, text};

/// Runs of a stage that is done once a picture.
const RUNS: usize = 3;

/// A stage that can be measured alone, so that the process's peak is its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Prompts to embeddings.
    Text,
    /// Steps of the denoising loop. Embeddings are needed, so prompts are read too.
    Step,
    /// Latents to pixels.
    Decode,
}

/// Seconds of a model's stages, medians; of stages that were not asked for, nothing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ModelTimes {
    /// Building the components that were needed; weights are mapped, not read.
    pub load_s: f64,
    /// Reading a prompt, and the negative one when there is guidance.
    pub text_encode_s: Option<f64>,
    /// A call of the network: with guidance, of two batch entries.
    pub denoise_step_s: Option<f64>,
    /// Latents to pixels, one picture.
    pub vae_decode_s: Option<f64>,
    /// Highest resident memory of the process.
    pub peak_bytes: u64,
}

/// Times the stages of a model for the picture of `request`, whose `steps` are the number of calls of the
/// network. `only` leaves out the other stages.
///
/// # Errors
/// As [`crate::generate`].
pub fn time_model(
    model: &Checkpoint,
    request: &Request,
    device: &Device,
    only: Option<Part>,
) -> Result<ModelTimes, EngineError> {
    request.check()?;
    let wanted = |part| only.is_none_or(|only| only == part);
    let mut times = ModelTimes {
        load_s: 0.0,
        text_encode_s: None,
        denoise_step_s: None,
        vae_decode_s: None,
        peak_bytes: 0,
    };
    let shape = latent_shape(model, request);
    let noise = BatchNoise::new(&request.rng, &request.seeds())?.initial(shape.iter().product());
    if wanted(Part::Text) || wanted(Part::Step) {
        let (encoded, seconds) = encode(model, request, device, &mut times.load_s)?;
        times.text_encode_s = Some(seconds);
        if wanted(Part::Step) {
            let seconds = steps(model, request, device, &encoded, &noise, &mut times.load_s)?;
            times.denoise_step_s = Some(seconds);
        }
    }
    if wanted(Part::Decode) {
        let start = Instant::now();
        let decoder = Decoder::load(model, &RunOptions::default(), device)?;
        times.load_s += start.elapsed().as_secs_f64();
        let [_, channels, height, width] = shape;
        let one = || {
            let latent = &noise[..channels * height * width];
            let size = [channels, height, width];
            decoder.decode(latent, size, request.vae_tiling, &mut |_, _| false)
        };
        times.vae_decode_s = Some(repeat(RUNS, one)?.1);
        buffer::release();
    }
    times.peak_bytes = memory::now().peak_resident;
    Ok(times)
}

fn latent_shape(model: &Checkpoint, request: &Request) -> [usize; 4] {
    let factor = model.vae.config.factor();
    let [height, width] = [request.height, request.width].map(|side| side as usize / factor);
    let channels = model.network.config.out_channels();
    [request.batch as usize, channels, height, width]
}

fn encode(
    model: &Checkpoint,
    request: &Request,
    device: &Device,
    load: &mut f64,
) -> Result<(Encoded, f64), EngineError> {
    let start = Instant::now();
    let conditioner = text::load(model, request, device)?;
    *load += start.elapsed().as_secs_f64();
    let found = repeat(RUNS, || text::encode(&conditioner, model, request))?;
    drop(conditioner);
    text::release(model);
    buffer::release();
    Ok(found)
}

fn steps(
    model: &Checkpoint,
    request: &Request,
    device: &Device,
    encoded: &Encoded,
    noise: &[f32],
    load: &mut f64,
) -> Result<f64, EngineError> {
    let start = Instant::now();
    let mut network = AnyNetwork::load(encoded, request, model, device)?;
    *load += start.elapsed().as_secs_f64();
    let branches = match needs_uncond(model, request)? {
        true => Branches::CondAndUncond,
        false => Branches::Cond,
    };
    let mut step = 0;
    let call = || {
        // From the noisiest to the cleanest, as a run goes.
        let timestep = 999.0 * (1.0 - step as f64 / request.steps as f64);
        let result = network.run(noise, timestep, branches);
        let failed = |source| aquatint_diffusion::Error::Network { step, source };
        let outputs = result.map_err(failed)?;
        step += 1;
        Ok(outputs)
    };
    let (_, seconds) = repeat(request.steps as usize, call)?;
    drop(network);
    model.network.source.release_pages();
    buffer::release();
    Ok(seconds)
}

/// The last result of some runs, and their median seconds.
fn repeat<T>(
    runs: usize,
    mut run: impl FnMut() -> Result<T, EngineError>,
) -> Result<(T, f64), EngineError> {
    let mut times = Vec::with_capacity(runs);
    let mut timed = || {
        let start = Instant::now();
        let value = run();
        times.push(start.elapsed().as_secs_f64());
        value
    };
    let mut value = timed()?;
    for _ in 1..runs {
        value = timed()?;
    }
    Ok((value, median(times)))
}
