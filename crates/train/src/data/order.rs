//! Which examples a step sees.

use aquatint_diffusion::training::Draw;

/// The order of a run: each epoch visits every example once, shuffled by the seed and the epoch, in batches of
/// one bucket each. A step's examples are a function of its number, so a run can go on anywhere.
#[derive(Debug, Clone)]
pub struct Order {
    seed: u64,
    batch: usize,
    /// Example indices by bucket.
    buckets: Vec<Vec<usize>>,
    /// Batches of an epoch: bucket and size.
    per_epoch: usize,
}

/// Where a batch lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Times that all examples were seen before this batch.
    pub epoch: u64,
    /// Index of the bucket.
    pub bucket: usize,
    /// Indices of its examples; the last batch of a bucket in an epoch may be smaller.
    pub examples: Vec<usize>,
}

/// Streams of random numbers that no step uses: steps count from 0.
const EPOCHS: u64 = 1 << 63;

impl Order {
    /// `buckets[i]` is the bucket of example `i`; batches hold up to `batch` examples.
    ///
    /// # Panics
    /// When `batch` is 0: it is checked with the configuration.
    pub fn new(seed: u64, batch: usize, bucket_of: &[usize]) -> Self {
        assert!(batch > 0, "a batch has at least one example");
        let count = bucket_of.iter().max().map_or(0, |b| b + 1);
        let mut buckets = vec![Vec::new(); count];
        for (example, &bucket) in bucket_of.iter().enumerate() {
            buckets[bucket].push(example);
        }
        let per_epoch = buckets
            .iter()
            .map(|b: &Vec<usize>| b.len().div_ceil(batch))
            .sum();
        Self {
            seed,
            batch,
            buckets,
            per_epoch,
        }
    }

    /// Batches that show every example once; 0 when there are none.
    pub fn batches_per_epoch(&self) -> usize {
        self.per_epoch
    }

    /// The batches of an epoch.
    pub fn epoch(&self, epoch: u64) -> Vec<Place> {
        let draw = Draw::new(self.seed, EPOCHS | epoch);
        let mut index = 0;
        let mut uniform = || {
            index += 1;
            draw.choice(index - 1)
        };
        let mut places = Vec::with_capacity(self.per_epoch);
        for (bucket, examples) in self.buckets.iter().enumerate() {
            let mut examples = examples.clone();
            shuffle(&mut examples, &mut uniform);
            places.extend(examples.chunks(self.batch).map(|examples| Place {
                epoch,
                bucket,
                examples: examples.to_vec(),
            }));
        }
        // One bucket after the other would train shape by shape.
        shuffle(&mut places, &mut uniform);
        places
    }
}

/// Fisher and Yates.
fn shuffle<T>(items: &mut [T], uniform: &mut impl FnMut() -> f64) {
    for i in (1..items.len()).rev() {
        items.swap(i, (uniform() * (i + 1) as f64) as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_shows_everything_once_and_never_mixes_buckets() {
        let bucket_of: Vec<usize> = (0..37).map(|i| i % 3).collect();
        let order = Order::new(5, 4, &bucket_of);
        let mut orders = Vec::new();
        for epoch in 0..3 {
            let places = order.epoch(epoch);
            assert_eq!(places.len(), order.batches_per_epoch());
            for place in &places {
                assert!(place.examples.iter().all(|&e| bucket_of[e] == place.bucket));
                assert!((1..=4).contains(&place.examples.len()));
            }
            let flat: Vec<usize> = places.into_iter().flat_map(|p| p.examples).collect();
            let mut sorted = flat.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..37).collect::<Vec<_>>());
            orders.push(flat);
        }
        assert_ne!(orders[0], orders[1]);
        assert_eq!(order.epoch(1), Order::new(5, 4, &bucket_of).epoch(1));
        assert_ne!(order.epoch(1), Order::new(6, 4, &bucket_of).epoch(1));
        assert_eq!(Order::new(1, 2, &[]).batches_per_epoch(), 0);
    }
}
