//! Where a sampler's noise comes from.

/// A source of standard normal values.
///
/// A sampler makes exactly one call for each latent-sized noise, in the order in which diffusers
/// draws, because `torch.randn` gives other values when a tensor is drawn in pieces. For a batch the
/// caller fills the slice image by image, each from its own generator, as diffusers does with a list
/// of generators.
pub trait NoiseSource {
    /// Fills `out` with independent values of the standard normal distribution.
    fn normal(&mut self, out: &mut [f32]);
}

/// The source of a run that must not draw noise: gives zeros.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoNoise;

impl NoiseSource for NoNoise {
    fn normal(&mut self, out: &mut [f32]) {
        out.fill(0.0);
    }
}
