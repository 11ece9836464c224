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
        let text = output
            .to_str()
            .ok_or_else(|| Failure::usage("--output is not valid UTF-8", "give a name in UTF-8"))?;
        if text.is_empty() || text == "-" {
            let found = if text.is_empty() { "empty" } else { "-" };
            return Err(Failure::usage(
                format!("--output is {found}, expected a file or a folder"),
                "pictures are written to files only",
            ));
        }
        // A folder whose name has a % in it is taken by its name.
        if output.is_dir() {
            let folder = text
                .trim_end_matches(std::path::MAIN_SEPARATOR)
                .replace('%', "%%");
            return Ok(OutputPattern {
                pattern: format!("{folder}/{DEFAULT_NAME}"),
                ours: true,
            });
        }
        if text.ends_with(std::path::MAIN_SEPARATOR) {
            return Ok(OutputPattern {
                pattern: format!("{text}{DEFAULT_NAME}"),
                ours: true,
            });
        }
        let extension = output
            .extension()
            .and_then(|e| e.to_str())
            .unwrap_or_default();
        let (stem, extension) = if extension.eq_ignore_ascii_case("png") {
            text.split_at(text.len() - 4)
        } else {
            // The 5 of "v1.5" is no format.
            if is_format(extension) {
                check_png("--output", output)?;
            }
            (text, ".png")
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

/// Whether the end of a name is meant as a file format.
fn is_format(extension: &str) -> bool {
    extension.len() <= 5 && extension.starts_with(|c: char| c.is_ascii_alphabetic())
}

/// Pictures are PNG files whatever they are called, so other names are refused.
pub fn check_png(flag: &str, path: &Path) -> Result<(), Failure> {
    let extension = path
        .extension()
        .and_then(|e| e.to_str())
        .unwrap_or_default();
    if extension.eq_ignore_ascii_case("png") {
        return Ok(());
    }
    let found = match extension {
        "" => "has no extension".to_owned(),
        other => format!("ends in .{other}"),
    };
    Err(Failure::usage(
        format!("{flag} {}: {found}, expected .png", path.display()),
        "pictures are written as PNG, which carries their parameters",
    ))
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
        for name in ["a.jpg", "a.WEBP", "-", "", "a/b.gif"] {
            let pattern = OutputPattern::new(Some(Path::new(name)), false);
            assert!(pattern.is_err(), "{name}");
        }
    }

    #[test]
    fn names_without_a_format_get_one() {
        for (name, want) in [
            ("apple", "apple.png"),
            ("v1.5", "v1.5.png"),
            ("a.%seed", "a.7.png"),
            ("a.PNG", "a.PNG"),
            ("d/", "d/m-7.png"),
        ] {
            let pattern = OutputPattern::new(Some(Path::new(name)), false).unwrap();
            assert_eq!(pattern.path(7, 0, "m"), PathBuf::from(want));
        }
    }

    #[test]
    fn a_folder_is_taken_by_its_name() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("50% %seed");
        std::fs::create_dir(&folder).unwrap();
        let pattern = OutputPattern::new(Some(&folder), false).unwrap();
        assert_eq!(pattern.path(7, 0, "m"), folder.join("m-7.png"));
    }
}
