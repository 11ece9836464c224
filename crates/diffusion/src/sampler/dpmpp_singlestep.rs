//! DPM-Solver++, singlestep, as an ODE (Lu et al. 2022).

use super::{Context, History, Sampler};
use crate::error::Error;
use crate::level::Level;
use crate::math::combine;
use crate::plan::Plan;

/// Blocks of one to three steps; within a block, each step starts from the block's first latent.
#[derive(Debug)]
pub(crate) struct DpmppSinglestep {
    heun: bool,
    order: usize,
    /// The order of each step, over the whole run.
    orders: Vec<usize>,
    history: History,
    /// Level and latent at the start of the block.
    start: Option<(Level, Vec<f32>)>,
}

impl DpmppSinglestep {
    pub fn new(plan: &Plan) -> Self {
        let order = plan.config.solver_order.unwrap_or(2);
        let n = plan.full_len;
        // The final orders are lowered where asked, and wherever they must be.
        let lower = plan.config.lower_order_final.unwrap_or(false)
            || !n.is_multiple_of(order)
            || plan.ends_clean();
        Self {
            heun: plan.config.solver_type.as_deref() == Some("heun"),
            order,
            orders: orders(order, n, lower, plan.ends_clean()),
            history: History::default(),
            start: None,
        }
    }
}

/// diffusers' order of each step.
fn orders(order: usize, n: usize, lower_final: bool, ends_clean: bool) -> Vec<usize> {
    let mut orders: Vec<usize> = (0..n).map(|i| i % order + 1).collect();
    if lower_final && n.is_multiple_of(order) {
        // The last block is cut: 1 2 (3) becomes 1 1, or 1 2 1.
        orders[n - 1] = 1;
    }
    if ends_clean {
        orders[n - 1] = 1;
    }
    orders
}

impl Sampler for DpmppSinglestep {
    fn moves_when_still(&self) -> bool {
        true
    }

    fn step(&mut self, ctx: &mut Context<'_>, i: usize, x: Vec<f32>) -> Result<Vec<f32>, Error> {
        let step = ctx.plan.steps[i];
        let denoised = ctx.denoise(&x, step.from)?;
        self.history.push(step.from, denoised, self.order);
        let planned = self.orders[ctx.plan.full_len - ctx.plan.len() + i];
        let order = planned.min(self.history.len());
        if order == 1 {
            self.start = Some((step.from, x));
        }
        let Some((start, x)) = &self.start else {
            // A block has begun, because the first step has nothing but itself to look at.
            return Err(Error::Length {
                what: "the solver's history",
                found: 0,
                expected: 1,
            });
        };
        Ok(self.update(*start, step.to, order, x))
    }
}

impl DpmppSinglestep {
    fn update(&self, start: Level, to: Level, order: usize, x: &[f32]) -> Vec<f32> {
        let h = to.lambda() - start.lambda();
        let decay = (-h).exp_m1();
        // The oldest result of the block is the one at its start.
        let (lambda, m) = self.history.get(order - 1);
        let base = combine([(to.sigma / start.sigma, x), (-to.alpha * decay, m)]);
        if h == 0.0 {
            return base;
        }
        let difference = |back: usize| {
            let (lambda_k, m_k) = self.history.get(back);
            let r = (lambda_k - lambda) / h;
            // Two visited times may round to the same one; the network then says the same of both.
            let scale = if r == 0.0 { 0.0 } else { 1.0 / r };
            (r, combine([(scale, m_k), (-scale, m)]))
        };
        match order {
            1 => base,
            2 => {
                let (_, d1) = difference(0);
                let factor = if self.heun {
                    decay / h + 1.0
                } else {
                    -0.5 * decay
                };
                combine([(1.0, &base), (to.alpha * factor, &d1)])
            }
            _ => {
                let ((r0, d1_1), (r1, d1_0)) = (difference(0), difference(1));
                if !self.heun || r0 == r1 {
                    return combine([(1.0, &base), (to.alpha * (decay / h + 1.0), &d1_1)]);
                }
                let d1 = combine([(r0 / (r0 - r1), &d1_0), (-r1 / (r0 - r1), &d1_1)]);
                let d2 = combine([(2.0 / (r0 - r1), &d1_1), (-2.0 / (r0 - r1), &d1_0)]);
                combine([
                    (1.0, &base),
                    (to.alpha * (decay / h + 1.0), &d1),
                    (-to.alpha * ((decay + h) / (h * h) - 0.5), &d2),
                ])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::orders;

    #[test]
    fn orders_are_those_of_diffusers() {
        assert_eq!(orders(2, 6, true, true), [1, 2, 1, 2, 1, 1]);
        assert_eq!(orders(2, 5, true, true), [1, 2, 1, 2, 1]);
        assert_eq!(orders(3, 6, true, true), [1, 2, 3, 1, 2, 1]);
        assert_eq!(orders(3, 7, true, true), [1, 2, 3, 1, 2, 3, 1]);
        assert_eq!(orders(3, 8, true, false), [1, 2, 3, 1, 2, 3, 1, 2]);
        assert_eq!(orders(3, 8, true, true), [1, 2, 3, 1, 2, 3, 1, 1]);
        assert_eq!(orders(2, 4, false, false), [1, 2, 1, 2]);
        assert_eq!(orders(2, 1, true, true), [1]);
    }
}
