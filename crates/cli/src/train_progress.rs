//! What a training run shows on the terminal.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use aquatint_train::run::{Event, StepReport};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a plain line is printed, at most.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

/// Shows the events of a run on standard error.
pub struct TrainProgress {
    quiet: bool,
    bar: Option<ProgressBar>,
    last_plain: Option<Instant>,
    skipped: usize,
}

impl TrainProgress {
    /// Chooses by where standard error goes.
    pub fn new(quiet: bool) -> Self {
        let terminal = !quiet && std::io::stderr().is_terminal();
        let bar = terminal.then(|| {
            let bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr());
            let style =
                ProgressStyle::with_template("{spinner} {prefix} {wide_bar} {pos}/{len} {msg}")
                    .unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.set_style(style);
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self {
            quiet,
            bar,
            last_plain: None,
            skipped: 0,
        }
    }

    /// Shows one event.
    pub fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Started {
                done,
                steps,
                parameters,
                examples,
            } => {
                self.line(&format!(
                    "{parameters} parameters learn from {examples} examples in {steps} steps{}",
                    match done {
                        0 => String::new(),
                        done => format!("; going on after step {done}"),
                    }
                ));
                self.length("training", *steps, *done);
            }
            Event::Phase { what } => self.line(what),
            Event::Preparing { what, done, total } => {
                self.length(what, *total as u64, *done as u64);
                self.plain(|| format!("{what}: {done} of {total}"), done == total);
            }
            Event::Step(report) => self.step(report),
            Event::Skipped(skipped) => {
                self.skipped += 1;
                let path = skipped.path.display();
                let (count, reason) = (self.skipped, &skipped.reason);
                self.line(&format!(
                    "warning: {path} is skipped ({count} so far): {reason}"
                ));
            }
            Event::Saved { path, step } => {
                self.line(&format!("saved step {step} in {}", path.display()));
            }
            Event::Validation { loss, best } => {
                let best = if *best { ", the best so far" } else { "" };
                self.line(&format!("held-out loss {loss:.5}{best}"));
            }
            Event::Samples { path } => self.line(&format!("drew {}", path.display())),
            Event::DiskFull { message } => self.line(&format!(
                "the disk is full, waiting for room (Ctrl-C ends the run): {message}"
            )),
            Event::Finished { path } => self.line(&format!("wrote the model {}", path.display())),
            _ => {}
        }
    }

    /// Takes the bar away.
    pub fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn step(&mut self, report: &StepReport) {
        let text = format!(
            "loss {:.4} rate {:.2e} {:.1} samples/s, {} left",
            report.smooth_loss,
            report.learning_rate,
            report.samples_per_second,
            duration(report.remaining),
        );
        if let Some(bar) = &self.bar {
            bar.set_position(report.step);
            bar.set_message(text.clone());
        }
        let last = report.step == report.steps;
        self.plain(
            || format!("step {}/{}: {text}", report.step, report.steps),
            last,
        );
    }

    fn length(&self, what: &str, total: u64, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_prefix(what.to_owned());
            bar.set_length(total);
            bar.set_position(done);
        }
    }

    /// A line for logs, now and then.
    fn plain(&mut self, text: impl FnOnce() -> String, last: bool) {
        if self.quiet || self.bar.is_some() {
            return;
        }
        if last || self.last_plain.is_none_or(|at| at.elapsed() >= PLAIN_EVERY) {
            self.last_plain = Some(Instant::now());
            to_stderr(&text());
        }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            _ if self.quiet => {}
            Some(bar) => bar.suspend(|| to_stderr(text)),
            None => to_stderr(text),
        }
    }
}

fn to_stderr(text: &str) {
    // Nobody is left to tell when standard error is closed.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

fn duration(seconds: f64) -> String {
    let s = seconds.clamp(0.0, 1e9).round() as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {:02} s", s / 60, s % 60),
        _ => format!("{} h {:02} min", s / 3600, s % 3600 / 60),
    }
}
