//! `aquatint train`: a model from a configuration and a folder of pictures.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aquatint_train::config::{AutoencoderConfig, DiffusionConfig};
use aquatint_train::run::{Event, Outcome, RunOptions};
use aquatint_train::{TrainError, train_autoencoder, train_diffusion};
use clap::{Args, Subcommand, ValueHint};

use crate::failure::Failure;
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
    }
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
