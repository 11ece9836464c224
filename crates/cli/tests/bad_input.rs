//! Bad input, each kind tried on the binary: one line, a hint, the right exit code, nothing left behind.

mod common;

use std::path::{Path, PathBuf};

use aquatint_testkit::{folder, single_file, unet_only};
use common::{Place, arg, failure, quick, text};
use serde_json::{Value, json};

const USAGE: i32 = 2;
const FAILURE: i32 = 1;

// Command line -----------------------------------------------------------------------------------

/// Each case: arguments after the prompt, what the message must say.
#[track_caller]
fn refused_all(code: i32, cases: &[(&[&str], &str)]) {
    let place = Place::new();
    for (args, expected) in cases {
        let args: Vec<&str> = ["generate", "x"]
            .into_iter()
            .chain(args.iter().copied())
            .collect();
        let said = place.refused(code, &args);
        assert!(said.contains(expected), "{args:?}: {said}");
        assert!(said.contains("\nhint: "), "{args:?}: {said}");
    }
}

#[test]
fn sides_that_cannot_be() {
    let expected = "expected a multiple of 8 from 64 to 4096";
    for side in ["--width", "--height"] {
        for value in [
            "100",
            "0",
            "-8",
            "1000000000",
            "99999999999999999999",
            "abc",
            "",
            "64.0",
            "4104",
            "56",
        ] {
            refused_all(USAGE, &[(&[side, value], expected)]);
        }
    }
    refused_all(
        USAGE,
        &[
            (&["--width", "100"], "width is 100"),
            (&["--width", "100"], "try 104"),
        ],
    );
}

#[test]
fn numbers_that_cannot_be() {
    refused_all(
        USAGE,
        &[
            (&["--steps", "0"], "steps is 0, expected 1 to 1000"),
            (&["--steps", "1001"], "steps is 1001, expected 1 to 1000"),
            (&["--steps", "many"], "found \"many\" for --steps <N>"),
            (
                &["--count", "0"],
                "expected a whole number from 1 to 100000",
            ),
            (
                &["--count", "-1"],
                "expected a whole number from 1 to 100000",
            ),
            (&["--batch", "0"], "batch is 0, expected 1 to 64"),
            (&["--batch", "65"], "batch is 65, expected 1 to 64"),
            (&["--eta", "2"], "eta is 2, expected 0 to 1"),
            (&["--eta", "nan"], "eta is NaN, expected 0 to 1"),
            (&["-g", "nan"], "guidance is NaN, expected 0 to 100"),
            (&["-g", "inf"], "guidance is inf, expected 0 to 100"),
            (&["-g", "-inf"], "guidance is -inf, expected 0 to 100"),
            (&["-g", "-1"], "guidance is -1, expected 0 to 100"),
            (&["--guidance=-1"], "guidance is -1, expected 0 to 100"),
            (&["-g", "7,5"], "found \"7,5\" for --guidance <F>"),
            (
                &["--guidance-rescale", "2"],
                "guidance rescale is 2, expected 0 to 1",
            ),
            (
                &["--guidance-interval", "3,1"],
                "expected two noise levels, the lower first",
            ),
            (
                &["--guidance-interval", "-3,1"],
                "expected two noise levels, the lower first",
            ),
            (
                &["--guidance-interval", "nan,1"],
                "expected two noise levels, the lower first",
            ),
            (
                &["--guidance-interval", "3"],
                "expected two numbers with a comma between",
            ),
            (&["--clip-skip", "0"], "clip skip is 0, expected 1 to 12"),
            (
                &["--clip-skip", "4"],
                "clip skip is 4, expected 1 to 3, the text encoder's layers",
            ),
            (&["--clip-skip", "99"], "clip skip is 99, expected 1 to 12"),
            (&["--seed", "-1"], "leave it out for a random one"),
            (
                &["--seed", "18446744073709551616"],
                "expected 0 to 18446744073709551615",
            ),
            (
                &["--threads", "0"],
                "expected a whole number from 1 to 1024",
            ),
            (
                &["--preview-every", "0"],
                "expected a whole number from 1 to 1000",
            ),
        ],
    );
}

#[test]
fn names_that_are_not_known_are_answered_with_the_nearest() {
    refused_all(
        USAGE,
        &[
            (&["--sampler", "eulr"], "the nearest are euler,"),
            (&["--sampler", "dpm++ 2x"], "dpmpp_2m"),
            (&["--sampler", ""], "found no sampler \"\""),
            (&["--schedule", "karas"], "the nearest are karras,"),
            (&["--rng", "torch"], "torch-cpu"),
            (&["--dtype", "f8"], "expected auto, f32, f16 or bf16"),
            (&["--vae-tiling", "maybe"], "expected auto, on or off"),
            (&["--prompt-syntax", "other"], "expected weighted or plain"),
            (&["--prediction", "x0"], "expected epsilon, v or sample"),
            (&["--sampelr", "euler"], "did you mean --sampler?"),
        ],
    );
}

#[test]
fn command_lines_that_are_no_request() {
    let place = Place::new();
    for (args, expected) in [
        (
            &["generate"][..],
            "<PROMPT> is missing\nhint: say what to draw",
        ),
        (
            &["generate", "a", "red", "apple"],
            "put the prompt in quotes",
        ),
        (
            &["generate", "x", "-m"],
            "--model <PATH> is without a value",
        ),
        (
            &["generate", "x", "-m", ""],
            "--model <PATH> is without a value",
        ),
        (
            &["generate", "x", "--seed", "1", "--seed", "2"],
            "--seed <N> is given twice",
        ),
        (
            &["generate", "x", "--quick-decode"],
            "--taesd <PATH> is missing",
        ),
        (
            &["generate", "-red"],
            "a prompt that begins with - goes after --",
        ),
        (&["inspect"], "<FILE> is missing"),
        (
            &["completions", "tcsh"],
            "expected bash, elvish, fish, powershell or zsh",
        ),
        (&["genrate", "x"], "did you mean generate?"),
        (&["draw"], "found \"draw\", which is no command"),
    ] {
        let output = place.run(args);
        let said = failure(USAGE, &output);
        assert!(said.contains(expected), "{args:?}: {said}");
        // A wrong command line is all that is said.
        assert!(text(&output.stderr).starts_with("error: "), "{args:?}");
    }
    assert!(place.names().is_empty());
}

#[test]
fn without_arguments_there_is_help() {
    let output = Place::new().run::<&str>([]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("Usage: aquatint <COMMAND>"));
}

#[cfg(unix)]
#[test]
fn a_prompt_that_is_not_utf8() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let place = Place::new();
    let said = place.refused(
        USAGE,
        [OsStr::new("generate"), OsStr::from_bytes(b"caf\xe9")],
    );
    assert!(said.contains("not UTF-8"), "{said}");
}

#[test]
fn a_prompt_that_is_too_long() {
    // One argument holds at most 128 kB on Linux.
    let place = Place::new();
    let long = "a red apple, ".repeat(9000);
    let said = place.refused(FAILURE, quick(&["-n", &long]));
    assert!(
        said.contains("expected at most 64; shorten the prompt"),
        "{said}"
    );
    let run = place.json(quick(&[
        "-n",
        &long,
        "--prompt-syntax",
        "plain",
        "-o",
        "a.png",
    ]));
    let warning = run["warnings"][0].as_str().expect("a warning");
    assert!(
        warning.contains("too long") && warning.len() < 400,
        "{warning}"
    );
}

#[test]
fn a_megabyte_of_prompt_in_a_picture() {
    let place = Place::new();
    let prompt = "word ".repeat(200_000);
    let parameters =
        format!("{prompt}\nSteps: 2, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64");
    let png = png_with(&place, "long.png", Some(&parameters));
    let said = place.refused(FAILURE, ["generate", "--from", arg(&png)]);
    assert!(said.contains("chunks of 75 tokens"), "{said}");
}

// Outputs ----------------------------------------------------------------------------------------

#[test]
fn outputs_that_cannot_be_written() {
    let place = Place::new();
    place.write("taken.png", b"mine");
    place.write("file", b"mine");
    std::fs::create_dir(place.join("dir.png")).expect("a folder");
    for (code, output, expected) in [
        (
            FAILURE,
            "nowhere/a.png",
            "the folder nowhere is not there\nhint: make it first: mkdir -p nowhere",
        ),
        (FAILURE, "nowhere/", "the folder nowhere is not there"),
        (FAILURE, "taken.png", "already there\nhint: use --force"),
        (FAILURE, "file/a.png", "file is not a folder"),
        (FAILURE, "/proc/a.png", "/proc"),
        (USAGE, "a.jpg", "ends in .jpg, expected .png"),
        (USAGE, "-", "expected a file or a folder"),
        (USAGE, "", "--output is empty"),
    ] {
        let said = place.refused(code, quick(&["--seed", "1", "-o", output]));
        assert!(said.contains(expected), "{output}: {said}");
    }
    let long = format!("{}.png", "n".repeat(300));
    place.refused(FAILURE, quick(&["-o", &long]));
    assert_eq!(
        std::fs::read(place.join("taken.png")).expect("it is there"),
        b"mine"
    );
}

#[test]
fn previews_that_cannot_be_written() {
    let place = Place::new();
    for (code, preview, expected) in [
        (FAILURE, "nowhere/p.png", "the folder nowhere is not there"),
        (USAGE, "p.jpg", "ends in .jpg, expected .png"),
        (USAGE, "/dev/null", "expected .png"),
        (USAGE, "a.png", "is both the picture and its preview"),
        (FAILURE, "/proc/p.png", "/proc"),
    ] {
        let said = place.refused(code, quick(&["-o", "a.png", "--preview", preview]));
        assert!(said.contains(expected), "{preview}: {said}");
    }
}

#[cfg(unix)]
#[test]
fn what_is_no_file_is_not_replaced_even_with_force() {
    let place = Place::new();
    let pipe = place.join("pipe.png");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    if !made.is_ok_and(|s| s.success()) {
        eprintln!("skipped: no mkfifo here");
        return;
    }
    let said = place.refused(FAILURE, quick(&["-o", "pipe.png", "--force"]));
    assert!(said.contains("is not a file"), "{said}");
    place.refused(FAILURE, quick(&["--preview", "pipe.png"]));
}

/// A full disk: a small file system of its own, mounted where nobody else sees it.
#[test]
fn a_full_disk_leaves_nothing() {
    let place = Place::new();
    let disk = place.join("disk");
    std::fs::create_dir(&disk).expect("a folder");
    let script = format!(
        "mount -t tmpfs -o size=8k tmpfs '{0}' || exit 99; \
         '{1}' generate x --steps 2 --seed 1 --json -o '{0}/a.png'; code=$?; \
         ls -A '{0}' >&2; exit $code",
        disk.display(),
        common::binary()
    );
    let output = std::process::Command::new("unshare")
        .args(["-m", "sh", "-c", &script])
        .output();
    let Ok(output) = output
        .as_ref()
        .map_err(drop)
        .and_then(|o| match o.status.code() {
            Some(99 | 127) | None => Err(()),
            Some(_) if text(&o.stderr).starts_with("unshare:") => Err(()),
            _ => Ok(o),
        })
    else {
        eprintln!("skipped: a file system cannot be mounted here");
        return;
    };
    // A file that is left behind would be a line after the hint.
    let said = failure(FAILURE, output);
    assert!(said.contains("no space is left on the disk"), "{said}");
    assert!(said.contains("nothing was left behind"), "{said}");
}

// Pictures to repeat -----------------------------------------------------------------------------

fn png_with(place: &Place, name: &str, parameters: Option<&str>) -> PathBuf {
    // Stored as text by the encoder that the engine uses too; its reader is tested elsewhere.
    let picture = aquatint_engine::picture::Picture {
        width: 8,
        height: 8,
        rgb: vec![9; 192],
    };
    let path = place.join(name);
    aquatint_engine::picture::save(&path, &picture, parameters, true).expect("a PNG");
    path
}

#[test]
fn pictures_that_cannot_be_repeated() {
    let place = Place::new();
    png_with(&place, "bare.png", None);
    png_with(&place, "other.png", Some("hello"));
    let line = "Steps: 2, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64";
    png_with(
        &place,
        "steps.png",
        Some(&line.replace("Steps: 2", "Steps: 5000")),
    );
    png_with(&place, "sampler.png", Some(&line.replace("Euler", "Eulr")));
    png_with(&place, "size.png", Some(&line.replace("64x64", "100x64")));
    png_with(
        &place,
        "batch.png",
        Some(&format!("{line}, Batch size: 2, Batch pos: 5")),
    );
    png_with(&place, "model.png", Some(&format!("{line}, Model: gone")));
    png_with(
        &place,
        "vae.png",
        Some(&format!("{line}, VAE path: /nowhere/vae")),
    );
    place.write("text.png", "no picture");
    place.write("empty.png", "");
    let whole = std::fs::read(png_with(&place, "whole.png", Some(line))).expect("a PNG");
    for (name, expected) in [
        ("nowhere.png", "cannot be opened"),
        ("bare.png", "carries no parameters"),
        ("other.png", "Steps"),
        ("steps.png", "steps.png: steps is 5000"),
        ("sampler.png", "sampler.png: found no sampler \"Eulr\""),
        ("size.png", "size.png: width is 100"),
        ("batch.png", "batch position 5 in a batch of 2"),
        (
            "model.png",
            "the model gone, which is not there\nhint: say where it is now: -m PATH",
        ),
        ("vae.png", "/nowhere/vae: no such file or folder"),
        ("text.png", "not a readable PNG"),
        ("empty.png", "not a readable PNG"),
        (".", "directory"),
    ] {
        let said = place.refused(FAILURE, ["generate", "--from", name]);
        assert!(said.contains(expected), "{name}: {said}");
    }
    for part in 0..16 {
        let cut = place.write("cut.png", &whole[..whole.len() * part / 16]);
        place.refused(FAILURE, ["generate", "--from", arg(&cut)]);
    }
    // What the command line says instead is not the picture's fault.
    place.ok([
        "generate",
        "--from",
        "steps.png",
        "--steps",
        "1",
        "-o",
        "a.png",
    ]);
    place.ok([
        "generate",
        "--from",
        "sampler.png",
        "--sampler",
        "euler",
        "-o",
        "b.png",
    ]);
}

// Models -----------------------------------------------------------------------------------------

/// Every way of giving a file as a model fails, and `inspect` never panics.
#[track_caller]
fn no_model(place: &Place, path: &Path, expected: &str) -> String {
    let said = place.refused(FAILURE, quick(&["-m", arg(path)]));
    assert!(said.contains(expected), "{}: {said}", path.display());
    let inspected = place.run(["inspect", arg(path)]);
    assert!(
        matches!(inspected.status.code(), Some(0 | 1)),
        "{inspected:?}"
    );
    assert!(!text(&inspected.stderr).contains("panicked"));
    said
}

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

/// A safetensors file of our own making: what the header says, and bytes.
fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
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
            "flux.safetensors",
            &["double_blocks.0.img_attn.qkv.weight"],
            "FLUX",
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
