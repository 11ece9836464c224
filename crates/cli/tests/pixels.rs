//! Models without text on the command line, and sheets of pictures.

mod common;

use aquatint_testkit::{golden, read_png};
use common::{Place, arg};

fn model(name: &str) -> String {
    golden(&format!("pixels/{name}")).display().to_string()
}

fn bytes(place: &Place, name: &str) -> Vec<u8> {
    std::fs::read(place.join(name)).expect("a file")
}

#[test]
fn pixels_are_drawn_without_a_prompt_and_repeated() {
    let place = Place::new();
    let model = model("grey");
    let run = place.json([
        "generate", "-m", &model, "--steps", "4", "--seed", "3", "-o", "a.png",
    ]);
    assert_eq!(run["family"], "pixels");
    assert_eq!(run["parameters"]["sampler"], "ddpm");
    let (width, height, _) = read_png(place.join("a.png")).expect("a PNG");
    assert_eq!((width, height), (8, 8));
    // Colour type 0 of the header: grey.
    assert_eq!(bytes(&place, "a.png")[25], 0);
    place.ok(["generate", "--from", "a.png", "-o", "b.png"]);
    assert_eq!(bytes(&place, "a.png"), bytes(&place, "b.png"));
    let more = ["--preview", "p.png", "--preview-every", "1", "-o", "c.png"];
    place.ok([&["generate", "-m", &model, "--steps", "2"][..], &more].concat());
    assert!(place.join("p.png").is_file());
}

#[test]
fn classes_are_given_by_name_or_number() {
    let place = Place::new();
    let model = model("classes");
    let draw = |class: &str, output: &str| {
        place.json([
            "generate", "-m", &model, "--seed", "1", "--class", class, "-o", output,
        ])
    };
    let run = draw("cross", "name.png");
    assert_eq!(run["parameters"]["class"], 1);
    assert_eq!(run["parameters"]["guidance"], 2.0);
    draw("1", "number.png");
    // A name goes before a number.
    assert_eq!(draw("7", "seven.png")["parameters"]["class"], 2);
    assert_eq!(bytes(&place, "name.png"), bytes(&place, "number.png"));
    assert_ne!(bytes(&place, "name.png"), bytes(&place, "seven.png"));
    place.ok(["generate", "--from", "seven.png", "-o", "again.png"]);
    assert_eq!(bytes(&place, "seven.png"), bytes(&place, "again.png"));
}

#[test]
fn what_does_not_fit_is_told() {
    let place = Place::new();
    let (grey, classes) = (model("grey"), model("classes"));
    let vae = golden("sd1/vae");
    for (args, word) in [
        (vec!["a cat", "-m", &grey], "reads no text"),
        (vec!["-m", &grey, "-n", "a cat"], "reads no text"),
        (vec!["-m", &grey, "--class", "1"], "no class"),
        (vec!["-m", &grey, "--width", "7"], "try 8"),
        (vec!["-m", &grey, "--vae", arg(&vae)], "--vae"),
        (vec!["-m", &grey, "--eta", "0.5"], "eta"),
        (vec!["-m", &classes], "circle, cross, 7"),
        (
            vec!["-m", &classes, "--class", "square"],
            "circle, cross, 7",
        ),
        (vec!["-m", &classes, "--class", "3"], "circle, cross, 7"),
        (vec!["a cat", "--class", "1"], "told a text"),
        (vec![], "<PROMPT> is missing"),
        (vec!["a cat", "--width", "60"], "try 64"),
        (vec!["a cat", "--sampler", "euler", "--eta", "0.5"], "eta"),
    ] {
        let said = place.refused(2, [&["generate"][..], &args].concat());
        assert!(said.contains(word), "{args:?}: {said}");
    }
}

#[test]
fn an_eta_of_a_picture_goes_with_its_sampler() {
    let place = Place::new();
    let base = [
        "generate", "x", "--steps", "2", "--width", "64", "--height", "64",
    ];
    let ddim = ["--sampler", "ddim", "--eta", "0.5", "-o", "a.png"];
    place.ok([&base[..], &ddim].concat());
    place.ok([
        "generate",
        "--from",
        "a.png",
        "--sampler",
        "euler",
        "-o",
        "b.png",
    ]);
    let run = place.json([
        "generate",
        "--from",
        "a.png",
        "--sampler",
        "euler_a",
        "-o",
        "c.png",
    ]);
    assert_eq!(run["parameters"]["eta"], 0.5);
}

#[test]
fn they_are_listed_and_inspected() {
    let place = Place::new();
    let folder = golden("pixels");
    let listed = place.ok(["models", arg(&folder)]);
    assert!(listed.contains("pixels by class"), "{listed}");
    assert!(
        listed.contains("pixels without text, v_prediction"),
        "{listed}"
    );
    let shown = place.ok(["inspect", &model("classes")]);
    assert!(shown.starts_with("pixels by class"), "{shown}");
    let json = place.json(["inspect", &model("classes")]);
    assert_eq!(
        json["model"]["classes"],
        serde_json::json!(["circle", "cross", "7"])
    );
}

#[test]
fn pictures_are_put_on_a_sheet() {
    let place = Place::new();
    let model = model("colour");
    let run = place.json([
        "generate",
        "-m",
        &model,
        "--steps",
        "2",
        "--seed",
        "1",
        "--count",
        "3",
        "-o",
        "%seed",
        "--grid",
        "sheet.png",
        "--grid-columns",
        "2",
    ]);
    assert_eq!(run["grid"], "sheet.png");
    let (width, height, _) = read_png(place.join("sheet.png")).expect("a PNG");
    assert_eq!((width, height), (12 + 2 + 12, 8 + 2 + 8));
    let all = [
        "grid",
        "1.png",
        "2.png",
        "3.png",
        "--columns",
        "2",
        "-o",
        "again.png",
    ];
    place.ok(all);
    let pixels = |name: &str| read_png(place.join(name)).expect("a PNG");
    assert_eq!(pixels("sheet.png"), pixels("again.png"));
    let said = place.refused(1, ["grid", "1.png", "-o", "again.png"]);
    assert!(said.contains("--force"), "{said}");
    place.refused(1, ["grid", "none.png", "-o", "x.png"]);
    place.refused(2, ["grid", "-o", "x.png"]);
    place.refused(2, ["generate", "x", "--grid", "x.jpg"]);
}
