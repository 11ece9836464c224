//! DPM-Solver++, multistep, as ODE and as SDE (Lu et al. 2022).

use super::{Context, History, Sampler};
use crate::error::Error;
use crate::math::combine;
use crate::plan::{Plan, Step};

/// Orders 1 to 3, in variance-preserving form, in the time lambda (half the log-SNR).
#[derive(Debug)]
pub(crate) struct DpmppMultistep {
    /// Whether fresh noise is added (SDE-DPM-Solver++).
    pub sde: bool,
    /// The second-order formula: the midpoint's, or Heun's.
    heun: bool,
    order: usize,
    history: History,
    /// Steps made at full history, for the warm-up.
    made: usize,
}

impl DpmppMultistep {
    pub fn new(plan: &Plan, sde: bool) -> Self {
        Self {
            sde,
            heun: plan.config.solver_type.as_deref() == Some("heun"),
            order: plan.config.solver_order.unwrap_or(2),
            history: History::default(),
            made: 0,
        }
    }

    /// diffusers' rule for the order of a step: it rises at the start and, in short runs, falls at the
    /// end; a step to no noise at all is of first order.
    fn order_of(&self, plan: &Plan, i: usize) -> usize {
        let config = &plan.config;
        let left = plan.len() - i;
        let short = config.lower_order_final.unwrap_or(true) && plan.full_len < 15;
        let cap = match left {
            1 if config.euler_at_final == Some(true) || short || plan.ends_clean() => 1,
            2 if short => 2,
            _ => self.order,
        };
        cap.min(self.order)
            .min(self.made + 1)
            .min(self.history.len())
    }
}

impl Sampler for DpmppMultistep {
    fn step(&mut self, ctx: &mut Context<'_>, i: usize, x: Vec<f32>) -> Result<Vec<f32>, Error> {
        let step = ctx.plan.steps[i];
        let denoised = ctx.denoise(&x, step.from)?;
        self.history.push(step.from, denoised, self.order);
        let order = self.order_of(ctx.plan, i);
        self.made += 1;
        if self.sde {
            let noise = ctx.noise(x.len());
            return Ok(self.sde_update(step, order, &x, &noise));
        }
        Ok(self.ode_update(step, order, &x))
    }
}

impl DpmppMultistep {
    fn ode_update(&self, Step { from, to }: Step, order: usize, x: &[f32]) -> Vec<f32> {
        let h = to.lambda() - from.lambda();
        let decay = (-h).exp_m1();
        let ratio = to.sigma / from.sigma;
        let (m0, d1, d2) = self.history.differences(h, order);
        let base = combine([(ratio, x), (-to.alpha * decay, m0)]);
        match order {
            1 => base,
            2 if !self.heun => combine([(1.0, &base), (-0.5 * to.alpha * decay, &d1)]),
            2 => combine([(1.0, &base), (to.alpha * (decay / h + 1.0), &d1)]),
            _ => combine([
                (1.0, &base),
                (to.alpha * (decay / h + 1.0), &d1),
                (-to.alpha * ((decay + h) / (h * h) - 0.5), &d2),
            ]),
        }
    }

    fn sde_update(
        &self,
        Step { from, to }: Step,
        order: usize,
        x: &[f32],
        noise: &[f32],
    ) -> Vec<f32> {
        let h = to.lambda() - from.lambda();
        // 1 - exp(-2h): the share of the latent that is replaced, and the variance of the noise.
        let fresh = -(-2.0 * h).exp_m1();
        let ratio = to.sigma / from.sigma * (-h).exp();
        let (m0, d1, d2) = self.history.differences(h, order);
        let base = combine([
            (ratio, x),
            (to.alpha * fresh, m0),
            (to.sigma * fresh.sqrt(), noise),
        ]);
        match order {
            1 => base,
            2 if !self.heun => combine([(1.0, &base), (0.5 * to.alpha * fresh, &d1)]),
            2 => combine([(1.0, &base), (to.alpha * (1.0 - fresh / (2.0 * h)), &d1)]),
            _ => combine([
                (1.0, &base),
                (to.alpha * (1.0 - fresh / (2.0 * h)), &d1),
                (to.alpha * ((fresh - 2.0 * h) / (4.0 * h * h) - 0.5), &d2),
            ]),
        }
    }
}
