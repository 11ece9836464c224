//! `aquatint convert`: what it writes is read by the PyPI package `gguf`, and by `generate`.

use std::path::{Path, PathBuf};
use std::process::Command;

use aquatint_testkit::{golden, root, single_file};
use serde_json::Value;

mod common;

use common::{Place, arg};

/// A Python that has the package `gguf`: `$AQUATINT_PYTHON`, or the first that is called so.
fn python() -> Option<PathBuf> {
    let given = std::env::var_os("AQUATINT_PYTHON").map(PathBuf::from);
    let has = |python: &PathBuf| {
        let tried = Command::new(python).args(["-c", "import gguf"]).output();
        tried.is_ok_and(|o| o.status.success())
    };
    given.into_iter().chain(["python3".into()]).find(has)
}

/// What the package reads from a file.
fn read(python: &Path, file: &Path) -> Value {
    let script = root().join("golden/gguf_files.py");
    let output = Command::new(python)
        .arg(script)
        .arg("read")
        .arg(file)
        .output();
    let output = output.expect("Python starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let mut files: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    files[0].take()
}

#[test]
fn the_reference_reads_what_is_written() {
    let place = Place::new();
    let models = tempfile::tempdir().expect("a folder");
    let source = single_file("sd1", models.path()).expect("a golden");
    let Some(python) = python() else {
        eprintln!("SKIPPED: no Python with the package gguf; set AQUATINT_PYTHON to one");
        return;
    };
    for to in ["q8_0", "q4_k", "q6_k", "q5_1", "f16", "bf16"] {
        let out = place.join(format!("{to}.gguf"));
        let told = place.json(["convert", arg(&source), arg(&out), "--to", to]);
        assert_eq!(told["architecture"], "sd1");
        let seen = read(&python, &out);
        assert_eq!(seen["metadata"]["general.architecture"], "sd1");
        let tensors = told["tensors"].as_array().expect("a list");
        assert!(tensors.len() > 500, "{} tensors", tensors.len());
        assert_eq!(
            seen["tensors"].as_object().map(|t| t.len()),
            Some(tensors.len())
        );
        let mut asked = 0;
        for tensor in tensors {
            let name = tensor["name"].as_str().expect("a name");
            let other = &seen["tensors"][name];
            assert_eq!(other["type"], tensor["to"], "{name}");
            assert_eq!(other["shape"], tensor["shape"], "{name}");
            asked += usize::from(tensor["to"].as_str() == Some(&to.to_uppercase()));
        }
        assert!(asked > 0, "nothing became {to}");
    }
}

/// A GGUF file, and a safetensors file made of it, draw the picture that they should.
#[test]
fn pictures_from_converted_models() {
    let place = Place::new();
    let models = tempfile::tempdir().expect("a folder");
    let source = single_file("sd1", models.path()).expect("a golden");
    let draw = |model: &Path, out: &str| {
        let picture = place.join(out);
        place.ok([
            "generate",
            "--seed",
            "7",
            "a red apple",
            "-m",
            arg(model),
            "--steps",
            "4",
            "--width",
            "64",
            "--height",
            "64",
            "-o",
            arg(&picture),
        ]);
        let (width, height, pixels) = aquatint_testkit::read_png(picture).expect("a picture");
        assert_eq!((width, height), (64, 64));
        pixels
    };
    let want = draw(&source, "source.png");
    let f16 = place.join("f16.gguf");
    place.ok(["convert", arg(&source), arg(&f16), "--to", "f16"]);
    let same = draw(&f16, "f16.png") == want;
    assert!(same, "f16 in f16 is the same model");
    let psnr = |to: &str| {
        let out = place.join(format!("{to}.gguf"));
        place.ok(["convert", arg(&source), arg(&out), "--to", to]);
        let psnr = aquatint_testkit::psnr(&draw(&out, &format!("{to}.png")), &want);
        println!("{to}: {psnr:.1} dB");
        psnr
    };
    assert!(psnr("q8_0") >= 35.0);
    // Few of the tiny model's rows are 256 long, so that most of this is Q8_0; four bits throughout are Q4_0, which is
    // coarser than Q4_K (24.5 dB here, of random weights).
    assert!(psnr("q4_k") >= 25.0);
    assert!(psnr("q4_0") >= 20.0);
    let back = place.join("back.safetensors");
    place.ok(["convert", arg(&f16), arg(&back), "--to", "f16"]);
    let same = draw(&back, "back.png") == want;
    assert!(same, "and back");
}

#[test]
fn patterns_choose_types() {
    let place = Place::new();
    let out = place.join("out.gguf");
    let source = golden("gguf_files/all.gguf");
    let told = place.json([
        "convert",
        arg(&source),
        arg(&out),
        "--to",
        "f16",
        "--tensors",
        "^q4=q8_0",
        "--tensors",
        "^q.*weight$=f32",
    ]);
    for tensor in told["tensors"].as_array().expect("a list") {
        let name = tensor["name"].as_str().expect("a name");
        let want = match name {
            "q4_k.weight" | "q4_0.weight" | "q4_1.weight" => "Q8_0",
            "conv.weight" => "F16",
            n if n.starts_with('q') => "F32",
            _ => continue,
        };
        assert_eq!(tensor["to"], want, "{name}");
    }
    assert_eq!(told["architecture"], Value::Null);
    let plain = place.ok(["convert", arg(&source), arg(&out), "--to", "q8_0"]);
    assert!(
        plain.contains("no architecture that ComfyUI-GGUF knows"),
        "{plain}"
    );
    // The vocabulary goes along.
    let seen = place.json(["inspect", arg(&out)]);
    let notes = &seen["weights"]["files"][0]["metadata"];
    assert_eq!(notes["tokenizer.ggml.tokens"], "5 of string");
}

#[test]
fn wrong_command_lines() {
    let place = Place::new();
    let source = golden("gguf_files/all.gguf");
    let source = arg(&source);
    for (args, expected) in [
        (
            &[source, "out.bin", "--to", "f16"][..],
            ".safetensors or .gguf",
        ),
        (
            &[source, "out.safetensors", "--to", "q8_0"],
            "cannot hold Q8_0",
        ),
        (&[source, "out.gguf", "--to", "f8"], "8-bit floats"),
        (&[source, "out.gguf", "--to", "f17"], "f17"),
        (&[source, "out.gguf"], "--to"),
        (
            &[source, "out.gguf", "--to", "f16", "--tensors", "a"],
            "equals sign",
        ),
        (
            &[source, "out.gguf", "--to", "f16", "--tensors", "a=f17"],
            "f17",
        ),
        (
            &[source, "out.gguf", "--to", "f16", "--tensors", "(=f16"],
            "unclosed",
        ),
        (
            &[source, "out.gguf", "--to", "f16", "--tensors", "a=f8"],
            "8-bit floats",
        ),
        (&[source, source, "--to", "f16"], "is what is read"),
    ] {
        let said = place.refused(2, [&["convert"], args].concat());
        assert!(said.contains(expected), "{args:?}: {said}");
    }
}

#[test]
fn failures() {
    let place = Place::new();
    let source = golden("gguf_files/all.gguf");
    let folder = place.join("full");
    std::fs::create_dir(&folder).expect("a folder");
    let model = golden("sd1");
    for (input, output, expected) in [
        ("nowhere.ckpt", "out.gguf", "no such file"),
        (arg(&model), "out.gguf", "one of its components"),
        (
            arg(&source),
            "no/such/folder/out.gguf",
            "no such file or folder",
        ),
        (arg(&folder), "out.gguf", "no weights here"),
    ] {
        let said = place.refused(1, ["convert", input, output, "--to", "f16"]);
        assert!(said.contains(expected), "{input}: {said}");
    }
    let evil = golden("pickle_files/evil_eval.ckpt");
    let said = place.refused(1, ["convert", arg(&evil), "out.safetensors", "--to", "f16"]);
    assert!(
        said.contains("__builtin__.eval") && said.contains("nothing was run"),
        "{said}"
    );
}

/// A component's folder, and a checkpoint of PyTorch.
#[test]
fn other_sources() {
    let place = Place::new();
    let unet = golden("sd1/unet");
    let out = place.join("unet.gguf");
    let told = place.json(["convert", arg(&unet), arg(&out), "--to", "q8_0"]);
    assert_eq!(told["architecture"], "sd1");
    let checkpoint = golden("pickle_files/lightning.ckpt");
    let out = place.join("out.safetensors");
    let told = place.json(["convert", arg(&checkpoint), arg(&out), "--to", "f32"]);
    assert_eq!(told["tensors"].as_array().map(Vec::len), Some(16));
    assert!(place.names().iter().all(|n| !n.contains(".part")));
}
