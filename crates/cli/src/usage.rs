//! A wrong command line, told as every other failure: one line, and a hint.

use std::error::Error as _;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, Error, ErrorKind};
use clap::{CommandFactory, Parser};

use crate::args::Cli;
use crate::failure::Failure;

/// Reads the command line. Help and version are printed here; `Err` is the code to exit with.
pub fn parse() -> Result<Cli, ExitCode> {
    Cli::try_parse().map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // A reader that went away is no failure.
            let _ = error.print();
            ExitCode::from(error.exit_code() as u8)
        }
        _ => {
            let failure = explain(&error);
            failure.print();
            ExitCode::from(failure.code())
        }
    })
}

fn explain(error: &Error) -> Failure {
    let argument = text(error, ContextKind::InvalidArg);
    let value = text(error, ContextKind::InvalidValue);
    let message = match (error.kind(), argument, value) {
        (ErrorKind::ValueValidation, Some(argument), Some(value)) => {
            let source = error.source().map(ToString::to_string).unwrap_or_default();
            format!("found {} for {argument}, {source}", quoted(&value))
        }
        (ErrorKind::InvalidValue, Some(argument), Some(value)) if value.is_empty() => {
            format!("{argument} is without a value")
        }
        (ErrorKind::InvalidValue, Some(argument), Some(value)) => {
            let known = values(error, ContextKind::ValidValue);
            format!(
                "found {} for {argument}, expected {}",
                quoted(&value),
                or(&known)
            )
        }
        (ErrorKind::UnknownArgument, Some(argument), _) => {
            format!("found {}, which is no argument here", quoted(&argument))
        }
        (ErrorKind::InvalidSubcommand, ..) => {
            let found = text(error, ContextKind::InvalidSubcommand).unwrap_or_default();
            format!("found {}, which is no command", quoted(&found))
        }
        (ErrorKind::MissingRequiredArgument, Some(argument), _) => {
            format!("{argument} is missing")
        }
        (ErrorKind::ArgumentConflict, Some(argument), _) => conflict(error, &argument),
        (ErrorKind::InvalidUtf8, ..) => "found text that is not UTF-8 on the command line".into(),
        _ => first_line(error),
    };
    Failure::usage(message, hint(error))
}

fn conflict(error: &Error, argument: &str) -> String {
    match text(error, ContextKind::PriorArg) {
        Some(prior) if prior == argument => format!("{argument} is given twice"),
        Some(prior) => format!("{argument} cannot stand beside {prior}"),
        None => first_line(error),
    }
}

/// What to do: the nearest name where there is one, else where to read.
fn hint(error: &Error) -> String {
    for kind in [
        ContextKind::SuggestedArg,
        ContextKind::SuggestedSubcommand,
        ContextKind::SuggestedValue,
    ] {
        if let [near, ..] = values(error, kind).as_slice() {
            return format!("did you mean {near}?");
        }
    }
    let command = command();
    let unknown = text(error, ContextKind::InvalidArg).unwrap_or_default();
    match (error.kind(), command.as_str()) {
        (ErrorKind::InvalidUtf8, _) => "set the terminal to UTF-8".into(),
        (ErrorKind::UnknownArgument, " generate") if !unknown.starts_with('-') => {
            "put the prompt in quotes: aquatint generate \"a red apple\"".into()
        }
        (ErrorKind::UnknownArgument, " generate") => {
            "`aquatint generate --help` lists the options; a prompt that begins with - goes after --"
                .into()
        }
        (ErrorKind::MissingRequiredArgument, " generate") if unknown.contains("PROMPT") => {
            "say what to draw: aquatint generate \"a red apple\"".into()
        }
        _ => format!("`aquatint{command} --help` shows what can be given"),
    }
}

/// The command that the line names, with a space before it.
fn command() -> String {
    let known: Vec<String> = Cli::command()
        .get_subcommands()
        .map(|c| c.get_name().to_owned())
        .collect();
    std::env::args_os()
        .skip(1)
        .filter_map(|a| a.into_string().ok())
        .find(|a| known.contains(a))
        .map_or(String::new(), |name| format!(" {name}"))
}

/// Strings of the error's context. Several required arguments are one text.
fn text(error: &Error, kind: ContextKind) -> Option<String> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text.clone()),
        ContextValue::Strings(all) => Some(all.join(" and ")),
        _ => None,
    }
}

fn values(error: &Error, kind: ContextKind) -> Vec<String> {
    match error.get(kind) {
        Some(ContextValue::String(text)) => vec![text.clone()],
        Some(ContextValue::Strings(all)) => all.clone(),
        _ => Vec::new(),
    }
}

fn first_line(error: &Error) -> String {
    let text = error.render().to_string();
    let line = text.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

/// A value as it was given, cut when it is long.
fn quoted(value: &str) -> String {
    const LONGEST: usize = 60;
    let mut short: String = value.chars().take(LONGEST).collect();
    if short.len() < value.len() {
        short.push_str("...");
    }
    format!("{short:?}")
}

/// `a, b or c`.
fn or(all: &[String]) -> String {
    match all {
        [] => "another".into(),
        [one] => one.clone(),
        [most @ .., last] => format!("{} or {last}", most.join(", ")),
    }
}
