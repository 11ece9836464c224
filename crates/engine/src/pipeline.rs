//! The way from a request to pictures:
//! prompt -> conditioning -> noise -> denoising loop -> latents -> pictures.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use aquatint_diffusion::{Guidance, GuidedDenoiser, Network, Plan, SamplerOptions, sample};
use aquatint_models::Checkpoint;
use aquatint_ops::{Device, buffer};
use serde::Serialize;

use crate::decode::Decoder;
use crate::events::{Event, Latents, Observer, Stage};
use crate::network::AnyNetwork;
use crate::noise::BatchNoise;
use crate::picture::Picture;
use crate::request::Request;
use crate::schedule::layout;
use crate::{EngineError, memory, text};

/// How a run is done, beside what it makes.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// A tiny autoencoder (TAESD), for previews and quick decodes.
    pub tiny: Option<std::path::PathBuf>,
    /// Decode with the tiny autoencoder.
    pub quick_decode: bool,
}

/// What a run made.
#[derive(Debug)]
pub struct Run {
    /// The pictures, with their seeds.
    pub pictures: Vec<(u64, Picture)>,
    /// How long each stage took.
    pub seconds: StageSeconds,
}

/// Seconds of each stage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct StageSeconds {
    /// Building the components.
    pub load: f64,
    /// Prompts to embeddings.
    pub text_encode: f64,
    /// The denoising loop.
    pub denoise: f64,
    /// Latents to pixels.
    pub decode: f64,
}

impl StageSeconds {
    /// Adds another run's.
    pub fn add(&mut self, other: &StageSeconds) {
        self.load += other.load;
        self.text_encode += other.text_encode;
        self.denoise += other.denoise;
        self.decode += other.decode;
    }
}

/// Makes the pictures of a request.
///
/// # Errors
/// A request that cannot be, a model that cannot be loaded, numbers that are not finite,
/// [`EngineError::Cancelled`] when the observer breaks.
pub fn generate(
    model: &Checkpoint,
    request: &Request,
    options: &RunOptions,
    device: &Device,
    observer: &mut Observer<'_>,
) -> Result<Run, EngineError> {
    request.check()?;
    crate::plan::check_of_family(model, request)?;
    let plan = layout(model, request)?;
    let mut stages = Stages::new(observer);

    let conditioner = stages.run(Stage::Load, || text::load(model, request, device))?;
    let encoded = stages
        .run(Stage::TextEncode, || {
            text::encode(&conditioner, model, request)
        })
        .map_err(|error| blame_weights(error, model))?;
    drop(conditioner);
    text::release(model);
    buffer::release();
    if let Some(warning) = text::unheard(model, request) {
        stages.warn(warning)?;
    }
    for dropped in &encoded.dropped {
        stages.warn(format!(
            "the prompt is too long; this had no effect: {dropped:?}"
        ))?;
    }

    let network = stages.run(Stage::Load, || {
        AnyNetwork::load(&encoded, request, model, device)
    })?;
    // Before the long loop, so that a fault of the autoencoder is not found at its end. Weights are
    // mapped: they take no memory until they are used.
    let decoder = stages.run(Stage::Load, || {
        let decoder = Decoder::load(model, options, device)?;
        match decoder.is_whole() {
            true => check_decoder(model).map(|()| decoder),
            false => Ok(decoder),
        }
    })?;
    let looped = Loop {
        plan: &plan,
        request,
        shape: network.latent_shape(),
        guidance: crate::schedule::guidance_of(model, request, &plan),
        keep_uncond: plan.info.needs_uncond && crate::schedule::needs_uncond(model, request)?,
        decode_share: crate::plan::decode_share(model, request, plan.network_calls()),
    };
    let shape = looped.shape;
    let values = looped
        .run(&mut stages, network)
        .map_err(|error| blame_weights(error, model))?;
    let latents = LatentBatch { values, shape };
    model.network.source.release_pages();
    buffer::release();

    let pictures = decode(&mut stages, &decoder, &latents, request)
        .map_err(|error| blame_weights(error, model))?;
    buffer::release();
    let seeds = request.seeds();
    Ok(Run {
        pictures: seeds.into_iter().zip(pictures).collect(),
        seconds: stages.seconds,
    })
}

/// The latents of a batch, `[batch, channels, height, width]`.
struct LatentBatch {
    values: Vec<f32>,
    shape: [usize; 4],
}

/// A denoising loop: which steps, of what, for whom.
pub(crate) struct Loop<'a> {
    pub plan: &'a Plan,
    pub request: &'a Request,
    /// Batch, channels, height, width.
    pub shape: [usize; 4],
    /// How the network is guided.
    pub guidance: Guidance,
    /// Whether the sampler is handed what the network gives without guidance.
    pub keep_uncond: bool,
    /// The decode's work as a share of the loop's.
    pub decode_share: f64,
}

impl Loop<'_> {
    /// The values after the last step.
    pub fn run(
        &self,
        stages: &mut Stages<'_, '_>,
        network: impl Network,
    ) -> Result<Vec<f32>, EngineError> {
        let (plan, request, shape) = (self.plan, self.request, self.shape);
        let mut noise = BatchNoise::new(&request.rng, &request.seeds())?;
        let initial = plan.initial(&noise.initial(shape.iter().product()));
        let mut denoiser = GuidedDenoiser {
            network,
            prediction: plan.prediction,
            guidance: self.guidance,
            images: shape[0],
            keep_uncond: self.keep_uncond,
        };
        let sampler = SamplerOptions {
            eta: request.eta,
            ..SamplerOptions::default()
        };
        let steps = plan.len();
        stages.begin(Stage::Denoise, steps)?;
        let start = Instant::now();
        let mut last = start;
        let result = sample(
            plan,
            &sampler,
            initial,
            &mut denoiser,
            &mut noise,
            &mut |progress| {
                let took = last.elapsed();
                last = Instant::now();
                let done = progress.fraction.clamp(1e-6, 1.0);
                let whole = start.elapsed().as_secs_f64() / done;
                // What the decode will take, told from what its share of the work is.
                let left = whole * (1.0 - done) + whole * self.decode_share;
                stages.step(Event::Step {
                    stage: Stage::Denoise,
                    done: progress.done,
                    steps: steps.max(progress.done),
                    took,
                    remaining: Some(Duration::from_secs_f64(left.max(0.0))),
                    memory: memory::now(),
                    preview: Some(Latents {
                        values: progress.denoised,
                        shape,
                    }),
                    latents: Some(Latents {
                        values: progress.x,
                        shape,
                    }),
                })
            },
        );
        stages.end(Stage::Denoise, start)?;
        match result {
            Ok(values) => Ok(values),
            Err(aquatint_diffusion::Error::Cancelled { .. }) => Err(EngineError::Cancelled),
            Err(error) => Err(error.into()),
        }
    }
}

fn decode(
    stages: &mut Stages<'_, '_>,
    decoder: &Decoder,
    latents: &LatentBatch,
    request: &Request,
) -> Result<Vec<Picture>, EngineError> {
    let [batch, channels, height, width] = latents.shape;
    stages.begin(Stage::Decode, batch)?;
    let start = Instant::now();
    let mut pictures = Vec::with_capacity(batch);
    // One at a time: the decoder's memory is the run's peak.
    for (i, one) in latents
        .values
        .chunks_exact(channels * height * width)
        .enumerate()
    {
        let begun = Instant::now();
        let picture = decoder.decode(
            one,
            [channels, height, width],
            request.vae_tiling,
            &mut |done, steps| stages.tile(done, steps, begun.elapsed()).is_break(),
        )?;
        pictures.push(picture);
        let took = begun.elapsed();
        let event = Event::Step {
            stage: Stage::Decode,
            done: i + 1,
            steps: batch,
            took,
            remaining: Some(took * (batch - i - 1) as u32),
            memory: memory::now(),
            preview: None,
            latents: None,
        };
        // A tiled decode has told of its tiles.
        if !decoder.uses_tiles(request, height, width) && stages.step(event).is_break() {
            return Err(EngineError::Cancelled);
        }
    }
    stages.end(Stage::Decode, start)?;
    Ok(pictures)
}

/// A decoder with a NaN would spoil the picture after the whole loop. Reading its weights takes less than a step.
fn check_decoder(model: &Checkpoint) -> Result<(), EngineError> {
    let source = &model.vae.source;
    let found = source.non_finite_of(|name| !name.contains("encoder."));
    source.release_pages();
    match found {
        Some(error) => Err(aquatint_models::ModelError::from(error).into()),
        None => Ok(()),
    }
}

/// When numbers went wrong, finds out whether a weight is at fault, and names it.
fn blame_weights(error: EngineError, model: &Checkpoint) -> EngineError {
    // Reads every weight, which a run that was merely stopped must not wait for.
    if !error.is_numbers() {
        return error;
    }
    model.non_finite().map_or(error, EngineError::from)
}

/// Tells the observer of stages, and keeps their times.
pub(crate) struct Stages<'a, 'o> {
    observer: &'a mut Observer<'o>,
    pub seconds: StageSeconds,
}

impl<'a, 'o> Stages<'a, 'o> {
    pub fn new(observer: &'a mut Observer<'o>) -> Self {
        Stages {
            observer,
            seconds: StageSeconds::default(),
        }
    }

    fn tell(&mut self, event: Event<'_>) -> Result<(), EngineError> {
        match (self.observer)(event) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(EngineError::Cancelled),
        }
    }

    fn step(&mut self, event: Event<'_>) -> ControlFlow<()> {
        (self.observer)(event)
    }

    fn tile(&mut self, done: usize, steps: usize, so_far: Duration) -> ControlFlow<()> {
        let each = so_far / done.max(1) as u32;
        self.step(Event::Step {
            stage: Stage::Decode,
            done,
            steps,
            took: each,
            remaining: Some(each * (steps - done) as u32),
            memory: memory::now(),
            preview: None,
            latents: None,
        })
    }

    fn warn(&mut self, text: String) -> Result<(), EngineError> {
        self.tell(Event::Warning(text))
    }

    fn begin(&mut self, stage: Stage, steps: usize) -> Result<(), EngineError> {
        self.tell(Event::Begin { stage, steps })
    }

    fn end(&mut self, stage: Stage, start: Instant) -> Result<(), EngineError> {
        let took = start.elapsed();
        let total = match stage {
            Stage::Load => &mut self.seconds.load,
            Stage::TextEncode => &mut self.seconds.text_encode,
            Stage::Denoise => &mut self.seconds.denoise,
            Stage::Decode | Stage::Save => &mut self.seconds.decode,
        };
        *total += took.as_secs_f64();
        self.tell(Event::End { stage, took })
    }

    pub fn run<T>(
        &mut self,
        stage: Stage,
        work: impl FnOnce() -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        self.begin(stage, 1)?;
        let start = Instant::now();
        let result = work();
        self.end(stage, start)?;
        result
    }
}
