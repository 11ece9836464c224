//! Low-rank additions against diffusers' `load_lora_weights`, stage by stage; merged and applied; files that do not fit.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // helpers of tests are tests

mod unet_support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use aquatint_models::lora::{Component, Lora, LoraFile, MergeOptions, merge};
use aquatint_models::text::{Conditioner, EncodeOptions, Encoded, Negative, Syntax, TextEncoder};
use aquatint_models::unet::{AddedConditioning, Conditioning};
use aquatint_models::{Checkpoint, Location, ModelError, OpenOptions};
use aquatint_ops::Tensor;
use aquatint_testkit::{Tensors, assert_close, golden, relative_error, single_file};
use aquatint_weights::{DType, TensorView, WeightSet, safetensors};
use unet_support::{Stages, device, floats, image, to_device, values};

/// Relative to the largest value of a stage, as without additions: f32 sums in another order.
const TOLERANCE: f64 = 2e-5;
/// Merged and applied: two orders of the same f32 sums.
const MERGED: f64 = 1e-5;

const PROMPT: &str = "a photograph of an astronaut riding a horse on the moon";
const NEGATIVE: &str = "blurry, low quality, deformed";

fn lora(name: &str, weight: f64) -> Lora {
    Lora {
        path: golden(&format!("lora/{name}.safetensors")),
        weight,
    }
}

fn open(path: impl Into<PathBuf>, loras: &[Lora]) -> Result<Checkpoint, ModelError> {
    let options = OpenOptions {
        loras: loras.to_vec(),
        ..OpenOptions::default()
    };
    Checkpoint::open(&Location::Path(path.into()), &options)
}

fn encode(model: &Checkpoint) -> Encoded {
    let mut encoders: Vec<TextEncoder> = model
        .load_text(&device())
        .unwrap()
        .into_iter()
        .map(|(tokenizer, encoder)| TextEncoder::new(tokenizer, encoder).unwrap())
        .collect();
    let conditioner = match encoders.len() {
        1 => Conditioner::stable_diffusion(encoders.remove(0)),
        _ => Conditioner::sdxl(encoders, true).unwrap(),
    };
    let options = EncodeOptions {
        syntax: Syntax::Plain,
        clip_skip: None,
    };
    conditioner
        .encode(PROMPT, Negative::Text(NEGATIVE), options)
        .unwrap()
}

/// The UNet's output for the inputs of the family's stages, entry 0.
fn predict(model: &Checkpoint, trace: &mut dyn FnMut(&str, &Tensor<4>)) -> Vec<f32> {
    let family = model.family.id;
    let inputs = Tensors::read(golden(&format!("{family}/stages.safetensors"))).unwrap();
    let input = |name: &str| inputs.get(&format!("unet/in/{name}"));
    let text: Tensor<3> = to_device(input("encoder_hidden_states"));
    let mut conditioning = Conditioning::new(text.narrow(0, 0, 1));
    if model.network.config.unet().unwrap().added.is_some() {
        let embeds: Tensor<2> = to_device(input("text_embeds"));
        conditioning = conditioning.with_added(AddedConditioning {
            text_embeds: embeds.narrow(0, 0, 1),
            time_ids: vec![floats(input("time_ids"))[..6].to_vec()],
        });
    }
    let unet = model.load_unet(&device()).unwrap();
    let x = image(input("sample")).narrow(0, 0, 1);
    let t = floats(input("timestep"))[0];
    let y = unet
        .forward_traced(x, &[t], &unet.prepare(conditioning).unwrap(), trace)
        .unwrap();
    values(y)
}

fn equals_diffusers(case: &str, loras: &[Lora]) {
    let family = case.split('_').next().unwrap();
    let model = open(golden(family), loras).unwrap();
    for added in &model.loras {
        println!("{case}: {added:?}");
    }
    let references = Tensors::read(golden("lora/references.safetensors")).unwrap();
    let prefix = format!("{case}/unet/");
    let mut seen = Stages::new(&references, &prefix, TOLERANCE);
    let y = predict(&model, &mut |stage, y| seen.check(stage, y));
    seen.finish(|name| name != "out");
    let want = references.get(&format!("{case}/unet/out")).channels_last();
    assert_close(&format!("{case}/unet/out"), &y, &want, TOLERANCE);
    let encoded = encode(&model);
    let stage = format!("{case}/prompt_embeds");
    let got = values(encoded.positive.embeddings);
    assert_close(&stage, &got, references.get(&stage), TOLERANCE);
    let stage = format!("{case}/pooled");
    if references.contains(&stage) {
        let got = values(encoded.positive.pooled.unwrap());
        assert_close(&stage, &got, references.get(&stage), TOLERANCE);
    }
}

#[test]
fn kohyas_layout_equals_diffusers() {
    equals_diffusers("sd1_kohya", &[lora("sd1_kohya", 1.0)]);
    equals_diffusers("sdxl_kohya", &[lora("sdxl_kohya", 1.0)]);
}

#[test]
fn diffusers_layouts_equal_diffusers() {
    equals_diffusers("sd1_diffusers", &[lora("sd1_diffusers", 1.0)]);
    equals_diffusers("sd1_processor", &[lora("sd1_processor", 1.0)]);
    equals_diffusers("sdxl_diffusers", &[lora("sdxl_diffusers", 1.0)]);
}

#[test]
fn two_files_with_weights_equal_diffusers() {
    equals_diffusers(
        "sd1_both",
        &[lora("sd1_kohya", 0.8), lora("sd1_diffusers", -0.5)],
    );
}

#[test]
fn nothing_is_added_with_a_weight_of_zero() {
    let with = predict(
        &open(golden("sd1"), &[lora("sd1_kohya", 0.0)]).unwrap(),
        &mut |_, _| {},
    );
    let without = predict(&open(golden("sd1"), &[]).unwrap(), &mut |_, _| {});
    assert_eq!(with, without);
}

/// The single file has other names, a fused query, key and value, and a transposed projection.
#[test]
fn a_single_file_is_added_to_as_its_folder_is() {
    let dir = tempfile::tempdir().unwrap();
    for (family, name) in [("sd1", "sd1_kohya"), ("sdxl", "sdxl_diffusers")] {
        let file = single_file(family, dir.path()).unwrap();
        let [one, two] = [file, golden(family)].map(|p| open(p, &[lora(name, 1.0)]).unwrap());
        assert_eq!(one.loras[0].layers, two.loras[0].layers);
        let [a, b] = [&one, &two].map(|m| predict(m, &mut |_, _| {}));
        assert!(relative_error(&a, &b) < MERGED, "{family}");
    }
}

fn merged_into(model: &Path, loras: &[Lora], out: &Path, dtype: Option<DType>) {
    let options = OpenOptions {
        loras: loras.to_vec(),
        ..OpenOptions::default()
    };
    let how = MergeOptions {
        dtype,
        ..MergeOptions::default()
    };
    merge(&Location::Path(model.to_owned()), &options, out, &how).unwrap();
}

fn same_as_applied(applied: &Checkpoint, merged: &Checkpoint, tolerance: f64) {
    let [a, b] = [applied, merged].map(|m| predict(m, &mut |_, _| {}));
    let unet = relative_error(&b, &a);
    let [a, b] = [applied, merged].map(|m| values(encode(m).positive.embeddings));
    let text = relative_error(&b, &a);
    println!("merged beside applied: UNet {unet:.2e}, text {text:.2e}");
    assert!(
        unet < tolerance && text < tolerance,
        "{unet:.2e}, {text:.2e}"
    );
}

#[test]
fn merging_equals_applying() {
    let dir = tempfile::tempdir().unwrap();
    for (case, family, loras) in [
        ("one", "sd1", vec![lora("sd1_kohya", 0.7)]),
        (
            "two",
            "sd1",
            vec![lora("sd1_kohya", 0.8), lora("sd1_diffusers", -0.5)],
        ),
        ("xl", "sdxl", vec![lora("sdxl_kohya", 1.0)]),
    ] {
        let file = single_file(family, dir.path()).unwrap();
        for (model, out) in [
            (golden(family), dir.path().join(case)),
            (file, dir.path().join(format!("{case}.safetensors"))),
        ] {
            merged_into(&model, &loras, &out, Some(DType::F32));
            let applied = open(&model, &loras).unwrap();
            same_as_applied(&applied, &open(&out, &[]).unwrap(), MERGED);
        }
    }
}

#[test]
fn a_merged_model_keeps_its_types_and_files() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("m");
    let loras = [lora("sd1_kohya", 1.0)];
    merged_into(&golden("sd1"), &loras, &out, None);
    let set = WeightSet::open(out.join("unet/diffusion_pytorch_model.safetensors")).unwrap();
    assert!(set.iter().all(|(_, info)| info.dtype == DType::F16));
    for name in [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/merges.txt",
    ] {
        assert!(out.join(name).is_file(), "{name}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    // Rounding weights to f16 moves outputs by about its precision, 5e-4.
    let applied = open(golden("sd1"), &loras).unwrap();
    same_as_applied(&applied, &open(&out, &[]).unwrap(), 5e-3);
    // What is there is not written over unless asked.
    let options = OpenOptions {
        loras: loras.to_vec(),
        ..OpenOptions::default()
    };
    let location = Location::Path(golden("sd1"));
    let mut how = MergeOptions::default();
    let error = merge(&location, &options, &out, &how).unwrap_err();
    assert!(error.to_string().contains("already"), "{error}");
    how.overwrite = true;
    merge(&location, &options, &out, &how).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

fn tensor(name: &str, shape: &[usize]) -> TensorView {
    let data = vec![0u8; shape.iter().product::<usize>() * 4];
    TensorView::new(name, DType::F32, shape.to_vec(), data.into()).unwrap()
}

fn refused(tensors: &[TensorView]) -> (String, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bad.safetensors");
    safetensors::write(&path, tensors, &BTreeMap::new()).unwrap();
    let added = Lora { path, weight: 1.0 };
    let error = open(golden("sd1"), &[added]).unwrap_err();
    (error.to_string(), error.hint().unwrap_or_default())
}

#[test]
fn files_that_do_not_fit_are_told_by_name() {
    let layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k";
    let (down, up) = (
        format!("{layer}.lora_down.weight"),
        format!("{layer}.lora_up.weight"),
    );
    let good = || vec![tensor(&down, &[2, 32]), tensor(&up, &[64, 2])];
    // Layers of another model.
    let mut other = good();
    other.push(tensor("lora_unet_strange_layer.lora_down.weight", &[2, 32]));
    other.push(tensor("lora_unet_strange_layer.lora_up.weight", &[64, 2]));
    let (message, _) = refused(&other);
    assert!(message.contains("1 of 2 layers"), "{message}");
    assert!(message.contains("lora_unet_strange_layer"), "{message}");
    // A text width that is SD 2's.
    let (message, hint) = refused(&[tensor(&down, &[2, 1024]), tensor(&up, &[64, 2])]);
    assert!(
        message.contains("[2, 1024]") && message.contains("[2, 32]"),
        "{message}"
    );
    assert!(hint.contains("Stable Diffusion 2"), "{hint}");
    // Halves of two ranks, a half alone, two alphas, other kinds.
    let (message, _) = refused(&[tensor(&down, &[3, 32]), tensor(&up, &[64, 2])]);
    assert!(message.contains("[3, 32]"), "{message}");
    let (message, _) = refused(&good()[..1]);
    assert!(message.contains("without its matrix up"), "{message}");
    let mut alphas = good();
    alphas.push(tensor(&format!("{layer}.alpha"), &[2]));
    let (message, _) = refused(&alphas);
    assert!(message.contains(".alpha of shape [2]"), "{message}");
    for (name, kind) in [
        ("dora_scale", "DoRA"),
        ("hada_w1_a", "LoHa"),
        ("lokr_w1", "LoKr"),
        ("something_else", "something_else"),
    ] {
        let mut tensors = good();
        tensors.push(tensor(&format!("{layer}.{name}"), &[2]));
        let (message, _) = refused(&tensors);
        assert!(message.contains(kind), "{message}");
    }
    let (message, _) = refused(&[tensor("conv_in.weight", &[2, 2])]);
    assert!(message.contains("expected a LoRA"), "{message}");
}

#[test]
fn a_file_for_another_family_says_which() {
    let error = open(golden("sd1"), &[lora("sdxl_kohya", 1.0)]).unwrap_err();
    let hint = error.hint().unwrap();
    assert!(hint.contains("Stable Diffusion XL"), "{hint}");
    let file = LoraFile::open(&golden("lora/sd1_kohya.safetensors")).unwrap();
    assert!(file.layers(Component::UNet) > 100 && file.layers(Component::Text(0)) == 24);
    assert_eq!(file.ranks(), (1, 3));
}

/// LyCORIS parts a convolution in three: `down` 1x1, `mid` with the kernel, `up` 1x1.
#[test]
fn a_convolution_in_three_is_one_in_two() {
    let dir = tempfile::tempdir().unwrap();
    let layer = "lora_unet_down_blocks_0_resnets_0_conv1";
    let number = |i: usize| ((i * 37 % 23) as f32 - 11.0) / 40.0;
    let floats = |name: &str, shape: &[usize], values: &[f32]| {
        let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        TensorView::new(
            format!("{layer}.{name}.weight"),
            DType::F32,
            shape.to_vec(),
            data.into(),
        )
        .unwrap()
    };
    let (down, mid, up): (Vec<f32>, Vec<f32>, Vec<f32>) = (
        (0..2 * 32).map(number).collect(),
        (0..2 * 2 * 9).map(|i| number(i + 5)).collect(),
        (0..32 * 2).map(|i| number(i + 9)).collect(),
    );
    let mut both = vec![0f32; 2 * 32 * 9];
    for (i, v) in both.iter_mut().enumerate() {
        let (r, c, tap) = (i / (32 * 9), i / 9 % 32, i % 9);
        *v = (0..2)
            .map(|j| mid[(r * 2 + j) * 9 + tap] * down[j * 32 + c])
            .sum();
    }
    let write = |name: &str, tensors: &[TensorView]| {
        let path = dir.path().join(name);
        safetensors::write(&path, tensors, &BTreeMap::new()).unwrap();
        let model = open(golden("sd1"), &[Lora { path, weight: 1.0 }]).unwrap();
        predict(&model, &mut |_, _| {})
    };
    let three = write(
        "three.safetensors",
        &[
            floats("lora_down", &[2, 32, 1, 1], &down),
            floats("lora_mid", &[2, 2, 3, 3], &mid),
            floats("lora_up", &[32, 2, 1, 1], &up),
        ],
    );
    let two = write(
        "two.safetensors",
        &[
            floats("lora_down", &[2, 32, 3, 3], &both),
            floats("lora_up", &[32, 2, 1, 1], &up),
        ],
    );
    assert!(relative_error(&three, &two) < MERGED);
    let plain = predict(&open(golden("sd1"), &[]).unwrap(), &mut |_, _| {});
    assert!(relative_error(&three, &plain) > 1e-3);
}
