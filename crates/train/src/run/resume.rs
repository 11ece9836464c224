//! May this run begin here, or go on?

use super::state::{Checkpoints, Progress, State};
use super::{RunOptions, Settings};
use crate::TrainError;
use crate::supply::Supply;

/// Settings that may change when a run goes on: they do not touch what is computed.
const FREE: &[&str] = &[
    "checkpoint",
    "samples",
    "samples_every",
    "data.workers",
    "data.source",
];

pub(super) fn begin(
    options: &RunOptions,
    settings: &Settings,
) -> Result<Option<State>, TrainError> {
    let out = &options.out;
    std::fs::create_dir_all(out).map_err(TrainError::io(out))?;
    let checkpoints = Checkpoints::new(out, settings.checkpoint.keep);
    let steps = checkpoints.steps()?;
    match (steps.last(), options.resume) {
        (Some(&step), false) => Err(TrainError::Occupied {
            path: out.clone(),
            step,
        }),
        (None, _) => Ok(None),
        (Some(_), true) => {
            let state = checkpoints.newest()?;
            if let Some(state) = &state {
                compare(&state.progress.config, settings)?;
            }
            Ok(state)
        }
    }
}

/// The order of the examples is a function of their list, so a run goes on with the one it began with.
pub(super) fn same_data(progress: &mut Progress, supply: &Supply) -> Result<(), TrainError> {
    let now = supply.fingerprint();
    match progress.data.replace(now.clone()) {
        Some(before) if before != now => Err(TrainError::Changed {
            key: "the list of pictures, their sizes or their captions".into(),
            before,
            now,
        }),
        _ => Ok(()),
    }
}

fn compare(before: &str, settings: &Settings) -> Result<(), TrainError> {
    let read = |text: &str| text.parse::<toml::Table>().unwrap_or_default();
    let (before, now) = (read(before), read(&settings.config));
    let mut changed = Vec::new();
    differences("", &before, &now, &mut changed);
    // A rate that does not depend on the number of steps lets it change.
    let constant = settings.rate.decay == crate::optim::Decay::Constant;
    changed.retain(|(key, ..)| !(constant && key == "steps"));
    match changed.into_iter().next() {
        None => Ok(()),
        Some((key, before, now)) => Err(TrainError::Changed { key, before, now }),
    }
}

fn differences(
    path: &str,
    before: &toml::Table,
    now: &toml::Table,
    found: &mut Vec<(String, String, String)>,
) {
    let keys: std::collections::BTreeSet<&String> = before.keys().chain(now.keys()).collect();
    for key in keys {
        let full = match path {
            "" => key.clone(),
            path => format!("{path}.{key}"),
        };
        if FREE.contains(&full.as_str()) {
            continue;
        }
        match (before.get(key), now.get(key)) {
            (Some(toml::Value::Table(a)), Some(toml::Value::Table(b))) => {
                differences(&full, a, b, found);
            }
            (a, b) if a == b => {}
            (a, b) => {
                let show = |v: Option<&toml::Value>| {
                    v.map_or_else(|| "absent".to_owned(), ToString::to_string)
                };
                found.push((full, show(a), show(b)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_named_and_free_settings_may_differ() {
        let read = |text: &str| text.parse::<toml::Table>().expect("TOML");
        let before =
            read("seed = 1\nsteps = 5\n[data]\nworkers = 1\nflip = 0.5\n[samples]\nevery = 3");
        let now =
            read("seed = 1\nsteps = 6\n[data]\nworkers = 2\nflip = 0.25\n[checkpoint]\nkeep = 3");
        let mut found = Vec::new();
        differences("", &before, &now, &mut found);
        let row = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
        assert_eq!(
            found,
            [row("data.flip", "0.5", "0.25"), row("steps", "5", "6")]
        );
    }
}
