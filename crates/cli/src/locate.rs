//! Finding a model by path or by name.

use std::path::{Path, PathBuf};

use aquatint_engine::models::Location;

use crate::default_model;
use crate::failure::Failure;

/// The folder that models are looked up in: `$AQUATINT_MODELS`, else `~/.local/share/aquatint/models`.
pub fn model_directory() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("AQUATINT_MODELS").filter(|v| !v.is_empty()) {
        return Some(PathBuf::from(folder));
    }
    let home = std::env::home_dir()?;
    Some(home.join(".local/share/aquatint/models"))
}

/// Where the model of `--model` is: a path, a name in the model directory, or the one inside.
pub fn locate(model: Option<&Path>) -> Result<Location, Failure> {
    let Some(model) = model else {
        return Ok(default_model::location());
    };
    if model.as_os_str().is_empty() {
        return Err(Failure::usage("--model is empty", "give a path or a name"));
    }
    if model.exists() {
        return Ok(Location::Path(model.to_owned()));
    }
    let folder = model_directory().filter(|_| model.is_relative());
    if let Some(folder) = &folder {
        let candidates = [
            folder.join(model),
            folder.join(format!("{}.safetensors", model.display())),
            folder.join(format!("{}.gguf", model.display())),
        ];
        if let Some(found) = candidates.into_iter().find(|p| p.exists()) {
            return Ok(Location::Path(found));
        }
    }
    if model == Path::new(default_model::NAME) {
        return Ok(default_model::location());
    }
    let name = model.to_string_lossy();
    let place = match &folder {
        Some(folder) if model.components().count() == 1 => {
            format!(", here or in {}", folder.display())
        }
        _ => String::new(),
    };
    let hint = match nearest(&name, folder.as_deref()) {
        Some(near) => format!("did you mean {near}? `aquatint models` lists what is there"),
        None => {
            "give a diffusers folder, a .safetensors or .gguf file, or a name that `aquatint models` lists"
                .to_owned()
        }
    };
    Err(Failure::new(
        format!("{name}: no such file or folder{place}"),
        hint,
    ))
}

/// The name of a model that looks much like `name`.
fn nearest(name: &str, folder: Option<&Path>) -> Option<String> {
    const ALIKE: f64 = 0.85;
    let entries = folder.and_then(|f| std::fs::read_dir(f).ok());
    let names = entries
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned());
    names
        .chain([default_model::NAME.to_owned()])
        .map(|n| {
            (
                strsim::jaro_winkler(&name.to_lowercase(), &n.to_lowercase()),
                n,
            )
        })
        .filter(|(score, _)| *score >= ALIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, n)| n)
}
