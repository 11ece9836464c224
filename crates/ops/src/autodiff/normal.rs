//! The backward of a normalisation: `dx = r (g dz - mean(g dz) - n mean(n g dz))`, where `n` is the normalised
//! input, `r` one over the deviation, `g` gamma, and the means are over an image's group.
//!
//! An image is a task. Sums go over blocks of rows in f32 and over blocks in f64, in a fixed order, so that
//! they do not depend on the threads.

use rayon::prelude::*;

use super::derivative::scale_by_derivative;
use super::values::sum;
use crate::fused::Activation;

/// Rows summed in f32.
const ROWS: usize = 32;
/// Elements that are worth a task.
const WORK: usize = 1 << 13;

/// A normalisation over `[images, positions, channels]`; a layer norm has one position and one group.
#[derive(Clone, Copy)]
pub(super) struct Normal<'a> {
    pub x: &'a [f32],
    pub dy: &'a [f32],
    pub positions: usize,
    pub channels: usize,
    pub groups: usize,
    pub eps: f64,
    pub gamma: &'a [f32],
    /// When SiLU follows.
    pub beta: Option<&'a [f32]>,
}

/// Gradients of gamma and beta.
pub(super) struct Sums {
    pub gamma: Vec<f64>,
    pub beta: Vec<f64>,
}

impl Sums {
    fn new(channels: usize) -> Self {
        Sums {
            gamma: vec![0.0; channels],
            beta: vec![0.0; channels],
        }
    }

    fn add(&mut self, other: &Sums) {
        let pairs = [
            (&mut self.gamma, &other.gamma),
            (&mut self.beta, &other.beta),
        ];
        for (to, from) in pairs {
            to.iter_mut().zip(from).for_each(|(a, b)| *a += b);
        }
    }
}

pub(super) fn backward(norm: Normal<'_>, dx: &mut [f32]) -> Sums {
    let image = norm.positions * norm.channels;
    let mut total = Sums::new(norm.channels);
    if image == 0 || dx.is_empty() {
        return total;
    }
    let images = WORK.div_ceil(image);
    let parts: Vec<Sums> = dx
        .par_chunks_mut(images * image)
        .enumerate()
        .map(|(i, dx)| {
            let at = i * images * image;
            let part = Normal {
                x: &norm.x[at..][..dx.len()],
                dy: &norm.dy[at..][..dx.len()],
                ..norm
            };
            part.images(dx)
        })
        .collect();
    parts.iter().for_each(|part| total.add(part));
    total
}

impl Normal<'_> {
    fn images(&self, dx: &mut [f32]) -> Sums {
        if self.positions == 1 && self.groups == 1 && self.beta.is_none() {
            return self.rows(dx);
        }
        let image = self.positions * self.channels;
        let mut sums = Sums::new(self.channels);
        let inputs = self.x.chunks_exact(image).zip(self.dy.chunks_exact(image));
        for ((x, dy), dx) in inputs.zip(dx.chunks_exact_mut(image)) {
            self.image(x, dy, dx, &mut sums);
        }
        sums
    }

    /// [`Normal::images`] of a layer norm.
    fn rows(&self, dx: &mut [f32]) -> Sums {
        let c = self.channels;
        let count = c as f32;
        let mut sums = Sums::new(c);
        let (mut gamma, mut beta) = (vec![0f32; c], vec![0f32; c]);
        let inputs = self.x.chunks(c * ROWS).zip(self.dy.chunks(c * ROWS));
        for ((x, dy), dx) in inputs.zip(dx.chunks_mut(c * ROWS)) {
            gamma.fill(0.0);
            beta.fill(0.0);
            let rows = x.chunks_exact(c).zip(dy.chunks_exact(c));
            for ((x, dy), dx) in rows.zip(dx.chunks_exact_mut(c)) {
                let mean = sum(x, x, |x, _| x) / count;
                let variance = sum(x, x, |x, _| (x - mean) * (x - mean)) / count;
                let rate = (1.0 / (f64::from(variance) + self.eps).sqrt()) as f32;
                for j in 0..c {
                    let n = (x[j] - mean) * rate;
                    gamma[j] += dy[j] * n;
                    beta[j] += dy[j];
                    dx[j] = dy[j] * self.gamma[j];
                }
                let mean_d = sum(dx, dx, |d, _| d) / count;
                let mean_dn = sum(dx, x, |d, x| d * ((x - mean) * rate)) / count;
                for j in 0..c {
                    dx[j] = rate * (dx[j] - mean_d - (x[j] - mean) * rate * mean_dn);
                }
            }
            for (total, block) in [(&mut sums.gamma, &gamma), (&mut sums.beta, &beta)] {
                total
                    .iter_mut()
                    .zip(block)
                    .for_each(|(t, s)| *t += f64::from(*s));
            }
        }
        sums
    }

    fn image(&self, x: &[f32], dy: &[f32], dx: &mut [f32], sums: &mut Sums) {
        let c = self.channels;
        let size = c / self.groups;
        let count = (self.positions * size) as f64;
        // Means of groups, as one value a channel.
        let spread = |of_channels: &[f64]| -> Vec<f64> {
            let groups = of_channels.chunks_exact(size);
            let means = groups.map(|g| g.iter().sum::<f64>() / count);
            means
                .flat_map(|mean| std::iter::repeat_n(mean, size))
                .collect()
        };
        let mut part = vec![0f64; c];
        add_rows(x, c, &mut part, |x, _, _| x, x);
        let mean: Vec<f32> = spread(&part).iter().map(|m| *m as f32).collect();
        part.fill(0.0);
        add_rows(x, c, &mut part, |x, _, j| (x - mean[j]) * (x - mean[j]), x);
        let rate = |variance: &f64| (1.0 / (variance + self.eps).sqrt()) as f32;
        let rate: Vec<f32> = spread(&part).iter().map(rate).collect();
        let dz = self.before_activation(x, dy, &mean, &rate, dx);

        let mut beta = vec![0f64; c];
        add_rows(dz.unwrap_or(dx), c, &mut beta, |dz, _, _| dz, x);
        let mut gamma = vec![0f64; c];
        let normal = |x: f32, j: usize| (x - mean[j]) * rate[j];
        add_rows(
            dz.unwrap_or(dx),
            c,
            &mut gamma,
            |dz, x, j| dz * normal(x, j),
            x,
        );
        let weigh = |of: &[f64]| -> Vec<f64> {
            of.iter()
                .zip(self.gamma)
                .map(|(s, g)| s * f64::from(*g))
                .collect()
        };
        let (mean_d, mean_dn) = (spread(&weigh(&beta)), spread(&weigh(&gamma)));
        // dx = dz a + x b + d, a channel at a time.
        let a: Vec<f32> = (0..c).map(|j| rate[j] * self.gamma[j]).collect();
        let b: Vec<f32> = (0..c).map(|j| -rate[j] * mean_dn[j] as f32).collect();
        let d: Vec<f32> = (0..c).map(|j| -rate[j] * mean_d[j] as f32).collect();
        for (i, row) in dx.chunks_exact_mut(c).enumerate() {
            let x = &x[i * c..][..c];
            if let Some(dz) = dz {
                row.copy_from_slice(&dz[i * c..][..c]);
            }
            for j in 0..c {
                row[j] = row[j] * a[j] + normal(x[j], j) * b[j] + d[j];
            }
        }
        sums.add(&Sums { gamma, beta });
    }

    /// The gradient before the activation: `dy`, or written to `out`.
    fn before_activation<'b>(
        &self,
        x: &[f32],
        dy: &'b [f32],
        mean: &[f32],
        rate: &[f32],
        out: &mut [f32],
    ) -> Option<&'b [f32]> {
        let Some(beta) = self.beta else {
            return Some(dy);
        };
        let c = self.channels;
        let mut z = vec![0f32; c * ROWS];
        for (i, out) in out.chunks_mut(c * ROWS).enumerate() {
            let at = i * c * ROWS;
            let z = &mut z[..out.len()];
            for (z, x) in z.chunks_exact_mut(c).zip(x[at..].chunks_exact(c)) {
                for j in 0..c {
                    z[j] = (x[j] - mean[j]) * rate[j] * self.gamma[j] + beta[j];
                }
            }
            out.copy_from_slice(z);
            scale_by_derivative(z, &dy[at..][..out.len()], Activation::Silu, out);
        }
        None
    }
}

/// Adds `f(a, b, channel)` over the rows of `a` and `b` to `total`.
fn add_rows(a: &[f32], c: usize, total: &mut [f64], f: impl Fn(f32, f32, usize) -> f32, b: &[f32]) {
    let mut block = vec![0f32; c];
    for (a, b) in a.chunks(c * ROWS).zip(b.chunks(c * ROWS)) {
        block.fill(0.0);
        for (a, b) in a.chunks_exact(c).zip(b.chunks_exact(c)) {
            for j in 0..c {
                block[j] += f(a[j], b[j], j);
            }
        }
        total
            .iter_mut()
            .zip(&block)
            .for_each(|(t, s)| *t += f64::from(*s));
    }
}
