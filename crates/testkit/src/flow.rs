//! The tiny checkpoints of the flow families: put together from `golden/flow`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{Error, golden};

/// Writes the diffusers folder of `golden/flow/<family>` with the parts that families share to `<into>/<family>`.
///
/// # Errors
/// When a file cannot be read or written.
pub fn flow_folder(family: &str, into: &Path) -> Result<PathBuf, Error> {
    let target = into.join(family);
    let parts: &[(&str, &str)] = match family.starts_with("flux") {
        true => &[
            ("text_encoder", "text_encoder"),
            ("text_encoder_2", "text_encoder_3"),
            ("tokenizer", "tokenizer"),
            ("tokenizer_2", "tokenizer_3"),
            ("vae", "vae"),
        ],
        false => &[
            ("text_encoder", "text_encoder"),
            ("text_encoder_2", "text_encoder_2"),
            ("text_encoder_3", "text_encoder_3"),
            ("tokenizer", "tokenizer"),
            ("tokenizer_2", "tokenizer_2"),
            ("tokenizer_3", "tokenizer_3"),
            ("vae", "vae"),
        ],
    };
    let own = golden(&format!("flow/{family}"));
    for (name, part) in parts {
        copy(&golden(&format!("flow/parts/{part}")), &target.join(name))?;
    }
    for part in ["transformer", "scheduler"] {
        copy(&own.join(part), &target.join(part))?;
    }
    let index = "model_index.json";
    fs::copy(own.join(index), target.join(index)).map_err(io(&target.join(index)))?;
    Ok(target)
}

fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    fs::create_dir_all(to).map_err(io(to))?;
    for entry in fs::read_dir(from).map_err(io(from))? {
        let path = entry.map_err(io(from))?.path();
        let name = path.file_name().unwrap_or_default();
        fs::copy(&path, to.join(name)).map_err(io(&path))?;
    }
    Ok(())
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Io { path, source }
}
