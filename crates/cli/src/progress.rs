//! Progress for people: a line that redraws on a terminal, plain lines elsewhere.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use aquatint_engine::memory::Memory;
use aquatint_engine::{Event, Stage};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a plain line is printed, at most.
const PLAIN_EVERY: Duration = Duration::from_secs(2);

/// How often the spinner turns.
const TICK: Duration = Duration::from_millis(120);

/// Shows the events of a run on standard error.
pub struct Progress {
    shape: Shape,
    verbose: bool,
    last_plain: Option<Instant>,
    warnings: Vec<String>,
}

enum Shape {
    Quiet,
    Plain,
    Bar(ProgressBar),
}

impl Progress {
    /// Chooses by where standard error goes.
    pub fn new(quiet: bool, verbose: bool) -> Self {
        let shape = if quiet {
            Shape::Quiet
        } else if std::io::stderr().is_terminal() {
            let bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr());
            let style =
                ProgressStyle::with_template("{spinner} {prefix} {wide_bar} {pos}/{len} {msg}")
                    .unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.set_style(style);
            // A step may take long; the spinner shows that the program lives.
            bar.enable_steady_tick(TICK);
            Shape::Bar(bar)
        } else {
            Shape::Plain
        };
        Progress {
            shape,
            verbose,
            last_plain: None,
            warnings: Vec::new(),
        }
    }

    /// Warnings so far, each once.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Prints a line that stays.
    pub fn line(&self, text: &str) {
        match &self.shape {
            Shape::Quiet => {}
            Shape::Plain => to_stderr(text),
            Shape::Bar(bar) => bar.suspend(|| to_stderr(text)),
        }
    }

    /// Shows one event.
    pub fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Begin { stage, steps } => self.begin(*stage, *steps),
            Event::Step {
                stage,
                done,
                steps,
                took,
                remaining,
                memory,
                ..
            } => self.step(*stage, (*done, *steps), *took, *remaining, *memory),
            Event::End { stage, took } => {
                if self.verbose {
                    self.line(&format!("{}: {}", stage.label(), seconds(*took)));
                }
            }
            Event::Warning(text) => self.warn(text),
        }
    }

    /// Warns once: a warning of a run is also one of the next run.
    pub fn warn(&mut self, text: &str) {
        const LONGEST: usize = 300;
        let mut short: String = text.chars().take(LONGEST).collect();
        if short.len() < text.len() {
            short.push_str("...");
        }
        if !self.warnings.contains(&short) {
            self.line(&format!("warning: {short}"));
            self.warnings.push(short);
        }
    }

    fn begin(&mut self, stage: Stage, steps: usize) {
        if let Shape::Bar(bar) = &self.shape {
            if bar.is_finished() {
                bar.reset();
                bar.enable_steady_tick(TICK);
            }
            bar.set_length(steps as u64);
            bar.set_position(0);
            bar.set_prefix(stage.label());
            bar.set_message("");
            bar.tick();
        }
        self.last_plain = None;
    }

    fn step(
        &mut self,
        stage: Stage,
        (done, steps): (usize, usize),
        took: Duration,
        remaining: Option<Duration>,
        memory: Memory,
    ) {
        let left = remaining.map_or(String::new(), |r| format!(", {} left", clock(r)));
        let text = format!(
            "{} a step{left}, {} in use",
            seconds(took),
            bytes(memory.resident)
        );
        match &self.shape {
            Shape::Quiet => {}
            Shape::Bar(bar) => {
                bar.set_length(steps as u64);
                bar.set_position(done as u64);
                bar.set_message(text);
            }
            Shape::Plain => {
                let due = self.last_plain.is_none_or(|t| t.elapsed() >= PLAIN_EVERY);
                if due || done == steps || self.verbose {
                    self.last_plain = Some(Instant::now());
                    to_stderr(&format!("{} {done}/{steps}: {text}", stage.label()));
                }
            }
        }
    }

    /// Takes the line away.
    pub fn finish(&self) {
        if let Shape::Bar(bar) = &self.shape {
            bar.finish_and_clear();
        }
    }
}

fn to_stderr(text: &str) {
    // Nobody is left to tell when standard error is closed.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// A duration as `0.123 s` or `12.3 s`.
pub fn seconds(d: Duration) -> String {
    let s = d.as_secs_f64();
    if s < 10.0 {
        format!("{s:.2} s")
    } else {
        format!("{s:.1} s")
    }
}

/// A duration as `1:02:03` or `2:03`.
pub fn clock(d: Duration) -> String {
    let s = d.as_secs_f64().ceil() as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{}:{:02}", s / 60, s % 60),
        _ => format!("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60),
    }
}

/// Bytes as `1.25 GB`, in powers of ten.
pub fn bytes(n: u64) -> String {
    match n {
        0..1_000 => format!("{n} B"),
        1_000..1_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.0} MB", n as f64 / 1e6),
        _ => format!("{:.2} GB", n as f64 / 1e9),
    }
}
