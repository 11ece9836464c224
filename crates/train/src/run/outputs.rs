//! What a run writes on the way, and what it does when the disk is full: it waits for room.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::{Card, Event, Outcome, Run, StepReport, Task, lost};
use crate::TrainError;
use crate::networks::Stored;

/// Time between two attempts to write.
const DISK_WAIT: Duration = Duration::from_secs(5);

impl<T: Task> Run<'_, T> {
    /// Repeats what fails because the disk is full until it succeeds or the observer ends the run.
    fn patiently<R>(
        &mut self,
        mut write: impl FnMut(&mut Self) -> Result<R, TrainError>,
    ) -> Result<R, TrainError> {
        loop {
            match write(self) {
                Err(error) if error.is_disk_full() => {
                    let message = error.to_string();
                    if (self.observer)(&Event::DiskFull { message: &message }).is_break() {
                        return Err(error);
                    }
                    std::thread::sleep(DISK_WAIT);
                }
                other => return other,
            }
        }
    }

    pub(super) fn log(&mut self, report: &StepReport) -> Result<(), TrainError> {
        let values = [
            ("loss", report.loss),
            ("smooth_loss", report.smooth_loss),
            ("learning_rate", report.learning_rate),
            ("gradient_norm", report.gradient_norm),
            ("samples_per_second", report.samples_per_second),
        ];
        let mut row: Vec<Option<f64>> = values.iter().map(|v| Some(v.1)).collect();
        row.push(None);
        self.patiently(|run| run.csv.row(report.step, &row))?;
        self.patiently(|run| run.events.scalars(report.step, &values))
    }

    /// Validates and saves.
    pub(super) fn save(&mut self) -> Result<ControlFlow<()>, TrainError> {
        let net = self.net.as_ref().ok_or_else(lost)?;
        let weights = &mut self.state.weights;
        weights.clear();
        self.trainable.visit(net, |name, shape, values| {
            let stored = Stored {
                shape: shape.to_vec(),
                values: values.to_vec(),
            };
            weights.insert(name.into(), stored);
        });
        let flow = self.validate()?;
        let path = self.patiently(|run| run.checkpoints.save(&run.state))?;
        self.saved_at = Instant::now();
        let step = self.state.progress.step;
        let told = (self.observer)(&Event::Saved { path: &path, step });
        Ok(if told.is_break() { told } else { flow })
    }

    /// The loss that decides which checkpoint is the best: of held-out examples, else the smooth one.
    fn validate(&mut self) -> Result<ControlFlow<()>, TrainError> {
        let held_out = self.task.validate(&self.state.ema)?;
        let progress = &mut self.state.progress;
        let Some(loss) = held_out.or(progress.smooth_loss) else {
            return Ok(ControlFlow::Continue(()));
        };
        let best = progress.best.is_none_or(|(lowest, _)| loss < lowest);
        if best {
            progress.best = Some((loss, progress.step));
        }
        let Some(loss) = held_out else {
            return Ok(ControlFlow::Continue(()));
        };
        let step = progress.step;
        self.patiently(|run| run.events.scalars(step, &[("validation_loss", loss)]))?;
        Ok((self.observer)(&Event::Validation { loss, best }))
    }

    /// Pictures on the way, and the losses by noise level.
    pub(super) fn draw(&mut self) -> Result<ControlFlow<()>, TrainError> {
        let Some(path) = self.patiently(Self::try_to_draw)? else {
            return Ok(ControlFlow::Continue(()));
        };
        Ok((self.observer)(&Event::Samples { path: &path }))
    }

    fn try_to_draw(&mut self) -> Result<Option<PathBuf>, TrainError> {
        let step = self.state.progress.step;
        let folder = self.options.out.join("samples");
        std::fs::create_dir_all(&folder).map_err(TrainError::io(&folder))?;
        if self.bins.iter().any(|b| b.1 > 0) {
            crate::plot::losses(&folder.join("loss_by_timestep"), &self.bins)?;
        }
        let path = folder.join(format!("step-{step:08}.png"));
        if !self.task.samples(&self.state.ema, &path)? {
            return Ok(None);
        }
        let png = std::fs::read(&path).map_err(TrainError::io(&path))?;
        crate::plot::log_png(&mut self.events, step, "samples", &png)?;
        Ok(Some(path))
    }

    pub(super) fn export(mut self) -> Result<Outcome, TrainError> {
        let folder = self.options.out.join("model");
        let progress = &self.state.progress;
        let card = Card {
            steps: progress.step,
            samples: progress.samples,
            seconds: progress.seconds,
            config: self.settings.config.clone(),
        };
        self.patiently(|run| run.task.export(&run.state.ema, &folder, &card))?;
        // Nothing is left to be ended.
        let _ = (self.observer)(&Event::Finished { path: &folder });
        Ok(Outcome::Finished)
    }

    pub(super) fn not_finite(&self, step: u64, files: Vec<PathBuf>) -> TrainError {
        let steps = self.checkpoints.steps().unwrap_or_default();
        let good = steps.last().map(|&s| self.checkpoints.path(s));
        TrainError::NotFinite {
            step: step + 1,
            files,
            checkpoint: good,
        }
    }
}
