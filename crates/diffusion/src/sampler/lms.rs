//! Linear multistep (Adams-Bashforth) in sigma.

use std::collections::VecDeque;

use super::{Context, Sampler};
use crate::error::Error;
use crate::math::combine;
use crate::plan::Step;

/// Fourth order once four derivatives are known.
#[derive(Debug, Default)]
pub(crate) struct Lms {
    /// Sigma and derivative, the newest first.
    history: VecDeque<(f64, Vec<f32>)>,
}

const ORDER: usize = 4;

impl Sampler for Lms {
    fn step(&mut self, ctx: &mut Context<'_>, i: usize, x: Vec<f32>) -> Result<Vec<f32>, Error> {
        let Step { from, to } = ctx.plan.steps[i];
        let denoised = ctx.denoise(&x, from)?;
        let d = combine([(1.0 / from.sigma, &x), (-1.0 / from.sigma, &denoised)]);
        self.history.push_front((from.sigma, d));
        self.history.truncate(ORDER);
        let nodes: Vec<f64> = self.history.iter().map(|(sigma, _)| *sigma).collect();
        let mut next = x;
        for (j, (_, d)) in self.history.iter().enumerate() {
            next = combine([(1.0, &next), (coefficient(&nodes, j, to.sigma), d)]);
        }
        Ok(next)
    }
}

/// The integral from `nodes[0]` to `end` of the Lagrange polynomial that is 1 at `nodes[j]`.
///
/// Two Gauss points are exact for its degree, 3 at most.
fn coefficient(nodes: &[f64], j: usize, end: f64) -> f64 {
    let polynomial = |tau: f64| {
        let others = nodes.iter().enumerate().filter(|(k, _)| *k != j);
        others
            .map(|(_, s)| (tau - s) / (nodes[j] - s))
            .product::<f64>()
    };
    let (middle, half) = (0.5 * (nodes[0] + end), 0.5 * (end - nodes[0]));
    let offset = half / 3.0_f64.sqrt();
    half * (polynomial(middle - offset) + polynomial(middle + offset))
}
