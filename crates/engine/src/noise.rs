//! Noise of a batch: one generator an image, so that a picture does not depend on its neighbours.

use aquatint_diffusion::NoiseSource;
use aquatint_diffusion::rng::{Generator, RNGS};

use crate::EngineError;

/// One generator an image, as a list of generators in diffusers.
#[derive(Debug)]
pub(crate) struct BatchNoise {
    generators: Vec<Generator>,
}

impl BatchNoise {
    pub(crate) fn new(name: &str, seeds: &[u64]) -> Result<Self, EngineError> {
        let generators = seeds
            .iter()
            .map(|&seed| Generator::from_name(name, seed))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| {
                let names: Vec<&str> = RNGS.iter().map(|r| r.name).collect();
                EngineError::Usage {
                    message: format!(
                        "found the generator {name:?}, expected {}",
                        names.join(" or ")
                    ),
                    hint: "torch-cpu gives diffusers' pictures".into(),
                }
            })?;
        Ok(BatchNoise { generators })
    }

    /// The noise that a run starts from.
    pub(crate) fn initial(&mut self, len: usize) -> Vec<f32> {
        let mut out = vec![0.0; len];
        self.normal(&mut out);
        out
    }
}

impl NoiseSource for BatchNoise {
    fn normal(&mut self, out: &mut [f32]) {
        let each = out.len() / self.generators.len().max(1);
        if each == 0 {
            return;
        }
        for (generator, part) in self.generators.iter_mut().zip(out.chunks_exact_mut(each)) {
            generator.normal(part);
        }
    }
}
