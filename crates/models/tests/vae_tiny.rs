//! The tiny autoencoder against diffusers, in both layouts, and the linear preview.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // helpers of tests are tests

mod unet_support;

use aquatint_models::vae::{AutoencoderTiny, LatentRgb, TinyConfig};
use aquatint_ops::{Params, Tensor};
use aquatint_testkit::{Tensors, assert_close, golden};
use unet_support::{Checkpoint, Only, Renamed, device, image, values};

/// Relative to the largest value.
const TOLERANCE: f64 = 2e-5;

fn checkpoint() -> Checkpoint {
    Checkpoint::read(
        golden("taesd").join("diffusion_pytorch_model.safetensors"),
        "",
    )
}

fn config() -> TinyConfig {
    let json = std::fs::read_to_string(golden("taesd").join("config.json")).unwrap();
    TinyConfig::from_json(&json).unwrap()
}

fn equals_diffusers(tiny: &AutoencoderTiny) {
    let stages = Tensors::read(golden("taesd").join("stages.safetensors")).unwrap();
    for (input, output) in [
        ("in/latent", "decoded"),
        ("in/latent_large", "decoded_large"),
    ] {
        let got = tiny.decode(image(stages.get(input))).unwrap();
        let want = stages.get(output).channels_last();
        assert_eq!(got.dims().as_slice(), want.shape());
        assert_close(output, &values(got), &want, TOLERANCE);
    }
    let got = tiny.encode(image(stages.get("in/image"))).unwrap();
    let want = stages.get("encoded").channels_last();
    assert_close("encoded", &values(got), &want, TOLERANCE);
}

#[test]
fn it_equals_diffusers() {
    let checkpoint = checkpoint();
    let tiny = AutoencoderTiny::load(&Params::new(&checkpoint, &device()), &config()).unwrap();
    equals_diffusers(&tiny);
}

/// The number that leads a name of a `Sequential`, and the rest.
fn split(name: &str) -> (usize, &str) {
    let (number, rest) = name.split_once('.').unwrap();
    (number.parse().unwrap(), rest)
}

#[test]
fn the_original_layout_is_the_same_model() {
    // The original's decoder begins with a layer that has no parameters.
    let decoder = Renamed(checkpoint(), |name| match split(name) {
        (0, rest) => format!("absent.{rest}"),
        (number, rest) => format!("decoder.layers.{}.{rest}", number - 1),
    });
    let encoder = Renamed(checkpoint(), |name| format!("encoder.layers.{name}"));
    let decoder = Params::new(&decoder, &device());
    let encoder = Params::new(&encoder, &device());
    let tiny = AutoencoderTiny::load_parts(&decoder, Some(&encoder), &config()).unwrap();
    equals_diffusers(&tiny);
}

#[test]
fn a_decoder_alone_decodes_and_says_that_it_cannot_encode() {
    let decoder = Only(checkpoint(), |name| !name.starts_with("encoder"));
    let tiny = AutoencoderTiny::load(&Params::new(&decoder, &device()), &config()).unwrap();
    assert!(tiny.decode(Tensor::zeros([1, 2, 3, 4], &device())).is_ok());
    assert!(tiny.decode(Tensor::zeros([1, 2, 3, 5], &device())).is_err());
    let error = tiny.encode(Tensor::zeros([1, 16, 16, 3], &device()));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("the encoder is absent"), "{error}");
}

#[test]
fn configurations_that_cannot_run_are_refused() {
    for json in [
        r#"{"act_fn": "gelu"}"#,
        r#"{"upsampling_scaling_factor": 3}"#,
        r#"{"encoder_block_out_channels": [64, 64, 64, 32]}"#,
        r#"{"num_decoder_blocks": [3, 3]}"#,
        r#"{"num_decoder_blocks": []}"#,
        r#"{"latent_channels": 0}"#,
    ] {
        assert!(TinyConfig::from_json(json).is_err(), "{json}");
    }
    assert_eq!(TinyConfig::from_json("{}").unwrap(), TinyConfig::default());
}

#[test]
fn the_linear_preview_applies_its_factors() {
    let latent = [0.5f32, -1.0, 2.0, 0.25];
    let tensor = Tensor::<1>::from_floats(latent, &device()).reshape([1, 1, 1, 4]);
    let preview = LatentRgb::sdxl();
    let rgb = values(preview.decode(tensor).unwrap());
    for (k, got) in rgb.iter().enumerate() {
        let want: f32 = (0..4).map(|c| latent[c] * preview.factors[c][k]).sum();
        assert!((got - want - preview.bias[k]).abs() < 1e-6);
    }
    let other = Tensor::zeros([1, 2, 2, 16], &device());
    assert!(preview.decode(other).is_none());
}

#[test]
fn a_fit_finds_the_factors_of_a_linear_decoder() {
    let known = LatentRgb {
        factors: vec![[0.1, -0.2, 0.05], [0.0, 0.1, 0.2], [-0.1, 0.1, 0.0]],
        bias: [0.1, 0.0, -0.1],
    };
    let latent: Vec<f32> = (0..2 * 6 * 5 * 3)
        .map(|i| ((i * i * 7919) % 1009) as f32 / 504.0 - 1.0)
        .collect();
    let latent = Tensor::<1>::from_floats(latent.as_slice(), &device()).reshape([2, 6, 5, 3]);
    // Each position four times as high and twice as wide.
    let picture = known
        .decode(latent.clone())
        .unwrap()
        .reshape([12, 1, 5, 3])
        .repeat_dim(1, 4)
        .reshape([2 * 24 * 5, 1, 3])
        .repeat_dim(1, 2)
        .reshape([2, 24, 10, 3]);
    let fitted = LatentRgb::fit(&latent, &picture).unwrap();
    for (got, want) in fitted.factors.iter().zip(&known.factors) {
        for (a, b) in got.iter().zip(want) {
            assert!((a - b).abs() < 1e-4, "{fitted:?}");
        }
    }
    for (a, b) in fitted.bias.iter().zip(&known.bias) {
        assert!((a - b).abs() < 1e-4, "{fitted:?}");
    }
    let flat = Tensor::zeros([2, 6, 5, 3], &device());
    assert!(LatentRgb::fit(&flat, &picture).is_none());
    assert!(LatentRgb::fit(&latent, &flat.narrow(1, 0, 5)).is_none());
}
