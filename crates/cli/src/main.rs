//! The `aquatint` binary.

mod args;
mod bench;
mod convert;
mod default_model;
mod failure;
mod generate;
mod grid;
mod inspect;
mod job;
mod locate;
mod loras;
mod merge;
mod models;
mod output;
mod progress;
mod samplers;
mod setup;
mod train;
mod train_progress;
mod usage;

use std::process::ExitCode;

use clap::CommandFactory;

use args::{Cli, Command};
use failure::Failure;

/// Counts live allocations, for the memory figures of a run.
#[global_allocator]
static ALLOCATOR: cap::Cap<std::alloc::System> = cap::Cap::new(std::alloc::System, usize::MAX);

fn main() -> ExitCode {
    aquatint_engine::memory::set_live_probe(|| ALLOCATOR.allocated() as u64);
    let cli = match usage::parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let result = match cli.command {
        Command::Generate(args) => generate::run(&args),
        Command::Models(args) => models::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Convert(args) => convert::run(&args),
        Command::Samplers(args) => samplers::run(&args),
        Command::Merge(args) => merge::run(&args),
        Command::Grid(args) => grid::run(&args),
        Command::Bench(command) => bench::run(&command),
        Command::Train(args) => train::run(&args),
        Command::Completions { shell } => completions(shell),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.print();
            ExitCode::from(failure.code())
        }
    }
}

fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "aquatint", &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// Prints to standard output. A reader that went away (`| head`) is no failure.
fn print(text: &str) -> Result<(), Failure> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    match written {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(e) => Err(Failure::new(format!("standard output: {e}"), "")),
        Ok(()) => Ok(()),
    }
}

/// Prints a JSON value and a line's end.
fn print_json(value: &serde_json::Value) -> Result<(), Failure> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|e| Failure::new(format!("cannot be written as JSON: {e}"), ""))?;
    text.push('\n');
    print(&text)
}
