//! CFG++ (Chung et al. 2024): the clean latent is guided, the direction of the noise is not.

use super::{Context, Sampler, ancestral_step};
use crate::error::Error;
use crate::math::combine;
use crate::plan::Step;

/// Euler's method with CFG++; `eta` above 0 makes it ancestral.
#[derive(Debug)]
pub(crate) struct EulerCfgPp {
    pub eta: f64,
    pub s_noise: f64,
}

impl Sampler for EulerCfgPp {
    fn step(&mut self, ctx: &mut Context<'_>, i: usize, x: Vec<f32>) -> Result<Vec<f32>, Error> {
        let Step { from, to } = ctx.plan.steps[i];
        let found = ctx.denoise_both(&x, from)?;
        if to.is_clean() {
            return Ok(found.denoised);
        }
        // Without a second prompt the two are the same, and this is Euler's method.
        let uncond = found.uncond_denoised.as_ref().unwrap_or(&found.denoised);
        let (down, up) = ancestral_step(from.sigma, to.sigma, self.eta);
        // alpha_to · denoised + sigma_down · d, with d = (x - alpha · uncond) / sigma.
        let ratio = down / from.sigma;
        if self.eta == 0.0 {
            return Ok(combine([
                (to.alpha, &found.denoised),
                (ratio, &x),
                (-ratio * from.alpha, uncond),
            ]));
        }
        let noise = ctx.noise(x.len());
        Ok(combine([
            (1.0, &found.denoised),
            (ratio, &x),
            (-ratio, uncond),
            (up * self.s_noise, &noise),
        ]))
    }
}
