//! Training on captions, on the tiny random Stable Diffusion 1.x of golden/.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use aquatint_diffusion::Prediction;
use aquatint_diffusion::training::{LossWeight, TimestepSampling};
use aquatint_models::{Checkpoint, Location, OpenOptions};
use aquatint_testkit::golden;
use aquatint_train::config::{DiffusionConfig, LoraConfig, LoraLayout};
use aquatint_train::run::{Event, Outcome, RunOptions};
use aquatint_train::{EvalOptions, TrainError, evaluate, train_diffusion};
use image::{Rgb, RgbImage};

const SIDE: u32 = 64;

/// As `golden/train_losses.py` makes them.
fn pictures(folder: &Path) {
    std::fs::create_dir_all(folder).expect("folder");
    for i in 0..5_u32 {
        RgbImage::from_fn(SIDE, SIDE, |x, y| {
            let value = |c: u32| ((x * (i + 3) + y * (7 - i) + c * 61 * (i + 1)) % 256) as u8;
            Rgb([value(0), value(1), value(2)])
        })
        .save(folder.join(format!("{i}.png")))
        .expect("picture");
        std::fs::write(
            folder.join(format!("{i}.txt")),
            format!("picture number {i}"),
        )
        .expect("caption");
    }
}

/// A run on top of the tiny model.
fn config(data: &Path) -> DiffusionConfig {
    let text = format!(
        "seed = 11\nsteps = 10\nbatch_size = 2\n\
         [model]\nfrom = {:?}\n\
         [data]\ndir = {:?}\nresolution = {SIDE}\n\
         [data.captions]\ndropout = 0.3\n\
         [learning_rate]\npeak = 1e-3\nwarmup = 0\n\
         [checkpoint]\nminutes = 0.0\nsteps = 4\n",
        golden("sd1").display().to_string(),
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

fn open(folder: &Path) -> Checkpoint {
    let location = Location::Path(folder.to_owned());
    Checkpoint::open(&location, &OpenOptions::default()).expect("the model opens")
}

/// The losses of a run are those of `golden/train_losses.json`.
#[track_caller]
fn first_losses(config: &DiffusionConfig, out: PathBuf, golden_name: &str) {
    let mut losses = Vec::new();
    train_diffusion(config, &options(out), &mut |event| {
        if let Event::Step(report) = event {
            losses.push(report.loss);
        }
        ControlFlow::Continue(())
    })
    .expect("run");
    let text = std::fs::read_to_string(golden("train_losses.json")).expect("golden");
    let expected: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let expected = expected[golden_name].as_array().expect("losses");
    assert_eq!(losses.len(), expected.len());
    for (step, (found, expected)) in losses.iter().zip(expected).enumerate() {
        let expected = expected.as_f64().expect("a number");
        // Sums of f32 in another order, carried through ten updates of AdamW, whose first ones have the size of the
        // rate whatever the gradient's: the bound.
        assert!(
            (found - expected).abs() < 1e-4,
            "step {step}: {found} {expected}: {losses:?}"
        );
    }
}

#[test]
fn the_first_ten_losses_are_those_of_pytorch() {
    let dir = tempfile::tempdir().expect("tempdir");
    pictures(dir.path());
    first_losses(&config(dir.path()), dir.path().join("out"), "captions");
}

#[test]
fn the_first_ten_losses_of_a_flow_are_those_of_pytorch() {
    let dir = tempfile::tempdir().expect("tempdir");
    let data = dir.path().join("data");
    pictures(&data);
    let mut config = config(&data);
    config.objective.prediction = Some(Prediction::Flow);
    config.objective.shift = Some(3.0);
    config.objective.timesteps = TimestepSampling::LogitNormal {
        mean: 0.0,
        std: 1.0,
    };
    config.objective.loss_weight = LossWeight::CosMap;
    let out = dir.path().join("out");
    first_losses(&config, out.clone(), "captions, flow");
    // StableDiffusionPipeline asks for init_noise_sigma, which FlowMatchEulerDiscreteScheduler has not.
    let text = std::fs::read_to_string(out.join("model/scheduler/scheduler_config.json"));
    let scheduler: serde_json::Value = serde_json::from_str(&text.expect("a file")).expect("JSON");
    assert_eq!(scheduler["_class_name"], "DPMSolverMultistepScheduler");
    assert_eq!(scheduler["prediction_type"], "flow_prediction");
    assert_eq!(scheduler["use_flow_sigmas"], true);
    assert_eq!(scheduler["flow_shift"], 3.0);
    let text = std::fs::read_to_string(out.join("model/text_encoder/config.json"));
    let text: serde_json::Value = serde_json::from_str(&text.expect("a file")).expect("JSON");
    assert_eq!(
        text["dtype"], "float32",
        "the type that diffusers runs the rest in"
    );
    // The folder goes on as a flow.
    let mut again = config.clone();
    again.model.from = Some(out.join("model"));
    again.objective = Default::default();
    again.steps = 1;
    quiet(&again, &options(dir.path().join("again"))).expect("run");
    let read = |out: &Path| {
        std::fs::read(out.join("model/scheduler/scheduler_config.json")).expect("a file")
    };
    assert!(read(&out) == read(&dir.path().join("again")));
    again.objective.beta_end = Some(0.02);
    let message = quiet(&again, &options(dir.path().join("refused")))
        .expect_err("refused")
        .to_string();
    assert!(
        message.contains("objective.beta_end is set; expected absent: a flow has no betas"),
        "{message}"
    );
}

#[test]
fn gradients_are_the_same_when_activations_are_computed_again() {
    let dir = tempfile::tempdir().expect("tempdir");
    let data = dir.path().join("data");
    pictures(&data);
    let mut config = config(&data);
    config.steps = 2;
    config.model.train_text_encoder = true;
    let trained = |config: &DiffusionConfig, name: &str| {
        let out = dir.path().join(name);
        quiet(config, &options(out.clone())).expect("run");
        let file = "checkpoints/step-00000002/optimizer.safetensors";
        std::fs::read(out.join(file)).expect("moments")
    };
    let kept = trained(&config, "kept");
    config.gradient_checkpointing = true;
    // The same operations on the same numbers: the moments, which sum up the gradients, have the same bits.
    assert!(kept == trained(&config, "again"));
    config.storage = aquatint_train::config::Storage::Bf16;
    let message = config.check().expect_err("refused").to_string();
    assert!(
        message.contains("storage is bf16; expected f32: on the CPU"),
        "{message}"
    );
}

#[test]
fn a_model_is_written_resumed_and_measured() {
    let dir = tempfile::tempdir().expect("tempdir");
    let data = dir.path().join("data");
    pictures(&data);
    let mut config = config(&data);
    config.model.train_text_encoder = true;
    config.data.flip = 0.5;
    config.data.holdout = 5;
    config.samples.every = 5;
    config.samples.prompts = vec!["picture number 1".into()];
    config.samples.steps = 2;
    let whole = dir.path().join("whole");
    quiet(&config, &options(whole.clone())).expect("run");
    assert!(whole.join("samples/step-00000010.png").exists());

    // Interrupted after step 6, and gone on with.
    let parts = dir.path().join("parts");
    let mut validated = 0;
    let stopped = train_diffusion(&config, &options(parts.clone()), &mut |event| {
        validated += usize::from(matches!(event, Event::Validation { .. }));
        match event {
            Event::Step(report) if report.step == 6 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    });
    assert_eq!(stopped.expect("stopped"), Outcome::Stopped);
    assert_eq!(validated, 2);
    let resume = RunOptions {
        resume: true,
        ..options(parts.clone())
    };
    quiet(&config, &resume).expect("resumed");
    for name in [
        "unet/diffusion_pytorch_model",
        "text_encoder/model",
        "vae/diffusion_pytorch_model",
    ] {
        let read = |out: &Path| {
            std::fs::read(out.join(format!("model/{name}.safetensors"))).expect("weights")
        };
        assert!(read(&whole) == read(&parts), "{name}");
    }

    let model = open(&whole.join("model"));
    let options = EvalOptions {
        captions: 2,
        seeds: 1,
        random_prompts: 2,
        holdout: 5,
    };
    let found = evaluate(&model, &data, options, &mut |_, _, _| {
        ControlFlow::Continue(())
    })
    .expect("eval");
    assert_eq!((found.samples, found.non_finite), (4, 0));
    assert!((0.0..=1.0).contains(&found.retrieval_top1) && found.autoencoder_psnr_db > 0.0);
}

/// A new model on the tiny autoencoder.
fn new_model(data: &Path) -> DiffusionConfig {
    let sd1 = golden("sd1").display().to_string();
    let text = format!(
        "seed = 3\nsteps = 3\nbatch_size = 2\n\
         [model]\nautoencoder = \"{sd1}/vae\"\ntokenizer = \"{sd1}/tokenizer\"\n\
         [model.unet]\nblock_out_channels = [8, 16]\nlayers_per_block = 1\nnorm_num_groups = 4\n\
         attention_head_dim = 2\ndown_block_types = [\"DownBlock2D\", \"CrossAttnDownBlock2D\"]\n\
         up_block_types = [\"CrossAttnUpBlock2D\", \"UpBlock2D\"]\n\
         [model.text_encoder]\nhidden_size = 16\nintermediate_size = 32\nnum_hidden_layers = 2\n\
         num_attention_heads = 2\n\
         [data]\ndir = {:?}\nresolution = {SIDE}\n\
         [data.captions]\ndropout = 0.0\n\
         [checkpoint]\nminutes = 0.0\nsteps = 30\n\
         [warm_up]\nsteps = 60\nbatch_size = 5\nlearning_rate = 1e-2\ngrid = 2\n",
        data.display().to_string(),
    );
    let path = data.join("config.toml");
    std::fs::write(&path, text).expect("file");
    DiffusionConfig::read(&path).expect("valid")
}

#[test]
fn a_text_encoder_warms_up_before_the_network_learns() {
    let dir = tempfile::tempdir().expect("tempdir");
    let data = dir.path().join("data");
    pictures(&data);
    let config = new_model(&data);
    let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
    let mut losses = Vec::new();
    train_diffusion(&config, &options(whole.clone()), &mut |event| {
        if let Event::Step(report) = event {
            losses.push(report.loss);
        }
        ControlFlow::Continue(())
    })
    .expect("run");
    assert_eq!(losses.len(), 60 + 3);
    // Five pictures that differ: at first nothing of the variance is explained, then nearly all.
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    assert!(
        mean(&losses[..3]) > 0.9 && mean(&losses[55..60]) < 0.1,
        "{losses:?}"
    );
    // The network begins where the warm-up ended.
    let tensors = |path: &Path| {
        let file = aquatint_weights::WeightFile::open(path).expect("file");
        let of = |t| aquatint_weights::to_f32_vec(t).expect("values");
        let named = file.tensors().iter().map(|t| (t.name.clone(), of(t)));
        named.collect::<std::collections::BTreeMap<_, _>>()
    };
    let warm = tensors(&whole.join("warm_up/checkpoints/step-00000060/ema.safetensors"));
    let trained = tensors(&whole.join("checkpoints/step-00000003/weights.safetensors"));
    let name = "text_encoder.text_model.encoder.layers.0.mlp.fc2.weight";
    for (a, b) in warm[name].iter().zip(&trained[name]) {
        // Three updates of a rate that rises to 1e-4 over 500 steps.
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
    assert!(warm[name].iter().any(|v| v.abs() > 1e-3));
    assert!(!trained.contains_key("head.weight"));

    // Killed in the warm-up, and again after it.
    for steps in [40, 22, 61] {
        let mut left = steps;
        let run = RunOptions {
            resume: true,
            ..options(parts.clone())
        };
        let stopped = train_diffusion(&config, &run, &mut |event| {
            left -= i32::from(matches!(event, Event::Step(_)));
            match left {
                ..=0 => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        });
        match stopped.expect("run") {
            Outcome::Stopped => assert_ne!(steps, 61),
            Outcome::Finished => assert_eq!(steps, 61),
        }
    }
    for name in ["unet/diffusion_pytorch_model", "text_encoder/model"] {
        let read = |out: &Path| {
            std::fs::read(out.join(format!("model/{name}.safetensors"))).expect("weights")
        };
        assert!(read(&whole) == read(&parts), "{name}");
    }

    let mut refused = config.clone();
    refused.lora = Some(LoraConfig::default());
    refused.model.from = Some(golden("sd1"));
    let message = refused.check().expect_err("refused").to_string();
    assert!(
        message.contains("warm_up is set; expected absent"),
        "{message}"
    );
}

#[test]
fn a_low_rank_addition_is_written_in_both_layouts() {
    let dir = tempfile::tempdir().expect("tempdir");
    let data = dir.path().join("data");
    pictures(&data);
    let mut config = config(&data);
    config.steps = 2;
    for (layout, text_encoder) in [(LoraLayout::Diffusers, true), (LoraLayout::Kohya, false)] {
        config.lora = Some(LoraConfig {
            rank: 2,
            alpha: 1.0,
            text_encoder,
            layout,
            ..LoraConfig::default()
        });
        let out = dir.path().join(format!("{layout:?}"));
        quiet(&config, &options(out.clone())).expect("run");
        let file =
            aquatint_weights::WeightFile::open(out.join("model/pytorch_lora_weights.safetensors"))
                .expect("file");
        let names: Vec<&str> = file.tensors().iter().map(|t| t.name.as_str()).collect();
        let has = |name: &str| assert!(names.contains(&name), "no {name}");
        match layout {
            LoraLayout::Diffusers => {
                has(
                    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight",
                );
                has(
                    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0.lora_B.weight",
                );
                has("text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight");
            }
            LoraLayout::Kohya => {
                has(
                    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight",
                );
                has("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.alpha");
            }
        }
        // Two steps moved it from nothing.
        let up = file
            .tensors()
            .iter()
            .find(|t| t.name.contains("lora_B") || t.name.contains("lora_up"));
        let values = aquatint_weights::to_f32_vec(up.expect("an addition")).expect("values");
        assert!(values.iter().any(|v| *v != 0.0));
    }
}

#[test]
fn data_and_models_that_do_not_fit_are_refused_in_words() {
    let dir = tempfile::tempdir().expect("tempdir");
    let data = dir.path().join("data");
    pictures(&data);
    let good = config(&data);
    let mut n = 0;
    let mut said = |change: &dyn Fn(&mut DiffusionConfig)| {
        let mut config = good.clone();
        change(&mut config);
        n += 1;
        quiet(&config, &options(dir.path().join(format!("out{n}"))))
            .expect_err("refused")
            .to_string()
    };
    let message = said(&|c| c.data.resolution = 100);
    assert!(
        message.contains("data.resolution") && message.contains("multiple of 64"),
        "{message}"
    );
    let message = said(&|c| c.data.dir = Some("/nowhere".into()));
    assert!(message.contains("/nowhere"), "{message}");
    let message = said(&|c| c.model.from = Some("/nowhere".into()));
    assert!(message.contains("/nowhere"), "{message}");
    let message = said(&|c| {
        c.lora = Some(LoraConfig {
            targets: vec!["to_z".into()],
            ..LoraConfig::default()
        });
    });
    assert!(message.contains("lora.targets is to_z"), "{message}");
    std::fs::remove_file(data.join("3.txt")).expect("remove");
    let message = said(&|_| {});
    assert!(
        message.contains("1 of 5 pictures have no caption"),
        "{message}"
    );
}
