//! LoRAs on the command line, in prompts, in pictures, and merged.

mod common;

use aquatint_engine::picture::read_parameters;
use aquatint_testkit::{golden, read_png};
use common::{Place, arg, quick};

fn model() -> String {
    golden("sd1").display().to_string()
}

fn file() -> String {
    golden("lora/sd1_kohya.safetensors").display().to_string()
}

/// A LoRA under the name `style` in the folder beside the models.
fn named(place: &Place) {
    let folder = place.join(".local/share/aquatint/loras");
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::copy(file(), folder.join("style.safetensors")).expect("a golden");
}

#[track_caller]
fn same(place: &Place, a: &str, b: &str) -> bool {
    let pixels = |name: &str| read_png(place.join(name)).expect("a PNG");
    pixels(a) == pixels(b)
}

#[test]
fn a_lora_changes_the_picture_by_path_name_and_tag() {
    let place = Place::new();
    named(&place);
    let (model, file) = (model(), file());
    let base = ["-m", &model, "--seed", "1", "-o"];
    let draw = |prompt: &str, output: &str, more: &[&str]| {
        let args = [
            &[
                "generate", prompt, "--steps", "2", "--width", "64", "--height", "64",
            ],
            &base[..],
            &[output],
            more,
        ];
        place.json(args.concat())
    };
    draw("a cat", "none.png", &[]);
    let run = draw("a cat", "path.png", &["--lora", &format!("{file}:0.8")]);
    assert_eq!(run["parameters"]["loras"][0]["weight"], 0.8);
    assert_eq!(run["parameters"]["loras"][0]["layers"], 304);
    draw("a cat", "name.png", &["--lora", "style:0.8"]);
    let run = draw("a cat <lora:style:0.8>", "tag.png", &[]);
    assert_eq!(run["parameters"]["prompt"], "a cat");
    draw("a cat", "full.png", &["--lora", &file]);
    draw("a cat", "zero.png", &["--lora", "style:0"]);
    assert!(!same(&place, "none.png", "path.png"));
    assert!(same(&place, "path.png", "name.png"));
    assert!(same(&place, "path.png", "tag.png"));
    assert!(!same(&place, "path.png", "full.png"));
    assert!(same(&place, "none.png", "zero.png"));
}

#[test]
fn a_picture_with_a_lora_repeats_from_itself() {
    let place = Place::new();
    named(&place);
    let model = model();
    place.ok(quick(&["-m", &model, "--lora", "style:0.7", "-o", "a.png"]));
    let told = read_parameters(&place.join("a.png"))
        .expect("a PNG")
        .expect("parameters");
    assert!(told.starts_with("x <lora:style:0.7>\n"), "{told}");
    assert!(told.contains("Lora hashes: \"style: "), "{told}");
    let bytes = |name: &str| std::fs::read(place.join(name)).expect("a file");
    place.ok(["generate", "--from", "a.png", "-o", "b.png"]);
    assert_eq!(bytes("a.png"), bytes("b.png"));
    // Another weight on the command line goes over the picture's.
    place.ok([
        "generate",
        "--from",
        "a.png",
        "--lora",
        "style:0.1",
        "-o",
        "c.png",
    ]);
    assert!(!same(&place, "a.png", "c.png"));
    std::fs::remove_file(place.join(".local/share/aquatint/loras/style.safetensors")).expect("it");
    let said = place.refused(1, ["generate", "--from", "a.png", "-o", "d.png"]);
    assert!(said.contains("was made with the LoRA"), "{said}");
}

#[test]
fn merged_is_as_applied() {
    let place = Place::new();
    let (model, file) = (model(), file());
    let run = place.json([
        "merge", "-m", &model, "--lora", &file, "-o", "m", "--dtype", "f32",
    ]);
    assert_eq!(run["changed"], 304);
    assert_eq!(place.names(), ["m"]);
    place.ok(quick(&["-m", "m", "--seed", "1", "-o", "merged.png"]));
    place.ok(quick(&[
        "-m",
        &model,
        "--lora",
        &file,
        "--seed",
        "1",
        "-o",
        "applied.png",
    ]));
    let pixels = |name: &str| read_png(place.join(name)).expect("a PNG").2;
    let (a, b) = (pixels("merged.png"), pixels("applied.png"));
    let far = a.iter().zip(&b).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(far <= Some(1), "{far:?}");
    let said = place.refused(1, ["merge", "-m", &model, "--lora", &file, "-o", "m"]);
    assert!(said.contains("--force"), "{said}");
}

#[test]
fn the_model_inside_takes_a_lora_too() {
    let place = Place::new();
    let said = place.refused(1, quick(&["--lora", &file(), "-o", "a.png"]));
    assert!(said.contains("this model"), "{said}");
}

#[test]
fn what_is_not_there_or_no_lora_is_told() {
    let place = Place::new();
    named(&place);
    let said = place.refused(1, quick(&["--lora", "stile", "-o", "a.png"]));
    assert!(said.contains("did you mean style?"), "{said}");
    let said = place.refused(1, ["generate", "a <lora:nothing:1>"]);
    assert!(said.contains("nothing: found no LoRA"), "{said}");
    let said = place.refused(2, ["generate", "a <lora:style:much>"]);
    assert!(said.contains("<lora:NAME:WEIGHT>"), "{said}");
    let vae = golden("sd1/vae/diffusion_pytorch_model.safetensors");
    let said = place.refused(1, quick(&["--lora", arg(&vae), "-o", "a.png"]));
    assert!(
        said.contains("found an autoencoder, expected a LoRA"),
        "{said}"
    );
    place.write("cut.safetensors", [1u8; 40]);
    place.refused(1, quick(&["--lora", "cut.safetensors", "-o", "a.png"]));
    place.refused(2, ["merge", "-o", "m"]);
}

#[test]
fn a_lora_file_is_described() {
    let place = Place::new();
    let shown = place.ok(["inspect", &file()]);
    assert!(shown.starts_with("a LoRA"), "{shown}");
    assert!(shown.contains("280 layers of the UNet"), "{shown}");
    assert!(shown.contains("rank 1 to 3"), "{shown}");
    let json = place.json(["inspect", &file()]);
    assert_eq!(json["model"]["lora"]["layers"]["text_encoder"], 24);
}
