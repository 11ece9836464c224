//! Classifier-free guidance (Ho and Salimans 2022).

use crate::error::Error;

/// How strongly, and at which noise levels, a network's output is pushed towards the prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guidance {
    /// The output is `uncond + scale · (cond - uncond)`; at 1 or below there is no guidance.
    pub scale: f64,
    /// How far the guided output is brought back to the spread of the prompted one, 0 to 1
    /// (Lin et al. 2023, section 3.4).
    pub rescale: f64,
    /// Guidance acts only at `lowest <= sigma <= highest` (Kynkäänniemi et al. 2024); sigma is noise
    /// over signal.
    pub interval: (f64, f64),
    /// Skip-layer guidance besides.
    pub skip: Option<SkipGuidance>,
}

/// Skip-layer guidance (Stability AI, Stable Diffusion 3.5): the output is pushed away from that of the network with
/// some of its layers left out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SkipGuidance {
    /// How strongly.
    pub scale: f64,
    /// It acts only at `lowest <= sigma <= highest`, and only where guidance does; sigma is noise over signal.
    pub interval: (f64, f64),
}

impl SkipGuidance {
    fn acts_at(&self, sigma: f64) -> bool {
        self.interval.0 <= sigma && sigma <= self.interval.1
    }
}

impl Guidance {
    /// Guidance of a scale at every noise level, without rescaling.
    pub fn new(scale: f64) -> Self {
        Self {
            scale,
            rescale: 0.0,
            interval: (0.0, f64::INFINITY),
            skip: None,
        }
    }

    /// No guidance.
    pub fn none() -> Self {
        Self::new(1.0)
    }

    /// Checks the numbers of a request.
    ///
    /// # Errors
    /// A scale that is not finite, a rescale outside of 0 to 1, an interval whose ends are reversed.
    pub fn validate(&self) -> Result<(), Error> {
        let bad = |option, found, expected| {
            Err(Error::Option {
                option,
                found,
                expected,
            })
        };
        if !self.scale.is_finite() {
            return bad("guidance", self.scale, "a finite number");
        }
        if !(0.0..=1.0).contains(&self.rescale) {
            return bad("guidance rescale", self.rescale, "0 to 1");
        }
        let (low, high) = self.interval;
        if low.is_nan() || high.is_nan() || low > high {
            return bad(
                "the guidance interval's lower end",
                low,
                "at most the upper end",
            );
        }
        Ok(())
    }

    /// Whether any level is guided, so that a negative prompt is worth encoding.
    pub fn is_on(&self) -> bool {
        self.scale > 1.0
    }

    /// Whether a level with this noise over signal is guided.
    pub fn acts_at(&self, sigma: f64) -> bool {
        self.is_on() && self.interval.0 <= sigma && sigma <= self.interval.1
    }

    /// The skip-layer guidance at a level with this noise over signal.
    pub fn skip_at(&self, sigma: f64) -> Option<SkipGuidance> {
        self.skip
            .filter(|skip| self.acts_at(sigma) && skip.acts_at(sigma))
    }

    /// The guided output of a network.
    ///
    /// # Shapes
    /// `cond` and `uncond` have the same length, a multiple of `images`; images follow one another.
    pub fn apply(&self, cond: &[f32], uncond: &[f32], images: usize) -> Vec<f32> {
        let scale = self.scale as f32;
        let mut guided: Vec<f32> = cond
            .iter()
            .zip(uncond)
            .map(|(c, u)| u + scale * (c - u))
            .collect();
        if self.rescale > 0.0 && !guided.is_empty() {
            let size = cond.len().div_ceil(images.max(1));
            for (guided, cond) in guided.chunks_mut(size).zip(cond.chunks(size)) {
                rescale(guided, cond, self.rescale);
            }
        }
        guided
    }
}

impl SkipGuidance {
    /// Pushes a guided output from `skipped`, the network's with layers left out, towards `cond`, that with all.
    ///
    /// # Shapes
    /// All have the same length.
    pub fn apply(&self, guided: &mut [f32], cond: &[f32], skipped: &[f32]) {
        let scale = self.scale as f32;
        for ((g, c), s) in guided.iter_mut().zip(cond).zip(skipped) {
            *g += (c - s) * scale;
        }
    }
}

/// Blends an image's guided output with itself scaled to the standard deviation of the prompted one.
fn rescale(guided: &mut [f32], cond: &[f32], amount: f64) {
    let spread = deviation(guided);
    if spread == 0.0 {
        return;
    }
    let factor = (amount * deviation(cond) / spread + (1.0 - amount)) as f32;
    guided.iter_mut().for_each(|g| *g *= factor);
}

/// The standard deviation of a sample (over n - 1, as torch's).
fn deviation(values: &[f32]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len() as f64;
    let squares = values
        .iter()
        .map(|&v| (f64::from(v) - mean).powi(2))
        .sum::<f64>();
    (squares / (values.len() - 1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guidance_extrapolates_from_the_negative_to_the_prompt() {
        assert_eq!(
            Guidance::new(3.0).apply(&[2.0, 0.0], &[1.0, 1.0], 1),
            [4.0, -2.0]
        );
    }

    #[test]
    fn it_is_off_at_one_and_below_and_outside_of_its_interval() {
        assert!(!Guidance::new(1.0).acts_at(1.0));
        assert!(!Guidance::new(0.0).acts_at(1.0));
        let guidance = Guidance {
            interval: (0.3, 5.0),
            ..Guidance::new(7.5)
        };
        assert!(guidance.acts_at(0.3) && guidance.acts_at(5.0));
        assert!(!guidance.acts_at(0.2) && !guidance.acts_at(f64::INFINITY));
        assert!(Guidance::new(7.5).acts_at(f64::INFINITY));
    }

    #[test]
    fn full_rescale_gives_every_image_the_spread_of_its_prompted_output() {
        let cond = [1.0, -1.0, 2.0, -2.0_f32, 3.0, 0.0, 5.0, 9.0];
        let uncond = [0.5, 0.5, -0.5, 0.1_f32, 0.0, 2.0, 1.0, 1.0];
        let out = Guidance {
            rescale: 1.0,
            ..Guidance::new(7.5)
        }
        .apply(&cond, &uncond, 2);
        for i in [0, 4] {
            assert!((deviation(&out[i..i + 4]) - deviation(&cond[i..i + 4])).abs() < 1e-6);
        }
    }

    #[test]
    fn bad_numbers_are_refused() {
        assert!(Guidance::new(f64::NAN).validate().is_err());
        assert!(
            Guidance {
                rescale: 1.5,
                ..Guidance::new(2.0)
            }
            .validate()
            .is_err()
        );
        assert!(
            Guidance {
                interval: (2.0, 1.0),
                ..Guidance::new(2.0)
            }
            .validate()
            .is_err()
        );
    }
}
