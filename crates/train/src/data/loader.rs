//! Batches, decoded ahead of the step.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use aquatint_diffusion::training::Draw;

use super::picture::{self, Placement};
use super::{Buckets, CaptionOptions, Crop, Example, Folder, Order, PictureOptions, Size};
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
    /// Seed of order, crops, flips and captions.
    pub seed: u64,
    /// Examples of a batch.
    pub batch: usize,
    /// Threads that decode; at least 1.
    pub workers: usize,
    /// Crops and flips.
    pub picture: PictureOptions,
    /// Captions.
    pub captions: CaptionOptions,
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
    order: Order,
    options: LoaderOptions,
    next: AtomicU64,
    end: u64,
    /// The epochs being read; workers may be in two at once.
    epochs: Mutex<HashMap<u64, Arc<Vec<super::Place>>>>,
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
        let mut skipped = Vec::new();
        let (mut examples, mut bucket_of) = (Vec::new(), Vec::new());
        let mut indices = Vec::new();
        for (index, example) in folder.examples.iter().enumerate() {
            match picture::dimensions(&example.path) {
                Ok(size) => {
                    bucket_of.push(buckets.of(size.width, size.height));
                    examples.push(example.clone());
                    indices.push(index);
                }
                Err(reason) => skipped.push(Skipped {
                    path: example.path.clone(),
                    reason,
                }),
            }
        }
        if examples.is_empty() {
            return Err(TrainError::AllCorrupt {
                path: folder.path.clone(),
                pictures: folder.examples.len(),
                first: skipped
                    .first()
                    .map(|s| s.reason.clone())
                    .unwrap_or_default(),
            });
        }
        let order = Order::new(options.seed, options.batch, &bucket_of);
        let (batches_per_epoch, count) = (order.batches_per_epoch(), examples.len());
        let plan = Arc::new(Plan {
            examples,
            sizes: buckets.sizes().to_vec(),
            order,
            options,
            next: AtomicU64::new(from),
            end,
            epochs: Mutex::default(),
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

fn check(options: &LoaderOptions) -> Result<(), TrainError> {
    if !(1..=65_536).contains(&options.batch) {
        return Err(TrainError::setting(
            "batch_size",
            options.batch,
            "1 to 65536",
        ));
    }
    if !(1..=256).contains(&options.workers) {
        return Err(TrainError::setting(
            "data.workers",
            options.workers,
            "1 to 256",
        ));
    }
    if !(0.0..=1.0).contains(&options.picture.flip) {
        return Err(TrainError::setting(
            "data.flip",
            options.picture.flip,
            "0 to 1",
        ));
    }
    options.captions.check()
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
        let per_epoch = self.order.batches_per_epoch() as u64;
        let epoch = number / per_epoch;
        let place = &self.epoch(epoch)[(number % per_epoch) as usize];
        let size = self.sizes[place.bucket];
        let (mut samples, mut skipped) = (Vec::new(), Vec::new());
        for (slot, &example) in place.examples.iter().enumerate() {
            match self.sample(number, slot, example, size) {
                Ok(sample) => samples.push(Sample {
                    index: indices[example],
                    ..sample
                }),
                Err(reason) => skipped.push(Skipped {
                    path: self.examples[example].path.clone(),
                    reason,
                }),
            }
        }
        Batch {
            number,
            epoch,
            size,
            samples,
            skipped,
        }
    }

    fn sample(&self, number: u64, slot: usize, index: usize, size: Size) -> Result<Sample, String> {
        let draw = Draw::new(self.options.seed, number);
        // Each example of a batch has numbers of its own.
        let mut at = slot << 16;
        let mut uniform = || {
            at += 1;
            draw.choice(at - 1)
        };
        let example = &self.examples[index];
        let (mirror, across, down) = (uniform() < self.options.picture.flip, uniform(), uniform());
        let (across, down) = match self.options.picture.crop {
            Crop::Center => (0.5, 0.5),
            Crop::Random => (across, down),
        };
        let place = Placement {
            size,
            across,
            down,
            mirror,
        };
        Ok(Sample {
            index,
            pixels: picture::load(&example.path, place)?,
            caption: self.options.captions.choose(&example.captions, uniform),
            class: example.class,
            mirrored: mirror,
        })
    }

    fn epoch(&self, epoch: u64) -> Arc<Vec<super::Place>> {
        let mut epochs = self.epochs.lock().unwrap_or_else(|e| e.into_inner());
        epochs.retain(|&e, _| e + 1 >= epoch);
        epochs
            .entry(epoch)
            .or_insert_with(|| Arc::new(self.order.epoch(epoch)))
            .clone()
    }
}
