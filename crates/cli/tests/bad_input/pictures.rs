//! Pictures that cannot be repeated.

use crate::common::{Place, arg};
use crate::{FAILURE, png_with};

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
    let pixels = whole.windows(4).position(|w| w == b"IDAT").expect("pixels") + 4;
    for part in 0..16 {
        let length = whole.len() * part / 16;
        let cut = place.write("cut.png", &whole[..length]);
        // The parameters stand before the pixels: when they are whole, the picture can be made again.
        if length <= pixels {
            place.refused(FAILURE, ["generate", "--from", arg(&cut)]);
        } else {
            place.ok([
                "generate",
                "--from",
                arg(&cut),
                "-o",
                "mended.png",
                "--force",
            ]);
        }
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
