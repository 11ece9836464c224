//! The UNet without text against diffusers' `UNet2DModel`, stage by stage; its configuration and cost.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // helpers of tests are tests

mod unet_support;

use aquatint_models::unet::{ClassKind, Classes, UNet2D, UNet2DConfig};
use aquatint_ops::{Params, Tensor};
use aquatint_testkit::{Tensors, golden, relative_error};
use unet_support::{Checkpoint, Only, Stages, device, floats, image, to_device, values};

/// Relative to the largest value of a stage. f32 sums in another order differ by about 1e-6.
const TOLERANCE: f64 = 2e-5;

fn config_text(name: &str) -> String {
    std::fs::read_to_string(golden("unconditional").join(format!("{name}.json"))).unwrap()
}

fn variant(name: &str) -> (UNet2D, Tensors) {
    let path = golden("unconditional").join(format!("{name}.safetensors"));
    let config = UNet2DConfig::from_json(&config_text(name)).unwrap();
    let checkpoint = Checkpoint::read(&path, "model/");
    let unet = UNet2D::load(&Params::new(&checkpoint, &device()), &config).unwrap();
    (unet, Tensors::read(path).unwrap())
}

fn classes(unet: &UNet2D, references: &Tensors) -> Option<Classes> {
    let kind = unet.config().classes?;
    let given = references.get("in/classes");
    Some(match kind {
        ClassKind::Table(_) => {
            Classes::Rows(floats(given).iter().map(|&row| row as usize).collect())
        }
        ClassKind::Timestep => Classes::Numbers(floats(given)),
        ClassKind::Identity => Classes::Vectors(to_device(given)),
    })
}

fn every_stage(name: &str) {
    let (unet, references) = variant(name);
    let x = image(references.get("in/sample"));
    let timesteps = floats(references.get("in/timestep"));
    let classes = classes(&unet, &references);
    let mut seen = Stages::new(&references, "unet/", TOLERANCE);
    unet.forward_traced(x, &timesteps, classes.as_ref(), &mut |stage, y| {
        seen.check(stage, y);
    })
    .unwrap();
    seen.finish(|_| true);
}

#[test]
fn attention_between_plain_levels_equals_diffusers() {
    every_stage("plain");
}

#[test]
fn classes_and_uneven_sizes_equal_diffusers() {
    every_stage("classes");
}

#[test]
fn scale_and_shift_and_a_class_as_a_number_equal_diffusers() {
    every_stage("scale_shift");
}

#[test]
fn a_class_as_a_vector_equals_diffusers() {
    every_stage("vector");
}

#[test]
fn a_model_without_a_middle_equals_diffusers() {
    every_stage("shallow");
}

#[test]
fn one_entry_of_a_batch_alone_gives_the_same() {
    let (unet, references) = variant("classes");
    let x = image(references.get("in/sample"));
    let timesteps = floats(references.get("in/timestep"));
    let both = unet
        .forward(x.clone(), &timesteps, classes(&unet, &references).as_ref())
        .unwrap();
    for (i, row) in [4, 1].into_iter().enumerate() {
        let alone = Classes::Rows(vec![row]);
        let x = x.clone().narrow(0, i, 1);
        let y = unet.forward(x, &timesteps[i..=i], Some(&alone)).unwrap();
        let want = values(both.clone().narrow(0, i, 1));
        assert!(relative_error(&values(y), &want) < TOLERANCE);
    }
}

#[test]
fn inputs_that_do_not_fit_are_errors() {
    let (unet, _) = variant("classes");
    let x = |dims: [usize; 4]| Tensor::<4>::zeros(dims, &device());
    let rows = |rows: &[usize]| Some(Classes::Rows(rows.to_vec()));
    let one = [1, 3, 3, 1];
    assert!(unet.forward(x(one), &[1.0], rows(&[4]).as_ref()).is_ok());
    let bad = [
        ("the input", x([1, 3, 3, 3]), vec![1.0], rows(&[0])),
        ("the input", x([0, 3, 3, 1]), vec![], rows(&[])),
        ("the input", x([1, 0, 3, 1]), vec![1.0], rows(&[0])),
        ("timesteps", x(one), vec![1.0, 2.0], rows(&[0])),
        ("the classes", x(one), vec![1.0], None),
        ("the classes", x(one), vec![1.0], rows(&[5])),
        ("the classes", x(one), vec![1.0], rows(&[0, 1])),
        (
            "the classes",
            x(one),
            vec![1.0],
            Some(Classes::Numbers(vec![1.0])),
        ),
    ];
    for (what, x, timesteps, classes) in bad {
        let error = unet.forward(x, &timesteps, classes.as_ref()).unwrap_err();
        let error = error.to_string();
        assert!(error.starts_with(&format!("unet: {what} ")), "{error}");
    }
    let (plain, _) = variant("shallow");
    let told = plain.forward(x([1, 3, 3, 3]), &[1.0], rows(&[0]).as_ref());
    let error = told.unwrap_err().to_string();
    assert!(error.contains("told no class"), "{error}");
}

#[test]
fn a_missing_tensor_is_named() {
    let path = golden("unconditional").join("plain.safetensors");
    let config = UNet2DConfig::from_json(&config_text("plain")).unwrap();
    let checkpoint = Only(Checkpoint::read(path, "model/"), |name| {
        name != "mid_block.attentions.0.proj_attn.bias"
    });
    let error = UNet2D::load(&Params::new(&checkpoint, &device()), &config).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("mid_block.attentions.0.proj_attn.bias"),
        "{error}"
    );
}

#[test]
fn a_configuration_written_is_the_one_read() {
    for name in ["plain", "classes", "scale_shift", "vector", "shallow"] {
        let config = UNet2DConfig::from_json(&config_text(name)).unwrap();
        let again = UNet2DConfig::from_json(&config.to_json().to_string()).unwrap();
        assert_eq!(again, config, "{name}");
    }
}

#[test]
fn an_empty_configuration_has_the_defaults_of_diffusers() {
    let config = UNet2DConfig::from_json("{}").unwrap();
    let channels: Vec<usize> = config.levels.iter().map(|l| l.channels).collect();
    assert_eq!(channels, [224, 448, 672, 896]);
    assert!(!config.levels[0].down_attention && config.levels[1].up_attention);
    assert_eq!((config.head_dim, config.time_embed_dim), (Some(8), 896));
    assert!(config.mid && config.mid_attention && config.classes.is_none());
}

#[test]
fn what_cannot_run_is_refused_by_its_key() {
    for (json, key) in [
        (r#"{"act_fn": "mish"}"#, "act_fn"),
        (r#"{"attention_head_dim": 9}"#, "attention_head_dim"),
        (r#"{"attention_head_dim": 1024}"#, "attention_head_dim"),
        (r#"{"attn_norm_num_groups": 13}"#, "attn_norm_num_groups"),
        (r#"{"block_out_channels": [224]}"#, "block_out_channels"),
        (
            r#"{"block_out_channels": [220, 448, 672, 896]}"#,
            "block_out_channels",
        ),
        (r#"{"class_embed_type": "projection"}"#, "class_embed_type"),
        (
            r#"{"down_block_types": ["SkipDownBlock2D", "DownBlock2D", "DownBlock2D", "DownBlock2D"]}"#,
            "down_block_types",
        ),
        (r#"{"downsample_padding": 2}"#, "downsample_padding"),
        (r#"{"downsample_type": "resnet"}"#, "downsample_type"),
        (r#"{"freq_shift": 112}"#, "freq_shift"),
        (r#"{"mid_block_scale_factor": 0}"#, "mid_block_scale_factor"),
        (r#"{"mid_block_type": "None"}"#, "mid_block_type"),
        (r#"{"norm_num_groups": null}"#, "norm_num_groups"),
        (r#"{"num_class_embeds": 0}"#, "num_class_embeds"),
        (
            r#"{"resnet_time_scale_shift": "spatial"}"#,
            "resnet_time_scale_shift",
        ),
        (r#"{"sample_size": [32]}"#, "sample_size"),
        (
            r#"{"time_embedding_type": "fourier"}"#,
            "time_embedding_type",
        ),
        (r#"{"up_block_types": ["UpBlock2D"]}"#, "up_block_types"),
        (r#"{"upsample_type": "resnet"}"#, "upsample_type"),
    ] {
        let error = UNet2DConfig::from_json(json).unwrap_err().to_string();
        let start = format!("unet: {key} is ");
        assert!(error.starts_with(&start), "{json}: {error}");
        assert!(error.contains(", expected "), "{error}");
    }
}

#[test]
fn names_of_old_configurations_are_read() {
    let old = UNet2DConfig::from_json(
        r#"{"down_block_types": ["UNetResDownBlock2D", "UNetResAttnDownBlock2D"],
            "up_block_types": ["UNetResAttnUpBlock2D", "UNetResUpBlock2D"],
            "block_out_channels": [32, 64]}"#,
    );
    let levels = old.unwrap().levels;
    assert!(levels[1].down_attention && levels[1].up_attention && !levels[0].up_attention);
}

/// Floating-point operations as PyTorch's `FlopCounterMode` counts them on diffusers' models (torch
/// 2.15, diffusers 0.42.1): two for each multiply-add.
#[test]
fn work_is_what_pytorch_counts() {
    let cifar = UNet2DConfig::from_json(
        r#"{"block_out_channels": [128, 256, 256, 256], "attention_head_dim": null, "freq_shift": 1,
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
            "flip_sin_to_cos": false, "downsample_padding": 0, "sample_size": 32}"#,
    )
    .unwrap();
    let scaled = UNet2DConfig {
        scale_shift: true,
        classes: Some(ClassKind::Timestep),
        ..cifar.clone()
    };
    let flops = |c: &UNet2DConfig| 2 * c.cost(2, 32, 32).multiply_adds();
    assert_eq!(flops(&cifar), 24_887_427_072);
    assert_eq!(flops(&scaled), 24_898_961_408);
    // Numbers beyond any picture are counted without a panic.
    cifar.cost(usize::MAX, usize::MAX, usize::MAX);
}
