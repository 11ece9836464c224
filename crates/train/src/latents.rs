//! Latents of all pictures, computed once and kept on the disk.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use aquatint_diffusion::training::Draw;
use aquatint_models::vae::AutoencoderKl;
use aquatint_ops::{Device, Tensor};
use aquatint_weights::{TensorSpec, WeightFile, Writer};
use burn::tensor::TensorData;

use crate::TrainError;
use crate::data::picture::{self, Placement};
use crate::data::{Example, Size, Skipped};
use crate::run::state::{bytes, spec};

/// Distributions of latents, one an example (and one of its mirror image): `[2, height, width, channels]`, mean and
/// standard deviation, scaled as the diffusion model takes them. The file is mapped, not read.
#[derive(Debug)]
pub(crate) struct LatentStore {
    file: WeightFile,
}

/// Shape and values of a distribution.
type Moments = ([usize; 4], Vec<f32>);

/// One latent.
pub(crate) struct Latent {
    pub shape: [usize; 3],
    pub values: Vec<f32>,
}

/// What latents are computed from.
pub(crate) struct Request<'a> {
    pub examples: &'a [Example],
    /// Size of each example's picture.
    pub sizes: Vec<Size>,
    /// Mirror images too.
    pub mirrored: bool,
    pub vae: &'a AutoencoderKl,
    /// What tells the autoencoder's weights from others.
    pub fingerprint: u64,
    pub device: &'a Device,
}

fn name(example: usize, mirrored: bool) -> String {
    format!("{example}{}", if mirrored { "/mirrored" } else { "" })
}

impl LatentStore {
    /// The store at `path`; computed when it is not there or was made from other pictures or weights.
    ///
    /// Pictures that cannot be decoded are given to `told` and are not in the store: the second result lists which
    /// examples are.
    pub fn open(
        path: &Path,
        request: &Request<'_>,
        told: &mut dyn FnMut(Progress<'_>) -> Result<(), TrainError>,
    ) -> Result<(Self, Vec<usize>), TrainError> {
        let key = request.key();
        if let Ok(file) = WeightFile::open(path)
            && file.metadata().get("key") == Some(&key)
        {
            let there =
                (0..request.examples.len()).filter(|&i| file.get(&name(i, false)).is_some());
            let there = there.collect();
            return Ok((Self { file }, there));
        }
        let there = request.compute(path, &key, told)?;
        let file = WeightFile::open(path)?;
        Ok((Self { file }, there))
    }

    /// A draw from an example's distribution, with the noise of a batch's slot; its mean without.
    pub fn sample(
        &self,
        example: usize,
        mirrored: bool,
        noise: Option<(&Draw, usize)>,
    ) -> Result<Latent, TrainError> {
        let view = self.view(&name(example, mirrored))?;
        let &[2, height, width, channels] = view.shape.as_slice() else {
            return Err(TrainError::Internal("a latent of another shape"));
        };
        let moments = aquatint_weights::to_f32_vec(view)?;
        let (mean, deviation) = moments.split_at(height * width * channels);
        let mut values = vec![0.0; mean.len()];
        if let Some((draw, slot)) = noise {
            draw.normal(slot, &mut values);
        }
        for ((value, mean), deviation) in values.iter_mut().zip(mean).zip(deviation) {
            *value = mean + deviation * *value;
        }
        Ok(Latent {
            shape: [height, width, channels],
            values,
        })
    }

    fn view(&self, name: &str) -> Result<&aquatint_weights::TensorView, TrainError> {
        let missing = TrainError::Internal("a latent that was not computed");
        self.file.get(name).ok_or(missing)
    }
}

/// How far the computation is.
pub(crate) enum Progress<'a> {
    Done(usize, usize),
    Skipped(&'a Skipped),
}

/// Pictures that the autoencoder sees at once.
const BATCH: usize = 8;

impl Request<'_> {
    /// Changes when pictures, sizes or weights do.
    fn key(&self) -> String {
        let mut hasher = DefaultHasher::new();
        for (example, size) in self.examples.iter().zip(&self.sizes) {
            example.path.hash(&mut hasher);
            size.hash(&mut hasher);
            if let Ok(data) = std::fs::metadata(&example.path) {
                (data.len(), data.modified().ok()).hash(&mut hasher);
            }
        }
        (self.mirrored, self.fingerprint).hash(&mut hasher);
        format!("v1 {:016x}", hasher.finish())
    }

    fn compute(
        &self,
        path: &Path,
        key: &str,
        told: &mut dyn FnMut(Progress<'_>) -> Result<(), TrainError>,
    ) -> Result<Vec<usize>, TrainError> {
        let variants: &[bool] = if self.mirrored {
            &[false, true]
        } else {
            &[false]
        };
        let mut latents: BTreeMap<String, Moments> = BTreeMap::new();
        let mut there = Vec::new();
        let order: Vec<usize> = (0..self.examples.len()).collect();
        // Pictures of one size go together.
        for run in order.chunk_by(|&a, &b| self.sizes[a] == self.sizes[b]) {
            for part in run.chunks(BATCH) {
                let mut good = Vec::new();
                for &mirror in variants {
                    let mut pixels = Vec::new();
                    good.clear();
                    for &i in part {
                        match self.load(i, mirror) {
                            Ok(values) => {
                                pixels.extend(values);
                                good.push(i);
                            }
                            Err(skipped) if !mirror => told(Progress::Skipped(&skipped))?,
                            Err(_) => {}
                        }
                    }
                    if good.is_empty() {
                        continue;
                    }
                    let found = self.encode(pixels, good.len(), self.sizes[part[0]])?;
                    for (&i, latent) in good.iter().zip(found) {
                        latents.insert(name(i, mirror), latent);
                    }
                }
                there.extend_from_slice(&good);
                let last = part.last().map_or(0, |l| l + 1);
                told(Progress::Done(last, self.examples.len()))?;
            }
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(TrainError::io(folder))?;
        }
        write(path, key, &latents)?;
        Ok(there)
    }

    fn load(&self, example: usize, mirror: bool) -> Result<Vec<f32>, Skipped> {
        let place = Placement {
            size: self.sizes[example],
            across: 0.5,
            down: 0.5,
            mirror,
        };
        let path = &self.examples[example].path;
        picture::load(path, place).map_err(|reason| Skipped {
            path: path.clone(),
            reason,
        })
    }

    fn encode(
        &self,
        pixels: Vec<f32>,
        count: usize,
        size: Size,
    ) -> Result<Vec<Moments>, TrainError> {
        let shape = [count, size.height, size.width, 3];
        let pixels = Tensor::<4>::from_data(TensorData::new(pixels, shape), self.device);
        let posterior = self.vae.encode(pixels)?;
        let config = self.vae.config();
        let deviation = (posterior.log_variance * 0.5).exp();
        let mean = config.scale(posterior.mean.clone());
        // Scaling is affine: the deviation scales as a difference does.
        let deviation = config.scale(posterior.mean + deviation) - mean.clone();
        let [_, h, w, c] = mean.dims();
        let values = |t: Tensor<4>| t.into_data().try_into_vec::<f32>().unwrap_or_default();
        let (mean, deviation) = (values(mean), values(deviation));
        let len = h * w * c;
        Ok(mean
            .chunks_exact(len)
            .zip(deviation.chunks_exact(len))
            .map(|(m, d)| ([2, h, w, c], [m, d].concat()))
            .collect())
    }
}

fn write(path: &Path, key: &str, latents: &BTreeMap<String, Moments>) -> Result<(), TrainError> {
    let specs: Vec<TensorSpec> = latents
        .iter()
        .map(|(name, (shape, _))| spec(name.clone(), shape))
        .collect();
    let metadata = [("key".to_owned(), key.to_owned())].into();
    let mut writer = Writer::create(path, &specs, &metadata)?;
    for (name, (_, values)) in latents {
        writer.write(name, &bytes(values))?;
    }
    Ok(writer.finish()?)
}
