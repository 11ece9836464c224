//! `train diffusion`: which task a configuration asks for.

use aquatint_ops::Trainable;

use super::picture::PictureTask;
use super::plane::PlaneTask;
use super::text::TextTask;
use super::warm_up::warm_up;
use crate::TrainError;
use crate::config::{DiffusionConfig, ModelKind};
use crate::run::{self, Observer, Outcome, RunOptions, Settings};

/// Trains a diffusion model as a configuration says.
///
/// Everything is written below `options.out`: `checkpoints/`, `metrics.csv` and event files for TensorBoard,
/// `samples/`, and at the end `model/`. A run that goes on (`options.resume`) computes the same weights, bit for
/// bit, as one that was never interrupted, with the same number of threads on the same kind of machine.
///
/// # Errors
/// A configuration that does not hold together, data or weights that cannot be read, a disk that refuses, a loss
/// that is not finite.
pub fn train_diffusion<'a>(
    config: &DiffusionConfig,
    options: &'a RunOptions,
    observer: &'a mut Observer<'a>,
) -> Result<Outcome, TrainError> {
    config.check()?;
    let mut settings = settings(config)?;
    let state = run::begin(options, &settings)?;
    let stored = state.as_ref().map(|s| &s.weights);
    match config.model.kind {
        ModelKind::Points => {
            let trainable = Trainable::all();
            let (task, net) = PlaneTask::new(config, stored, &trainable)?;
            run::run(task, net, trainable, settings, options, state, observer)
        }
        ModelKind::Text => {
            let warmed = match (&state, &config.warm_up) {
                (None, Some(warm)) => match warm_up(config, warm, options, observer)? {
                    None => return Ok(Outcome::Stopped),
                    warmed => warmed,
                },
                _ => None,
            };
            if let Some((_, seconds)) = &warmed {
                settings.seconds_before = *seconds;
            }
            let stored = stored.or(warmed.as_ref().map(|(weights, _)| weights));
            let (task, net, trainable) = TextTask::new(config, options, stored, observer)?;
            run::run(task, net, trainable, settings, options, state, observer)
        }
        ModelKind::Class | ModelKind::Unconditional => {
            let trainable = Trainable::all();
            let start = state.as_ref().map_or(0, |s| s.progress.step);
            let (task, net) =
                PictureTask::new(config, options, stored, start, &trainable, observer)?;
            run::run(task, net, trainable, settings, options, state, observer)
        }
    }
}

pub(super) fn settings(config: &DiffusionConfig) -> Result<Settings, TrainError> {
    let text = toml::to_string(config)
        .map_err(|_| TrainError::Internal("the configuration cannot be written as TOML"))?;
    Ok(Settings {
        steps: config.steps,
        accumulate: config.accumulate,
        clip: config.clip(),
        optimizer: config.optimizer,
        rate: config.learning_rate,
        ema: config.ema,
        checkpoint: config.checkpoint,
        samples_every: config.samples.every,
        seconds_before: 0.0,
        config: text,
    })
}
