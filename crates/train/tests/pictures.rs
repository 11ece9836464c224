//! Training without captions: of pixels and latents, told a class or nothing.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use aquatint_testkit::golden;
use aquatint_train::config::{DiffusionConfig, ModelKind};
use aquatint_train::run::{Event, Outcome, RunOptions};
use aquatint_train::{TrainError, train_diffusion};
use image::{GrayImage, Luma};
use serde_json::{Value, json};

/// Grey pictures in the folders `ring` and `stroke`.
fn pictures(folder: &Path, side: u32) {
    for i in 0..10_u32 {
        let class = if i % 2 == 0 { "ring" } else { "stroke" };
        std::fs::create_dir_all(folder.join(class)).expect("folder");
        GrayImage::from_fn(side, side, |x, y| {
            let inside = match i % 2 {
                0 => (x as i32 - 4).pow(2) + (y as i32 - 4).pow(2) < 6 + i as i32,
                _ => x.abs_diff(3 + i / 4) < 2,
            };
            Luma([if inside { 240 } else { 10 }])
        })
        .save(folder.join(format!("{class}/{i}.png")))
        .expect("picture");
    }
}

fn config(data: &Path, kind: &str) -> DiffusionConfig {
    let text = format!(
        "seed = 5\nsteps = 8\nbatch_size = 4\n\
         [model]\nkind = \"{kind}\"\n\
         [model.unet]\nin_channels = 1\nblock_out_channels = [8, 16]\nlayers_per_block = 1\nnorm_num_groups = 4\n\
         attention_head_dim = 8\ndown_block_types = [\"DownBlock2D\", \"AttnDownBlock2D\"]\n\
         up_block_types = [\"AttnUpBlock2D\", \"UpBlock2D\"]\n\
         [data]\ndir = {:?}\nresolution = 8\nholdout = 5\nflip = 0.5\nworkers = 2\n\
         [learning_rate]\npeak = 1e-3\nwarmup = 0\n\
         [samples]\nevery = 4\ncount = 4\nsteps = 2\n\
         [checkpoint]\nminutes = 0.0\nsteps = 3\n",
        data.display().to_string(),
    );
    let path = data.join("config.toml");
    std::fs::write(&path, text).expect("file");
    DiffusionConfig::read(&path).expect("valid")
}

fn options(out: PathBuf) -> RunOptions {
    RunOptions {
        out,
        resume: false,
        max_steps: None,
    }
}

fn quiet(config: &DiffusionConfig, options: &RunOptions) -> Result<Outcome, TrainError> {
    train_diffusion(config, options, &mut |_| ControlFlow::Continue(()))
}

fn read_json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).expect("a file");
    serde_json::from_str(&text).expect("JSON")
}

/// Runs at once, and in two parts, and expects the same weights.
#[track_caller]
fn whole_and_in_parts(dir: &Path, config: &DiffusionConfig) -> PathBuf {
    let (whole, parts) = (dir.join("whole"), dir.join("parts"));
    let mut measured = 0;
    train_diffusion(config, &options(whole.clone()), &mut |event| {
        measured +=
            usize::from(matches!(event, Event::Validation { loss, .. } if loss.is_finite()));
        ControlFlow::Continue(())
    })
    .expect("run");
    assert_eq!(measured, 3, "held-out pictures at steps 3, 6 and 8");
    let stopped = train_diffusion(config, &options(parts.clone()), &mut |event| match event {
        Event::Step(report) if report.step == 5 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    assert_eq!(stopped.expect("stopped"), Outcome::Stopped);
    let resume = RunOptions {
        resume: true,
        ..options(parts.clone())
    };
    quiet(config, &resume).expect("resumed");
    for name in [
        "checkpoints/step-00000008/weights.safetensors",
        "checkpoints/step-00000008/ema.safetensors",
        "model/unet/diffusion_pytorch_model.safetensors",
        "samples/step-00000008.png",
    ] {
        let read = |out: &Path| std::fs::read(out.join(name)).expect("a file");
        assert!(read(&whole) == read(&parts), "{name}");
    }
    whole
}

#[test]
fn pictures_without_a_prompt_are_a_ddpm_pipeline() {
    let dir = tempfile::tempdir().expect("tempdir");
    let data = dir.path().join("data");
    pictures(&data, 8);
    let out = whole_and_in_parts(dir.path(), &config(&data, "unconditional"));
    let index = read_json(&out.join("model/model_index.json"));
    assert_eq!(index["_class_name"], "DDPMPipeline");
    assert_eq!(index["unet"], json!(["diffusers", "UNet2DModel"]));
    let scheduler = read_json(&out.join("model/scheduler/scheduler_config.json"));
    assert_eq!(scheduler["_class_name"], index["scheduler"][1]);
    // Pixels have the forward process of Ho et al., and stay within their range.
    assert_eq!(scheduler["beta_schedule"], "linear");
    assert_eq!(scheduler["clip_sample"], true);
    let unet = read_json(&out.join("model/unet/config.json"));
    assert_eq!(
        (&unet["in_channels"], &unet["sample_size"]),
        (&json!(1), &json!(8))
    );
    assert_eq!(unet["num_class_embeds"], Value::Null);
    let own = read_json(&out.join("model/aquatint.json"));
    assert_eq!((&own["steps"], &own["width"]), (&json!(2), &json!(8)));
    let card = std::fs::read_to_string(out.join("model/README.md")).expect("a card");
    assert!(card.contains("DDPMPipeline.from_pretrained"), "{card}");
}

#[test]
fn a_run_does_not_go_on_with_other_pictures() {
    let dir = tempfile::tempdir().expect("tempdir");
    let data = dir.path().join("data");
    pictures(&data, 8);
    let config = config(&data, "unconditional");
    let first = RunOptions {
        max_steps: Some(2),
        ..options(dir.path().join("out"))
    };
    quiet(&config, &first).expect("run");
    // Two, since one of them is held out.
    let another = data.join("stroke/another.png");
    std::fs::copy(data.join("stroke/1.png"), &another).expect("copied");
    std::fs::copy(&another, data.join("stroke/yet_another.png")).expect("copied");
    let resume = RunOptions {
        resume: true,
        ..options(dir.path().join("out"))
    };
    let said = quiet(&config, &resume).expect_err("refused").to_string();
    assert!(said.contains("the list of pictures"), "{said}");
    std::fs::remove_file(another).expect("removed");
    std::fs::remove_file(data.join("stroke/yet_another.png")).expect("removed");
    quiet(&config, &resume).expect("as it was");
}

#[test]
fn classes_are_the_names_of_the_folders() {
    let dir = tempfile::tempdir().expect("tempdir");
    let data = dir.path().join("data");
    pictures(&data, 8);
    let mut config = config(&data, "class");
    config.data.captions.dropout = 0.3;
    let out = whole_and_in_parts(dir.path(), &config);
    assert_eq!(
        read_json(&out.join("model/classes.json")),
        json!(["ring", "stroke"])
    );
    let unet = read_json(&out.join("model/unet/config.json"));
    assert_eq!(unet["num_class_embeds"], 3);
    assert!(!out.join("model/model_index.json").exists());
    let weights = aquatint_weights::WeightFile::open(
        out.join("model/unet/diffusion_pytorch_model.safetensors"),
    );
    let weights = weights.expect("weights");
    let table = weights.get("class_embedding.weight").expect("a table");
    assert_eq!(table.shape, [3, 32]);
    let card = std::fs::read_to_string(out.join("model/README.md")).expect("a card");
    assert!(card.contains("classes.index(\"ring\")"), "{card}");

    let said = |change: &dyn Fn(&mut DiffusionConfig)| {
        let mut config = config.clone();
        change(&mut config);
        quiet(&config, &options(dir.path().join("refused")))
            .expect_err("refused")
            .to_string()
    };
    let message = said(&|c| {
        c.model.unet.insert("num_class_embeds".into(), 7.into());
    });
    assert!(
        message.contains(
            "num_class_embeds is 7; expected 3: the 2 classes of the data and one for none"
        ),
        "{message}"
    );
    let message = said(&|c| {
        c.samples.prompts = vec!["square".into()];
    });
    assert!(
        message.contains("samples.prompts is square; expected names of classes: ring, stroke"),
        "{message}"
    );
    std::fs::copy(data.join("ring/0.png"), data.join("alone.png")).expect("a copy");
    let message = said(&|_| {});
    assert!(
        message.contains("1 of 11 pictures have no class") && message.contains("alone.png"),
        "{message}"
    );
}

#[test]
fn the_first_ten_losses_are_those_of_pytorch() {
    let dir = tempfile::tempdir().expect("tempdir");
    let data = dir.path().join("data");
    // As golden/train_losses.py makes them.
    for i in 0..5_u32 {
        let class = if i % 2 == 0 { "even" } else { "odd" };
        std::fs::create_dir_all(data.join(class)).expect("folder");
        GrayImage::from_fn(8, 8, |x, y| {
            Luma([((x * (i + 3) + y * (7 - i)) % 256) as u8])
        })
        .save(data.join(format!("{class}/{i}.png")))
        .expect("picture");
    }
    let text = format!(
        "seed = 11\nsteps = 10\nbatch_size = 2\n\
         [model]\nkind = \"class\"\nfrom = {:?}\n\
         [data]\ndir = {:?}\nresolution = 8\n\
         [data.captions]\ndropout = 0.3\n\
         [objective]\nloss_weight = {{ kind = \"min-snr\" }}\n\
         [learning_rate]\npeak = 1e-3\nwarmup = 0\n",
        golden("train_pixels").display().to_string(),
        data.display().to_string(),
    );
    let path = dir.path().join("config.toml");
    std::fs::write(&path, text).expect("file");
    let config = DiffusionConfig::read(&path).expect("valid");
    let mut losses = Vec::new();
    train_diffusion(&config, &options(dir.path().join("out")), &mut |event| {
        if let Event::Step(report) = event {
            losses.push(report.loss);
        }
        ControlFlow::Continue(())
    })
    .expect("run");
    let expected = &read_json(&golden("train_losses.json"))["classes"];
    let expected = expected.as_array().expect("losses");
    assert_eq!(losses.len(), expected.len());
    for (found, expected) in losses.iter().zip(expected) {
        // The bound.
        let expected = expected.as_f64().expect("a number");
        assert!(
            (found - expected).abs() < 1e-4,
            "{found} {expected}: {losses:?}"
        );
    }
}

#[test]
fn pixels_are_learned_along_a_flow() {
    let dir = tempfile::tempdir().expect("tempdir");
    let data = dir.path().join("data");
    pictures(&data, 8);
    let mut config = config(&data, "unconditional");
    config.objective.prediction = Some(aquatint_diffusion::Prediction::Flow);
    config.samples.sampler = "euler".into();
    let out = whole_and_in_parts(dir.path(), &config);
    let scheduler = read_json(&out.join("model/scheduler/scheduler_config.json"));
    assert_eq!(scheduler["_class_name"], "FlowMatchEulerDiscreteScheduler");
    assert_eq!(scheduler["prediction_type"], Value::Null);
    let index = read_json(&out.join("model/model_index.json"));
    assert_eq!(index["scheduler"][1], scheduler["_class_name"]);
    config.samples.sampler = "ddpm".into();
    let message = quiet(&config, &options(dir.path().join("refused")))
        .expect_err("refused")
        .to_string();
    assert!(message.contains("ddpm is not for flow models"), "{message}");
    config.objective.prediction = None;
    config.objective.shift = Some(3.0);
    let message = quiet(&config, &options(dir.path().join("refused")))
        .expect_err("refused")
        .to_string();
    assert!(message.contains("objective.shift is set"), "{message}");
}

#[test]
fn latents_are_learned_without_a_prompt_too() {
    let dir = tempfile::tempdir().expect("tempdir");
    let data = dir.path().join("data");
    pictures(&data, 64);
    let mut config = config(&data, "unconditional");
    config.model.unet.remove("in_channels");
    config.model.autoencoder = Some(golden("sd1").join("vae"));
    config.data.resolution = 64;
    let out = whole_and_in_parts(dir.path(), &config);
    let index = read_json(&out.join("model/model_index.json"));
    assert_eq!(index["_class_name"], "LDMPipeline");
    for file in [
        "vqvae/config.json",
        "vqvae/diffusion_pytorch_model.safetensors",
    ] {
        assert!(out.join("model").join(file).exists(), "{file}");
    }
    let unet = read_json(&out.join("model/unet/config.json"));
    assert_eq!(unet["in_channels"], 4);
}

#[test]
fn what_does_not_fit_is_refused_in_words() {
    let dir = tempfile::tempdir().expect("tempdir");
    let data = dir.path().join("data");
    pictures(&data, 8);
    let good = config(&data, "unconditional");
    let said = |change: &dyn Fn(&mut DiffusionConfig)| {
        let mut config = good.clone();
        change(&mut config);
        quiet(&config, &options(dir.path().join("refused")))
            .expect_err("refused")
            .to_string()
    };
    for (change, expected) in [
        (
            &(|c: &mut DiffusionConfig| c.data.resolution = 9) as &dyn Fn(&mut DiffusionConfig),
            "data.resolution (width) is 9; expected a multiple of 2",
        ),
        (
            &|c| {
                c.model.unet.insert("in_channels".into(), 2.into());
            },
            "in_channels is 2; expected 1 (grey) or 3 (colours)",
        ),
        (
            &|c| {
                c.model.unet.insert("out_channels".into(), 3.into());
            },
            "out_channels is 3; expected 1, as in_channels",
        ),
        (
            &|c| {
                c.model.unet.insert("num_class_embeds".into(), 3.into());
            },
            "num_class_embeds is 3; expected absent",
        ),
        (
            &|c| c.lora = Some(Default::default()),
            "lora is set; expected absent",
        ),
        (
            &|c| c.warm_up = Some(Default::default()),
            "warm_up is set; expected absent",
        ),
        (
            &|c| {
                c.data.dir = Some("/nowhere".into());
                c.data.source = "python make.py".into();
            },
            "/nowhere: the folder of pictures (data.dir) is not there; this is how it is made: python make.py",
        ),
        (
            &|c| c.model.kind = ModelKind::Text,
            "model.text_encoder is absent",
        ),
    ] {
        let message = said(change);
        assert!(message.contains(expected), "{message}");
    }
}
