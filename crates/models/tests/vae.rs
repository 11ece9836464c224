//! The autoencoder against diffusers, stage by stage, on tiny checkpoints.

mod unet_support;

use std::path::Path;

use aquatint_models::vae::{AutoencoderKl, Tiling, VaeConfig};
use aquatint_ops::{Params, Tensor};
use aquatint_testkit::{Tensors, assert_close, golden, model};
use unet_support::{Checkpoint, Only, Stages, device, image, values};

/// Relative to the largest value of a stage. f32 sums in another order differ by about 1e-6.
const TOLERANCE: f64 = 2e-5;

fn load_vae(folder: &Path) -> AutoencoderKl {
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let config = VaeConfig::from_json(&config).unwrap();
    let weights = folder.join("diffusion_pytorch_model.safetensors");
    let checkpoint = Checkpoint::read(weights, "");
    AutoencoderKl::load(&Params::new(&checkpoint, &device()), &config).unwrap()
}

fn every_stage(generation: &str) {
    let stages = Tensors::read(golden(generation).join("stages.safetensors")).unwrap();
    let vae = load_vae(&golden(generation).join("vae"));
    let mut seen = Stages::new(&stages, "vae/", TOLERANCE);
    let picture = vae
        .decode_traced(image(stages.get("vae/in/latent")), &mut |name, y| {
            seen.check(name, y);
        })
        .unwrap();
    let decoded = stages.get("vae/decoded").channels_last();
    assert_close("decoded", &values(picture), &decoded, TOLERANCE);

    let posterior = vae
        .encode_traced(image(stages.get("vae/in/image")), &mut |name, y| {
            seen.check(name, y);
        })
        .unwrap();
    seen.finish(|name| name.contains("coder") || name.contains("quant"));
    let moments = stages.get("vae/moments").channels_last();
    let means: Vec<f32> = (moments.f32().chunks(8))
        .flat_map(|m| m[..4].to_vec())
        .collect();
    let means = aquatint_testkit::Tensor::from_f32(&posterior.mean.dims(), means);
    assert_close("mean", &values(posterior.mean), &means, TOLERANCE);
}

#[test]
fn sd1_equals_diffusers_at_every_stage() {
    every_stage("sd1");
}

#[test]
fn sd2_equals_diffusers_at_every_stage() {
    every_stage("sd2");
}

#[test]
fn sdxl_equals_diffusers_at_every_stage() {
    every_stage("sdxl");
}

#[test]
fn a_decoder_alone_decodes_and_says_that_it_cannot_encode() {
    let folder = golden("sd1").join("vae");
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let config = VaeConfig::from_json(&config).unwrap();
    let checkpoint = Checkpoint::read(folder.join("diffusion_pytorch_model.safetensors"), "");
    let decoder = Only(checkpoint, |name| !name.starts_with("encoder"));
    let vae = AutoencoderKl::load(&Params::new(&decoder, &device()), &config).unwrap();
    let z = Tensor::<4>::zeros([1, 4, 3, 4], &device());
    assert!(vae.decode(z).is_ok());
    let picture = Tensor::<4>::zeros([1, 32, 32, 3], &device());
    let error = vae.encode(picture).unwrap_err().to_string();
    assert!(error.contains("the encoder is absent"), "{error}");
}

#[test]
fn inputs_that_do_not_fit_are_errors() {
    let vae = load_vae(&golden("sd1").join("vae"));
    for dims in [[1, 4, 4, 3], [0, 4, 4, 4], [1, 0, 4, 4]] {
        let z = Tensor::<4>::zeros(dims, &device());
        assert!(vae.decode(z.clone()).is_err(), "{dims:?}");
        assert!(vae.decode_tiled(z, Tiling::default()).is_err(), "{dims:?}");
    }
    for dims in [[1, 32, 32, 4], [1, 1, 32, 3]] {
        let picture = Tensor::<4>::zeros(dims, &device());
        assert!(vae.encode(picture).is_err(), "{dims:?}");
    }
    let z = Tensor::<4>::zeros([1, 8, 8, 4], &device());
    for (tile, overlap) in [(0, 0), (8, 0), (16, 9), (usize::MAX, 2)] {
        let tiling = Tiling { tile, overlap };
        assert!(vae.decode_tiled(z.clone(), tiling).is_err());
    }
}

/// A latent that varies slowly, as pictures do, with some noise on it.
fn smooth_latent(height: usize, width: usize) -> Tensor<4> {
    let mut state = 1u32;
    let mut noise = || {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let mut z = Vec::new();
    for y in 0..height {
        for x in 0..width {
            for c in 0..4 {
                let (fy, fx) = (y as f32 / height as f32, x as f32 / width as f32);
                let wave = (3.0 * fx + 2.0 * fy * c as f32 + c as f32).sin();
                z.push(wave + 0.3 * noise());
            }
        }
    }
    let data = burn::tensor::TensorData::new(z, [1, height, width, 4]);
    Tensor::from_data(data, (&device(), burn::tensor::DType::F32))
}

/// The largest difference, and the largest jump across a line between two tiles beyond what the
/// whole decode has there.
fn difference(whole: &[f32], tiled: &[f32]) -> (f32, f64) {
    let worst = whole
        .iter()
        .zip(tiled)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    let mean: f64 = whole
        .iter()
        .zip(tiled)
        .map(|(a, b)| f64::from((a - b).abs()))
        .sum::<f64>()
        / whole.len() as f64;
    (worst, mean)
}

#[test]
fn tiles_and_the_whole_give_the_same_picture() {
    for folder in [golden("sd1").join("vae"), model("default").join("vae")] {
        if !folder.exists() {
            continue;
        }
        let vae = load_vae(&folder);
        for (size, tile) in [([48, 32], 24), ([40, 70], 32)] {
            let z = smooth_latent(size[0], size[1]);
            let whole = values(vae.decode(z.clone()).unwrap());
            let tiling = Tiling {
                tile,
                overlap: tile / 4,
            };
            let tiled = values(vae.decode_tiled(z, tiling).unwrap());
            let (worst, mean) = difference(&whole, &tiled);
            println!(
                "{} {size:?} in {tile}: worst {worst:.4}, mean {mean:.5}",
                folder.display()
            );
        }
    }
}
