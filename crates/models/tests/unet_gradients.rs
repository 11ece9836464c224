//! The gradients of a whole UNet against diffusers', by the names of its parameters, and what plain
//! gradient descent makes of the loss.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // helpers of tests are tests

mod unet_support;

use std::path::PathBuf;

use aquatint_models::unet::{Conditioning, UNet2DCondition, UNetConfig};
use aquatint_ops::{Device, NamedGradients, Params, Tensor, Trainable};
use aquatint_testkit::{Tensors, golden};
use burn::tensor::{DType, TensorData};
use unet_support::Checkpoint;

/// As `golden/ops_backward.py` draws.
fn random<const D: usize>(shape: [usize; D], seed: u32, device: &Device) -> Tensor<D> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let draw = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / u32::MAX as f32 * 2.0 - 1.0
    };
    let values: Vec<f32> = (0..shape.iter().product()).map(draw).collect();
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}

struct Run {
    unet: UNet2DCondition,
    size: [usize; 2],
    device: Device,
    references: Tensors,
    name: &'static str,
}

impl Run {
    fn new(name: &'static str, device: Device, trainable: &Trainable) -> Self {
        let (config, weights, prefix, size): (PathBuf, PathBuf, _, _) = match name {
            "sd1" => {
                let folder = golden("sd1/unet");
                let weights = folder.join("diffusion_pytorch_model.safetensors");
                (folder.join("config.json"), weights, "", [8, 12])
            }
            _ => {
                let at = |e: &str| golden("unet_variants").join(format!("{name}.{e}"));
                (at("json"), at("safetensors"), "model/", [13, 7])
            }
        };
        let config = UNetConfig::from_json(&std::fs::read_to_string(config).unwrap()).unwrap();
        let checkpoint = Checkpoint::read(weights, prefix);
        let params = Params::new(&checkpoint, &device).training(trainable);
        Run {
            unet: UNet2DCondition::load(&params, &config).unwrap(),
            size,
            device,
            references: Tensors::read(golden("unet_gradients.safetensors")).unwrap(),
            name,
        }
    }

    fn reference(&self, what: &str) -> &[f32] {
        self.references.get(&format!("{}/{what}", self.name)).f32()
    }

    /// The loss and its gradients.
    fn loss(&self, trainable: &Trainable) -> (f32, NamedGradients) {
        let ([h, w], config) = (self.size, self.unet.config());
        let x = random([2, h, w, config.in_channels], 1, &self.device);
        let text = random([2, 5, config.context_dim().unwrap()], 2, &self.device);
        let target = random([2, h, w, config.out_channels], 3, &self.device);
        let conditioning = Conditioning::new(text);
        let y = self.unet.forward(x, &[10.0, 700.0], &conditioning).unwrap();
        let loss = (y - target).powi_scalar(2).mean();
        let gradients = trainable.gradients(&self.unet, loss.backward());
        let value = loss.into_data().try_into_vec::<f32>().unwrap()[0];
        (value, gradients)
    }

    fn descend(mut self, trainable: &Trainable, gradients: &NamedGradients, rate: f32) -> Self {
        self.unet = trainable.update(self.unet, |name, weights| {
            for (w, g) in weights.iter_mut().zip(&gradients[name]) {
                *w -= rate * g;
            }
        });
        self
    }
}

/// Gradients are sums in f32 through some sixty layers: 1e-4 of a parameter's root mean square, and
/// for parameters that hardly matter 1e-6 of the largest one's.
fn equal_diffusers(run: &Run, trainable: &Trainable, gradients: &NamedGradients) {
    let rows = run.reference("gradients");
    assert_eq!(
        trainable.names(),
        gradients.keys().cloned().collect::<Vec<_>>()
    );
    assert_eq!(rows.len(), 5 * gradients.len());
    let rms = |row: &[f32], len: usize| row[0] / (len as f32).sqrt();
    let each = || gradients.iter().zip(rows.chunks(5));
    let largest = each().fold(0.0, |m: f32, ((_, g), row)| m.max(rms(row, g.len())));
    for ((name, gradient), row) in each() {
        let norm = gradient
            .iter()
            .map(|g| f64::from(*g).powi(2))
            .sum::<f64>()
            .sqrt() as f32;
        let limit = 1e-4 * rms(row, gradient.len()) + 1e-6 * largest;
        let norm_limit = limit * (gradient.len() as f32).sqrt();
        assert!(
            (norm - row[0]).abs() <= norm_limit,
            "{name}: norm {norm}, not {}",
            row[0]
        );
        for (j, want) in row[1..].iter().enumerate() {
            let found = gradient[(gradient.len() - 1) * j / 3];
            // An element may be some times as large as the root mean square.
            let limit = limit + 1e-4 * want.abs();
            assert!(
                (found - want).abs() <= limit,
                "{name} at sample {j}: {found}, not {want}"
            );
        }
    }
}

fn trains_as_diffusers(name: &'static str, device: Device) {
    let trainable = Trainable::all();
    let mut run = Run::new(name, device, &trainable);
    let rate = run.reference("rate")[0];
    let losses = run.reference("losses").to_vec();
    for (step, want) in losses.iter().enumerate() {
        let (loss, gradients) = run.loss(&trainable);
        assert!(
            (loss / want - 1.0).abs() < 1e-4,
            "step {step}: {loss}, not {want}"
        );
        if step == 0 {
            equal_diffusers(&run, &trainable, &gradients);
        }
        run = run.descend(&trainable, &gradients, rate);
    }
    assert!(losses.windows(2).all(|pair| pair[1] < pair[0]));
}

#[test]
fn sd1_trains_as_diffusers() {
    trains_as_diffusers("sd1", Device::flex().autodiff());
}

#[test]
fn sd1_trains_as_diffusers_when_values_are_computed_again() {
    let device = Device::flex().autodiff().gradient_checkpointing();
    trains_as_diffusers("sd1", device);
}

#[test]
fn uneven_sizes_and_rare_options_train_as_in_diffusers() {
    trains_as_diffusers("uneven", Device::flex().autodiff());
}

fn frozen_parameters_change_no_other(device: Device) {
    let some = Trainable::new(|name| name.contains("attn2.to_k") || name.ends_with("norm2.bias"));
    let run = Run::new("sd1", device.clone(), &some);
    let (loss, gradients) = run.loss(&some);
    assert_eq!(some.names(), gradients.keys().cloned().collect::<Vec<_>>());
    let all = Trainable::all();
    let (same_loss, all_gradients) = Run::new("sd1", device, &all).loss(&all);
    assert_eq!(loss, same_loss);
    assert!(!gradients.is_empty() && gradients.len() < all_gradients.len());
    for (name, gradient) in &gradients {
        assert_eq!(gradient, &all_gradients[name], "{name}");
    }
    let mut names = 0;
    some.visit(&run.unet, |name, shape, values| {
        assert_eq!(values.len(), shape.iter().product::<usize>());
        assert_eq!(values.len(), gradients[name].len());
        names += 1;
    });
    assert_eq!(names, gradients.len());
}

#[test]
fn frozen_parameters_change_no_others_gradient() {
    frozen_parameters_change_no_other(Device::flex().autodiff());
    // Values that depend on no trained parameter cannot be computed again, and are kept.
    frozen_parameters_change_no_other(Device::flex().autodiff().gradient_checkpointing());
}
