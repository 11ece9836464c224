//! `aquatint generate`: what it writes and says, and that pictures can be repeated.

#[path = "../common/mod.rs"]
mod common;
mod repeat;
#[cfg(unix)]
mod signals;

use aquatint_testkit::{
    golden, read_png, sharded_folder, single_file, turbo_folder, variant_folder,
};
use common::{Place, arg, quick, text};

fn bytes(place: &Place, name: &str) -> Vec<u8> {
    std::fs::read(place.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

#[test]
fn json_tells_all_of_a_run() {
    let place = Place::new();
    let run = place.json(quick(&[
        "--seed",
        "7",
        "-n",
        "blurry",
        "-o",
        "a.png",
        "--threads",
        "1",
    ]));
    assert_eq!(run["files"], serde_json::json!(["a.png"]));
    assert_eq!(run["seed"], 7);
    assert_eq!(run["seeds"], serde_json::json!([7]));
    let parameters = run["parameters"].as_object().expect("parameters");
    for key in [
        "prompt",
        "negative",
        "width",
        "height",
        "steps",
        "guidance",
        "guidance_rescale",
        "guidance_interval",
        "sampler",
        "schedule",
        "seed",
        "rng",
        "batch",
        "count",
        "clip_skip",
        "eta",
        "vae_tiling",
        "prompt_syntax",
        "dtype",
        "model",
        "threads",
        "vae",
        "text_encoder",
        "tokenizer",
        "config",
        "variant",
        "prediction",
        "taesd",
        "quick_decode",
    ] {
        assert!(parameters.contains_key(key), "{key}");
    }
    assert_eq!(parameters["prompt"], "x");
    assert_eq!(parameters["negative"], "blurry");
    assert_eq!(parameters["steps"], 2);
    assert_eq!(parameters["width"], 64);
    assert_eq!(parameters["threads"], 1);
    let seconds = |stage: &str| run["seconds"][stage].as_f64().expect(stage);
    let stages: f64 = ["load", "text_encode", "denoise", "decode", "save"]
        .map(seconds)
        .iter()
        .sum();
    assert!(stages > 0.0 && stages <= seconds("total"), "{stages}");
    assert!(run["peak_memory_bytes"].as_u64().expect("bytes") > 1_000_000);
    assert_eq!(place.names(), ["a.png"]);
}

#[test]
fn plain_lines_tell_of_stages_steps_and_the_seed() {
    let place = Place::new();
    let output = place.run(quick(&["-v"]));
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(out, "");
    assert!(
        !err.contains('\u{1b}') && !err.contains('\r'),
        "control characters in {err:?}"
    );
    for expected in [
        "denoising 1/2: ",
        "denoising 2/2: ",
        " a step, ",
        " left, ",
        " in use",
        "decoding 1/1",
        "done in ",
        "UNet: ",
    ] {
        assert!(err.contains(expected), "{expected:?} in\n{err}");
    }
    // A seed that nobody chose is told, and is in the name.
    let name = &place.names()[0];
    let seed = name
        .strip_prefix("emoji-")
        .and_then(|n| n.strip_suffix(".png"))
        .expect("a seed");
    assert!(err.contains(&format!("seed {seed}")), "{err}");
    place.ok(quick(&["--seed", seed, "-o", "again.png"]));
    assert_eq!(bytes(&place, name), bytes(&place, "again.png"));
}

#[test]
fn two_random_seeds_differ() {
    let place = Place::new();
    place.ok(quick(&[]));
    place.ok(quick(&[]));
    assert_eq!(place.names().len(), 2);
}

#[test]
fn a_name_of_our_own_choice_gives_way_and_a_given_one_does_not() {
    let place = Place::new();
    for _ in 0..3 {
        place.ok(quick(&["--seed", "5"]));
    }
    assert_eq!(
        place.names(),
        ["emoji-5-2.png", "emoji-5-3.png", "emoji-5.png"]
    );
    place.ok(quick(&[
        "--seed",
        "5",
        "-o",
        "emoji-5.png",
        "--force",
        "-n",
        "other",
    ]));
    assert_ne!(bytes(&place, "emoji-5.png"), bytes(&place, "emoji-5-2.png"));
    place.refused(1, quick(&["--seed", "5", "-o", "emoji-5-2.png"]));
}

#[test]
fn names_follow_the_pattern() {
    let place = Place::new();
    std::fs::create_dir(place.join("out")).expect("a folder");
    std::fs::create_dir(place.join("ünï çødé 50%")).expect("a folder");
    for (output, expected) in [
        ("%model_%seed_%index", "emoji_9_0.png"),
        ("100%%.png", "100%.png"),
        ("v1.5", "v1.5.png"),
        ("out", "out/emoji-9.png"),
        ("out/", "out/emoji-9-2.png"),
        ("./out/りんご 🍎.png", "out/りんご 🍎.png"),
        ("ünï çødé 50%", "ünï çødé 50%/emoji-9.png"),
    ] {
        place.ok(quick(&["--seed", "9", "-o", output]));
        assert!(
            place.join(expected).is_file(),
            "{output} gave no {expected}"
        );
    }
}

#[test]
fn many_pictures_are_numbered_and_each_is_what_its_seed_gives() {
    let place = Place::new();
    let run = place.json(quick(&[
        "--seed", "3", "--count", "2", "--batch", "2", "-o", "a.png",
    ]));
    assert_eq!(run["seeds"], serde_json::json!([3, 4, 5, 6]));
    assert_eq!(place.names(), ["a-0.png", "a-1.png", "a-2.png", "a-3.png"]);
    place.ok(quick(&["--seed", "3", "--count", "3", "-o", "b-%seed"]));
    place.ok(quick(&["--seed", "5", "-o", "c.png"]));
    let pixels = |name: &str| read_png(place.join(name)).expect("a PNG");
    assert_eq!(bytes(&place, "b-5.png"), bytes(&place, "c.png"));
    assert_eq!(pixels("a-2.png"), pixels("c.png"));
}

#[test]
fn one_taken_name_of_many_is_told_before_anything_is_made() {
    let place = Place::new();
    place.write("a-1.png", "mine");
    place.refused(1, quick(&["--count", "2", "-o", "a.png"]));
    assert_eq!(bytes(&place, "a-1.png"), b"mine");
}

#[test]
fn seeds_wrap_at_the_end() {
    let place = Place::new();
    let last = u64::MAX.to_string();
    let run = place.json(quick(&["--seed", &last, "--count", "3", "-o", "%seed"]));
    assert_eq!(run["seeds"], serde_json::json!([u64::MAX, 0, 1]));
    place.ok(quick(&["--seed", "0", "-o", "zero.png"]));
    assert_eq!(bytes(&place, "0.png"), bytes(&place, "zero.png"));
    let again = format!("{last}.png");
    place.ok(["generate", "--from", &again, "-o", "again.png"]);
    assert_eq!(bytes(&place, &again), bytes(&place, "again.png"));
}

#[test]
fn guidance_of_0_is_no_guidance() {
    let place = Place::new();
    for (guidance, output) in [("0", "a.png"), ("1", "b.png"), ("7.5", "c.png")] {
        place.ok(quick(&[
            "--seed", "1", "-g", guidance, "-n", "y", "-o", output,
        ]));
    }
    let pixels = |name: &str| read_png(place.join(name)).expect("a PNG");
    assert_eq!(pixels("a.png"), pixels("b.png"));
    assert_ne!(pixels("a.png"), pixels("c.png"));
}

#[test]
fn an_empty_prompt_is_a_prompt() {
    let place = Place::new();
    place.ok(["generate", "", "--steps", "2", "-o", "a.png"]);
    place.ok(["generate", "--from", "a.png", "-o", "b.png"]);
    assert_eq!(bytes(&place, "a.png"), bytes(&place, "b.png"));
}

#[test]
fn every_layout_draws() {
    let place = Place::new();
    let into = |name: &str| {
        let path = place.join(name);
        std::fs::create_dir(&path).expect("a folder");
        path
    };
    let models = [
        single_file("sd1", place.path()).expect("a golden"),
        single_file("sd2", place.path()).expect("a golden"),
        single_file("sdxl", place.path()).expect("a golden"),
        sharded_folder("sd2", &into("a")).expect("a golden"),
        variant_folder("sd1", "fp16", &into("b")).expect("a golden"),
        turbo_folder(&into("c")).expect("a golden"),
    ];
    for (i, model) in models.iter().enumerate() {
        let output = format!("{i}.png");
        place.ok(quick(&["-m", arg(model), "-o", &output]));
        assert!(place.join(output).is_file());
    }
}

#[test]
fn threads_and_storage_change_the_work_and_not_the_picture() {
    let place = Place::new();
    let pixels = |name: &str| read_png(place.join(name)).expect("a PNG");
    for (name, more) in [
        ("one.png", ["--threads", "1"]),
        ("two.png", ["--threads", "2"]),
        ("many.png", ["--threads", "5"]),
        ("f16.png", ["--dtype", "f16"]),
        ("f32.png", ["--dtype", "f32"]),
        ("bf16.png", ["--dtype", "bf16"]),
    ] {
        place.ok(quick(&["--seed", "2", "-o", name, more[0], more[1]]));
    }
    assert_eq!(pixels("one.png"), pixels("two.png"));
    assert_eq!(pixels("one.png"), pixels("many.png"));
    // The model inside is stored in f16, which f32 holds exactly and bf16 does not.
    assert_eq!(pixels("one.png"), pixels("f16.png"));
    assert_ne!(pixels("one.png"), pixels("bf16.png"));
    let (f16, f32) = (pixels("one.png").2, pixels("f32.png").2);
    let far = f16.iter().zip(&f32).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(far <= Some(1), "f32 differs by {far:?} of 255");
}

#[test]
fn previews_are_pictures_of_the_same_size() {
    let place = Place::new();
    place.ok(quick(&[
        "-o",
        "a.png",
        "--preview",
        "p.png",
        "--preview-every",
        "1",
    ]));
    assert_eq!(place.names(), ["a.png", "p.png"]);
    let size = |name: &str| {
        let (width, height, _) = read_png(place.join(name)).expect("a PNG");
        (width, height)
    };
    assert_eq!(size("p.png"), size("a.png"));
    // An old preview makes way.
    place.ok(quick(&["-o", "b.png", "--preview", "p.png"]));
    let (tiny, model) = (golden("taesd"), golden("sd1"));
    place.ok(quick(&[
        "-m",
        arg(&model),
        "-o",
        "c.png",
        "--preview",
        "q.png",
        "--taesd",
        arg(&tiny),
    ]));
    place.ok(quick(&[
        "-m",
        arg(&model),
        "--seed",
        "1",
        "-o",
        "d.png",
        "--preview",
        "r.png",
    ]));
    assert_ne!(bytes(&place, "q.png"), bytes(&place, "r.png"));
}
