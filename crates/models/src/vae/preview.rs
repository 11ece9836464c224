//! A linear approximation of the decoder, for previews without a tiny autoencoder.

use aquatint_ops::Tensor;
use burn::tensor::{DType, TensorData};

/// `rgb = latent . factors + bias` at each position.
#[derive(Debug, Clone, PartialEq)]
pub struct LatentRgb {
    /// Red, green and blue of each latent channel.
    pub factors: Vec<[f32; 3]>,
    /// Red, green and blue of a latent of zeros.
    pub bias: [f32; 3],
}

impl LatentRgb {
    /// Stable Diffusion 1.x and 2.x (the factors that ComfyUI publishes).
    pub fn sd1() -> Self {
        LatentRgb {
            factors: vec![
                [0.3512, 0.2297, 0.3227],
                [0.3250, 0.4974, 0.2350],
                [-0.2829, 0.1762, 0.2721],
                [-0.2120, -0.2616, -0.7177],
            ],
            bias: [0.0; 3],
        }
    }

    /// Stable Diffusion XL (likewise).
    pub fn sdxl() -> Self {
        LatentRgb {
            factors: vec![
                [0.3651, 0.4232, 0.4341],
                [-0.2533, -0.0042, 0.1068],
                [0.1076, 0.1111, -0.0362],
                [-0.3165, -0.2492, -0.2188],
            ],
            bias: [0.1084, -0.0175, -0.0011],
        }
    }

    /// Stable Diffusion 3 and 3.5 (likewise).
    pub fn sd3() -> Self {
        LatentRgb {
            factors: vec![
                [-0.0922, -0.0175, 0.0749],
                [0.0311, 0.0633, 0.0954],
                [0.1994, 0.0927, 0.0458],
                [0.0856, 0.0339, 0.0902],
                [0.0587, 0.0272, -0.0496],
                [-0.0006, 0.1104, 0.0309],
                [0.0978, 0.0306, 0.0427],
                [-0.0042, 0.1038, 0.1358],
                [-0.0194, 0.0020, 0.0669],
                [-0.0488, 0.0130, -0.0268],
                [0.0922, 0.0988, 0.0951],
                [-0.0278, 0.0524, -0.0542],
                [0.0332, 0.0456, 0.0895],
                [-0.0069, -0.0030, -0.0810],
                [-0.0596, -0.0465, -0.0293],
                [-0.1448, -0.1463, -0.1189],
            ],
            bias: [0.2394, 0.2135, 0.1925],
        }
    }

    /// FLUX.1 (likewise).
    pub fn flux() -> Self {
        LatentRgb {
            factors: vec![
                [-0.0346, 0.0244, 0.0681],
                [0.0034, 0.0210, 0.0687],
                [0.0275, -0.0668, -0.0433],
                [-0.0174, 0.0160, 0.0617],
                [0.0859, 0.0721, 0.0329],
                [0.0004, 0.0383, 0.0115],
                [0.0405, 0.0861, 0.0915],
                [-0.0236, -0.0185, -0.0259],
                [-0.0245, 0.0250, 0.1180],
                [0.1008, 0.0755, -0.0421],
                [-0.0515, 0.0201, 0.0011],
                [0.0428, -0.0012, -0.0036],
                [0.0817, 0.0765, 0.0749],
                [-0.1264, -0.0522, -0.1103],
                [-0.0280, -0.0881, -0.0499],
                [-0.1262, -0.0982, -0.0778],
            ],
            bias: [-0.0329, -0.0718, -0.0851],
        }
    }

    /// The best factors, by least squares, for a latent `[batch, height, width, channels]` and
    /// its picture `[batch, factor height, factor width, 3]`: for autoencoders with no published
    /// ones. `None` when the latent has too few positions to tell, or the sizes do not fit.
    pub fn fit(latent: &Tensor<4>, picture: &Tensor<4>) -> Option<Self> {
        let [batch, height, width, channels] = latent.dims();
        let [pictures, rows, columns, colours] = picture.dims();
        let positions = batch * height * width;
        if positions < 2 * (channels + 1) || colours != 3 || pictures != batch {
            return None;
        }
        let (tall, wide) = (rows / height, columns / width);
        if tall == 0 || rows != tall * height || columns != wide * width {
            return None;
        }
        // The mean colour of each position's pixels.
        let colours = picture
            .clone()
            .reshape([batch * height, tall, width, wide * 3])
            .mean_dim(1)
            .reshape([positions, wide, 3])
            .mean_dim(1);
        let ones = Tensor::ones([positions, 1], (&latent.device(), DType::F32));
        let inputs = Tensor::cat(vec![latent.clone().reshape([positions, channels]), ones], 1);
        let normal = inputs.clone().transpose().matmul(inputs.clone());
        let target = inputs.transpose().matmul(colours.reshape([positions, 3]));
        let solution = solve(floats(normal), floats(target), channels + 1)?;
        let (factors, bias) = solution.split_at(channels);
        Some(LatentRgb {
            factors: factors.to_vec(),
            bias: bias[0],
        })
    }

    /// The picture of a diffusion model's latent `[batch, height, width, channels]`, at the
    /// latent's size: `[batch, height, width, 3]` from -1 to 1. `None` when the latent has other
    /// channels than the factors.
    pub fn decode(&self, latent: Tensor<4>) -> Option<Tensor<4>> {
        let [batch, height, width, channels] = latent.dims();
        if channels != self.factors.len() {
            return None;
        }
        let device = latent.device();
        let factors: Vec<f32> = self.factors.iter().flatten().copied().collect();
        let factors = TensorData::new(factors, [channels, 3]);
        let factors = Tensor::<2>::from_data(factors, (&device, DType::F32));
        let bias = TensorData::new(self.bias.to_vec(), [1, 3]);
        let bias = Tensor::<2>::from_data(bias, (&device, DType::F32));
        let rgb = latent
            .reshape([batch * height * width, channels])
            .matmul(factors)
            + bias;
        Some(rgb.clamp(-1.0, 1.0).reshape([batch, height, width, 3]))
    }
}

fn floats(tensor: Tensor<2>) -> Vec<f64> {
    let data = tensor.into_data().convert_dtype(DType::F64);
    let (words, _) = data.bytes().as_chunks::<8>();
    words.iter().map(|&b| f64::from_le_bytes(b)).collect()
}

/// Solves `a x = b` for a symmetric positive `a` of `n` by `n` and three columns of `b`, by
/// Gauss-Jordan elimination. `None` when `a` is singular.
fn solve(mut a: Vec<f64>, mut b: Vec<f64>, n: usize) -> Option<Vec<[f32; 3]>> {
    let largest = a.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    for i in 0..n {
        let pivot = a[i * n + i];
        let usable = pivot > largest * 1e-9;
        if !usable {
            return None;
        }
        for row in 0..n {
            let ratio = a[row * n + i] / pivot;
            if row == i || ratio == 0.0 {
                continue;
            }
            for k in 0..n {
                a[row * n + k] -= ratio * a[i * n + k];
            }
            for k in 0..3 {
                b[row * 3 + k] -= ratio * b[i * 3 + k];
            }
        }
    }
    let x = |i: usize, k: usize| (b[i * 3 + k] / a[i * n + i]) as f32;
    Some((0..n).map(|i| [x(i, 0), x(i, 1), x(i, 2)]).collect())
}
