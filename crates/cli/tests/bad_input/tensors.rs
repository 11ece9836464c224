//! Whole files with the wrong tensors in them, and parts given apart.

use std::path::Path;

use aquatint_testkit::{folder, golden, single_file, unet_only};
use serde_json::{Value, json};

use crate::common::{Place, arg, quick, text};
use crate::{FAILURE, USAGE, no_model, safetensors};

/// Rewrites the header of a safetensors file, and lets its data be changed.
fn edit(path: &Path, change: impl FnOnce(&mut Value, &mut Vec<u8>)) {
    let bytes = std::fs::read(path).expect("a file");
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).expect("a header");
    let mut data = bytes[8 + length..].to_vec();
    change(&mut header, &mut data);
    let header = header.to_string();
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.extend(data);
    std::fs::write(path, out).expect("a file");
}

fn range(header: &Value, tensor: &str) -> std::ops::Range<usize> {
    let at = |i: usize| {
        header[tensor]["data_offsets"][i]
            .as_u64()
            .expect("an offset") as usize
    };
    at(0)..at(1)
}

const PARTS: [(&str, &str); 3] = [
    (
        "unet/diffusion_pytorch_model.safetensors",
        "mid_block.resnets.0.conv1.weight",
    ),
    (
        "vae/diffusion_pytorch_model.safetensors",
        "decoder.conv_out.weight",
    ),
    (
        "text_encoder/model.safetensors",
        "encoder.layers.1.mlp.fc1.weight",
    ),
];

/// The tensor's name as the file has it: text encoders come with and without a prefix.
fn real_name(header: &Value, name: &str) -> String {
    let names = header.as_object().expect("a header").keys();
    names
        .into_iter()
        .find(|n| n.ends_with(name))
        .expect("the tensor")
        .clone()
}

#[test]
fn a_tensor_that_is_missing_is_named() {
    let place = Place::new();
    for (file, tensor) in PARTS {
        let model = folder("sd1", place.path()).expect("a golden");
        edit(&model.join(file), |header, _| {
            let name = real_name(header, tensor);
            // Renamed, so that the data has no hole.
            let info = header.as_object_mut().expect("a header").remove(&name);
            header["another"] = info.expect("the tensor");
        });
        let said = no_model(&place, &model, tensor);
        assert!(
            said.contains("missing") || said.contains("not there"),
            "{said}"
        );
        // Not after the denoising that it makes useless.
        let output = place.run(quick(&["-m", arg(&model)]));
        assert!(!text(&output.stderr).contains("denoising"), "{file}");
    }
}

#[test]
fn a_tensor_of_another_shape_or_type_is_named() {
    let place = Place::new();
    for (file, tensor) in PARTS {
        let model = folder("sd1", place.path()).expect("a golden");
        edit(&model.join(file), |header, _| {
            let name = real_name(header, tensor);
            let shape = &mut header[&name]["shape"];
            *shape = shape
                .as_array()
                .expect("a shape")
                .iter()
                .rev()
                .cloned()
                .collect();
            if shape[0] == shape[1] {
                *shape = json!([shape
                    .as_array()
                    .expect("a shape")
                    .iter()
                    .map(|n| n.as_u64().expect("n"))
                    .product::<u64>()]);
            }
        });
        no_model(&place, &model, tensor);

        let model = folder("sd1", place.path()).expect("a golden");
        edit(&model.join(file), |header, _| {
            let name = real_name(header, tensor);
            header[&name]["dtype"] = json!("I16");
        });
        no_model(&place, &model, tensor);
    }
}

#[test]
fn nan_in_a_weight_is_told_by_name_or_stage() {
    let place = Place::new();
    for (file, tensor) in PARTS {
        let model = folder("sd1", place.path()).expect("a golden");
        edit(&model.join(file), |header, data| {
            let range = range(header, &real_name(header, tensor));
            for half in data[range].chunks_exact_mut(2) {
                half.copy_from_slice(&0x7e00u16.to_le_bytes());
            }
        });
        let said = place.refused(FAILURE, quick(&["-m", arg(&model)]));
        assert!(said.contains(tensor), "{said}");
        assert!(said.contains("\nhint: "), "{said}");
    }
}

#[test]
fn other_kinds_of_weights_are_called_by_their_names() {
    let place = Place::new();
    let names = |names: &[&str]| {
        let mut header = serde_json::Map::new();
        for (i, name) in names.iter().enumerate() {
            let offsets = [16 * i, 16 * i + 16];
            let info = json!({"dtype": "F32", "shape": [2, 2], "data_offsets": offsets});
            header.insert((*name).to_owned(), info);
        }
        safetensors(&Value::Object(header).to_string(), 16 * names.len())
    };
    for (file, tensors, expected) in [
        (
            "kohya.safetensors",
            &[
                "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight",
                "lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight",
            ][..],
            "LoRA",
        ),
        (
            "peft.safetensors",
            &["unet.conv_in.lora_A.weight", "unet.conv_in.lora_B.weight"],
            "LoRA",
        ),
        (
            "control.safetensors",
            &["control_model.input_blocks.0.0.weight"],
            "ControlNet",
        ),
        (
            "embedding.safetensors",
            &["emb_params"],
            "textual inversion",
        ),
        ("mine.safetensors", &["a", "b"], "tensors of no known model"),
    ] {
        let path = place.write(file, names(tensors));
        let said = no_model(&place, &path, expected);
        assert!(said.contains("expected a text-to-image model"), "{said}");
        let inspected = place.ok(["inspect", arg(&path)]);
        assert!(inspected.contains(expected), "{inspected}");
    }
}

#[test]
fn a_unet_alone_says_what_else_to_give() {
    let place = Place::new();
    let unet = unet_only("sd1", place.path()).expect("a golden");
    let said = no_model(&place, &unet, "--vae");
    assert!(
        said.contains("hint: give it apart with --vae PATH"),
        "{said}"
    );
    let model = folder("sd1", place.path()).expect("a golden");
    let vae = model.join("vae");
    let said = place.refused(FAILURE, quick(&["-m", arg(&unet), "--vae", arg(&vae)]));
    assert!(said.contains("--text-encoder PATH"), "{said}");
    let text_encoder = model.join("text_encoder/model.safetensors");
    let said = place.refused(
        FAILURE,
        quick(&["-m", arg(&unet), "--vae", arg(&text_encoder)]),
    );
    assert!(said.contains("expected an autoencoder"), "{said}");
}

#[test]
fn a_tiny_autoencoder_of_another_family() {
    let place = Place::new();
    let model = folder("sd1", place.path()).expect("a golden");
    let config = model.join("vae/config.json");
    let text = std::fs::read_to_string(&config).expect("a file");
    let mut config_json: Value = serde_json::from_str(&text).expect("JSON");
    config_json["latent_channels"] = json!(16);
    std::fs::write(&config, config_json.to_string()).expect("a file");
    let (model, tiny) = (arg(&model), golden("taesd"));
    let said = place.refused(FAILURE, quick(&["-m", model, "--taesd", arg(&tiny)]));
    assert!(
        said.contains("latents of 4 channels, expected 16 for this model"),
        "{said}"
    );
}

#[test]
fn parts_that_are_not_there_or_have_no_effect() {
    let place = Place::new();
    let model = folder("sd1", place.path()).expect("a golden");
    let file = single_file("sd1", place.path()).expect("a golden");
    let (model, file) = (arg(&model), arg(&file));
    for (code, args, expected) in [
        (
            FAILURE,
            &["--vae", "nowhere"][..],
            "check the path of --vae",
        ),
        (
            FAILURE,
            &["--text-encoder", "nowhere"],
            "check the path of --text-encoder",
        ),
        (
            FAILURE,
            &["--tokenizer", "nowhere"],
            "check the path of --tokenizer",
        ),
        (
            FAILURE,
            &["--config", "nowhere"],
            "check the path of --config",
        ),
        (
            FAILURE,
            &["--taesd", "nowhere"],
            "check the path of --taesd",
        ),
        (FAILURE, &["--taesd", file], "expected a tiny autoencoder"),
        (
            FAILURE,
            &["-m", file, "--config", file],
            "expected a folder",
        ),
        (
            USAGE,
            &["-m", model, "--config", model],
            "--config describes a single file",
        ),
        (
            USAGE,
            &["-m", file, "--variant", "fp16"],
            "--variant chooses among the files of a folder",
        ),
        (
            USAGE,
            &[
                "--text-encoder",
                model,
                "--text-encoder",
                model,
                "-m",
                model,
            ],
            "expected at most 1",
        ),
    ] {
        let said = place.refused(code, quick(args));
        assert!(said.contains(expected), "{args:?}: {said}");
    }
}
