//! Pictures are made again from their own parameters, equal to the byte.

use aquatint_engine::picture::read_parameters;
use aquatint_testkit::{folder, golden, unet_only};

use crate::bytes;
use crate::common::{Place, arg, quick};

/// Makes a picture and repeats it from itself; the files must be equal to the byte.
#[track_caller]
fn repeats(place: &Place, args: &[&str]) {
    let first = [&["generate"][..], args, &["-o", "first.png", "--force"]].concat();
    place.ok(first);
    place.ok([
        "generate",
        "--from",
        "first.png",
        "-o",
        "second.png",
        "--force",
    ]);
    let told = read_parameters(&place.join("first.png"))
        .expect("a PNG")
        .expect("parameters");
    assert_eq!(
        bytes(place, "first.png"),
        bytes(place, "second.png"),
        "{args:?}: {told}"
    );
}

#[test]
fn a_picture_repeats_from_its_own_parameters() {
    let place = Place::new();
    let small = ["--steps", "3", "--width", "64", "--height", "72"];
    for more in [
        &["a red apple"][..],
        &[
            "(a:1.3) [b] BREAK c",
            "-n",
            "blurry, \"noise\"",
            "--sampler",
            "euler_a",
        ],
        &[
            "りんご 🍎\nline: two, three",
            "-n",
            "",
            "--schedule",
            "karras",
            "--sampler",
            "dpmpp_2m",
        ],
        &["a\nNegative prompt: b\nSteps: 9, Sampler: x", "-n", "c"],
        &["x", "--sampler", "ddim", "--eta", "0.3", "--rng", "philox"],
        &[
            "x",
            "--sampler",
            "DPM++ 2M SDE",
            "--schedule",
            "exponential",
        ],
        &[
            "x",
            "--clip-skip",
            "2",
            "--guidance-rescale",
            "0.7",
            "--dtype",
            "f32",
        ],
        &[
            "x",
            "--dtype",
            "bf16",
            "--guidance-interval",
            "0.5,10",
            "-g",
            "4.1",
        ],
        &[
            "(x:1.4)",
            "--prompt-syntax",
            "plain",
            "--vae-tiling",
            "on",
            "--seed",
            "18446744073709551615",
        ],
        &["x", "-g", "0", "--prediction", "epsilon"],
        &["x", "-m", "emoji"],
    ] {
        repeats(&place, &[more, &small].concat());
    }
}

#[test]
fn a_picture_of_another_model_repeats_from_another_folder() {
    let place = Place::new();
    let models = place.join("my models");
    std::fs::create_dir(&models).expect("a folder");
    folder("sdxl", &models).expect("a golden");
    place.ok(quick(&["-m", "my models/sdxl", "-n", "y", "-o", "a.png"]));
    let elsewhere = place.join("elsewhere");
    std::fs::create_dir(&elsewhere).expect("a folder");
    let run = place
        .command()
        .current_dir(&elsewhere)
        .args(["generate", "--from", "../a.png", "-o", "b.png"])
        .output();
    assert!(run.expect("the binary starts").status.success());
    assert_eq!(bytes(&place, "a.png"), bytes(&place, "elsewhere/b.png"));
}

#[test]
fn one_picture_of_a_batch_repeats_alone() {
    let place = Place::new();
    place.ok(quick(&[
        "--seed",
        "3",
        "--batch",
        "3",
        "--count",
        "2",
        "-o",
        "a.png",
        "--sampler",
        "euler_a",
    ]));
    assert_eq!(place.names().len(), 6);
    for name in ["a-0.png", "a-1.png", "a-5.png"] {
        let run = place.json(["generate", "--from", name, "-o", "again.png", "--force"]);
        assert_eq!(run["files"], serde_json::json!(["again.png"]));
        assert_eq!(bytes(&place, name), bytes(&place, "again.png"), "{name}");
    }
}

#[test]
fn a_picture_repeats_with_the_parts_that_it_was_made_with() {
    let place = Place::new();
    let unet = unet_only("sd1", place.path()).expect("a golden");
    let model = folder("sd1", place.path()).expect("a golden");
    let (vae, text_encoder, tokenizer) = (
        model.join("vae"),
        model.join("text_encoder"),
        model.join("tokenizer"),
    );
    let mut args = vec![
        "x",
        "--steps",
        "2",
        "--width",
        "64",
        "--height",
        "64",
        "-m",
        arg(&unet),
    ];
    args.extend(["--vae", arg(&vae), "--text-encoder", arg(&text_encoder)]);
    args.extend(["--tokenizer", arg(&tokenizer)]);
    repeats(&place, &args);
    let tiny = golden("taesd");
    args.extend(["--taesd", arg(&tiny), "--quick-decode"]);
    repeats(&place, &args);
}

#[test]
fn the_command_line_goes_over_the_picture() {
    let place = Place::new();
    place.ok(quick(&["--seed", "3", "-n", "y", "-o", "a.png"]));
    place.ok(["generate", "--from", "a.png", "--seed", "4", "-o", "b.png"]);
    place.ok(quick(&["--seed", "4", "-n", "y", "-o", "c.png"]));
    assert_eq!(bytes(&place, "b.png"), bytes(&place, "c.png"));
    let run = place.json([
        "generate", "z", "--from", "a.png", "--steps", "1", "-o", "d.png",
    ]);
    assert_eq!(run["parameters"]["prompt"], "z");
    assert_eq!(run["parameters"]["negative"], "y");
    assert_eq!(run["parameters"]["steps"], 1);
    assert_eq!(run["seed"], 3);
}
