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
    let is_name = model.components().count() == 1;
    if let (true, Some(folder)) = (is_name, model_directory()) {
        let candidates = [
            folder.join(model),
            folder.join(format!("{}.safetensors", model.display())),
        ];
        if let Some(found) = candidates.into_iter().find(|p| p.exists()) {
            return Ok(Location::Path(found));
        }
        if model == Path::new(default_model::NAME) {
            return Ok(default_model::location());
        }
        return Err(Failure::new(
            format!(
                "{}: no such file or folder, here or in {}",
                model.display(),
                folder.display()
            ),
            "`aquatint models` lists what is there; give a diffusers folder or a .safetensors file",
        ));
    }
    Err(Failure::new(
        format!("{}: no such file or folder", model.display()),
        "give a diffusers folder or a .safetensors file",
    ))
}
