//! `aquatint inspect`.

mod common;

use aquatint_testkit::{folder, golden, sharded_folder, single_file};
use common::{Place, arg, quick};

#[test]
fn a_picture_shows_its_parameters() {
    let place = Place::new();
    place.ok(quick(&[
        "--seed",
        "7",
        "-n",
        "blurry",
        "-g",
        "7.5",
        "--sampler",
        "ddim",
        "-o",
        "a.png",
    ]));
    let shown = place.ok(["inspect", "a.png"]);
    assert!(
        shown.starts_with("x\nNegative prompt: blurry\nSteps: 2, Sampler: DDIM, CFG scale: 7.5, Seed: 7, Size: 64x64, "),
        "{shown}"
    );
    let json = place.json(["inspect", "a.png"]);
    assert_eq!(json["request"]["seed"], 7);
    assert_eq!(json["request"]["negative"], "blurry");
    assert!(
        json["parameters"]
            .as_str()
            .expect("text")
            .starts_with("x\n")
    );
}

#[test]
fn a_picture_without_parameters_says_so() {
    let place = Place::new();
    place.ok(quick(&["-o", "a.png", "--preview", "p.png"]));
    assert!(place.ok(["inspect", "p.png"]).contains("no parameters"));
    assert!(place.json(["inspect", "p.png"])["parameters"].is_null());
}

#[test]
fn a_picture_that_is_cut_is_a_failure() {
    let place = Place::new();
    place.ok(quick(&["-o", "a.png"]));
    let bytes = std::fs::read(place.join("a.png")).expect("a file");
    place.write("cut.png", &bytes[..40]);
    let said = place.refused(1, ["inspect", "cut.png"]);
    assert!(said.contains("not a readable PNG"), "{said}");
}

#[test]
fn a_single_file_shows_family_components_and_tensors() {
    let place = Place::new();
    let file = single_file("sdxl", place.path()).expect("a golden");
    let shown = place.ok(["inspect", arg(&file)]);
    for expected in [
        "Stable Diffusion XL, recognised by ",
        "predicts epsilon",
        "parameters",
        "F16",
        "model.diffusion_model ",
        "first_stage_model ",
        "conditioner.embedders.1 ",
    ] {
        assert!(shown.contains(expected), "{expected} in\n{shown}");
    }
    let tensor = "model.diffusion_model.input_blocks.0.0.weight";
    assert!(!shown.contains(tensor));
    let listed = place.ok(["inspect", "--tensors", arg(&file)]);
    assert!(listed.contains(&format!("{tensor} F16 [")), "{listed}");

    let json = place.json(["inspect", arg(&file)]);
    assert_eq!(json["model"]["family"], "sdxl");
    let tensors = json["weights"]["tensors"].as_array().expect("tensors");
    let counted: u64 = json["components"]
        .as_array()
        .expect("components")
        .iter()
        .map(|c| c["tensors"].as_u64().expect("a count"))
        .sum();
    assert_eq!(counted, tensors.len() as u64);
    assert!(tensors.iter().any(|t| t["name"] == tensor));
}

#[test]
fn a_folder_shows_each_component() {
    let place = Place::new();
    let model = golden("sd2");
    let shown = place.ok(["inspect", arg(&model)]);
    for expected in [
        "Stable Diffusion 2.x, recognised by ",
        "predicts v_prediction",
        "text encoder:",
        "UNet:",
        "autoencoder:",
    ] {
        assert!(shown.contains(expected), "{expected} in\n{shown}");
    }
    let listed = place.ok(["inspect", "--tensors", arg(&model)]);
    assert!(listed.contains("conv_in.weight F16 ["), "{listed}");
    let json = place.json(["inspect", arg(&model)]);
    assert_eq!(json["components"].as_array().expect("components").len(), 3);
    let shards = sharded_folder("sd1", place.path()).expect("a golden");
    assert!(
        place
            .ok(["inspect", arg(&shards)])
            .contains("-00002-of-00002.safetensors")
    );
}

#[test]
fn a_component_s_folder_shows_what_it_is() {
    let place = Place::new();
    let model = folder("sd1", place.path()).expect("a golden");
    for (part, expected) in [
        ("vae", "an autoencoder"),
        ("text_encoder", "a text encoder"),
        ("unet", "UNet"),
    ] {
        let shown = place.ok(["inspect", arg(&model.join(part))]);
        assert!(shown.contains(expected), "{part}: {shown}");
        assert!(shown.contains("tensors"), "{shown}");
    }
    let said = place.refused(1, ["inspect", arg(&model.join("tokenizer"))]);
    assert!(said.contains("no weights here"), "{said}");
}

#[test]
fn what_is_not_there_is_a_failure() {
    let said = Place::new().refused(1, ["inspect", "nowhere"]);
    assert!(said.contains("nowhere: no such file or folder"), "{said}");
}
