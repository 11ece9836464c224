//! Models that are damaged, incomplete or something else: what is said of them.

use std::path::{Path, PathBuf};

use aquatint_engine::models::{Checkpoint, Location, ModelError, OpenOptions};
use aquatint_engine::weights::Error as WeightError;
use aquatint_engine::{Device, EngineError, Event, Request, RunOptions, Stage, generate};
use aquatint_testkit::{folder, golden, single_file, unet_only};
use tempfile::TempDir;

use crate::support::{Raw, References, open, request, rewrite, run};

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";
const VAE: &str = "vae/diffusion_pytorch_model.safetensors";
const TEXT: &str = "text_encoder/model.safetensors";
const FAMILIES: [&str; 3] = ["sd1", "sd2", "sdxl"];

fn opened(path: &Path, options: &OpenOptions) -> Result<Checkpoint, ModelError> {
    Checkpoint::open(&Location::Path(path.to_owned()), options)
}

/// Opens and runs; the first thing that goes wrong.
fn error(path: &Path, options: &OpenOptions) -> EngineError {
    let model = match opened(path, options) {
        Ok(model) => model,
        Err(error) => return error.into(),
    };
    let family = model.family.id;
    let references = References::read(family);
    let case = references.pick(&["pipe/ddim/g7.5"])[0];
    match run(&model, &request(case)) {
        Err(error) => error,
        Ok(_) => panic!("{}: made a picture", path.display()),
    }
}

/// The message names all of these in one line, and there is a hint.
#[track_caller]
fn assert_says(error: &EngineError, words: &[&str]) {
    let message = error.to_string();
    for word in words {
        assert!(message.contains(word), "no {word:?} in: {message}");
    }
    assert!(!message.contains('\n'), "{message}");
    let hint = error
        .hint()
        .unwrap_or_else(|| panic!("no hint for: {message}"));
    assert!(!hint.contains('\n') && !hint.is_empty(), "{hint}");
    assert!(!error.is_usage(), "{message}");
}

/// A copy of a family's folder with one of its files changed.
fn changed(
    family: &str,
    file: &str,
    change: impl FnOnce(&mut std::collections::BTreeMap<String, Raw>),
) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let copy = folder(family, dir.path()).unwrap();
    rewrite(&copy.join(file), change);
    (dir, copy)
}

/// The only tensor whose name ends so.
fn full_name(tensors: &std::collections::BTreeMap<String, Raw>, end: &str) -> String {
    let mut found = tensors.keys().filter(|n| n.ends_with(end));
    let name = found
        .next()
        .unwrap_or_else(|| panic!("no tensor ends with {end}"));
    assert_eq!(found.next(), None, "{end}");
    name.clone()
}

#[test]
fn a_nan_is_blamed_on_its_tensor() {
    let places = [
        (UNET, "mid_block.resnets.1.conv2.weight"),
        (UNET, "up_blocks.1.resnets.0.norm1.bias"),
        (VAE, "decoder.mid_block.attentions.0.to_q.weight"),
        (TEXT, "encoder.layers.1.mlp.fc1.bias"),
    ];
    for family in FAMILIES {
        for (file, end) in places {
            for (value, shown) in [(half::f16::NAN, "NaN"), (half::f16::NEG_INFINITY, "-inf")] {
                // An infinity in the middle need not come out of a softmax.
                if shown == "-inf" && end.contains("to_q") {
                    continue;
                }
                let (_dir, copy) = changed(family, file, |tensors| {
                    let name = full_name(tensors, end);
                    let data = &mut tensors.get_mut(&name).unwrap().data;
                    data[6..8].copy_from_slice(&value.to_le_bytes());
                });
                let error = error(&copy, &OpenOptions::default());
                let said = matches!(
                    &error,
                    EngineError::Model(ModelError::Weights(WeightError::NonFinite {
                        index: 3,
                        ..
                    }))
                );
                assert!(said, "{family} {file}: {error:?}");
                assert_says(&error, &[end, shown, file, "at index 3"]);
            }
        }
    }
}

/// A decoder with a NaN is told before the loop, not at its end; an encoder is not used.
#[test]
fn a_nan_of_the_autoencoder_is_told_before_the_first_step() {
    for (end, told) in [
        ("decoder.mid_block.attentions.0.to_q.weight", true),
        ("encoder.mid_block.attentions.0.to_q.weight", false),
    ] {
        let (_dir, copy) = changed("sd1", VAE, |tensors| {
            let name = full_name(tensors, end);
            let data = &mut tensors.get_mut(&name).unwrap().data;
            data[6..8].copy_from_slice(&half::f16::NAN.to_le_bytes());
        });
        let mut steps = 0;
        let made = generate(
            &open(&copy, &OpenOptions::default()),
            &Request {
                width: 64,
                height: 64,
                steps: 2,
                ..Request::default()
            },
            &RunOptions::default(),
            &Device::flex(),
            &mut |event| {
                if let Event::Step {
                    stage: Stage::Denoise,
                    ..
                } = event
                {
                    steps += 1;
                }
                std::ops::ControlFlow::Continue(())
            },
        );
        assert_eq!((made.is_err(), steps == 0), (told, told), "{end}");
    }
}

/// In a single file the tensor goes by its name there.
#[test]
fn a_nan_in_a_single_file_is_named_as_the_file_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let names = [
        "model.diffusion_model.middle_block.1.proj_out.weight",
        "first_stage_model.decoder.conv_out.bias",
        "conditioner.embedders.1.model.transformer.resblocks.2.attn.in_proj_weight",
    ];
    for name in names {
        let path = single_file("sdxl", dir.path()).unwrap();
        rewrite(&path, |tensors| {
            let data = &mut tensors.get_mut(name).unwrap().data;
            let nan = half::f16::NAN.to_le_bytes();
            data[..2].copy_from_slice(&nan);
        });
        assert_says(
            &error(&path, &OpenOptions::default()),
            &[name, "NaN", "sdxl.safetensors"],
        );
    }
}

#[test]
fn a_missing_tensor_is_named() {
    let places = [
        (UNET, "down_blocks.1.resnets.0.conv1.weight"),
        (VAE, "decoder.up_blocks.2.resnets.1.norm2.bias"),
        (TEXT, "encoder.layers.1.self_attn.k_proj.weight"),
    ];
    for family in FAMILIES {
        for (file, end) in places {
            let (_dir, copy) = changed(family, file, |tensors| {
                let name = full_name(tensors, end);
                tensors.remove(&name);
            });
            assert_says(
                &error(&copy, &OpenOptions::default()),
                &[end, "is missing", file],
            );
            let model = open(&copy, &OpenOptions::default());
            let part = file.split('/').next().unwrap();
            let device = aquatint_engine::Device::flex();
            match part {
                "unet" => drop(model.load_unet(&device).unwrap_err()),
                "vae" => drop(model.load_vae(&device).unwrap_err()),
                _ => drop(model.load_text(&device).unwrap_err()),
            }
            let reports = model.reports();
            let faulty: Vec<_> = reports.iter().filter(|(_, r)| !r.is_complete()).collect();
            assert_eq!(faulty.len(), 1, "{family} {file}");
            assert!(
                faulty[0].1.missing[0].ends_with(end),
                "{:?}",
                faulty[0].1.missing
            );
        }
    }
}

#[test]
fn a_tensor_of_another_shape_is_named_with_both_shapes() {
    for family in FAMILIES {
        for (file, end) in [
            (UNET, "mid_block.resnets.0.conv1.weight"),
            (VAE, "decoder.conv_norm_out.weight"),
            (TEXT, "encoder.layers.0.mlp.fc2.weight"),
        ] {
            let (mut found, mut expected) = (String::new(), String::new());
            let (_dir, copy) = changed(family, file, |tensors| {
                let name = full_name(tensors, end);
                let raw = tensors.get_mut(&name).unwrap();
                expected = format!("{:?}", raw.shape);
                let rows = raw.shape[0];
                raw.data.truncate(raw.data.len() / rows * (rows - 1));
                raw.shape[0] = rows - 1;
                found = format!("{:?}", raw.shape);
            });
            let words = [end, &found, &expected, file];
            assert_says(&error(&copy, &OpenOptions::default()), &words);
        }
    }
}

#[test]
fn a_tensor_missing_from_a_single_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for (family, name) in [
        (
            "sd1",
            "model.diffusion_model.output_blocks.3.0.in_layers.2.weight",
        ),
        ("sd1", "model.diffusion_model.input_blocks.0.0.bias"),
        (
            "sd2",
            "cond_stage_model.model.transformer.resblocks.1.mlp.c_fc.weight",
        ),
        ("sd2", "cond_stage_model.model.token_embedding.weight"),
        ("sdxl", "model.diffusion_model.label_emb.0.2.weight"),
        ("sdxl", "conditioner.embedders.1.model.text_projection"),
        ("sdxl", "first_stage_model.decoder.conv_out.weight"),
    ] {
        let path = single_file(family, dir.path()).unwrap();
        rewrite(&path, |tensors| {
            tensors
                .remove(name)
                .unwrap_or_else(|| panic!("there is no {name}"));
        });
        assert_says(
            &error(&path, &OpenOptions::default()),
            &[name, "is missing"],
        );
    }
}

#[test]
fn parts_that_a_file_does_not_hold_are_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    for family in FAMILIES {
        let path = unet_only(family, dir.path()).unwrap();
        let no_vae = error(&path, &OpenOptions::default());
        assert_says(&no_vae, &["holds no autoencoder"]);
        assert!(no_vae.hint().unwrap().contains("--vae"));
        let with_vae = OpenOptions {
            vae: Some(golden(family)),
            ..OpenOptions::default()
        };
        let no_text = error(&path, &with_vae);
        assert_says(&no_text, &["text encoder"]);
        assert!(no_text.hint().unwrap().contains("--text-encoder"));
    }
    // One of the two that SDXL has.
    let options = OpenOptions {
        vae: Some(golden("sdxl")),
        text_encoders: vec![golden("sdxl/text_encoder")],
        ..OpenOptions::default()
    };
    let one = error(&dir.path().join("sdxl_unet.safetensors"), &options);
    assert_says(&one, &["second text encoder"]);
}

/// Files that are something else are called by name.
#[test]
fn other_kinds_of_files_are_recognised() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, tensors: &[(&str, &[usize])]| {
        let path = dir.path().join(format!("{name}.safetensors"));
        std::fs::copy(golden(&format!("sd1/{VAE}")), &path).unwrap();
        rewrite(&path, |all| {
            all.clear();
            for (name, shape) in tensors {
                let raw = Raw {
                    dtype: safetensors::Dtype::F16,
                    shape: shape.to_vec(),
                    data: vec![0; 2 * shape.iter().product::<usize>()],
                };
                all.insert((*name).to_owned(), raw);
            }
        });
        path
    };
    let kohya = "lora_unet_down_blocks_0_attentions_0_proj_in";
    let kohya = [
        format!("{kohya}.lora_down.weight"),
        format!("{kohya}.lora_up.weight"),
    ];
    let lora = file("kohya", &[(&kohya[0], &[4, 32]), (&kohya[1], &[32, 4])]);
    let peft = "unet.down_blocks.0.attentions.0.proj_in.lora_A.weight";
    let peft = file("peft", &[(peft, &[4, 32])]);
    let tiny = golden("taesd/taesd_decoder.safetensors");
    let control = file(
        "control",
        &[("control_model.input_blocks.0.0.weight", &[8, 4, 3, 3])],
    );
    let flux = file("flux", &[("double_blocks.0.img_attn.qkv.weight", &[8, 4])]);
    let sd3 = file(
        "sd3",
        &[("model.diffusion_model.joint_blocks.0.x", &[8, 4])],
    );
    let unknown = file("unknown", &[("weight", &[2])]);
    for (path, kind) in [
        (&lora, "LoRA"),
        (&peft, "LoRA"),
        (&tiny, "tiny autoencoder"),
        (&control, "ControlNet"),
        (&sd3, "Stable Diffusion 3"),
        (&golden(&format!("sd1/{VAE}")), "an autoencoder"),
        (&golden(&format!("sd1/{TEXT}")), "a text encoder"),
        (&unknown, "no known model"),
    ] {
        let error = error(path, &OpenOptions::default());
        assert!(
            matches!(error, EngineError::Model(ModelError::NotAModel { .. })),
            "{error:?}"
        );
        assert_says(&error, &[kind, "expected a text-to-image model"]);
    }
    // A family that is known, without what tells its shape.
    let cut = error(&flux, &OpenOptions::default());
    assert_says(&cut, &["flux.safetensors", "img_in.weight is missing"]);
    // And where a part was asked for.
    let options = OpenOptions {
        vae: Some(lora.clone()),
        ..OpenOptions::default()
    };
    assert_says(
        &error(&golden("sd1"), &options),
        &["LoRA", "expected an autoencoder"],
    );
    let options = OpenOptions {
        text_encoders: vec![golden(&format!("sd1/{VAE}"))],
        ..OpenOptions::default()
    };
    let swapped = error(&golden("sd1"), &options);
    assert_says(&swapped, &["an autoencoder", "expected a text encoder"]);
}

#[test]
fn folders_that_are_no_models() {
    let dir = tempfile::tempdir().unwrap();
    let empty = error(dir.path(), &OpenOptions::default());
    assert_says(&empty, &["model_index.json"]);
    let nothing = error(&dir.path().join("nothing"), &OpenOptions::default());
    assert_says(&nothing, &["nothing", "no such file"]);
    // A folder of one weight file, as people have them.
    let file = single_file("sd1", dir.path()).unwrap();
    assert_says(&error(dir.path(), &OpenOptions::default()), &["folder"]);
    std::fs::remove_file(file).unwrap();
    // Another pipeline.
    let index = r#"{"_class_name": "LuminaPipeline"}"#;
    std::fs::write(dir.path().join("model_index.json"), index).unwrap();
    assert_says(
        &error(dir.path(), &OpenOptions::default()),
        &["LuminaPipeline", "not supported"],
    );
    std::fs::write(dir.path().join("model_index.json"), "{").unwrap();
    assert_says(
        &error(dir.path(), &OpenOptions::default()),
        &["model_index.json", "JSON"],
    );
}

#[test]
fn folders_without_a_part() {
    for part in ["unet", "vae", "text_encoder"] {
        let dir = tempfile::tempdir().unwrap();
        let copy = folder("sd1", dir.path()).unwrap();
        let config = copy.join(part).join("config.json");
        std::fs::write(&config, "[1").unwrap();
        assert_says(&error(&copy, &OpenOptions::default()), &[part]);
        std::fs::remove_dir_all(copy.join(part)).unwrap();
        assert_says(&error(&copy, &OpenOptions::default()), &[part]);
    }
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    // The whole vocabulary for an encoder that knows 760 tokens.
    let dir = tempfile::tempdir().unwrap();
    let copy = folder("sd1", dir.path()).unwrap();
    std::fs::remove_dir_all(copy.join("tokenizer")).unwrap();
    assert_says(&error(&copy, &OpenOptions::default()), &["49408", "760"]);
    // A folder that holds none.
    let options = OpenOptions {
        tokenizers: vec![golden("sd1/vae")],
        ..OpenOptions::default()
    };
    let words = ["tokenizer", "sd1/vae", "vocab.json"];
    assert_says(&error(&golden("sd1"), &options), &words);
}

/// A text encoder of another generation does not fit the UNet.
#[test]
fn parts_of_another_generation_are_refused() {
    let options = OpenOptions {
        text_encoders: vec![golden("sdxl/text_encoder")],
        ..OpenOptions::default()
    };
    let error = error(&golden("sd1"), &options);
    assert_says(&error, &["text encoder", "hidden_size", "16", "32"]);
}

/// What a healthy model's report says: everything taken, and what was left is known to be harmless.
#[test]
fn reports_of_whole_models() {
    let dir = tempfile::tempdir().unwrap();
    for family in FAMILIES {
        let references = References::read(family);
        let case = references.pick(&["pipe/ddim/g7.5"])[0];
        let file = single_file(family, dir.path()).unwrap();
        let mut applied = Vec::new();
        for path in [golden(family), file] {
            let model = open(&path, &OpenOptions::default());
            run(&model, &request(case)).unwrap();
            let reports = model.reports();
            for (part, report) in &reports {
                assert!(report.is_complete(), "{family} {part}: {report}");
                assert!(!report.applied.is_empty(), "{family} {part}");
                let decoder = part == "autoencoder";
                let unknown: Vec<_> = report
                    .unused
                    .iter()
                    // Pictures need no encoder; SD 2's file holds a layer and a projection that are not used.
                    .filter(|n| !(decoder && (n.contains("encoder.") || n.contains("quant_conv"))))
                    .filter(|n| {
                        !(family == "sd2"
                            && (n.contains("resblocks.") || n.contains("text_projection")))
                    })
                    .collect();
                assert!(
                    unknown.is_empty(),
                    "{family} {} {part}: {unknown:?}",
                    path.display()
                );
            }
            applied.push(
                reports
                    .into_iter()
                    .map(|(part, r)| (part, r.applied.into_keys().collect::<Vec<_>>()))
                    .collect::<Vec<_>>(),
            );
        }
        // Both layouts give the same parameters under the same names, but for the prefix that
        // transformers has dropped.
        let plain = |of: &[(String, Vec<String>)]| -> Vec<(String, Vec<String>)> {
            of.iter()
                .map(|(part, names)| {
                    let short = |n: &String| n.trim_start_matches("text_model.").to_owned();
                    let mut names: Vec<String> = names.iter().map(short).collect();
                    names.sort();
                    (part.clone(), names)
                })
                .collect()
        };
        assert_eq!(plain(&applied[0]), plain(&applied[1]), "{family}");
    }
}
