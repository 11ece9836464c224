//! `aquatint models`.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use aquatint_engine::Model;
use aquatint_engine::models::{Location, ModelError, OpenOptions, find_models, recognise};
use aquatint_engine::weights::{Inspection, WeightSet};
use serde_json::{Value, json};

use crate::args::ModelsArgs;
use crate::failure::Failure;
use crate::progress::bytes;
use crate::{default_model, locate};

/// Runs the command.
pub fn run(args: &ModelsArgs) -> Result<(), Failure> {
    let folder = match &args.path {
        Some(path) => Some(path.clone()),
        // A model directory that nobody has made yet is simply empty.
        None => locate::model_directory().filter(|p| p.is_dir()),
    };
    let mut rows = Vec::new();
    if args.path.is_none() {
        rows.push(row(
            default_model::NAME.into(),
            None,
            &default_model::location(),
        ));
    }
    if let Some(folder) = &folder {
        for path in paths(folder)? {
            let name = path.strip_prefix(folder).unwrap_or(&path);
            let name = match name.as_os_str().is_empty() {
                true => folder.display().to_string(),
                false => name.display().to_string(),
            };
            rows.push(row(name, Some(path.clone()), &Location::Path(path)));
        }
    }
    if args.json {
        return crate::print_json(&json!({ "folder": folder, "models": rows }));
    }
    print_table(&rows, folder.as_deref())
}

fn paths(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    if folder.is_file() {
        return Ok(vec![folder.to_owned()]);
    }
    if !folder.is_dir() {
        return Err(Failure::new(
            format!("{}: no such folder", folder.display()),
            "give the folder that your models are in",
        ));
    }
    find_models(folder).map_err(|e| Failure::from(aquatint_engine::EngineError::from(e)))
}

fn row(name: String, path: Option<PathBuf>, location: &Location) -> Value {
    match Model::open(location, &OpenOptions::default()) {
        Ok(model) => {
            let sizes = sizes(&model);
            let defaults = model.defaults();
            json!({
                "name": name,
                "path": path,
                "family": model.family(),
                "title": model.title(),
                "prediction": model.prediction(),
                "storage": sizes.storage,
                "parameters": sizes.parameters,
                "bytes": sizes.bytes,
                "size": defaults.width,
                "steps": defaults.steps,
                "sampler": defaults.sampler,
            })
        }
        Err(error) => {
            if let Some(part) = path.as_deref().and_then(|path| part(path, &error)) {
                return json!({
                    "name": name,
                    "path": path,
                    "part": part.0,
                    "storage": part.1.storage,
                    "parameters": part.1.parameters,
                    "bytes": part.1.bytes,
                });
            }
            let error = error.to_string();
            // The row begins with the name already.
            let own = path.as_ref().map(|p| format!("{}: ", p.display()));
            let short = own.and_then(|own| error.strip_prefix(&own).map(str::to_owned));
            json!({ "name": name, "path": path, "error": short.unwrap_or(error) })
        }
    }
}

/// What a file holds that is a part of a model, such as a transformer alone.
fn part(path: &Path, error: &ModelError) -> Option<(&'static str, Sizes)> {
    let whole = !matches!(
        error,
        ModelError::Apart { .. } | ModelError::NotAModel { .. }
    );
    if whole || !path.is_file() {
        return None;
    }
    let set = WeightSet::open(path).ok()?;
    let part = recognise(&set)?;
    let mut sizes = Sizes::default();
    sizes.add(&set.inspect());
    Some((part, sizes))
}

#[derive(Default)]
struct Sizes {
    storage: Vec<String>,
    parameters: u64,
    bytes: u64,
}

impl Sizes {
    fn add(&mut self, inspection: &Inspection) {
        self.parameters += inspection.parameters;
        self.bytes += inspection.bytes;
        for row in &inspection.dtypes {
            let name = row.dtype.to_string();
            if !self.storage.contains(&name) {
                self.storage.push(name);
            }
        }
    }
}

fn sizes(model: &Model) -> Sizes {
    let mut seen: Vec<PathBuf> = Vec::new();
    let mut sizes = Sizes::default();
    for (_, source) in model.sources() {
        let inspection: Inspection = source.weights().inspect();
        // The parts of a single file share it.
        if seen.contains(&inspection.path) {
            continue;
        }
        seen.push(inspection.path.clone());
        sizes.add(&inspection);
    }
    sizes
}

/// Types, parameters and bytes of a row.
fn stored(row: &Value) -> String {
    let storage = row["storage"].as_array().into_iter().flatten();
    let storage: Vec<&str> = storage.filter_map(Value::as_str).collect();
    format!(
        "{}, {:.1} M parameters, {}",
        storage.join(" "),
        row["parameters"].as_f64().unwrap_or(0.0) / 1e6,
        bytes(row["bytes"].as_u64().unwrap_or(0)),
    )
}

fn print_table(rows: &[Value], folder: Option<&Path>) -> Result<(), Failure> {
    let text_of = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    let width = rows
        .iter()
        .map(|r| text_of(r, "name").chars().count())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for row in rows {
        let name = text_of(row, "name");
        // Writing to a string cannot fail.
        let _ = match (row["error"].as_str(), row["part"].as_str()) {
            (Some(error), _) => writeln!(text, "{name:width$}  not usable: {error}"),
            (_, Some(part)) => writeln!(
                text,
                "{name:width$}  {part}, {}; a part of a model",
                stored(row)
            ),
            _ => writeln!(
                text,
                "{name:width$}  {}, {}, {}",
                text_of(row, "title"),
                text_of(row, "prediction"),
                stored(row)
            ),
        };
    }
    match folder {
        Some(folder) if rows.is_empty() => {
            let _ = writeln!(text, "no models in {}", folder.display());
        }
        Some(_) => {}
        None => {
            if let Some(folder) = locate::model_directory() {
                let _ = writeln!(text, "put more models into {}", folder.display());
            }
        }
    }
    crate::print(&text)
}
