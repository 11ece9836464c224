//! Batches, decoded ahead of the step.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use super::picture::{self, Placement};
use super::{Buckets, Example, Folder, Selection, SelectionOptions, Size};
use crate::TrainError;

/// One decoded example.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Index into [`Folder::examples`].
    pub index: usize,
    /// `[height, width, 3]` from -1 to 1.
    pub pixels: Vec<f32>,
    /// Empty for an example that is trained without one.
    pub caption: String,
    /// The class, if the data has classes.
    pub class: Option<usize>,
    /// The example was mirrored.
    pub mirrored: bool,
}

/// The examples of one step.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// The batch's number, from 0.
    pub number: u64,
    /// Times that all examples were seen before.
    pub epoch: u64,
    /// Size of the pictures.
    pub size: Size,
    /// At most as many as the batch size: fewer at the end of an epoch, or where pictures are corrupt.
    pub samples: Vec<Sample>,
    /// Pictures of this batch that could not be decoded.
    pub skipped: Vec<Skipped>,
}

/// A picture that could not be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub reason: String,
}

/// How a [`Loader`] works.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoaderOptions {
    /// What a batch consists of.
    pub selection: SelectionOptions,
    /// Threads that decode; at least 1.
    pub workers: usize,
}

/// Batches of a folder in order, decoded by worker threads a few steps ahead.
#[derive(Debug)]
pub struct Loader {
    next: u64,
    results: Receiver<Batch>,
    /// Batches that came before their turn.
    early: BTreeMap<u64, Batch>,
    skipped_at_start: Vec<Skipped>,
    batches_per_epoch: usize,
    examples: usize,
    workers: Vec<JoinHandle<()>>,
}

/// What the workers share.
struct Plan {
    examples: Vec<Example>,
    sizes: Vec<Size>,
    selection: Selection,
    next: AtomicU64,
    end: u64,
}

impl Loader {
    /// Begins to read at batch `from` (0 for a new run) and ends before batch `end`.
    ///
    /// The header of every picture is read first, for its bucket; those that cannot be read are left out and
    /// listed by [`skipped_at_start`](Self::skipped_at_start).
    ///
    /// # Errors
    /// Options outside of their ranges; no picture that can be read.
    pub fn new(
        folder: &Folder,
        buckets: &Buckets,
        options: LoaderOptions,
        from: u64,
        end: u64,
    ) -> Result<Self, TrainError> {
        check(&options)?;
        let Readable {
            examples,
            indices,
            bucket_of,
            skipped,
        } = Readable::of(folder, buckets)?;
        let selection = Selection::new(options.selection, &bucket_of);
        let (batches_per_epoch, count) = (selection.batches_per_epoch(), examples.len());
        let plan = Arc::new(Plan {
            examples,
            sizes: buckets.sizes().to_vec(),
            selection,
            next: AtomicU64::new(from),
            end,
        });
        let indices = Arc::new(indices);
        let (sender, results) = sync_channel(options.workers);
        let workers = (0..options.workers)
            .map(|_| {
                let (plan, indices, sender) = (plan.clone(), indices.clone(), sender.clone());
                std::thread::spawn(move || work(&plan, &indices, &sender))
            })
            .collect();
        Ok(Self {
            next: from,
            results,
            early: BTreeMap::new(),
            skipped_at_start: skipped,
            batches_per_epoch,
            examples: count,
            workers,
        })
    }

    /// Pictures whose headers could not be read.
    pub fn skipped_at_start(&self) -> &[Skipped] {
        &self.skipped_at_start
    }

    /// Batches that show every example once.
    pub fn batches_per_epoch(&self) -> usize {
        self.batches_per_epoch
    }

    /// Pictures that are used.
    pub fn examples(&self) -> usize {
        self.examples
    }
}

impl Iterator for Loader {
    type Item = Batch;

    /// The next batch, in order whatever the workers do.
    fn next(&mut self) -> Option<Batch> {
        loop {
            if let Some(batch) = self.early.remove(&self.next) {
                self.next += 1;
                return Some(batch);
            }
            let batch = self.results.recv().ok()?;
            self.early.insert(batch.number, batch);
        }
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        // Without a receiver a worker's next send fails, and it ends.
        let (_, closed) = sync_channel(0);
        drop(std::mem::replace(&mut self.results, closed));
        for worker in self.workers.drain(..) {
            // A worker has nothing to report; a panic in it was reported when it happened.
            let _ = worker.join();
        }
    }
}

/// The pictures of a folder whose headers can be read.
#[derive(Debug)]
pub struct Readable {
    /// Those pictures.
    pub examples: Vec<Example>,
    /// Index of each into [`Folder::examples`].
    pub indices: Vec<usize>,
    /// Bucket of each.
    pub bucket_of: Vec<usize>,
    /// The others.
    pub skipped: Vec<Skipped>,
}

impl Readable {
    /// Reads the header of every picture.
    ///
    /// # Errors
    /// [`TrainError::AllCorrupt`] when none can be read.
    pub fn of(folder: &Folder, buckets: &Buckets) -> Result<Self, TrainError> {
        let mut readable = Self {
            examples: Vec::new(),
            indices: Vec::new(),
            bucket_of: Vec::new(),
            skipped: Vec::new(),
        };
        for (index, example) in folder.examples.iter().enumerate() {
            match picture::dimensions(&example.path) {
                Ok(size) => {
                    readable.bucket_of.push(buckets.of(size.width, size.height));
                    readable.examples.push(example.clone());
                    readable.indices.push(index);
                }
                Err(reason) => readable.skipped.push(Skipped {
                    path: example.path.clone(),
                    reason,
                }),
            }
        }
        if readable.examples.is_empty() {
            let first = readable.skipped.first();
            return Err(TrainError::AllCorrupt {
                path: folder.path.clone(),
                pictures: folder.examples.len(),
                first: first.map(|s| s.reason.clone()).unwrap_or_default(),
            });
        }
        Ok(readable)
    }
}

fn check(options: &LoaderOptions) -> Result<(), TrainError> {
    let SelectionOptions {
        batch,
        picture,
        captions,
        ..
    } = &options.selection;
    if !(1..=65_536).contains(batch) {
        return Err(TrainError::setting("batch_size", batch, "1 to 65536"));
    }
    if !(1..=256).contains(&options.workers) {
        return Err(TrainError::setting(
            "data.workers",
            options.workers,
            "1 to 256",
        ));
    }
    if !(0.0..=1.0).contains(&picture.flip) {
        return Err(TrainError::setting("data.flip", picture.flip, "0 to 1"));
    }
    captions.check()
}

fn work(plan: &Plan, indices: &[usize], results: &SyncSender<Batch>) {
    loop {
        let number = plan.next.fetch_add(1, Ordering::Relaxed);
        if number >= plan.end || results.send(plan.batch(number, indices)).is_err() {
            return;
        }
    }
}

impl Plan {
    fn batch(&self, number: u64, indices: &[usize]) -> Batch {
        let picks = self.selection.picks(number, &self.examples);
        let size = self.sizes[picks.bucket];
        let (mut samples, mut skipped) = (Vec::new(), Vec::new());
        for pick in picks.picks {
            let path = &self.examples[pick.example].path;
            let place = Placement {
                size,
                across: pick.across,
                down: pick.down,
                mirror: pick.mirror,
            };
            match picture::load(path, place) {
                Ok(pixels) => samples.push(Sample {
                    index: indices[pick.example],
                    pixels,
                    caption: pick.caption,
                    class: pick.class,
                    mirrored: pick.mirror,
                }),
                Err(reason) => skipped.push(Skipped {
                    path: path.clone(),
                    reason,
                }),
            }
        }
        Batch {
            number,
            epoch: picks.epoch,
            size,
            samples,
            skipped,
        }
    }
}
