//! Clean examples for a step: points, pictures, or latents that were computed before.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;

use aquatint_diffusion::training::Draw;

use crate::TrainError;
use crate::config::Points;
use crate::data::{Example, Loader, Selection, Skipped};
use crate::latents::LatentStore;

/// The examples of one batch.
#[derive(Debug, Default)]
pub(crate) struct Examples {
    /// Height, width and channels.
    pub shape: [usize; 3],
    /// One an example, `[height, width, channels]`.
    pub clean: Vec<Vec<f32>>,
    pub captions: Vec<String>,
    pub classes: Vec<Option<usize>>,
    pub files: Vec<PathBuf>,
    pub skipped: Vec<Skipped>,
}

/// Where clean examples come from, batch by batch.
pub(crate) enum Supply {
    Points {
        kind: Points,
        seed: u64,
        batch: usize,
    },
    Pictures {
        loader: Box<Loader>,
        examples: Vec<Example>,
        /// 1 for grey, 3 for colours.
        channels: usize,
    },
    Latents {
        store: Box<LatentStore>,
        selection: Box<Selection>,
        examples: Vec<Example>,
        /// Where each of them is in the store.
        places: Vec<usize>,
        seed: u64,
        /// Draws of the latents' distributions, not their means.
        noisy: bool,
    },
}

/// Points of an epoch, for the figures that are told; there is no end to them.
const POINTS: usize = 10_000;

impl Supply {
    /// With the means of the latents.
    pub fn without_noise(mut self) -> Self {
        if let Self::Latents { noisy, .. } = &mut self {
            *noisy = false;
        }
        self
    }

    /// Pictures that were left out before the first batch.
    pub fn skipped_at_start(&self) -> &[Skipped] {
        match self {
            Self::Pictures { loader, .. } => loader.skipped_at_start(),
            Self::Points { .. } | Self::Latents { .. } => &[],
        }
    }

    /// Batches that show every example once.
    pub fn batches_per_epoch(&self) -> usize {
        match self {
            Self::Points { batch, .. } => POINTS.div_ceil(*batch),
            Self::Pictures { loader, .. } => loader.batches_per_epoch(),
            Self::Latents { selection, .. } => selection.batches_per_epoch(),
        }
    }

    /// How many examples there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Points { .. } => POINTS,
            Self::Pictures { loader, .. } => loader.examples(),
            Self::Latents { examples, .. } => examples.len(),
        }
    }

    /// Tells one list of examples from another: how many, and a digest of their names, file lengths, captions and
    /// classes. What is in the pictures is not read.
    pub fn fingerprint(&self) -> String {
        let examples = match self {
            Self::Points { .. } => return "points".into(),
            Self::Pictures { examples, .. } | Self::Latents { examples, .. } => examples,
        };
        let mut hasher = DefaultHasher::new();
        for example in examples {
            // The folder itself may have moved.
            example.path.file_name().hash(&mut hasher);
            std::fs::metadata(&example.path)
                .map_or(0, |m| m.len())
                .hash(&mut hasher);
            (&example.captions, example.class).hash(&mut hasher);
        }
        let digest = hasher.finish() >> 32;
        format!("{} pictures ({digest:08x})", examples.len())
    }

    /// The batch `number`. Pictures are decoded ahead, so numbers must follow each other there.
    pub fn batch(&mut self, number: u64) -> Result<Examples, TrainError> {
        match self {
            Self::Points { kind, seed, batch } => Ok(Examples {
                shape: [1, 1, 2],
                clean: points(*kind, *seed, number, *batch)
                    .into_iter()
                    .map(|p| p.to_vec())
                    .collect(),
                captions: vec![String::new(); *batch],
                classes: vec![None; *batch],
                ..Examples::default()
            }),
            Self::Pictures {
                loader,
                examples,
                channels,
            } => pictures(loader, examples, *channels, number),
            Self::Latents {
                store,
                selection,
                examples,
                places,
                seed,
                noisy,
            } => {
                let picks = selection.picks(number, examples);
                let draw = Draw::new(*seed ^ LATENT_NOISE, number);
                let mut found = Examples::default();
                for (slot, pick) in picks.picks.into_iter().enumerate() {
                    let noise = noisy.then_some((&draw, slot));
                    let latent = store.sample(places[pick.example], pick.mirror, noise)?;
                    found.shape = latent.shape;
                    found.clean.push(latent.values);
                    found.captions.push(pick.caption);
                    found.classes.push(pick.class);
                    found.files.push(examples[pick.example].path.clone());
                }
                Ok(found)
            }
        }
    }
}

/// Sets the latents' own noise apart from the noise that is learned.
const LATENT_NOISE: u64 = 0x6c61_7465_6e74_7321;

fn pictures(
    loader: &mut Loader,
    examples: &[Example],
    channels: usize,
    number: u64,
) -> Result<Examples, TrainError> {
    let Some(batch) = loader.next() else {
        return Err(TrainError::Internal("the pictures ended before the run"));
    };
    if batch.number != number {
        return Err(TrainError::Internal("the pictures came out of order"));
    }
    let mut found = Examples {
        shape: [batch.size.height, batch.size.width, channels],
        skipped: batch.skipped,
        ..Examples::default()
    };
    for sample in batch.samples {
        found.clean.push(match channels {
            1 => grey(&sample.pixels),
            _ => sample.pixels,
        });
        found.captions.push(sample.caption);
        found.classes.push(sample.class);
        found.files.push(examples[sample.index].path.clone());
    }
    Ok(found)
}

/// Luminance of Rec. 601, as PIL's conversion to `L`.
pub(crate) fn grey(rgb: &[f32]) -> Vec<f32> {
    rgb.chunks_exact(3)
        .map(|p| 0.299 * p[0] + 0.587 * p[1] + 0.114 * p[2])
        .collect()
}

/// Points of a batch, of about unit variance.
pub(crate) fn points(kind: Points, seed: u64, number: u64, count: usize) -> Vec<[f32; 2]> {
    let draw = Draw::new(seed, number);
    let Points::SwissRoll = kind;
    (0..count)
        .map(|i| {
            // scikit-learn's make_swiss_roll, without its third axis; 6.9 is the coordinates' deviation.
            let t = 1.5 * std::f64::consts::PI * (1.0 + 2.0 * draw.choice(i));
            [(t * t.cos() / 6.9) as f32, (t * t.sin() / 6.9) as f32]
        })
        .collect()
}
