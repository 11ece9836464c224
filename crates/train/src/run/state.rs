//! The state of a run on the disk.
//!
//! A checkpoint is a folder `checkpoints/step-00000120` with `weights.safetensors`, `ema.safetensors`,
//! `optimizer.safetensors` and `state.json`. It is written under another name and renamed when all of it has
//! reached the disk, so that a folder of that name is whole, whatever killed the run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use aquatint_weights::{DType, TensorSpec, WeightFile, Writer};
use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::networks::Stored;
use crate::optim::Moments;

/// Trained tensors by name.
pub type Weights = BTreeMap<String, Stored>;

/// All that a run needs to go on. What is random is a function of the seed and the step.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct State {
    pub weights: Weights,
    pub ema: Weights,
    pub moments: BTreeMap<String, Moments>,
    pub progress: Progress,
}

/// The small part of a state.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Updates that were made.
    pub step: u64,
    /// Examples that were seen.
    pub samples: u64,
    /// Seconds of training, over all sessions.
    pub seconds: f64,
    /// Mean loss of the last steps.
    pub smooth_loss: Option<f64>,
    /// Lowest loss that decided on the best checkpoint, and its step.
    pub best: Option<(f64, u64)>,
    /// The configuration, as TOML.
    pub config: String,
    /// What it learns from, in words; checkpoints of older versions do not say.
    #[serde(default)]
    pub data: Option<String>,
}

const FOLDER: &str = "checkpoints";
const BEST: &str = "best";

/// The checkpoints of a run.
#[derive(Debug)]
pub(crate) struct Checkpoints {
    folder: PathBuf,
    keep: usize,
}

impl Checkpoints {
    /// In `out/checkpoints`.
    pub fn new(out: &Path, keep: usize) -> Self {
        Self {
            folder: out.join(FOLDER),
            keep,
        }
    }

    /// Steps of the checkpoints that are there, rising.
    pub fn steps(&self) -> Result<Vec<u64>, TrainError> {
        let entries = match std::fs::read_dir(&self.folder) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(TrainError::io(&self.folder))?,
        };
        let mut steps = Vec::new();
        for entry in entries {
            let name = entry.map_err(TrainError::io(&self.folder))?.file_name();
            let step = name.to_str().and_then(|n| n.strip_prefix("step-"));
            steps.extend(step.and_then(|s| s.parse::<u64>().ok()));
        }
        steps.sort_unstable();
        Ok(steps)
    }

    /// The folder of a step's checkpoint.
    pub fn path(&self, step: u64) -> PathBuf {
        self.folder.join(format!("step-{step:08}"))
    }

    /// Saves a state whole or not at all; removes checkpoints that are older than the newest `keep`, but never the
    /// best one.
    pub fn save(&self, state: &State) -> Result<PathBuf, TrainError> {
        let step = state.progress.step;
        let target = self.path(step);
        std::fs::create_dir_all(&self.folder).map_err(TrainError::io(&self.folder))?;
        self.remove_parts();
        let part = self.folder.join(format!(".step-{step:08}.part"));
        std::fs::create_dir(&part).map_err(TrainError::io(&part))?;
        let written = write_state(&part, state);
        if let Err(error) = written {
            // What fails here is told by the first error.
            let _ = std::fs::remove_dir_all(&part);
            return Err(error);
        }
        if target.exists() {
            std::fs::remove_dir_all(&target).map_err(TrainError::io(&target))?;
        }
        std::fs::rename(&part, &target).map_err(TrainError::io(&target))?;
        // The new name reaches the disk with its folder; systems that cannot sync a folder lose at most the renaming.
        let _ = std::fs::File::open(&self.folder).and_then(|f| f.sync_all());
        self.remove_old(state.progress.best.map(|(_, step)| step))?;
        Ok(target)
    }

    /// The newest state. A checkpoint that cannot be read is an error, not passed over: going back is for the user
    /// to decide, by removing it.
    pub fn newest(&self) -> Result<Option<State>, TrainError> {
        match self.steps()?.last() {
            Some(&step) => read_state(&self.path(step)).map(Some),
            None => Ok(None),
        }
    }

    fn remove_parts(&self) {
        let Ok(entries) = std::fs::read_dir(&self.folder) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(".step-") && name.ends_with(".part") {
                // Left by a run that was killed; in the way at worst.
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    }

    fn remove_old(&self, best: Option<u64>) -> Result<(), TrainError> {
        let steps = self.steps()?;
        let old = steps.len().saturating_sub(self.keep);
        for &step in &steps[..old] {
            if Some(step) != best {
                let path = self.path(step);
                std::fs::remove_dir_all(&path).map_err(TrainError::io(&path))?;
            }
        }
        if let Some(best) = best.filter(|b| steps.contains(b)) {
            let path = self.folder.join(BEST);
            std::fs::write(&path, format!("step-{best:08}\n")).map_err(TrainError::io(&path))?;
        }
        Ok(())
    }
}

fn write_state(folder: &Path, state: &State) -> Result<(), TrainError> {
    write_tensors(&folder.join("weights.safetensors"), &state.weights)?;
    write_tensors(&folder.join("ema.safetensors"), &state.ema)?;
    let path = folder.join("optimizer.safetensors");
    let slots = || {
        state.moments.iter().flat_map(|(name, moments)| {
            [("first", &moments.first), ("second", &moments.second)]
                .map(|(kind, values)| (format!("{kind}/{name}"), values))
        })
    };
    let specs: Vec<TensorSpec> = slots().map(|(name, v)| spec(name, &[v.len()])).collect();
    let mut writer = Writer::create(&path, &specs, &BTreeMap::new())?;
    for (name, values) in slots() {
        writer.write(&name, &bytes(values))?;
    }
    writer.finish()?;
    let path = folder.join("state.json");
    let text = serde_json::to_string_pretty(&state.progress).map_err(|e| TrainError::State {
        path: path.clone(),
        message: e.to_string(),
    })?;
    write_synced(&path, text.as_bytes())
}

/// Writes a small file and waits until the disk has it.
pub(crate) fn write_synced(path: &Path, content: &[u8]) -> Result<(), TrainError> {
    use std::io::Write;
    let mut file = std::fs::File::create(path).map_err(TrainError::io(path))?;
    file.write_all(content)
        .and_then(|()| file.sync_all())
        .map_err(TrainError::io(path))
}

/// An f32 tensor to be written.
pub(crate) fn spec(name: String, shape: &[usize]) -> TensorSpec {
    TensorSpec {
        name,
        dtype: DType::F32,
        shape: shape.to_vec(),
    }
}

/// Values as files hold them.
pub(crate) fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn write_tensors(path: &Path, tensors: &Weights) -> Result<(), TrainError> {
    let specs: Vec<TensorSpec> = tensors
        .iter()
        .map(|(name, stored)| spec(name.clone(), &stored.shape))
        .collect();
    let mut writer = Writer::create(path, &specs, &BTreeMap::new())?;
    for (name, stored) in tensors {
        writer.write(name, &bytes(&stored.values))?;
    }
    Ok(writer.finish()?)
}

fn read_state(folder: &Path) -> Result<State, TrainError> {
    let path = folder.join("state.json");
    let text = std::fs::read_to_string(&path).map_err(TrainError::io(&path))?;
    let progress = serde_json::from_str(&text).map_err(|e| TrainError::State {
        path: path.clone(),
        message: e.to_string(),
    })?;
    let mut moments: BTreeMap<String, Moments> = BTreeMap::new();
    let path = folder.join("optimizer.safetensors");
    for (name, stored) in read_tensors(&path)? {
        let entry = |name: &str| (name.to_owned(), stored.values.len());
        if let Some(name) = name.strip_prefix("first/") {
            let (name, len) = entry(name);
            moments
                .entry(name)
                .or_insert_with(|| Moments::new(len))
                .first = stored.values;
        } else if let Some(name) = name.strip_prefix("second/") {
            let (name, len) = entry(name);
            moments
                .entry(name)
                .or_insert_with(|| Moments::new(len))
                .second = stored.values;
        }
    }
    Ok(State {
        weights: read_tensors(&folder.join("weights.safetensors"))?,
        ema: read_tensors(&folder.join("ema.safetensors"))?,
        moments,
        progress,
    })
}

/// The tensors of a file, widened to f32.
pub(crate) fn read_tensors(path: &Path) -> Result<Weights, TrainError> {
    let file = WeightFile::open(path)?;
    file.tensors()
        .iter()
        .map(|view| {
            let values = aquatint_weights::to_f32_vec(view)?;
            let shape = view.shape.clone();
            Ok((view.name.clone(), Stored { shape, values }))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(step: u64, best: Option<(f64, u64)>) -> State {
        let stored = |x: f32| Stored {
            shape: vec![1, 2],
            values: vec![x, -x],
        };
        State {
            weights: [("a.weight".to_owned(), stored(step as f32 + 0.1))].into(),
            ema: [("a.weight".to_owned(), stored(0.25))].into(),
            moments: [(
                "a.weight".to_owned(),
                Moments {
                    first: vec![1e-20, 2.0],
                    second: vec![3.0, f32::MIN_POSITIVE],
                },
            )]
            .into(),
            progress: Progress {
                step,
                samples: 7,
                seconds: 0.1 + 0.2,
                smooth_loss: Some(1.0 / 3.0),
                best,
                config: "seed = 1\n".into(),
                data: Some("7 pictures (01234567)".into()),
            },
        }
    }

    #[test]
    fn a_state_comes_back_bit_for_bit_and_old_ones_go_but_the_best() {
        let dir = tempfile::tempdir().expect("tempdir");
        let checkpoints = Checkpoints::new(dir.path(), 2);
        assert_eq!(checkpoints.newest().expect("none"), None);
        for step in [10, 20, 30, 40] {
            checkpoints
                .save(&state(step, Some((0.5, 10))))
                .expect("save");
        }
        assert_eq!(checkpoints.steps().expect("steps"), [10, 30, 40]);
        let newest = checkpoints.newest().expect("read");
        assert_eq!(newest, Some(state(40, Some((0.5, 10)))));
        // Saving a step again replaces it.
        checkpoints.save(&state(40, None)).expect("save");
        assert_eq!(checkpoints.newest().expect("read"), Some(state(40, None)));
    }

    #[test]
    fn what_a_killed_run_left_is_no_checkpoint_and_goes() {
        let dir = tempfile::tempdir().expect("tempdir");
        let checkpoints = Checkpoints::new(dir.path(), 2);
        let part = dir.path().join("checkpoints/.step-00000009.part");
        std::fs::create_dir_all(&part).expect("folder");
        std::fs::write(part.join("weights.safetensors"), b"half").expect("file");
        assert_eq!(checkpoints.newest().expect("none"), None);
        checkpoints.save(&state(10, None)).expect("save");
        assert!(!part.exists());
    }

    #[test]
    fn a_damaged_checkpoint_is_told() {
        let dir = tempfile::tempdir().expect("tempdir");
        let checkpoints = Checkpoints::new(dir.path(), 2);
        checkpoints.save(&state(10, None)).expect("save");
        std::fs::write(checkpoints.path(10).join("ema.safetensors"), b"x").expect("file");
        let error = checkpoints.newest().expect_err("damaged").to_string();
        assert!(error.contains("ema.safetensors"), "{error}");
    }
}
