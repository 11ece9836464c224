//! UniPC: a unified predictor-corrector (Zhao et al. 2023), multistep, B(h) form.

use super::{Context, History, Sampler};
use crate::error::Error;
use crate::level::Level;
use crate::math::combine;
use crate::plan::{Plan, Step};

/// Orders 1 to 3, on the clean latent or on the noise.
#[derive(Debug)]
pub(crate) struct UniPc {
    order: usize,
    /// B(h) = h, else e^h - 1.
    bh1: bool,
    on_clean: bool,
    disable_corrector: Vec<usize>,
    history: History,
    last: Option<Last>,
}

/// The last step, which the corrector repeats with what the network says of its end.
#[derive(Debug)]
struct Last {
    from: Level,
    x: Vec<f32>,
    order: usize,
}

impl UniPc {
    pub fn new(plan: &Plan) -> Self {
        let config = &plan.config;
        Self {
            order: config.solver_order.unwrap_or(2),
            bh1: config.solver_type.as_deref() == Some("bh1"),
            on_clean: config.predict_x0.unwrap_or(true),
            disable_corrector: config.disable_corrector.clone().unwrap_or_default(),
            history: History::default(),
            last: None,
        }
    }
}

impl Sampler for UniPc {
    fn step(&mut self, ctx: &mut Context<'_>, i: usize, x: Vec<f32>) -> Result<Vec<f32>, Error> {
        let Step { from, to } = ctx.plan.steps[i];
        let denoised = ctx.denoise(&x, from)?;
        let value = if self.on_clean {
            denoised
        } else {
            combine([
                (1.0 / from.sigma, &x),
                (-from.alpha / from.sigma, &denoised),
            ])
        };
        let index = ctx.plan.full_len - ctx.plan.len() + i;
        let x = match self.last.take() {
            Some(last) if index > 0 && !self.disable_corrector.contains(&(index - 1)) => {
                self.correct(&last, from, &value)
            }
            _ => x,
        };
        self.history.push(from, value, self.order);
        let left = ctx.plan.len() - i;
        let lowers = ctx.plan.config.lower_order_final.unwrap_or(true);
        let cap = if lowers || to.is_clean() {
            left
        } else {
            self.order
        };
        let order = self.order.min(cap).min(self.history.len());
        let next = self.predict(from, to, order, &x);
        self.last = Some(Last { from, x, order });
        Ok(next)
    }
}

/// The scalars of a step of length `h` in lambda.
struct Scalars {
    h: f64,
    /// h · phi1(h).
    h_phi_1: f64,
    /// B(h).
    b_h: f64,
    /// The right-hand side of the order conditions.
    b: Vec<f64>,
}

impl UniPc {
    fn scalars(&self, from: Level, to: Level, order: usize) -> Scalars {
        let h = to.lambda() - from.lambda();
        let signed = if self.on_clean { -h } else { h };
        let h_phi_1 = signed.exp_m1();
        let b_h = if self.bh1 { signed } else { h_phi_1 };
        let mut h_phi_k = h_phi_1 / signed - 1.0;
        let mut factorial = 1.0;
        let mut b = Vec::with_capacity(order);
        for k in 1..=order {
            b.push(h_phi_k * factorial / b_h);
            factorial *= (k + 1) as f64;
            h_phi_k = h_phi_k / signed - 1.0 / factorial;
        }
        Scalars { h, h_phi_1, b_h, b }
    }

    /// `x` along the newest remembered value alone: the exponential Euler step.
    fn base(&self, x: &[f32], s: &Scalars, from: Level, to: Level) -> Vec<f32> {
        let (_, m0) = self.history.get(0);
        let (of_x, of_m) = self.factors(from, to);
        // On the noise, sigma (e^h - 1) without its infinite factor where no noise is to be left.
        let of_m = if self.on_clean {
            of_m * s.h_phi_1
        } else {
            to.alpha * from.ratio() - to.sigma
        };
        combine([(of_x, x), (-of_m, m0)])
    }

    fn factors(&self, from: Level, to: Level) -> (f64, f64) {
        if self.on_clean {
            (to.sigma / from.sigma, to.alpha)
        } else {
            (to.alpha / from.alpha, to.sigma)
        }
    }

    /// The positions of the remembered values behind the newest, in units of the step, and their
    /// differences from it over those.
    fn differences(&self, h: f64, order: usize) -> (Vec<f64>, Vec<Vec<f32>>) {
        let (lambda_0, m0) = self.history.get(0);
        (1..order)
            .map(|back| {
                let (lambda, m) = self.history.get(back);
                let r = (lambda - lambda_0) / h;
                (r, combine([(1.0 / r, m), (-1.0 / r, m0)]))
            })
            .unzip()
    }

    fn predict(&self, from: Level, to: Level, order: usize, x: &[f32]) -> Vec<f32> {
        let s = self.scalars(from, to, order);
        let mut next = self.base(x, &s, from, to);
        let (r, d) = self.differences(s.h, order);
        // The paper's a for order 2 is 1/2 whatever B(h) is.
        let weights = if order == 2 {
            vec![0.5]
        } else {
            solve(&r, &s.b[..r.len()])
        };
        let (_, of_m) = self.factors(from, to);
        for (weight, d) in weights.iter().zip(&d) {
            next = combine([(1.0, &next), (-of_m * s.b_h * weight, d)]);
        }
        next
    }

    /// Makes the last step again with `value`, what the network says at its end `to`.
    fn correct(&self, last: &Last, to: Level, value: &[f32]) -> Vec<f32> {
        let Last { from, ref x, order } = *last;
        let s = self.scalars(from, to, order);
        let mut next = self.base(x, &s, from, to);
        let (mut r, mut d) = self.differences(s.h, order);
        let (_, m0) = self.history.get(0);
        r.push(1.0);
        d.push(combine([(1.0, value), (-1.0, m0)]));
        let weights = if order == 1 {
            vec![0.5]
        } else {
            solve(&r, &s.b)
        };
        let (_, of_m) = self.factors(from, to);
        for (weight, d) in weights.iter().zip(&d) {
            next = combine([(1.0, &next), (-of_m * s.b_h * weight, d)]);
        }
        next
    }
}

/// Solves the Vandermonde system `Σ_j r_jᵏ w_j = b_k` for k from 0, by elimination.
fn solve(r: &[f64], b: &[f64]) -> Vec<f64> {
    let n = r.len();
    let mut rows: Vec<Vec<f64>> = (0..n)
        .map(|k| r.iter().map(|r| r.powi(k as i32)).chain([b[k]]).collect())
        .collect();
    for pivot in 0..n {
        // The nodes differ, so the matrix is regular; the largest pivot keeps it accurate.
        let best =
            (pivot..n).max_by(|&a, &b| rows[a][pivot].abs().total_cmp(&rows[b][pivot].abs()));
        rows.swap(pivot, best.unwrap_or(pivot));
        let (above, below) = rows.split_at_mut(pivot + 1);
        let top = &above[pivot];
        for row in below {
            let factor = row[pivot] / top[pivot];
            row.iter_mut()
                .zip(top)
                .for_each(|(value, t)| *value -= factor * t);
        }
    }
    let mut w = vec![0.0; n];
    for k in (0..n).rev() {
        let known: f64 = (k + 1..n).map(|j| rows[k][j] * w[j]).sum();
        w[k] = (rows[k][n] - known) / rows[k][k];
    }
    w
}

#[cfg(test)]
mod tests {
    use super::solve;

    #[test]
    fn the_order_conditions_are_solved() {
        let (r, b) = ([-1.5, -0.7, 1.0], [0.4, -0.2, 0.9]);
        let w = solve(&r, &b);
        for (k, b) in b.iter().enumerate() {
            let sum: f64 = r.iter().zip(&w).map(|(r, w)| r.powi(k as i32) * w).sum();
            assert!((sum - b).abs() < 1e-12);
        }
    }
}
