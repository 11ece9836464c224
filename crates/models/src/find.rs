//! Finding models under a folder.

use std::path::{Path, PathBuf};

use crate::ModelError;

/// Paths under a folder that look like models: diffusers folders and weight files.
///
/// # Errors
/// When the folder cannot be listed.
pub fn find_models(folder: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let mut found = Vec::new();
    walk(folder, 3, &mut found)?;
    found.sort();
    Ok(found)
}

fn walk(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<(), ModelError> {
    if folder.join("model_index.json").is_file()
        || ["unet", "transformer"]
            .iter()
            .any(|part| folder.join(part).join("config.json").is_file())
    {
        found.push(folder.to_owned());
        return Ok(());
    }
    let failed = |source| ModelError::Io {
        path: folder.to_owned(),
        source,
    };
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() {
            // A folder that cannot be listed is none of ours.
            if depth > 0 {
                let _ = walk(&path, depth - 1, found);
            }
        } else if path
            .extension()
            .is_some_and(|e| e == "safetensors" || e == "gguf")
        {
            found.push(path);
        }
    }
    Ok(())
}
