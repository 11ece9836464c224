//! `aquatint train`: a model from a configuration and a folder of pictures.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aquatint_engine::models::{Checkpoint, OpenOptions};
use aquatint_train::config::{AutoencoderConfig, DiffusionConfig};
use aquatint_train::run::{Event, Outcome, RunOptions};
use aquatint_train::{
    EvalOptions, TrainError, evaluate, train_autoencoder, train_diffusion, train_tokenizer,
};
use clap::{Args, Subcommand, ValueHint};

use crate::failure::Failure;
use crate::locate::locate;
use crate::train_progress::TrainProgress;

/// Train a model.
#[derive(Debug, Args)]
pub struct TrainArgs {
    #[command(subcommand)]
    command: TrainCommand,
}

#[derive(Debug, Subcommand)]
enum TrainCommand {
    /// Train a diffusion model from a configuration.
    Diffusion(RunArgs),
    /// Train an autoencoder from a configuration.
    Autoencoder(RunArgs),
    /// Learn a tokenizer's vocabulary from captions.
    Tokenizer(TokenizerArgs),
    /// Measure a text-to-image model on the pictures it was trained on.
    Eval(EvalArgs),
}

#[derive(Debug, Args)]
struct EvalArgs {
    /// A diffusers folder, a .safetensors file, or a name under the model directory
    /// [default: the model inside the program].
    #[arg(short = 'm', long = "model", value_name = "PATH", value_hint = ValueHint::AnyPath)]
    model: Option<PathBuf>,

    /// Folder of pictures with captions.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    data: PathBuf,

    /// Captions that pictures are drawn for.
    #[arg(long, value_name = "N", default_value_t = 200)]
    captions: usize,

    /// Pictures of each caption.
    #[arg(long, value_name = "N", default_value_t = 3)]
    seeds: usize,

    /// Random prompts that must give finite pictures.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    random_prompts: usize,

    /// Every so-many-th picture was held out of training; 0 for none.
    #[arg(long, value_name = "N", default_value_t = 20)]
    holdout: usize,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct TokenizerArgs {
    /// Folder of pictures with captions.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    data: PathBuf,

    /// Tokens at most; CLIP has 49408.
    #[arg(long, value_name = "N", default_value_t = 2514)]
    size: usize,

    /// Folder for vocab.json, merges.txt and the rest. What is there is replaced.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    out: PathBuf,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// The configuration, a TOML file; see examples/.
    #[arg(value_name = "CONFIG", value_hint = ValueHint::FilePath)]
    config: PathBuf,

    /// Folder for checkpoints, metrics, samples and the finished model.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    out: PathBuf,

    /// Go on from the newest checkpoint in --out.
    #[arg(long)]
    resume: bool,

    /// Stop after so many steps, with a checkpoint and the model as it is then.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_steps: Option<u64>,

    /// Save the state every so many steps.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    checkpoint_every: Option<u64>,

    /// Save the state every so many minutes.
    #[arg(long, value_name = "F")]
    checkpoint_minutes: Option<f64>,

    /// Seed of everything random.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Threads to compute with [default: one a core].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Option<u32>,

    /// Print nothing but errors.
    #[arg(short, long)]
    quiet: bool,
}

/// Runs the command.
pub fn run(args: &TrainArgs) -> Result<(), Failure> {
    match &args.command {
        TrainCommand::Diffusion(run) => {
            let mut config = DiffusionConfig::read(&run.config).map_err(of_config)?;
            config.seed = run.seed.unwrap_or(config.seed);
            run.checkpoints(&mut config.checkpoint);
            run.train(|options, observer| train_diffusion(&config, options, observer))
        }
        TrainCommand::Autoencoder(run) => {
            let mut config = AutoencoderConfig::read(&run.config).map_err(of_config)?;
            config.seed = run.seed.unwrap_or(config.seed);
            run.checkpoints(&mut config.checkpoint);
            run.train(|options, observer| train_autoencoder(&config, options, observer))
        }
        TrainCommand::Eval(args) => eval(args),
        TrainCommand::Tokenizer(args) => {
            let tokens = train_tokenizer(&args.data, args.size, &args.out).map_err(of_config)?;
            crate::print(&format!("{tokens} tokens in {}\n", args.out.display()))
        }
    }
}

fn eval(args: &EvalArgs) -> Result<(), Failure> {
    let location = locate(args.model.as_deref())?;
    let model = Checkpoint::open(&location, &OpenOptions::default())
        .map_err(aquatint_engine::EngineError::from)?;
    let options = EvalOptions {
        captions: args.captions,
        seeds: args.seeds,
        random_prompts: args.random_prompts,
        holdout: args.holdout,
    };
    let mut progress = TrainProgress::new(false);
    let mut observer = |what: &str, done: usize, total: usize| {
        progress.event(&Event::Preparing { what, done, total });
        ControlFlow::Continue(())
    };
    let found = evaluate(&model, &args.data, options, &mut observer).map_err(of_config)?;
    progress.end();
    if args.json {
        return crate::print_json(&serde_json::json!({
            "retrieval_top1": found.retrieval_top1,
            "autoencoder_psnr_db": found.autoencoder_psnr_db,
            "non_finite": found.non_finite,
            "samples": found.samples,
        }));
    }
    crate::print(&format!(
        "retrieval top-1      {:.1} %\nautoencoder          {:.2} dB\nnot finite           {} of {} pictures\n",
        found.retrieval_top1 * 100.0,
        found.autoencoder_psnr_db,
        found.non_finite,
        found.samples,
    ))
}

impl RunArgs {
    fn checkpoints(&self, config: &mut aquatint_train::config::CheckpointConfig) {
        if let Some(steps) = self.checkpoint_every {
            config.steps = steps;
        }
        if let Some(minutes) = self.checkpoint_minutes {
            config.minutes = minutes;
        }
    }

    fn train(
        &self,
        run: impl FnOnce(
            &RunOptions,
            &mut dyn FnMut(&Event<'_>) -> ControlFlow<()>,
        ) -> Result<Outcome, TrainError>
        + Send,
    ) -> Result<(), Failure> {
        let stop = Arc::new(AtomicBool::new(false));
        let asked = stop.clone();
        ctrlc::set_handler(move || asked.store(true, Ordering::Relaxed))
            .map_err(|e| Failure::new(format!("cannot listen for Ctrl-C: {e}"), ""))?;
        let threads = self.threads.map_or(0, |n| n as usize);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .map_err(|e| {
                Failure::new(format!("cannot start {threads} threads: {e}"), "try fewer")
            })?;
        let options = RunOptions {
            out: self.out.clone(),
            resume: self.resume,
            max_steps: self.max_steps,
        };
        let quiet = self.quiet;
        let outcome = pool.install(move || {
            let mut progress = TrainProgress::new(quiet);
            let mut observer = |event: &Event<'_>| {
                progress.event(event);
                match stop.load(Ordering::Relaxed) {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                }
            };
            run(&options, &mut observer)
        });
        match outcome {
            Ok(Outcome::Finished) => Ok(()),
            Ok(Outcome::Stopped) => Err(Failure::interrupted(
                "stopped; the state is saved",
                "add --resume to go on",
            )),
            Err(TrainError::Interrupted) => Err(Failure::interrupted(
                "stopped before the first step",
                "run the same command again",
            )),
            Err(error) => Err(Failure::new(error.to_string(), "")),
        }
    }
}

/// A configuration is part of the command line, but a file: what is wrong in it is a failure of the file.
fn of_config(error: TrainError) -> Failure {
    Failure::new(error.to_string(), "")
}
