//! `[data]`: the examples of a run.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::data::{CaptionOptions, Crop, Folder};

/// Points in the plane that need no files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Points {
    /// scikit-learn's `make_swiss_roll`, seen from the side, scaled to unit variance.
    SwissRoll,
}

/// The examples of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// Folder of pictures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
    /// Where the pictures come from, in words: for the model card, and for whoever does not have the folder.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// Or points.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub points: Option<Points>,
    /// Side of the pictures in pixels.
    pub resolution: usize,
    /// Sizes by shape, for pictures that are not square.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub buckets: Option<BucketConfig>,
    /// Which part of a picture is kept.
    pub crop: Crop,
    /// Share of mirrored examples.
    pub flip: f64,
    /// How captions vary.
    pub captions: CaptionOptions,
    /// Threads that decode.
    pub workers: usize,
    /// Every so-many-th picture is not trained on but measures the loss; 0 for none.
    pub holdout: usize,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            dir: None,
            source: String::new(),
            points: None,
            resolution: 64,
            buckets: None,
            crop: Crop::Center,
            flip: 0.0,
            captions: CaptionOptions::default(),
            workers: 1,
            holdout: 0,
        }
    }
}

impl DataConfig {
    /// Lists the pictures.
    ///
    /// # Errors
    /// As [`Folder::scan`]; a folder that is not there.
    pub(crate) fn folder(&self) -> Result<Folder, TrainError> {
        let path = self.dir.as_deref().unwrap_or(Path::new(""));
        if !path.exists() {
            return Err(TrainError::NoFolder {
                path: path.into(),
                said: self.source.clone(),
            });
        }
        Folder::scan(path)
    }

    pub(super) fn check_holdout(&self) -> Result<(), TrainError> {
        if self.holdout == 1 {
            let expected = "0, or 2 and more: every picture would be held out";
            return Err(TrainError::setting("data.holdout", 1, expected));
        }
        Ok(())
    }
}

/// Aspect-ratio buckets, see [`Buckets::by_aspect`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BucketConfig {
    /// Shortest side in pixels.
    pub smallest: usize,
    /// Longest side in pixels.
    pub largest: usize,
    /// Sides are multiples of this.
    pub step: usize,
}
