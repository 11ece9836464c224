//! A noise level: how much of the picture and how much noise a latent holds.

/// A noise level in its general form `x = alpha · x0 + sigma · noise`.
///
/// Three families of samplers differ only in how they scale a latent: variance exploding
/// (`alpha = 1`), variance preserving (`alpha² + sigma² = 1`), and straight flows
/// (`alpha = 1 - sigma`). Keeping both numbers serves all three, and makes the level of no signal at
/// all (`alpha = 0`, zero terminal SNR) an ordinary value where `sigma / alpha` is infinite.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Level {
    /// Factor of the clean latent.
    pub alpha: f64,
    /// Standard deviation of the noise.
    pub sigma: f64,
    /// The time that the network is told, in training steps; fractions are allowed.
    pub timestep: f64,
}

impl Level {
    /// The variance-exploding level `x = x0 + sigma · noise`.
    pub fn exploding(sigma: f64, timestep: f64) -> Self {
        Self {
            alpha: 1.0,
            sigma,
            timestep,
        }
    }

    /// The variance-preserving level of the cumulative product `alpha_cumprod = alpha²`.
    pub fn preserving(alpha_cumprod: f64, timestep: f64) -> Self {
        Self {
            alpha: alpha_cumprod.sqrt(),
            sigma: (1.0 - alpha_cumprod).max(0.0).sqrt(),
            timestep,
        }
    }

    /// The variance-preserving level with noise-to-signal ratio `sigma` (Karras' sigma).
    pub fn preserving_from_sigma(sigma: f64, timestep: f64) -> Self {
        let alpha = 1.0 / (sigma * sigma + 1.0).sqrt();
        Self {
            alpha,
            sigma: sigma * alpha,
            timestep,
        }
    }

    /// The level `x = (1 - sigma) · x0 + sigma · noise` of a straight flow.
    pub fn straight(sigma: f64, timestep: f64) -> Self {
        Self {
            alpha: 1.0 - sigma,
            sigma,
            timestep,
        }
    }

    /// Noise over signal, Karras' sigma; infinite where no signal is left.
    pub fn ratio(&self) -> f64 {
        self.sigma / self.alpha
    }

    /// Half the logarithm of the signal-to-noise ratio, `ln(alpha / sigma)`; infinite where the
    /// noise is zero.
    pub fn lambda(&self) -> f64 {
        self.alpha.ln() - self.sigma.ln()
    }

    /// Whether no noise is left.
    pub fn is_clean(&self) -> bool {
        self.sigma == 0.0
    }

    /// The forward process q(x_t | x_0): noises a clean latent to this level.
    ///
    /// # Shapes
    /// `clean` and `noise` have the same length; so has the result.
    pub fn add_noise(&self, clean: &[f32], noise: &[f32]) -> Vec<f32> {
        crate::math::combine([(self.alpha, clean), (self.sigma, noise)])
    }
}
