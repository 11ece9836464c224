//! Random operands, and a case's output and gradients.

use aquatint_ops::burn::tensor::{DType, TensorData};
use aquatint_ops::{Device, Tensor};

use super::cases::{Case, Path};

/// Uniform in -1..1; `golden/ops_backward.py` draws the same.
pub fn random(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as f32 / u32::MAX as f32 * 2.0 - 1.0
        })
        .collect()
}

pub fn flat(values: &[f32], device: &Device) -> Tensor<1> {
    let data = TensorData::new(values.to_vec(), [values.len()]);
    Tensor::from_data(data, (device, DType::F32))
}

pub fn host<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().try_into_vec::<f32>().expect("f32")
}

/// A case's operands: of the seeds 1, 2, ...
pub fn operands(case: &Case) -> Vec<Vec<f32>> {
    let shapes = case.shapes.iter().enumerate();
    shapes
        .map(|(i, shape)| random(shape.iter().product(), i as u32 + 1))
        .collect()
}

/// What a case gives on a device, for the upstream gradient of seed 100.
pub struct Outcome {
    pub y: Vec<f32>,
    /// Of those operands that are `wanted`.
    pub gradients: Vec<Option<Vec<f32>>>,
}

pub fn run(case: &Case, device: &Device, path: Path, wanted: &[bool]) -> Outcome {
    let leaves: Vec<Tensor<1>> = operands(case)
        .iter()
        .zip(wanted)
        .map(|(values, &wanted)| flat(values, device).set_require_grad(wanted))
        .collect();
    let y = (case.run)(&leaves, path);
    let dy = flat(&random(y.dims()[0], 100), device);
    let grads = (y.clone() * dy).sum().backward();
    Outcome {
        y: host(y),
        gradients: leaves.iter().map(|x| x.grad(&grads).map(host)).collect(),
    }
}

/// Asserts that the largest difference is below `tolerance` of the largest value.
#[track_caller]
pub fn close(what: &str, got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len(), "{what}");
    let scale = want.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(
            (g - w).abs() <= tolerance * scale,
            "{what} at {i}: {g} against {w} (largest {scale})"
        );
    }
}
