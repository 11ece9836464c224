//! Where pictures go.

use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// A pattern for the names of a run's pictures.
#[derive(Debug, Clone)]
pub struct OutputPattern {
    pattern: String,
    /// The name is our own choice, so that a taken one gives way to the next free one.
    ours: bool,
}

const DEFAULT_NAME: &str = "%model-%seed.png";

impl OutputPattern {
    /// Reads `--output`; `many` is whether the run makes more than one picture.
    pub fn new(output: Option<&Path>, many: bool) -> Result<Self, Failure> {
        let Some(output) = output else {
            return Ok(OutputPattern {
                pattern: DEFAULT_NAME.into(),
                ours: true,
            });
        };
        let text = output.to_str().ok_or_else(|| {
            Failure::usage("--output is not valid UTF-8", "give a name in UTF-8")
        })?;
        if text.is_empty() {
            return Err(Failure::usage("--output is empty", "give a file or a folder"));
        }
        if output.is_dir() || text.ends_with(std::path::MAIN_SEPARATOR) {
            let pattern = output.join(DEFAULT_NAME).to_string_lossy().into_owned();
            return Ok(OutputPattern {
                pattern,
                ours: true,
            });
        }
        let (stem, extension) = match output.extension().and_then(|e| e.to_str()) {
            Some(e) if e.eq_ignore_ascii_case("png") => (&text[..text.len() - 4], &text[text.len() - 4..]),
            Some(e) if e.len() <= 5 && !e.contains('%') => {
                return Err(Failure::usage(
                    format!("--output ends in .{e}, expected .png"),
                    "pictures are written as PNG, which carries their parameters",
                ));
            }
            _ => (text, ".png"),
        };
        let differs = stem.contains("%seed") || stem.contains("%index");
        let number = if many && !differs { "-%index" } else { "" };
        Ok(OutputPattern {
            pattern: format!("{stem}{number}{extension}"),
            ours: false,
        })
    }

    /// The path of picture `index` (from 0).
    pub fn path(&self, seed: u64, index: u32, model: &str) -> PathBuf {
        let mut name = String::new();
        let mut rest = self.pattern.as_str();
        while let Some(at) = rest.find('%') {
            name.push_str(&rest[..at]);
            rest = &rest[at..];
            let (text, used) = if rest.starts_with("%seed") {
                (seed.to_string(), 5)
            } else if rest.starts_with("%index") {
                (index.to_string(), 6)
            } else if rest.starts_with("%model") {
                (model.to_owned(), 6)
            } else if rest.starts_with("%%") {
                ("%".to_owned(), 2)
            } else {
                ("%".to_owned(), 1)
            };
            name.push_str(&text);
            rest = &rest[used..];
        }
        name.push_str(rest);
        PathBuf::from(name)
    }

    /// As [`OutputPattern::path`], made free when the name is our own choice.
    pub fn free_path(&self, seed: u64, index: u32, model: &str, force: bool) -> PathBuf {
        let path = self.path(seed, index, model);
        if !self.ours || force || !path.exists() {
            return path;
        }
        let stem = path.with_extension("");
        (2u32..)
            .map(|n| PathBuf::from(format!("{}-{n}.png", stem.display())))
            .find(|p| !p.exists())
            .unwrap_or(path)
    }
}

/// Finds out before a long run whether its picture could be written.
pub fn check_writable(path: &Path, force: bool) -> Result<(), Failure> {
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        return Err(Failure::new(
            format!("{}: the folder {} is not there", path.display(), folder.display()),
            format!("make it first: mkdir -p {}", folder.display()),
        ));
    }
    if path.is_dir() {
        return Err(Failure::new(
            format!("{}: is a folder, expected a name for a file", path.display()),
            "add a file name".to_owned(),
        ));
    }
    if path.exists() && !force {
        return Err(Failure::new(
            format!("{}: the file is already there", path.display()),
            "use --force to write over it, or another name".to_owned(),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_expand() {
        let p = OutputPattern::new(Some(Path::new("x/%model_%seed_%index_100%%")), false).unwrap();
        assert_eq!(p.path(7, 2, "sd15"), PathBuf::from("x/sd15_7_2_100%.png"));
    }

    #[test]
    fn many_pictures_get_numbers() {
        let p = OutputPattern::new(Some(Path::new("a.png")), true).unwrap();
        assert_eq!(p.path(7, 2, "m"), PathBuf::from("a-2.png"));
        let p = OutputPattern::new(Some(Path::new("a-%seed.png")), true).unwrap();
        assert_eq!(p.path(7, 2, "m"), PathBuf::from("a-7.png"));
    }

    #[test]
    fn other_formats_are_refused() {
        assert!(OutputPattern::new(Some(Path::new("a.jpg")), false).is_err());
    }
}
