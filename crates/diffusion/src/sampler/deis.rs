//! Diffusion exponential integrator sampler, log-rho multistep (Zhang and Chen 2023).

use std::collections::VecDeque;

use super::{Context, Sampler};
use crate::error::Error;
use crate::math::combine;
use crate::plan::{Plan, Step};

/// Orders 1 to 3: the noise is extrapolated as a polynomial in ln(rho), rho being noise over signal.
#[derive(Debug)]
pub(crate) struct Deis {
    order: usize,
    /// ln(rho) and noise, the newest first.
    history: VecDeque<(f64, Vec<f32>)>,
}

impl Deis {
    pub fn new(plan: &Plan) -> Self {
        Self {
            order: plan.config.solver_order.unwrap_or(2),
            history: VecDeque::new(),
        }
    }
}

impl Sampler for Deis {
    fn step(&mut self, ctx: &mut Context<'_>, i: usize, x: Vec<f32>) -> Result<Vec<f32>, Error> {
        let Step { from, to } = ctx.plan.steps[i];
        let denoised = ctx.denoise(&x, from)?;
        let noise = combine([
            (1.0 / from.sigma, &x),
            (-from.alpha / from.sigma, &denoised),
        ]);
        self.history.push_front((from.ratio().ln(), noise));
        self.history.truncate(self.order);
        let short = ctx.plan.config.lower_order_final.unwrap_or(true) && ctx.plan.full_len < 15;
        let cap = match ctx.plan.len() - i {
            1 if short || to.is_clean() => 1,
            2 if short => 2,
            _ => self.order,
        };
        let order = cap.min(self.history.len());
        let nodes: Vec<f64> = self
            .history
            .iter()
            .take(order)
            .map(|(log_rho, _)| *log_rho)
            .collect();
        let mut next = combine([(to.alpha / from.alpha, &x)]);
        for (j, (_, noise)) in self.history.iter().take(order).enumerate() {
            let weight = integral(&nodes, j, to.ratio()) - integral(&nodes, j, from.ratio());
            next = combine([(1.0, &next), (to.alpha * weight, noise)]);
        }
        Ok(next)
    }
}

/// The antiderivative at `rho` of the Lagrange polynomial in ln(rho) that is 1 at `nodes[j]`.
fn integral(nodes: &[f64], j: usize, rho: f64) -> f64 {
    if rho == 0.0 {
        return 0.0;
    }
    // Coefficients of the polynomial, the constant first.
    let mut poly = vec![1.0];
    for (k, node) in nodes.iter().enumerate().filter(|(k, _)| *k != j) {
        debug_assert_ne!(k, j);
        let scale = 1.0 / (nodes[j] - node);
        let mut product = vec![0.0; poly.len() + 1];
        for (power, c) in poly.iter().enumerate() {
            product[power] -= c * node * scale;
            product[power + 1] += c * scale;
        }
        poly = product;
    }
    // ∫ lnⁿ = rho · lnⁿ - n ∫ lnⁿ⁻¹.
    let log = rho.ln();
    let mut moment = rho;
    let mut sum = poly[0] * moment;
    for (power, c) in poly.iter().enumerate().skip(1) {
        moment = rho * log.powi(power as i32) - power as f64 * moment;
        sum += c * moment;
    }
    sum
}
