//! The transformer families, stage by stage, against diffusers and transformers, on the tiny checkpoints of
//! `golden/flow`.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use aquatint_models::dit::TextConditioning;
use aquatint_models::flux::{Flux, FluxConfig};
use aquatint_models::mmdit::{Mmdit, MmditConfig};
use aquatint_models::t5::{T5Config, T5Encoder, T5Mask, T5Tokenizer};
use aquatint_models::text::{ClipSkip, ClipTextConfig, ClipTextEncoder, ClipTokenizer};
use aquatint_models::vae::{AutoencoderKl, VaeConfig};
use aquatint_models::{Checkpoint, CheckpointSource, Location, OpenOptions, keys::Layout};
use aquatint_ops::{Device, Params, Tensor};
use aquatint_testkit::{Tensors, compare, flow_folder, golden};
use aquatint_weights::WeightSet;
use burn::tensor::TensorData;

/// What is asked is 1e-4 of the largest value; f32 sums in another order than PyTorch's give some 1e-6.
const TOLERANCE: f64 = 2e-5;

fn device() -> Device {
    Device::flex()
}

fn stages(family: &str) -> Tensors {
    Tensors::read(golden(&format!("flow/{family}/stages.safetensors"))).unwrap()
}

fn source(folder: &Path, stem: &str) -> CheckpointSource {
    let set = WeightSet::open_component(folder, &[stem], None).unwrap();
    CheckpointSource::new(set, Layout::diffusers(), None)
}

fn json(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("config.json")).unwrap()
}

#[track_caller]
fn assert_close(what: &str, found: &[f32], want: &[f32]) {
    assert_eq!(found.len(), want.len(), "{what}: lengths");
    let found = compare(found, want);
    assert!(found.relative < TOLERANCE, "{what}: {:.2e}", found.relative);
}

fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    tensor.clone().into_data().iter::<f32>().collect()
}

fn tensor<const D: usize>(stages: &Tensors, name: &str) -> Tensor<D> {
    let found = stages.get(name);
    let shape: [usize; D] = found.shape().try_into().unwrap();
    Tensor::from_data(TensorData::new(found.f32().to_vec(), shape), &device())
}

/// NCHW of a golden as channels last.
fn latents(stages: &Tensors, name: &str) -> Tensor<4> {
    tensor::<4>(stages, name).permute([0, 2, 3, 1])
}

fn nchw(tensor: &Tensor<4>) -> Vec<f32> {
    values(&tensor.clone().permute([0, 3, 1, 2]))
}

#[test]
fn a_thousand_prompts_have_the_tokens_of_transformers() {
    let folder = golden("flow/parts/tokenizer_3");
    let text = std::fs::read_to_string(golden("flow/t5_tokens.json")).unwrap();
    let rows: Vec<(String, Vec<u32>)> = serde_json::from_str(&text).unwrap();
    assert_eq!(rows.len(), 1000);
    let json = T5Tokenizer::from_path(folder.join("tokenizer.json")).unwrap();
    let spiece = T5Tokenizer::from_path(folder.join("spiece.model")).unwrap();
    for (prompt, want) in &rows {
        for tokenizer in [&json, &spiece] {
            let mut ids = tokenizer.encode(prompt).unwrap();
            ids.push(tokenizer.eos());
            assert_eq!(&ids, want, "{prompt:?}");
        }
        for length in [77, 256, 512] {
            let tokens = json.tokens(prompt, length).unwrap();
            assert_eq!(tokens.ids.len(), length);
            let kept = want.len().min(length);
            assert_eq!(tokens.length, kept);
            assert_eq!(tokens.ids[..kept - 1], want[..kept - 1]);
            assert_eq!(tokens.ids[kept - 1], json.eos());
            assert!(tokens.ids[kept..].iter().all(|&id| id == json.pad()));
            assert_eq!(tokens.dropped.is_some(), want.len() > length, "{prompt:?}");
        }
    }
}

#[test]
fn t5_equals_transformers() {
    let folder = golden("flow/parts/text_encoder_3");
    let config = T5Config::from_json(&json(&folder)).unwrap();
    let source = source(&folder, "model");
    let t5 = T5Encoder::load(&Params::new(&source, &device()), &config).unwrap();
    assert!(source.report().unused.is_empty(), "{:?}", source.report());
    let stages = stages("sd3");
    let tokenizer = T5Tokenizer::from_folder(golden("flow/parts/tokenizer_3")).unwrap();
    let tokens = tokenizer
        .tokens(
            "a photograph of an astronaut riding a horse on the moon",
            80,
        )
        .unwrap();
    let want: Vec<u32> = stages
        .get("t5/tokens")
        .i64()
        .iter()
        .map(|&id| id as u32)
        .collect();
    assert_eq!(tokens.ids, want);
    let ids = [tokens.ids];
    let mut layer = 0;
    let last = t5
        .forward_traced(&ids, T5Mask::All, &mut |x| {
            // transformers gives the last of them after the final norm.
            if layer < config.num_layers {
                let want = stages.get(&format!("t5/hidden{layer}"));
                assert_close(&format!("hidden {layer}"), &values(x), want.f32());
            }
            layer += 1;
        })
        .unwrap();
    assert_eq!(layer, config.num_layers + 1);
    let want = stages.get("t5/last_hidden_state");
    assert_close("last", &values(&last), want.f32());
    let masked = t5.forward(&ids, T5Mask::Lengths(&[tokens.length])).unwrap();
    assert_close("masked", &values(&masked), stages.get("t5/masked").f32());
}

#[test]
fn clip_encoders_with_projections_equal_transformers() {
    let stages = stages("sd3");
    for name in ["text_encoder", "text_encoder_2"] {
        let folder = golden(&format!("flow/parts/{name}"));
        let config = ClipTextConfig::from_json(&json(&folder)).unwrap();
        let source = source(&folder, "model");
        let clip = ClipTextEncoder::load(&Params::new(&source, &device()), &config).unwrap();
        let tokenizer = golden(&format!(
            "flow/parts/{}",
            name.replace("text_encoder", "tokenizer")
        ));
        let tokenizer = ClipTokenizer::from_folder(tokenizer).unwrap();
        let tokens = tokenizer
            .tokens("a photograph of an astronaut riding a horse on the moon")
            .unwrap();
        let output = clip.forward(&[tokens.ids], ClipSkip::PENULTIMATE).unwrap();
        let want = format!("{name}/hidden{}", config.num_hidden_layers - 1);
        assert_close(&want, &values(&output.hidden), stages.get(&want).f32());
        let want = stages.get(&format!("{name}/pooled"));
        assert_close("pooled", &values(&output.text_embeds.unwrap()), want.f32());
    }
}

fn text(stages: &Tensors) -> TextConditioning {
    TextConditioning {
        context: tensor(stages, "transformer/in/context"),
        pooled: tensor(stages, "transformer/in/pooled"),
    }
}

fn times(stages: &Tensors) -> Vec<f64> {
    let times = stages.get("transformer/in/timestep");
    times.f32().iter().map(|&t| f64::from(t)).collect()
}

#[track_caller]
fn show(stages: &Tensors, name: &str, x: &Tensor<3>, context: Option<&Tensor<3>>) {
    let picture = format!("transformer/{name}/image");
    match stages.contains(&picture) {
        true => assert_close(name, &values(x), stages.get(&picture).f32()),
        false => {
            let want = stages.get(&format!("transformer/{name}"));
            assert_close(name, &values(x), want.f32());
        }
    }
    if let Some(context) = context {
        let want = stages.get(&format!("transformer/{name}/context"));
        assert_close(name, &values(context), want.f32());
    }
}

#[test]
fn every_block_of_stable_diffusion_3_equals_diffusers() {
    for family in ["sd3", "sd35_medium", "sd35_large"] {
        let folder = golden(&format!("flow/{family}/transformer"));
        let config = MmditConfig::from_json(&json(&folder)).unwrap();
        let source = source(&folder, "diffusion_pytorch_model");
        let model = Mmdit::load(&Params::new(&source, &device()), &config).unwrap();
        assert!(source.report().unused.is_empty(), "{:?}", source.report());
        let stages = stages(family);
        let (x, times, text) = (
            latents(&stages, "transformer/in/sample"),
            times(&stages),
            text(&stages),
        );
        let mut shown = 0;
        let y = model
            .forward_traced(x.clone(), &times, &text, &[], &mut |name, x, context| {
                show(&stages, name, x, context);
                shown += 1;
            })
            .unwrap();
        assert_eq!(shown, 3 + config.layers());
        assert_close(family, &nchw(&y), stages.get("transformer/out").f32());
        if family == "sd35_medium" {
            let y = model.forward(x, &times, &text, &[1]).unwrap();
            assert_close(
                "without block 1",
                &nchw(&y),
                stages.get("transformer/skip_1").f32(),
            );
        }
    }
}

#[test]
fn every_block_of_flux_equals_diffusers() {
    for family in ["flux_dev", "flux_schnell"] {
        let folder = golden(&format!("flow/{family}/transformer"));
        let config = FluxConfig::from_json(&json(&folder)).unwrap();
        let source = source(&folder, "diffusion_pytorch_model");
        let model = Flux::load(&Params::new(&source, &device()), &config).unwrap();
        assert!(source.report().unused.is_empty(), "{:?}", source.report());
        let stages = stages(family);
        let (x, times, text) = (
            latents(&stages, "transformer/in/sample"),
            times(&stages),
            text(&stages),
        );
        let mut shown = 0;
        let y = model
            .forward_traced(x, &times, 3.5, &text, &mut |name, x, context| {
                show(&stages, name, x, context);
                shown += 1;
            })
            .unwrap();
        assert_eq!(shown, 2 + config.double_blocks + config.single_blocks);
        assert_close(family, &nchw(&y), stages.get("transformer/out").f32());
    }
}

#[test]
fn the_shifted_autoencoder_equals_diffusers() {
    let folder = golden("flow/parts/vae");
    let config = VaeConfig::from_json(&json(&folder)).unwrap();
    let source = source(&folder, "diffusion_pytorch_model");
    let vae = AutoencoderKl::load(&Params::new(&source, &device()), &config).unwrap();
    assert!(source.report().unused.is_empty(), "{:?}", source.report());
    let stages = stages("sd3");
    let z = config.unscale(latents(&stages, "vae/in/latent"));
    let picture = vae.decode(z).unwrap();
    assert_close("decoded", &nchw(&picture), stages.get("vae/decoded").f32());
}

#[test]
fn folders_are_recognised_with_their_defaults() {
    let dir = tempfile::tempdir().unwrap();
    for (family, id, steps, guidance) in [
        ("sd3", "sd3", 28, 7.0),
        ("sd35_medium", "sd3.5-medium", 40, 4.5),
        ("sd35_large", "sd3.5-large", 28, 3.5),
        ("flux_dev", "flux-dev", 28, 3.5),
        ("flux_schnell", "flux-schnell", 4, 0.0),
    ] {
        let path = flow_folder(family, dir.path()).unwrap();
        let model = Checkpoint::open(&Location::Path(path), &OpenOptions::default()).unwrap();
        assert_eq!(model.family.id, id);
        let defaults = model.spec.defaults;
        assert_eq!(
            (defaults.steps, defaults.guidance),
            (steps, guidance),
            "{family}"
        );
        assert_eq!(model.default_sampler(), "euler");
        assert!(model.t5.is_some());
        let size = if family.starts_with("flux") {
            1024
        } else {
            128
        };
        assert_eq!(model.default_size(), size);
    }
}

#[test]
fn costs_are_those_of_the_published_models() {
    // Multiply-adds a token: the weights that it meets.
    let billion = |n: u64| n as f64 / 1e9;
    let tokens = 256;
    let t5 = T5Config::xxl().cost(tokens);
    assert!(
        (billion(t5.linear) / tokens as f64 - 4.6).abs() < 0.1,
        "{t5:?}"
    );
    let flux = FluxConfig::dev().cost(1, 128, 128, 512);
    let per_token = billion(flux.linear) / (4096.0 + 512.0);
    // Of a double block's weights a token sees the half.
    assert!((6.0..7.0).contains(&per_token), "{per_token}");
    let one = MmditConfig::sd35_medium().cost(1, 128, 128, 333);
    let two = MmditConfig::sd35_medium().cost(2, 128, 128, 333);
    assert_eq!(two.multiply_adds(), 2 * one.multiply_adds());
    let medium = billion(one.linear) / (4096.0 + 333.0);
    assert!((0.7..1.3).contains(&medium), "{medium}");
}
