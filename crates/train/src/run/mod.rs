//! The loop that every kind of training shares.

mod events;
mod outputs;
mod resume;
pub(crate) mod state;

pub use events::{Event, StepReport};
pub(crate) use state::State;
pub use state::Weights;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use aquatint_ops::{NamedGradients, Tensor, Trainable};
use burn::module::Module;

use crate::TrainError;
use crate::config::CheckpointConfig;
use crate::data::Skipped;
use crate::metrics::{CsvLog, EventLog};
use crate::networks::Stored;
use crate::optim::{AdamW, Ema, LearningRate, Moments, clip_factor, global_norm};
use crate::supply::Supply;
use state::Checkpoints;

/// How a run is asked for, beside its configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct RunOptions {
    /// Where everything is written.
    pub out: PathBuf,
    /// Go on from the newest checkpoint in `out`.
    pub resume: bool,
    /// Stop after so many updates, with a checkpoint and the model as it is then.
    pub max_steps: Option<u64>,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All updates were made (or `max_steps` of them); the model is written.
    Finished,
    /// The observer ended it; a checkpoint holds its state.
    Stopped,
}

/// Told of everything; [`ControlFlow::Break`] ends the run after a checkpoint.
pub type Observer<'a> = dyn FnMut(&Event<'_>) -> ControlFlow<()> + 'a;

/// The loss of one batch.
pub(crate) struct Loss {
    /// A scalar that gradients are taken of; `None` when no picture of the batch could be used.
    pub tensor: Option<Tensor<1>>,
    /// Examples it is the mean of.
    pub examples: usize,
    /// The batch's files, for messages.
    pub files: Vec<PathBuf>,
    /// Pictures that could not be used.
    pub skipped: Vec<Skipped>,
    /// Share of the noise range and loss of each example, where that means something.
    pub by_time: Vec<(f64, f64)>,
}

/// What a run trains.
pub(crate) trait Task {
    /// The network.
    type Net: Module;

    /// What it learns from.
    fn supply(&self) -> &Supply;

    /// The loss of the next batch, numbered from 0 over the whole run.
    fn loss(&mut self, net: &Self::Net, number: u64) -> Result<Loss, TrainError>;

    /// The loss of held-out examples under the given weights, if there are any.
    fn validate(&mut self, weights: &Weights) -> Result<Option<f64>, TrainError>;

    /// Draws pictures with the given weights into a PNG, if the configuration asks for any.
    fn samples(&mut self, weights: &Weights, path: &Path) -> Result<bool, TrainError>;

    /// Writes the model as a folder that others can load.
    fn export(&mut self, weights: &Weights, folder: &Path, card: &Card) -> Result<(), TrainError>;
}

/// What a model card says of the run.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Card {
    pub steps: u64,
    pub samples: u64,
    pub seconds: f64,
    pub config: String,
}

/// What the loop itself is told by a configuration.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub steps: u64,
    pub accumulate: usize,
    pub clip: Option<f64>,
    pub optimizer: AdamW,
    pub rate: LearningRate,
    pub ema: Ema,
    pub checkpoint: CheckpointConfig,
    pub samples_every: u64,
    /// Seconds of training that went before the first step.
    pub seconds_before: f64,
    /// The configuration as TOML.
    pub config: String,
}

/// Bins of the plot of losses by noise level.
const BINS: usize = 20;
/// Weight of a step in the smooth loss.
const SMOOTHING: f64 = 0.02;

/// A run in progress.
struct Run<'a, T: Task> {
    task: T,
    net: Option<T::Net>,
    trainable: Trainable,
    settings: Settings,
    options: &'a RunOptions,
    observer: &'a mut Observer<'a>,
    state: State,
    checkpoints: Checkpoints,
    csv: CsvLog,
    events: EventLog,
    bins: [(f64, u64); BINS],
    /// Recent steps: seconds and examples.
    pace: (f64, f64),
    saved_at: Instant,
}

/// The state to begin with: of the newest checkpoint when resuming, else none.
///
/// # Errors
/// A folder that holds another run, a changed configuration, a damaged checkpoint.
pub(crate) fn begin(
    options: &RunOptions,
    settings: &Settings,
) -> Result<Option<State>, TrainError> {
    resume::begin(options, settings)
}

/// The newest state in a run's folder.
pub(crate) fn newest(out: &Path, keep: usize) -> Result<Option<State>, TrainError> {
    Checkpoints::new(out, keep).newest()
}

/// Trains.
///
/// # Errors
/// What the task or the disk refuses; a loss that is not finite.
pub(crate) fn run<'a, T: Task>(
    task: T,
    net: T::Net,
    trainable: Trainable,
    settings: Settings,
    options: &'a RunOptions,
    state: Option<State>,
    observer: &'a mut Observer<'a>,
) -> Result<Outcome, TrainError> {
    let resumed = state.is_some();
    let mut state = state.unwrap_or_default();
    if !resumed {
        trainable.visit(&net, |name, shape, values| {
            let stored = Stored {
                shape: shape.to_vec(),
                values: values.to_vec(),
            };
            state.ema.insert(name.into(), stored);
            state
                .moments
                .insert(name.into(), Moments::new(values.len()));
        });
        state.progress.config = settings.config.clone();
        state.progress.seconds = settings.seconds_before;
    }
    resume::same_data(&mut state.progress, task.supply())?;
    let done = state.progress.step;
    let columns = [
        "loss",
        "smooth_loss",
        "learning_rate",
        "gradient_norm",
        "samples_per_second",
        "validation_loss",
    ];
    let out = &options.out;
    let run = Run {
        checkpoints: Checkpoints::new(out, settings.checkpoint.keep),
        csv: CsvLog::open(&out.join("metrics.csv"), &columns, done)?,
        events: EventLog::create(out, done)?,
        net: Some(net),
        task,
        trainable,
        settings,
        options,
        observer,
        state,
        bins: [(0.0, 0); BINS],
        pace: (0.0, 0.0),
        saved_at: Instant::now(),
    };
    run.steps(resumed)
}

impl<T: Task> Run<'_, T> {
    fn steps(mut self, resumed: bool) -> Result<Outcome, TrainError> {
        let end = self
            .options
            .max_steps
            .map_or(self.settings.steps, |most| most.min(self.settings.steps));
        let parameters = self.state.ema.values().map(|s| s.values.len()).sum();
        let started = Event::Started {
            done: self.state.progress.step,
            steps: self.settings.steps,
            parameters,
            examples: self.task.supply().len(),
        };
        let mut stop = (self.observer)(&started).is_break();
        let mut saved = resumed.then_some(self.state.progress.step);
        while !stop && self.state.progress.step < end {
            stop = self.step()?.is_break();
            let step = self.state.progress.step;
            if self.due() || step == end || stop {
                stop |= self.save()?.is_break();
                saved = Some(step);
            }
            let every = self.settings.samples_every;
            if every > 0 && (step.is_multiple_of(every) || step == end) {
                stop |= self.draw()?.is_break();
            }
        }
        if saved != Some(self.state.progress.step) {
            stop |= self.save()?.is_break();
        }
        if stop && self.state.progress.step < end {
            return Ok(Outcome::Stopped);
        }
        self.export()
    }

    /// One update.
    fn step(&mut self) -> Result<ControlFlow<()>, TrainError> {
        let begin = Instant::now();
        let step = self.state.progress.step;
        let (gradients, loss, examples) = self.gradients(step)?;
        let mut report = self.report(step);
        report.loss = loss.unwrap_or(f64::NAN);
        if let Some(loss) = loss {
            self.update(step, &gradients, &mut report);
            let smooth = self.state.progress.smooth_loss;
            let smooth = smooth.map_or(loss, |s| {
                s + (loss - s) * SMOOTHING.max(1.0 / (step + 1) as f64)
            });
            self.state.progress.smooth_loss = Some(smooth);
        }
        let progress = &mut self.state.progress;
        progress.step += 1;
        progress.samples += examples as u64;
        let seconds = begin.elapsed().as_secs_f64();
        progress.seconds += seconds;
        // The mean over some ten steps.
        let keep = if self.pace.0 == 0.0 { 0.0 } else { 0.9 };
        self.pace = (
            self.pace.0 * keep + seconds,
            self.pace.1 * keep + examples as f64,
        );
        let per_second = self.pace.1 / self.pace.0.max(1e-9);
        report.step = progress.step;
        report.smooth_loss = progress.smooth_loss.unwrap_or(f64::NAN);
        report.samples_per_second = per_second;
        report.remaining =
            (report.steps - report.step) as f64 * seconds_a_step(self.pace, examples);
        self.log(&report)?;
        Ok((self.observer)(&Event::Step(report)))
    }

    fn report(&self, step: u64) -> StepReport {
        let batches = (step + 1) * self.settings.accumulate as u64;
        StepReport {
            step,
            steps: self.settings.steps,
            epoch: batches as f64 / self.task.supply().batches_per_epoch().max(1) as f64,
            loss: f64::NAN,
            smooth_loss: f64::NAN,
            gradient_norm: 0.0,
            learning_rate: self.settings.rate.at(step, self.settings.steps),
            samples_per_second: 0.0,
            remaining: 0.0,
        }
    }

    /// Mean gradients and loss over the batches of a step; no loss when none of their pictures could be used.
    fn gradients(&mut self, step: u64) -> Result<(NamedGradients, Option<f64>, usize), TrainError> {
        let batches = self.settings.accumulate;
        let (mut sum, mut total, mut examples, mut used) = (NamedGradients::new(), 0.0, 0, 0);
        for batch in 0..batches {
            let net = self.net.as_ref().ok_or_else(lost)?;
            let number = step * batches as u64 + batch as u64;
            let loss = self.task.loss(net, number)?;
            for skipped in &loss.skipped {
                // A run ends between steps, not here.
                let _ = (self.observer)(&Event::Skipped(skipped));
            }
            let Some(tensor) = loss.tensor else {
                continue;
            };
            let gradients = tensor.backward();
            let value = f64::from(scalar(&tensor)?);
            drop(tensor);
            if !value.is_finite() {
                return Err(self.not_finite(step, loss.files));
            }
            for (time, loss) in loss.by_time {
                let bin = &mut self.bins[((time * BINS as f64) as usize).min(BINS - 1)];
                *bin = (bin.0 + loss, bin.1 + 1);
            }
            used += 1;
            total += value;
            examples += loss.examples;
            let gradients = self.trainable.gradients(net, gradients);
            if sum.is_empty() {
                sum = gradients;
            } else {
                for (name, gradient) in gradients {
                    match sum.get_mut(&name) {
                        Some(sum) => sum.iter_mut().zip(&gradient).for_each(|(s, g)| *s += g),
                        None => drop(sum.insert(name, gradient)),
                    }
                }
            }
        }
        if used > 1 {
            let share = 1.0 / used as f32;
            for gradient in sum.values_mut() {
                gradient.iter_mut().for_each(|g| *g *= share);
            }
        }
        Ok((
            sum,
            (used > 0).then(|| total / f64::from(used.max(1))),
            examples,
        ))
    }

    fn update(&mut self, step: u64, gradients: &NamedGradients, report: &mut StepReport) {
        let norm = global_norm(gradients.values().map(Vec::as_slice));
        report.gradient_norm = norm;
        let scale = clip_factor(norm, self.settings.clip);
        let Some(net) = self.net.take() else {
            return;
        };
        let (settings, state) = (&self.settings, &mut self.state);
        let rate = report.learning_rate;
        let net = self.trainable.update(net, |name, weights| {
            if let (Some(gradient), Some(moments)) =
                (gradients.get(name), state.moments.get_mut(name))
            {
                settings
                    .optimizer
                    .step(step + 1, rate, weights, gradient, scale, moments);
            }
            if let Some(average) = state.ema.get_mut(name) {
                settings.ema.step(step + 1, &mut average.values, weights);
            }
        });
        self.net = Some(net);
    }

    fn due(&self) -> bool {
        let CheckpointConfig { minutes, steps, .. } = self.settings.checkpoint;
        let by_steps = steps > 0 && self.state.progress.step.is_multiple_of(steps);
        let by_time = minutes > 0.0 && self.saved_at.elapsed().as_secs_f64() >= minutes * 60.0;
        by_steps || by_time
    }
}

fn seconds_a_step(pace: (f64, f64), examples: usize) -> f64 {
    pace.0 / pace.1.max(1e-9) * examples as f64
}

fn scalar(tensor: &Tensor<1>) -> Result<f32, TrainError> {
    let data = tensor.clone().into_data();
    let values = data.as_slice::<f32>().unwrap_or_default();
    values.first().copied().ok_or_else(lost)
}

/// Ends what precedes the first step when the observer says so.
pub(crate) fn stop(flow: ControlFlow<()>) -> Result<(), TrainError> {
    match flow {
        ControlFlow::Break(()) => Err(TrainError::Interrupted),
        ControlFlow::Continue(()) => Ok(()),
    }
}

/// What the code proves cannot be.
fn lost() -> TrainError {
    TrainError::Internal("the network was lost between two steps")
}
