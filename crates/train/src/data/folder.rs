//! Which pictures there are, and what is said of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::TrainError;

/// Endings of the pictures that are read.
pub const PICTURE_ENDINGS: &[&str] = &["png", "jpg", "jpeg", "webp", "bmp"];

/// A picture and what is said of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// The file.
    pub path: PathBuf,
    /// Captions to choose from; empty when there are none.
    pub captions: Vec<String>,
    /// Index into [`Folder::classes`].
    pub class: Option<usize>,
}

/// A folder of pictures.
///
/// # Layout
/// Pictures lie in the folder and its subfolders. A caption is the text of a `.txt` file of the same name (each
/// line that is not empty is a caption, one is chosen each time), or the `text` of the picture's line in the
/// `metadata.jsonl` of its folder or one above (a text or a list of texts; `file_name` is relative to that
/// file). Pictures in subfolders are of the class that the first subfolder is named after; `label` in the
/// metadata overrides it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    /// The folder.
    pub path: PathBuf,
    /// Sorted by path, so that the order does not depend on the file system.
    pub examples: Vec<Example>,
    /// Names of the classes, sorted; empty when the pictures are not sorted into subfolders.
    pub classes: Vec<String>,
}

#[derive(serde::Deserialize)]
struct Line {
    file_name: String,
    #[serde(default)]
    text: Option<Texts>,
    #[serde(default)]
    label: Option<Label>,
}

#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Texts {
    One(String),
    Many(Vec<String>),
}

#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Label {
    Name(String),
    Number(i64),
}

/// What metadata says of a picture.
#[derive(Default)]
struct Said {
    captions: Vec<String>,
    label: Option<String>,
}

impl Folder {
    /// Lists the pictures of a folder.
    ///
    /// # Errors
    /// A folder that cannot be read or holds no pictures, captions without their pictures, metadata that
    /// is not one JSON object a line.
    pub fn scan(path: &Path) -> Result<Self, TrainError> {
        let mut files = Files::default();
        files.walk(path)?;
        if files.pictures.is_empty() {
            return Err(TrainError::NoPictures {
                path: path.into(),
                endings: PICTURE_ENDINGS.join(", "),
            });
        }
        let said = read_metadata(path, &files)?;
        let captions_alone: Vec<&PathBuf> = files
            .texts
            .iter()
            .filter(|text| {
                !PICTURE_ENDINGS
                    .iter()
                    .any(|e| files.has_picture(&text.with_extension(e)))
            })
            .collect();
        if let Some(first) = captions_alone.first() {
            return Err(TrainError::CaptionsAlone {
                path: path.into(),
                count: captions_alone.len(),
                example: first.display().to_string(),
            });
        }
        Self::assemble(path, &files, said)
    }

    fn assemble(
        path: &Path,
        files: &Files,
        mut said: BTreeMap<PathBuf, Said>,
    ) -> Result<Self, TrainError> {
        let mut examples = Vec::with_capacity(files.pictures.len());
        let mut labels = Vec::with_capacity(files.pictures.len());
        for picture in &files.pictures {
            let said = said.remove(picture).unwrap_or_default();
            let text = picture.with_extension("txt");
            let mut captions = said.captions;
            if files.texts.contains(&text) {
                let content = std::fs::read_to_string(&text).map_err(TrainError::io(&text))?;
                captions.extend(
                    content
                        .lines()
                        .map(str::trim)
                        .filter(|line| !line.is_empty())
                        .map(str::to_owned),
                );
            }
            labels.push(said.label.or_else(|| subfolder(path, picture)));
            examples.push(Example {
                path: picture.clone(),
                captions,
                class: None,
            });
        }
        let classes: Vec<String> = labels
            .iter()
            .flatten()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .cloned()
            .collect();
        for (example, label) in examples.iter_mut().zip(&labels) {
            example.class = label
                .as_ref()
                .and_then(|label| classes.binary_search(label).ok());
        }
        Ok(Self {
            path: path.into(),
            examples,
            classes,
        })
    }

    /// Parts the pictures: every `every`-th (the first of each `every`) is held out of training. The second folder
    /// holds those; with `every` 0 it is empty.
    pub fn hold_out(self, every: usize) -> (Self, Self) {
        let (mut train, mut held) = (Vec::new(), Vec::new());
        for (i, example) in self.examples.into_iter().enumerate() {
            match every > 0 && i % every == 0 {
                true => held.push(example),
                false => train.push(example),
            }
        }
        let with = |examples| Self {
            path: self.path.clone(),
            examples,
            classes: self.classes.clone(),
        };
        (with(train), with(held))
    }

    /// Fails when a picture has no caption, as a text-conditional model needs.
    ///
    /// # Errors
    /// [`TrainError::NoCaptions`] with the first such picture.
    pub fn require_captions(&self) -> Result<(), TrainError> {
        let mut without = self.examples.iter().filter(|e| e.captions.is_empty());
        let Some(first) = without.next() else {
            return Ok(());
        };
        Err(TrainError::NoCaptions {
            path: self.path.clone(),
            missing: 1 + without.count(),
            pictures: self.examples.len(),
            example: first.path.display().to_string(),
        })
    }
}

impl Folder {
    /// The names of the classes.
    ///
    /// # Errors
    /// [`TrainError::NoClasses`] when a picture has none.
    pub fn require_classes(&self) -> Result<&[String], TrainError> {
        let mut without = self.examples.iter().filter(|e| e.class.is_none());
        let Some(first) = without.next() else {
            return Ok(&self.classes);
        };
        Err(TrainError::NoClasses {
            path: self.path.clone(),
            missing: 1 + without.count(),
            pictures: self.examples.len(),
            example: first.path.display().to_string(),
        })
    }
}

/// The files of a folder by kind.
#[derive(Default)]
struct Files {
    /// Sorted.
    pictures: Vec<PathBuf>,
    texts: BTreeSet<PathBuf>,
    metadata: Vec<PathBuf>,
}

impl Files {
    fn walk(&mut self, folder: &Path) -> Result<(), TrainError> {
        let mut entries = std::fs::read_dir(folder)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(TrainError::io(folder))?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            // Links to files are followed; links to folders are not, so that a walk always ends.
            if entry.file_type().map_err(TrainError::io(&path))?.is_dir() {
                self.walk(&path)?;
                continue;
            }
            let ending = path
                .extension()
                .map(|e| e.to_string_lossy().to_lowercase())
                .unwrap_or_default();
            if PICTURE_ENDINGS.contains(&ending.as_str()) {
                self.pictures.push(path);
            } else if ending == "txt" {
                self.texts.insert(path);
            } else if entry.file_name() == "metadata.jsonl" {
                self.metadata.push(path);
            }
        }
        self.pictures.sort();
        Ok(())
    }

    fn has_picture(&self, path: &PathBuf) -> bool {
        self.pictures.binary_search(path).is_ok()
    }
}

/// Name of the first folder between `root` and the picture.
fn subfolder(root: &Path, picture: &Path) -> Option<String> {
    let mut parts = picture.strip_prefix(root).ok()?.components();
    let first = parts.next()?;
    parts.next()?;
    Some(first.as_os_str().to_string_lossy().into_owned())
}

fn read_metadata(root: &Path, files: &Files) -> Result<BTreeMap<PathBuf, Said>, TrainError> {
    let mut said: BTreeMap<PathBuf, Said> = BTreeMap::new();
    let mut alone = Vec::new();
    for file in &files.metadata {
        let content = std::fs::read_to_string(file).map_err(TrainError::io(file))?;
        let folder = file.parent().unwrap_or(root);
        for (index, text) in content.lines().enumerate() {
            if text.trim().is_empty() {
                continue;
            }
            let line: Line = serde_json::from_str(text).map_err(|e| TrainError::Metadata {
                path: file.clone(),
                line: index + 1,
                message: format!(
                    "{e}; expected an object such as {{\"file_name\": \"a.png\", \"text\": \"a red apple\"}}"
                ),
            })?;
            let picture = folder.join(&line.file_name);
            if !files.has_picture(&picture) {
                alone.push(line.file_name);
                continue;
            }
            let entry = said.entry(picture).or_default();
            match line.text {
                Some(Texts::One(text)) => entry.captions.push(text),
                Some(Texts::Many(texts)) => entry.captions.extend(texts),
                None => {}
            }
            entry.captions.retain(|c| !c.trim().is_empty());
            entry.label = line.label.map(|label| match label {
                Label::Name(name) => name,
                Label::Number(number) => number.to_string(),
            });
        }
    }
    match alone.first() {
        Some(first) => Err(TrainError::CaptionsAlone {
            path: root.into(),
            count: alone.len(),
            example: first.clone(),
        }),
        None => Ok(said),
    }
}
