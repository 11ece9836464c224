//! Files and folders that are no model, or a damaged one.

use std::path::{Path, PathBuf};

use aquatint_testkit::{folder, single_file};
use serde_json::json;

use crate::common::{Place, arg, quick};
use crate::{no_model, png_with, safetensors};

#[test]
fn files_that_are_no_model() {
    let place = Place::new();
    let mut zip = b"PK\x03\x04".to_vec();
    zip.extend([0; 200]);
    let png = std::fs::read(png_with(&place, "p.png", None)).expect("a PNG");
    for (name, bytes, expected) in [
        ("empty.safetensors", &b""[..], "empty"),
        ("text.safetensors", b"hello, this is only text\n", "text"),
        ("notes.txt", b"hello, this is only text\n", "text"),
        ("page.safetensors", b"<!DOCTYPE html><html>404</html>", ""),
        ("picture.safetensors", &png, "PNG"),
        (
            "model.gguf",
            b"GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            "GGUF",
        ),
        ("model.ckpt", &zip, ""),
        ("old.ckpt", b"\x80\x02}q\x00.", ""),
        ("zeros.safetensors", &[0; 4096], ""),
        ("short.safetensors", &[8, 0, 0], ""),
    ] {
        let path = place.write(name, bytes);
        let said = no_model(&place, &path, expected);
        assert!(said.contains("\nhint: "), "{name}: {said}");
    }
    no_model(
        &place,
        &place.join("nowhere.safetensors"),
        "no such file or folder",
    );
    std::fs::create_dir(place.join("hollow")).expect("a folder");
    no_model(
        &place,
        &place.join("hollow"),
        "expected a text-to-image model",
    );
}

#[test]
fn headers_that_lie() {
    let place = Place::new();
    let one = |dtype: &str, shape: &str, from: &str, to: &str| {
        format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}}}"#)
    };
    let two = |a: [u64; 2], b: [u64; 2]| {
        json!({
            "a": {"dtype": "F32", "shape": [2], "data_offsets": a},
            "b": {"dtype": "F32", "shape": [2], "data_offsets": b},
        })
        .to_string()
    };
    let huge = u64::MAX.to_string();
    let mut cases = vec![
        ("shape", safetensors(&one("F32", "[3]", "0", "8"), 8)),
        ("beyond", safetensors(&one("F32", "[2]", "8", "16"), 8)),
        ("backwards", safetensors(&one("F32", "[2]", "8", "0"), 8)),
        ("overflow", safetensors(&one("F32", "[2]", "0", &huge), 8)),
        (
            "past-u64",
            safetensors(&one("F32", "[2]", "0", "99999999999999999999"), 8),
        ),
        (
            "product",
            safetensors(&one("F32", "[4294967296,4294967296,4]", "0", "8"), 8),
        ),
        ("negative", safetensors(&one("F32", "[-2]", "0", "8"), 8)),
        ("dtype", safetensors(&one("F99", "[2]", "0", "8"), 8)),
        ("number", safetensors(&one("F32", "\"two\"", "0", "8"), 8)),
        ("overlap", safetensors(&two([0, 8], [4, 12]), 12)),
        ("same", safetensors(&two([0, 8], [0, 8]), 8)),
        ("gap", safetensors(&two([0, 8], [16, 24]), 24)),
        ("rest", safetensors(&two([0, 8], [8, 16]), 99)),
        ("json", safetensors("{\"a\":", 8)),
        ("list", safetensors("[1,2]", 0)),
        ("utf8", {
            let mut bytes = safetensors("{\"aa\":{}}", 0);
            bytes[10] = 0xff;
            bytes
        }),
    ];
    for length in [9u64, 1 << 20, 1 << 40, u64::MAX, u64::MAX - 7] {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend(b"{}      ");
        cases.push(("length", bytes));
    }
    for (name, bytes) in cases {
        let path = place.write(&format!("{name}.safetensors"), bytes);
        let said = no_model(&place, &path, arg(&path));
        assert!(said.contains("\nhint: "), "{name}: {said}");
    }
}

/// GGUF files that lie, of every class: counts, depth, lengths, places, names, types.
#[test]
fn gguf_files_that_lie() {
    let place = Place::new();
    let text = |s: &str| [&(s.len() as u64).to_le_bytes()[..], s.as_bytes()].concat();
    let head = |tensors: u64, pairs: u64| {
        [
            b"GGUF\x03\0\0\0",
            &tensors.to_le_bytes()[..],
            &pairs.to_le_bytes(),
        ]
        .concat()
    };
    let row = |name: &str, len: u64, kind: u32, offset: u64| {
        let mut row = text(name);
        row.extend(1u32.to_le_bytes());
        row.extend(len.to_le_bytes());
        row.extend(kind.to_le_bytes());
        row.extend(offset.to_le_bytes());
        row
    };
    let one = |row: Vec<u8>| {
        let mut file = [head(1, 0), row].concat();
        file.resize(file.len().next_multiple_of(32) + 64, 0);
        file
    };
    let pair = |key: &str, kind: u32, value: &[u8]| {
        [&head(0, 1)[..], &text(key), &kind.to_le_bytes(), value].concat()
    };
    let deep = [&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat();
    let mut twice = [head(2, 0), row("a", 1, 0, 0), row("a", 1, 0, 32)].concat();
    twice.resize(twice.len().next_multiple_of(32) + 64, 0);
    for (name, bytes, expected) in [
        ("tensors", head(u64::MAX, 0), "announces"),
        ("pairs", head(0, 1 << 40), "announces"),
        (
            "values",
            pair(
                "a",
                9,
                &[&4u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat(),
            ),
            "announces",
        ),
        ("depth", pair("a", 9, &deep.repeat(100_000)), "nests arrays"),
        ("text", pair("a", 8, &u64::MAX.to_le_bytes()), "a text of"),
        ("cut", pair("a", 8, &1000u64.to_le_bytes()), "ends in"),
        (
            "alignment",
            pair("general.alignment", 4, &33u32.to_le_bytes()),
            "power of two",
        ),
        ("place", one(row("a", 1, 0, 4)), "multiple of 32"),
        ("beyond", one(row("a", 1, 0, 1 << 40)), "the file holds"),
        ("longer", one(row("a", 1000, 0, 0)), "the file holds"),
        ("overflow", one(row("a", u64::MAX, 0, 0)), "overflows"),
        ("blocks", one(row("a", 33, 8, 0)), "blocks of 32"),
        ("type", one(row("a", 256, 23, 0)), "IQ4_XS"),
        ("twice", twice, "twice"),
        ("version", b"GGUF\x09\0\0\0".repeat(4), "version 9"),
    ] {
        let path = place.write(&format!("{name}.gguf"), bytes);
        let said = no_model(&place, &path, expected);
        assert!(said.contains("\nhint: "), "{name}: {said}");
        let out = place.join("out.gguf");
        place.refused(1, ["convert", arg(&path), arg(&out), "--to", "f16"]);
    }
}

/// Checkpoints that would run code: refused by the name of what they ask for, and nothing is run.
#[test]
fn checkpoints_that_would_run_code() {
    let place = Place::new();
    for (name, asked) in [
        ("evil_eval.ckpt", "__builtin__.eval"),
        ("evil_stack_global.ckpt", "builtins.exec"),
        ("evil_inst_alone.ckpt", "INST"),
        ("evil_build.ckpt", "builtins.getattr"),
        ("evil_nested.ckpt", "torch.storage._load_from_bytes"),
        ("evil_ext.ckpt", "EXT1"),
        ("evil_legacy.pt", "__builtin__.eval"),
        ("evil_legacy_late.pt", "__builtin__.exec"),
    ] {
        let bytes = std::fs::read(aquatint_testkit::golden("pickle_files").join(name));
        let path = place.write(name, bytes.expect("a golden"));
        let said = no_model(&place, &path, asked);
        assert!(said.contains("nothing was run"), "{said}");
    }
    assert!(!place.names().contains(&"owned".to_owned()));
}

#[test]
fn truncated_files() {
    let place = Place::new();
    let models = tempfile::tempdir().expect("a folder");
    let whole = single_file("sd1", models.path()).expect("a golden");
    let bytes = std::fs::read(whole).expect("a file");
    for part in 0..16 {
        let path = place.write("cut.safetensors", &bytes[..bytes.len() * part / 16]);
        no_model(&place, &path, arg(&path));
    }
    let path = place.write("cut.safetensors", &bytes[..bytes.len() - 1]);
    no_model(&place, &path, arg(&path));
    let mut longer = bytes;
    longer.push(0);
    let path = place.write("longer.safetensors", longer);
    no_model(&place, &path, arg(&path));
}

#[test]
fn truncated_files_of_a_folder() {
    let place = Place::new();
    let model = folder("sd1", place.path()).expect("a golden");
    for file in files_of(&model) {
        let bytes = std::fs::read(&file).expect("a file");
        // Merges cut between two lines are merges.
        let parts: &[usize] = match file.ends_with("merges.txt") {
            true => &[],
            false => &[0, 5, 11, 15],
        };
        for part in parts {
            std::fs::write(&file, &bytes[..bytes.len() * part / 16]).expect("a file");
            no_model(&place, &model, "");
        }
        std::fs::remove_file(&file).expect("removed");
        let optional = [
            "generation_config.json",
            "special_tokens_map.json",
            "tokenizer_config.json",
            "tokenizer.json",
            "scheduler_config.json",
            "added_tokens.json",
            "model_index.json",
        ];
        if !optional.iter().any(|o| file.ends_with(o)) {
            no_model(&place, &model, "");
        }
        std::fs::write(&file, bytes).expect("a file");
    }
    place.ok(quick(&["-m", arg(&model), "-o", "whole.png"]));
}

/// The files that a model cannot do without.
fn files_of(model: &Path) -> Vec<PathBuf> {
    [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    ]
    .iter()
    .map(|f| model.join(f))
    .filter(|f| f.is_file())
    .collect()
}
