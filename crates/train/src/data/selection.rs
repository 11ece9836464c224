//! What a batch consists of, before anything is decoded.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use aquatint_diffusion::training::Draw;

use super::{CaptionOptions, Crop, Example, Order, PictureOptions, Place};

/// One example of a batch: which, and how it is shown this time.
#[derive(Debug, Clone, PartialEq)]
pub struct Pick {
    /// Index into the examples.
    pub example: usize,
    /// Empty for an example that is trained without one.
    pub caption: String,
    /// The class, if the data has classes; none for an example that is trained without one.
    pub class: Option<usize>,
    /// Which part is kept, from 0 (left) to 1 (right).
    pub across: f64,
    /// Which part is kept, from 0 (top) to 1 (bottom).
    pub down: f64,
    /// Mirrored left to right.
    pub mirror: bool,
}

/// The examples of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Picks {
    /// Times that all examples were seen before.
    pub epoch: u64,
    /// Index of the bucket.
    pub bucket: usize,
    /// At most as many as the batch size; fewer at the end of an epoch.
    pub picks: Vec<Pick>,
}

/// How [`Selection`] chooses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SelectionOptions {
    /// Seed of order, crops, flips and captions.
    pub seed: u64,
    /// Examples of a batch.
    pub batch: usize,
    /// Crops and flips.
    pub picture: PictureOptions,
    /// Captions.
    pub captions: CaptionOptions,
}

/// Chooses the examples of each batch, as a function of the seed and the batch's number.
#[derive(Debug)]
pub struct Selection {
    order: Order,
    options: SelectionOptions,
    /// The epochs in use; threads may be in two at once.
    epochs: Mutex<HashMap<u64, Arc<Vec<Place>>>>,
}

impl Selection {
    /// `bucket_of[i]` is the bucket of example `i`.
    pub fn new(options: SelectionOptions, bucket_of: &[usize]) -> Self {
        Self {
            order: Order::new(options.seed, options.batch.max(1), bucket_of),
            options,
            epochs: Mutex::default(),
        }
    }

    /// Batches that show every example once.
    pub fn batches_per_epoch(&self) -> usize {
        self.order.batches_per_epoch()
    }

    /// The examples of batch `number`.
    pub fn picks(&self, number: u64, examples: &[Example]) -> Picks {
        let per_epoch = (self.order.batches_per_epoch() as u64).max(1);
        let epoch = self.epoch(number / per_epoch);
        let place = &epoch[(number % per_epoch) as usize];
        let draw = Draw::new(self.options.seed, number);
        let picks = place.examples.iter().enumerate();
        Picks {
            epoch: place.epoch,
            bucket: place.bucket,
            picks: picks
                .map(|(slot, &example)| self.pick(&draw, slot, example, &examples[example]))
                .collect(),
        }
    }

    fn pick(&self, draw: &Draw, slot: usize, index: usize, example: &Example) -> Pick {
        // Each example of a batch has numbers of its own.
        let mut at = slot << 16;
        let mut uniform = || {
            at += 1;
            draw.choice(at - 1)
        };
        let mirror = uniform() < self.options.picture.flip;
        let (across, down) = (uniform(), uniform());
        let (across, down) = match self.options.picture.crop {
            Crop::Center => (0.5, 0.5),
            Crop::Random => (across, down),
        };
        let without = uniform() < self.options.captions.dropout;
        Pick {
            example: index,
            caption: match without {
                true => String::new(),
                false => self.options.captions.choose(&example.captions, uniform),
            },
            class: example.class.filter(|_| !without),
            across,
            down,
            mirror,
        }
    }

    fn epoch(&self, epoch: u64) -> Arc<Vec<Place>> {
        let mut epochs = self.epochs.lock().unwrap_or_else(|e| e.into_inner());
        epochs.retain(|&e, _| e + 1 >= epoch);
        epochs
            .entry(epoch)
            .or_insert_with(|| Arc::new(self.order.epoch(epoch)))
            .clone()
    }
}
