//! `aquatint generate`.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use aquatint_engine::metadata::Parameters;
use aquatint_engine::models::{Location, PixelModel};
use aquatint_engine::{Device, EngineError, Event, Model, Request, StageSeconds, memory, picture};
use serde_json::{Value, json};

use crate::args::GenerateArgs;
use crate::failure::Failure;
use crate::job::{self, Job};
use crate::locate::locate;
use crate::progress::{self, Progress};
use crate::setup::{self, Setup};

/// Set by Ctrl-C; looked at after each step.
static STOP: AtomicBool = AtomicBool::new(false);
/// Set while a picture is written.
static SAVING: AtomicBool = AtomicBool::new(false);

/// Runs the command.
pub fn run(args: &GenerateArgs) -> Result<(), Failure> {
    let started = Instant::now();
    job::check_early(args)?;
    set_threads(args.threads)?;
    let from = args
        .picture
        .from
        .as_deref()
        .map(setup::read_from)
        .transpose()?;
    let mut setup = Setup::new(args, from.as_ref())?;
    let (location, model_path) = find_model(args, from.as_ref())?;
    if args.prompt.is_none() && from.is_none() && !PixelModel::is_at(&location) {
        return Err(Failure::usage(
            "<PROMPT> is missing",
            "say what to draw: aquatint generate \"a red apple\"",
        ));
    }
    let model = Model::open(&location, &setup.open).map_err(EngineError::from)?;
    setup.check_model(&location, &model)?;
    setup.identify_loras(&model)?;
    let job = job::new(args, from, &model, model_path, setup)?;
    let plan = model
        .estimate(&job.request)
        .map_err(|e| job::blame_picture(args, e.into()))?;
    job.check_outputs(args, &model)?;
    job.setup.check_decoder(&model)?;
    listen_for_ctrl_c();

    let mut progress = Progress::new(args.output.json, args.verbose > 0);
    announce(&progress, &model, &job, &plan, args.verbose);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if let Some(n) = args.threads.filter(|n| *n as usize > cores) {
        progress.warn(&format!(
            "{n} threads on {cores} cores are slower than {cores}"
        ));
    }
    let mut done = Done::default();
    for i in 0..job.count {
        let step = u64::from(job.request.batch) * u64::from(i);
        let request = Request {
            seed: job.request.seed.wrapping_add(step),
            ..job.request.clone()
        };
        if job.count > 1 {
            progress.line(&format!(
                "run {} of {}, seed {}",
                i + 1,
                job.count,
                request.seed
            ));
        }
        let run = one_run(args, &job, &request, &model, &mut progress)?;
        if i == 0 && args.verbose > 0 {
            report_loading(&progress, &model);
        }
        save(&job, &request, &model, run, args, &progress, &mut done)?;
    }
    write_sheet(args, &done, &progress)?;
    if args.output.json {
        return crate::print_json(&summary(args, &job, &model, &done, &progress, started));
    }
    progress.line(&format!(
        "done in {}, {} at most",
        progress::seconds(started.elapsed()),
        progress::bytes(memory::now().peak_resident)
    ));
    Ok(())
}

/// The model of the command line, else the picture's, else the one inside.
fn find_model(
    args: &GenerateArgs,
    from: Option<&Parameters>,
) -> Result<(Location, Option<PathBuf>), Failure> {
    if let Some(path) = &args.model.path {
        return Ok((locate(Some(path))?, Some(path.clone())));
    }
    let Some(model) = from.and_then(|p| p.model.as_deref()) else {
        return Ok((locate(None)?, None));
    };
    let path = PathBuf::from(model);
    let location = locate(Some(&path)).map_err(|_| {
        Failure::new(
            format!("the picture was made with the model {model}, which is not there"),
            "say where it is now: -m PATH",
        )
    })?;
    Ok((location, Some(path)))
}

fn one_run(
    args: &GenerateArgs,
    job: &Job,
    request: &Request,
    model: &Model,
    progress: &mut Progress,
) -> Result<aquatint_engine::Run, Failure> {
    let device = Device::flex();
    let options = &job.setup.run;
    let mut preview = Preview::new(args, model, job, &device)?;
    let mut failed = None;
    let result = model.generate(request, options, &device, &mut |event| {
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
    match failed {
        Some(failure) => Err(failure),
        None => Ok(result?),
    }
}

/// Starts the threads of `--threads`.
pub(crate) fn set_threads(threads: Option<u32>) -> Result<(), Failure> {
    let Some(n) = threads else {
        return Ok(());
    };
    rayon::ThreadPoolBuilder::new()
        .num_threads(n as usize)
        .build_global()
        .map_err(|e| {
            Failure::new(
                format!("cannot start {n} threads: {e}"),
                "use fewer --threads",
            )
        })
}

fn listen_for_ctrl_c() {
    let handler = || {
        let twice = STOP.swap(true, Ordering::Relaxed);
        // Asked twice: leave at once, but not in the middle of a file.
        if twice && !SAVING.load(Ordering::Relaxed) {
            std::process::exit(i32::from(crate::failure::INTERRUPTED));
        }
    };
    // Without a handler Ctrl-C ends the program at once, which leaves nothing behind either.
    let _ = ctrlc::set_handler(handler);
}

fn announce(
    progress: &Progress,
    model: &Model,
    job: &Job,
    plan: &aquatint_engine::Estimate,
    verbose: u8,
) {
    let r = &job.request;
    progress.line(&format!(
        "{} ({}), {}x{}, {} of {}, guidance {}, seed {}",
        model.name(),
        model.title(),
        r.width,
        r.height,
        match r.steps {
            1 => "1 step".to_owned(),
            n => format!("{n} steps"),
        },
        r.sampler,
        r.guidance,
        r.seed
    ));
    for lora in model.loras() {
        progress.line(&format!(
            "with the LoRA {}, weight {}: {} layers, rank {}",
            lora.name, lora.weight, lora.layers, lora.rank
        ));
    }
    if verbose > 0 {
        progress.line(&format!("recognised by {}", model.why()));
    }
    match job.count {
        1 => progress.line(&plan.to_string()),
        n => progress.line(&format!("{n} runs, each {plan}")),
    }
}

fn report_loading(progress: &Progress, model: &Model) {
    for (name, source) in model.sources() {
        for line in format!("{name}: {}", source.report()).lines() {
            progress.line(line);
        }
    }
}

/// Writes the sheet of all pictures, with the parameters of the first.
fn write_sheet(args: &GenerateArgs, done: &Done, progress: &Progress) -> Result<(), Failure> {
    let Some(path) = &args.output.grid else {
        return Ok(());
    };
    let columns = crate::grid::columns(args.output.grid_columns, done.pictures.len());
    let sheet = picture::sheet(&done.pictures, columns)?;
    let first = done.files.first();
    let parameters = first
        .map(|file| picture::read_parameters(file))
        .transpose()?;
    picture::save(
        path,
        &sheet,
        parameters.flatten().as_deref(),
        args.output.force,
    )?;
    progress.line(&format!("wrote {}", path.display()));
    Ok(())
}

#[derive(Default)]
struct Done {
    files: Vec<PathBuf>,
    /// Kept for the sheet, where one is asked for.
    pictures: Vec<picture::Picture>,
    seeds: Vec<u64>,
    seconds: StageSeconds,
    save: f64,
}

fn save(
    job: &Job,
    request: &Request,
    model: &Model,
    run: aquatint_engine::Run,
    args: &GenerateArgs,
    progress: &Progress,
    done: &mut Done,
) -> Result<(), Failure> {
    done.seconds.add(&run.seconds);
    let start = Instant::now();
    let keep = job.kept();
    for (place, (seed, picture)) in (0u32..).zip(&run.pictures) {
        if !keep.contains(&place) {
            continue;
        }
        let index = done.files.len() as u32;
        let path = job
            .output
            .free_path(*seed, index, model.name(), args.output.force);
        let parameters = Parameters {
            request: request.clone(),
            batch_index: place,
            model: job.model_label.clone(),
            dtype: job.setup.dtype().map(str::to_owned),
            parts: job.setup.parts(),
            version: format!("aquatint {}", env!("CARGO_PKG_VERSION")),
        };
        SAVING.store(true, Ordering::Relaxed);
        let saved = picture::save(
            &path,
            picture,
            Some(&parameters.to_text()),
            args.output.force,
        );
        SAVING.store(false, Ordering::Relaxed);
        saved?;
        progress.line(&format!("wrote {} (seed {seed})", path.display()));
        done.files.push(path);
        if args.output.grid.is_some() {
            done.pictures.push(picture.clone());
        }
        done.seeds.push(*seed);
    }
    done.save += start.elapsed().as_secs_f64();
    Ok(())
}

fn summary(
    args: &GenerateArgs,
    job: &Job,
    model: &Model,
    done: &Done,
    progress: &Progress,
    started: Instant,
) -> Value {
    let memory = memory::now();
    let open = &job.setup.open;
    let mut parameters = serde_json::to_value(&job.request).unwrap_or(Value::Null);
    if let Some(map) = parameters.as_object_mut() {
        let mut put = |key: &str, value: Value| map.insert(key.into(), value);
        put("count", job.count.into());
        put("dtype", job.setup.dtype().unwrap_or("auto").into());
        put(
            "model",
            job.model_label.as_deref().unwrap_or(model.name()).into(),
        );
        put("prediction", json!(model.prediction()));
        put("vae", json!(open.vae));
        put("text_encoder", json!(open.text_encoders));
        put("t5", json!(open.t5));
        put("tokenizer", json!(open.tokenizers));
        put("config", json!(open.config));
        put("variant", json!(open.variant));
        put("taesd", json!(job.setup.run.tiny));
        put("loras", json!(model.loras()));
        put("quick_decode", job.setup.run.quick_decode.into());
        put(
            "threads",
            args.threads
                .map_or_else(rayon::current_num_threads, |n| n as usize)
                .into(),
        );
    }
    let files: Vec<String> = done.files.iter().map(|p| p.display().to_string()).collect();
    json!({
        "files": files,
        "grid": args.output.grid,
        "seed": job.request.seed,
        "seeds": done.seeds,
        "family": model.family(),
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
        "warnings": progress.warnings(),
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
        model: &Model,
        job: &Job,
        device: &Device,
    ) -> Result<Self, Failure> {
        let path = args.output.preview.clone();
        let maker = match &path {
            Some(_) => Some(aquatint_engine::PreviewMaker::of(
                model,
                &job.setup.run,
                device,
            )?),
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
