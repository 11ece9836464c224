//! Normalisations and their gradients in `f64` throughout, so that finite differences can hold them.

use crate::Activation;

/// A normalisation of `[batch, pixels, channels]`. LayerNorm and RMSNorm have one pixel and one group.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a> {
    /// Factor, `[channels]`.
    pub gamma: &'a [f64],
    /// Summand, `[channels]`.
    pub beta: &'a [f64],
    /// Height times width.
    pub pixels: usize,
    /// Groups of channels.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f64,
    /// Take the mean away first.
    pub centre: bool,
    /// Applied last.
    pub activation: Activation,
}

impl Norm<'_> {
    /// The normalised input and one over the deviation of each element's group.
    fn normal(&self, x: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let (mut normal, mut rates) = (x.to_vec(), vec![0.0; x.len()]);
        for group in self.indices(x.len()) {
            let mean = if self.centre {
                self.mean(&group, |i| x[i])
            } else {
                0.0
            };
            let variance = self.mean(&group, |i| (x[i] - mean).powi(2));
            for &i in &group {
                rates[i] = 1.0 / (variance + self.eps).sqrt();
                normal[i] = (x[i] - mean) * rates[i];
            }
        }
        (normal, rates)
    }

    /// Places of each group's elements.
    fn indices(&self, len: usize) -> Vec<Vec<usize>> {
        let channels = self.gamma.len();
        let width = channels / self.groups;
        let images = len.checked_div(self.pixels * channels).unwrap_or(0);
        (0..images * self.groups)
            .map(|at| {
                let (image, group) = (at / self.groups, at % self.groups);
                (0..self.pixels)
                    .flat_map(|p| (0..width).map(move |c| (p, c)))
                    .map(|(p, c)| (image * self.pixels + p) * channels + group * width + c)
                    .collect()
            })
            .collect()
    }

    fn mean(&self, group: &[usize], f: impl Fn(usize) -> f64) -> f64 {
        group.iter().map(|&i| f(i)).sum::<f64>() / group.len() as f64
    }

    /// The output.
    pub fn forward(&self, x: &[f64]) -> Vec<f64> {
        let channels = self.gamma.len();
        let (normal, _) = self.normal(x);
        let values = normal.iter().enumerate();
        values
            .map(|(i, n)| n * self.gamma[i % channels] + self.beta[i % channels])
            .map(|z| self.activation.apply(z))
            .collect()
    }

    /// Gradients by the input, the factor and the summand.
    pub fn backward(&self, x: &[f64], dy: &[f64]) -> [Vec<f64>; 3] {
        let channels = self.gamma.len();
        let (normal, rates) = self.normal(x);
        let dz: Vec<f64> = (0..x.len())
            .map(|i| {
                let z = normal[i] * self.gamma[i % channels] + self.beta[i % channels];
                dy[i] * self.activation.derivative(z)
            })
            .collect();
        let (mut dgamma, mut dbeta) = (vec![0.0; channels], vec![0.0; channels]);
        for i in 0..x.len() {
            dgamma[i % channels] += dz[i] * normal[i];
            dbeta[i % channels] += dz[i];
        }
        let mut dx = vec![0.0; x.len()];
        let d = |i: usize| dz[i] * self.gamma[i % channels];
        for group in self.indices(x.len()) {
            let mean_d = if self.centre {
                self.mean(&group, d)
            } else {
                0.0
            };
            let mean_dn = self.mean(&group, |i| d(i) * normal[i]);
            for &i in &group {
                dx[i] = rates[i] * (d(i) - mean_d - normal[i] * mean_dn);
            }
        }
        [dx, dgamma, dbeta]
    }
}

/// Gradient of GEGLU by one row of `2 * half`.
pub fn geglu_backward(row: &[f64], dy: &[f64]) -> Vec<f64> {
    let (value, gate) = row.split_at(dy.len());
    let dvalue = gate
        .iter()
        .zip(dy)
        .map(|(g, d)| d * Activation::Gelu.apply(*g));
    let dgate = (0..dy.len()).map(|i| dy[i] * value[i] * Activation::Gelu.derivative(gate[i]));
    dvalue.chain(dgate).collect()
}
