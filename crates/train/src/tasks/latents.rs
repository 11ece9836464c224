//! The examples of a latent model: encoded once, kept in the run's folder.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;

use aquatint_models::vae::{AutoencoderKl, VaeConfig};
use aquatint_ops::{Device, ParamSource};
use serde_json::{Map, Value};

use crate::TrainError;
use crate::config::DiffusionConfig;
use crate::data::{Buckets, Example, Folder, Readable, Selection, SelectionOptions, Size};
use crate::latents::{self, LatentStore};
use crate::parts::Part;
use crate::run::{Event, Observer, RunOptions, stop};
use crate::supply::Supply;

/// What latents are made with.
pub(crate) struct Encoding<'a> {
    pub part: &'a Part<VaeConfig>,
    pub vae: &'a AutoencoderKl,
    /// What a network halves its input to, in all.
    pub halvings: usize,
    pub device: &'a Device,
}

/// The training and the held-out examples of a folder, as latents.
pub(super) fn supplies(
    config: &DiffusionConfig,
    options: &RunOptions,
    folder: Folder,
    encoding: &Encoding<'_>,
    observer: &mut Observer<'_>,
) -> Result<(Supply, Option<Supply>), TrainError> {
    let buckets = config.buckets(encoding.vae.config().factor() * encoding.halvings)?;
    let (train, held) = folder.hold_out(config.data.holdout);
    let fingerprint = fingerprint(&encoding.part.source, &encoding.part.json);
    let mut open = |folder: &Folder, name: &str, options_of: &DiffusionConfig| {
        let cache = Cache {
            path: options.out.join("cache").join(name),
            encoding,
            fingerprint,
        };
        cache.open(folder, &buckets, options_of, observer)
    };
    let supply = open(&train, "latents.safetensors", config)?;
    if held.examples.is_empty() {
        return Ok((supply, None));
    }
    let held = open(&held, "held_out.safetensors", &plain(config))?;
    Ok((supply, Some(held)))
}

/// Held-out examples are seen as they are.
pub(super) fn plain(config: &DiffusionConfig) -> DiffusionConfig {
    let mut plain = config.clone();
    plain.data.flip = 0.0;
    plain.data.crop = crate::data::Crop::Center;
    plain.data.captions = crate::data::CaptionOptions {
        dropout: 0.0,
        ..crate::data::CaptionOptions::default()
    };
    plain
}

/// Which examples a batch shows.
pub(super) fn selection(config: &DiffusionConfig) -> SelectionOptions {
    SelectionOptions {
        seed: config.seed,
        batch: config.batch_size,
        picture: config.picture_options(),
        captions: config.data.captions,
    }
}

/// Tells the weights of an autoencoder from others: its configuration and one of its tensors.
fn fingerprint(source: &dyn ParamSource, json: &Map<String, Value>) -> u64 {
    let mut hasher = DefaultHasher::new();
    Value::Object(json.clone()).to_string().hash(&mut hasher);
    if let Some(shape) = json
        .get("block_out_channels")
        .and_then(|c| c.get(0))
        .and_then(Value::as_u64)
        && let Ok(raw) = source.tensor("encoder.conv_in.weight", &[shape as usize, 3, 3, 3])
    {
        raw.bytes.hash(&mut hasher);
    }
    hasher.finish()
}

struct Cache<'a> {
    path: PathBuf,
    encoding: &'a Encoding<'a>,
    fingerprint: u64,
}

impl Cache<'_> {
    fn open(
        &self,
        folder: &Folder,
        buckets: &Buckets,
        config: &DiffusionConfig,
        observer: &mut Observer<'_>,
    ) -> Result<Supply, TrainError> {
        let Readable {
            examples,
            bucket_of,
            skipped,
            ..
        } = Readable::of(folder, buckets)?;
        for skipped in &skipped {
            stop(observer(&Event::Skipped(skipped)))?;
        }
        let sizes: Vec<Size> = bucket_of.iter().map(|&b| buckets.sizes()[b]).collect();
        let request = latents::Request {
            examples: &examples,
            sizes,
            mirrored: config.data.flip > 0.0,
            vae: self.encoding.vae,
            fingerprint: self.fingerprint,
            device: self.encoding.device,
        };
        let mut told = |progress: latents::Progress<'_>| {
            let event = match progress {
                latents::Progress::Done(done, total) => Event::Preparing {
                    what: "latents",
                    done,
                    total,
                },
                latents::Progress::Skipped(skipped) => Event::Skipped(skipped),
            };
            stop(observer(&event))
        };
        let (store, places) = LatentStore::open(&self.path, &request, &mut told)?;
        if places.is_empty() {
            return Err(TrainError::AllCorrupt {
                path: folder.path.clone(),
                pictures: folder.examples.len(),
                first: "it cannot be decoded".into(),
            });
        }
        let bucket_of: Vec<usize> = places.iter().map(|&p| bucket_of[p]).collect();
        let examples: Vec<Example> = places.iter().map(|&p| examples[p].clone()).collect();
        Ok(Supply::Latents {
            store: Box::new(store),
            selection: Box::new(Selection::new(selection(config), &bucket_of)),
            examples,
            places,
            seed: config.seed,
            noisy: true,
        })
    }
}
