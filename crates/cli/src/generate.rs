//! `aquatint generate`.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use aquatint_engine::metadata::Parameters;
use aquatint_engine::models::{Checkpoint, OpenOptions};
use aquatint_engine::{
    Device, Event, PromptSyntax, Request, RunOptions, StageSeconds, Tiling, memory, picture,
};
use serde_json::{Value, json};

use crate::args::{DtypeArg, GenerateArgs, ModelArgs, PredictionArg, SyntaxArg, TilingArg};
use crate::failure::Failure;
use crate::locate::locate;
use crate::output::{OutputPattern, check_writable};
use crate::progress::{self, Progress};

/// Set by Ctrl-C; looked at after each step.
static STOP: AtomicBool = AtomicBool::new(false);

/// What the command line comes to, before anything heavy happens.
struct Job {
    request: Request,
    count: u32,
    /// Place in the batch of the one picture to keep (`--from` a picture of a batch).
    only: Option<u32>,
    model_label: Option<String>,
    dtype: Option<String>,
    output: OutputPattern,
}

/// Runs the command.
pub fn run(args: &GenerateArgs) -> Result<(), Failure> {
    let started = Instant::now();
    set_threads(args.threads)?;
    let from = args.picture.from.as_deref().map(read_from).transpose()?;
    let model_path = args
        .model
        .path
        .clone()
        .or_else(|| from.as_ref().and_then(|p| p.model.clone()).map(PathBuf::from));
    let mut progress = Progress::new(args.output.json, args.verbose > 0);
    check_request_early(args)?;
    let location = locate(model_path.as_deref())?;
    let stored_dtype = from.as_ref().and_then(|p| p.dtype.as_deref());
    let (options, dtype) = open_options(&args.model, stored_dtype);
    let model = Checkpoint::open(&location, &options).map_err(engine)?;
    let job = job(args, from, &model, model_path, dtype)?;
    let plan = aquatint_engine::estimate(&model, &job.request)?;
    check_outputs(&job, &model, args.output.force)?;
    check_preview(args)?;
    listen_for_ctrl_c();
    announce(&progress, &model, &job, &plan, args.verbose);

    let run_options = RunOptions {
        tiny: args.model.taesd.clone(),
        quick_decode: args.sampling.quick_decode,
    };
    let mut done = Done::default();
    let device = Device::flex();
    for i in 0..job.count {
        let step = u64::from(job.request.batch) * u64::from(i);
        let request = Request {
            seed: job.request.seed.wrapping_add(step),
            ..job.request.clone()
        };
        let mut preview = Preview::new(args, &model, &run_options, &device)?;
        let mut failed = None;
        let result = aquatint_engine::generate(&model, &request, &run_options, &device, &mut |event| {
            progress.event(&event);
            if let Err(failure) = preview.event(&event) {
                failed = Some(failure);
                return ControlFlow::Break(());
            }
            match STOP.load(Ordering::Relaxed) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        });
        progress.finish();
        if let Some(failure) = failed {
            return Err(failure);
        }
        let run = result?;
        if i == 0 && args.verbose > 0 {
            report_loading(&progress, &model);
        }
        save(&job, &request, &model, run, args, &progress, &mut done)?;
    }
    if args.output.json {
        return crate::print_json(&summary(&job, &model, &done, started));
    }
    let total = started.elapsed();
    let peak = memory::now().peak_resident;
    progress.line(&format!(
        "done in {}, {} at most",
        progress::seconds(total),
        progress::bytes(peak)
    ));
    Ok(())
}

fn engine(error: aquatint_engine::models::ModelError) -> Failure {
    Failure::from(aquatint_engine::EngineError::from(error))
}

fn set_threads(threads: Option<u32>) -> Result<(), Failure> {
    let Some(n) = threads else {
        return Ok(());
    };
    rayon::ThreadPoolBuilder::new()
        .num_threads(n as usize)
        .build_global()
        .map_err(|e| Failure::new(format!("cannot start {n} threads: {e}"), "use fewer --threads"))
}

fn read_from(path: &Path) -> Result<Parameters, Failure> {
    let text = picture::read_parameters(path)?.ok_or_else(|| {
        Failure::new(
            format!("{}: the picture carries no parameters", path.display()),
            "give a PNG that Aquatint or AUTOMATIC1111 wrote, not edited since",
        )
    })?;
    Parameters::from_text(&text).map_err(|message| {
        Failure::new(
            format!("{}: {message}", path.display()),
            "give a PNG that Aquatint or AUTOMATIC1111 wrote, not edited since",
        )
    })
}

/// What is wrong with the command line is said before any file is opened.
fn check_request_early(args: &GenerateArgs) -> Result<(), Failure> {
    let sides = (args.picture.width, args.picture.height);
    let probe = Request {
        width: sides.0.unwrap_or(512),
        height: sides.1.unwrap_or(512),
        steps: args.sampling.steps.unwrap_or(1),
        guidance: args.sampling.guidance.unwrap_or(1.0),
        guidance_rescale: args.sampling.guidance_rescale.unwrap_or(0.0),
        sampler: args.sampling.sampler.clone().unwrap_or_else(|| "euler".into()),
        batch: args.picture.batch.unwrap_or(1),
        clip_skip: args.sampling.clip_skip,
        eta: args.sampling.eta,
        ..Request::default()
    };
    probe.check()?;
    aquatint_engine::find_sampler(&probe.sampler)?;
    if let Some(schedule) = &args.sampling.schedule {
        aquatint_engine::find_schedule(schedule)?;
    }
    if let Some(rng) = &args.picture.rng {
        aquatint_engine::find_rng(rng)?;
    }
    Ok(())
}

fn open_options(args: &ModelArgs, stored: Option<&str>) -> (OpenOptions, Option<String>) {
    use aquatint_engine::models::Storage;
    use aquatint_engine::diffusion::Prediction;
    let name = match args.dtype {
        DtypeArg::Auto => stored,
        DtypeArg::F32 => Some("f32"),
        DtypeArg::F16 => Some("f16"),
        DtypeArg::Bf16 => Some("bf16"),
    };
    let storage = match name {
        Some("f32") => Some(Storage::F32),
        Some("f16") => Some(Storage::F16),
        Some("bf16") => Some(Storage::Bf16),
        _ => None,
    };
    let options = OpenOptions {
        storage,
        vae: args.vae.clone(),
        text_encoders: args.text_encoder.clone(),
        tokenizers: args.tokenizer.clone(),
        config: args.config.clone(),
        variant: args.variant.clone(),
        prediction: args.prediction.map(|p| match p {
            PredictionArg::Epsilon => Prediction::Epsilon,
            PredictionArg::V => Prediction::V,
            PredictionArg::Sample => Prediction::Sample,
        }),
    };
    (options, name.map(str::to_owned))
}

/// The command line over the picture's own parameters over the model's defaults.
fn job(
    args: &GenerateArgs,
    from: Option<Parameters>,
    model: &Checkpoint,
    model_path: Option<PathBuf>,
    dtype: Option<String>,
) -> Result<Job, Failure> {
    let defaults = &model.spec.defaults;
    let side = model.default_size();
    let repeated = from.is_some();
    let batch_index = from.as_ref().map(|p| p.batch_index);
    let base = from.map_or_else(
        || Request {
            width: side,
            height: side,
            steps: defaults.steps,
            guidance: defaults.guidance,
            sampler: model.default_sampler().to_owned(),
            seed: random_seed(),
            ..Request::default()
        },
        |p| p.request,
    );
    let (picture, sampling) = (&args.picture, &args.sampling);
    // A new seed or batch makes other pictures, of which none is the old one.
    let same_batch = picture.seed.is_none() && picture.batch.is_none() && picture.count == 1;
    let request = Request {
        prompt: args.prompt.clone().unwrap_or(base.prompt),
        negative: args.negative.clone().or(base.negative),
        width: picture.width.unwrap_or(base.width),
        height: picture.height.unwrap_or(base.height),
        steps: sampling.steps.unwrap_or(base.steps),
        guidance: sampling.guidance.unwrap_or(base.guidance),
        guidance_rescale: sampling.guidance_rescale.unwrap_or(base.guidance_rescale),
        guidance_interval: sampling.guidance_interval.or(base.guidance_interval),
        sampler: sampling.sampler.clone().unwrap_or(base.sampler),
        schedule: sampling.schedule.clone().or(base.schedule),
        seed: picture.seed.unwrap_or(base.seed),
        rng: picture.rng.clone().unwrap_or(base.rng),
        batch: picture.batch.unwrap_or(base.batch),
        clip_skip: sampling.clip_skip.or(base.clip_skip),
        eta: sampling.eta.or(base.eta),
        vae_tiling: sampling.vae_tiling.map_or(base.vae_tiling, |t| match t {
            TilingArg::Auto => Tiling::Auto,
            TilingArg::On => Tiling::On,
            TilingArg::Off => Tiling::Off,
        }),
        prompt_syntax: sampling.prompt_syntax.map_or(base.prompt_syntax, |s| match s {
            SyntaxArg::Weighted => PromptSyntax::Weighted,
            SyntaxArg::Plain => PromptSyntax::Plain,
        }),
    };
    request.check()?;
    let only = batch_index.filter(|_| repeated && same_batch && request.batch > 1);
    let many = picture.count > 1 || (request.batch > 1 && only.is_none());
    Ok(Job {
        request,
        count: picture.count,
        only,
        model_label: model_path.map(|p| {
            // A name in the model directory stays a name, so that the picture can move.
            p.canonicalize().unwrap_or(p).to_string_lossy().into_owned()
        }),
        dtype,
        output: OutputPattern::new(args.output.output.as_deref(), many)?,
    })
}

/// A seed that nobody chose: the time and the process, mixed.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // The standard library seeds its hashers from the system's randomness.
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    // Small enough to type.
    hasher.finish() >> 32
}

/// Places in a batch whose pictures are kept.
fn kept(job: &Job) -> Vec<u32> {
    match job.only {
        Some(i) => vec![i],
        None => (0..job.request.batch).collect(),
    }
}

fn check_outputs(job: &Job, model: &Checkpoint, force: bool) -> Result<(), Failure> {
    let mut index = 0;
    for i in 0..job.count {
        for place in kept(job) {
            let offset = u64::from(i) * u64::from(job.request.batch) + u64::from(place);
            let seed = job.request.seed.wrapping_add(offset);
            let path = job.output.free_path(seed, index, &model.name, force);
            check_writable(&path, force)?;
            index += 1;
        }
    }
    Ok(())
}

fn check_preview(args: &GenerateArgs) -> Result<(), Failure> {
    match &args.output.preview {
        // A preview is made to be written over.
        Some(path) => check_writable(path, true),
        None => Ok(()),
    }
}

fn listen_for_ctrl_c() {
    let handler = || {
        if STOP.swap(true, Ordering::Relaxed) {
            // Asked twice: leave at once. Pictures are renamed into place whole, so none is half there.
            std::process::exit(i32::from(crate::failure::INTERRUPTED));
        }
    };
    // Without a handler Ctrl-C ends the program at once, which leaves nothing behind either.
    let _ = ctrlc::set_handler(handler);
}

fn announce(
    progress: &Progress,
    model: &Checkpoint,
    job: &Job,
    plan: &aquatint_engine::Estimate,
    verbose: u8,
) {
    let r = &job.request;
    progress.line(&format!(
        "{} ({}), {}x{}, {} steps of {}, guidance {}, seed {}",
        model.name, model.family.title, r.width, r.height, r.steps, r.sampler, r.guidance, r.seed
    ));
    if verbose > 0 {
        progress.line(&format!("recognised by {}", model.spec.why));
    }
    progress.line(&plan.to_string());
}

fn report_loading(progress: &Progress, model: &Checkpoint) {
    for (name, report) in model.reports() {
        for line in format!("{name}: {report}").lines() {
            progress.line(line);
        }
    }
}

#[derive(Default)]
struct Done {
    files: Vec<PathBuf>,
    seeds: Vec<u64>,
    seconds: StageSeconds,
    save: f64,
}

fn save(
    job: &Job,
    request: &Request,
    model: &Checkpoint,
    run: aquatint_engine::Run,
    args: &GenerateArgs,
    progress: &Progress,
    done: &mut Done,
) -> Result<(), Failure> {
    done.seconds.add(&run.seconds);
    let start = Instant::now();
    let keep = kept(job);
    for (place, (seed, picture)) in (0u32..).zip(&run.pictures) {
        if !keep.contains(&place) {
            continue;
        }
        let index = done.files.len() as u32;
        let path = job.output.free_path(*seed, index, &model.name, args.output.force);
        let parameters = Parameters {
            request: request.clone(),
            batch_index: place,
            model: job.model_label.clone(),
            dtype: job.dtype.clone(),
            version: format!("aquatint {}", env!("CARGO_PKG_VERSION")),
        };
        picture::save(&path, picture, Some(&parameters.to_text()), args.output.force)?;
        progress.line(&format!("wrote {} (seed {seed})", path.display()));
        done.files.push(path);
        done.seeds.push(*seed);
    }
    done.save += start.elapsed().as_secs_f64();
    Ok(())
}

fn summary(job: &Job, model: &Checkpoint, done: &Done, started: Instant) -> Value {
    let memory = memory::now();
    let mut parameters = serde_json::to_value(&job.request).unwrap_or(Value::Null);
    if let Some(map) = parameters.as_object_mut() {
        map.insert("count".into(), job.count.into());
        map.insert("dtype".into(), job.dtype.as_deref().unwrap_or("auto").into());
        map.insert("model".into(), job.model_label.as_deref().unwrap_or(&model.name).into());
    }
    let files: Vec<String> = done.files.iter().map(|p| p.display().to_string()).collect();
    json!({
        "files": files,
        "seed": job.request.seed,
        "seeds": done.seeds,
        "family": model.family.id,
        "parameters": parameters,
        "seconds": {
            "load": done.seconds.load,
            "text_encode": done.seconds.text_encode,
            "denoise": done.seconds.denoise,
            "decode": done.seconds.decode,
            "save": done.save,
            "total": started.elapsed().as_secs_f64(),
        },
        "peak_memory_bytes": memory.peak_resident,
        "live_bytes": memory.live,
        "version": env!("CARGO_PKG_VERSION"),
    })
}

/// Writes `--preview` every few steps.
struct Preview {
    path: Option<PathBuf>,
    every: usize,
    maker: Option<aquatint_engine::PreviewMaker>,
}

impl Preview {
    fn new(
        args: &GenerateArgs,
        model: &Checkpoint,
        options: &RunOptions,
        device: &Device,
    ) -> Result<Self, Failure> {
        let path = args.output.preview.clone();
        let maker = match &path {
            Some(_) => Some(aquatint_engine::PreviewMaker::new(model, options, device)?),
            None => None,
        };
        Ok(Preview {
            path,
            every: args.output.preview_every as usize,
            maker,
        })
    }

    fn event(&mut self, event: &Event<'_>) -> Result<(), Failure> {
        let Event::Step {
            preview: Some(latents),
            done,
            steps,
            ..
        } = event
        else {
            return Ok(());
        };
        let (Some(path), Some(maker)) = (&self.path, &self.maker) else {
            return Ok(());
        };
        if done.is_multiple_of(self.every) || done == steps {
            picture::save(path, &maker.picture(*latents)?, None, true)?;
        }
        Ok(())
    }
}
