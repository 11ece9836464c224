//! Bad input: one line that says what is wrong, the exit code of a failure, and nothing lost.

use std::path::Path;

use super::common::{self, Place};
use super::points;

/// Runs, expects a failure, and gives what was said.
#[track_caller]
fn said(place: &Place, config: &str, more: &[&str]) -> String {
    let mut args = vec!["train", "diffusion", config, "--out", "run"];
    args.extend_from_slice(more);
    common::failure(1, &place.run(args))
}

#[track_caller]
fn contains(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} in {message}");
    }
}

/// A configuration for pictures in `data`, with more lines in its `[data]` table.
fn pictures(place: &Place, kind: &str, data: &str) {
    let text = format!(
        "steps = 4\nbatch_size = 2\n\
         [model]\nkind = \"{kind}\"\n\
         [model.unet]\nin_channels = 1\nblock_out_channels = [8, 16]\nlayers_per_block = 1\nnorm_num_groups = 4\n\
         attention_head_dim = 8\ndown_block_types = [\"DownBlock2D\", \"DownBlock2D\"]\n\
         up_block_types = [\"UpBlock2D\", \"UpBlock2D\"]\n\
         [data]\ndir = \"data\"\n{data}\n\
         [samples]\ncount = 2\nsteps = 2\n"
    );
    place.write("pictures.toml", text);
}

/// A configuration of the text kind on the tiny model, for pictures in `data`.
fn captions(place: &Place) {
    let from = aquatint_testkit::golden("sd1").display().to_string();
    let text = format!(
        "steps = 1\nbatch_size = 1\n[model]\nfrom = {from:?}\n[data]\ndir = \"data\"\nresolution = 64\n"
    );
    place.write("captions.toml", text);
}

fn picture(path: &Path) {
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    let picture = aquatint_engine::picture::Picture {
        width: 8,
        height: 8,
        rgb: vec![200; 192],
        grey: false,
    };
    aquatint_engine::picture::save(path, &picture, None, true).expect("a PNG");
}

#[test]
fn an_unknown_key_is_answered_with_the_nearest_name() {
    let place = Place::new();
    points(&place, 4);
    let text = std::fs::read_to_string(place.join("points.toml")).expect("the configuration");
    place.write("points.toml", text.replace("warmup", "warmpu"));
    let message = said(&place, "points.toml", &[]);
    contains(
        &message,
        &[
            "points.toml, line ",
            "`warmpu` is not a known key; did you mean `warmup`?",
        ],
    );
    assert_eq!(place.names(), ["points.toml"]);
    place.write("points.toml", text.replace("swiss-roll", "swiss-rol"));
    contains(
        &said(&place, "points.toml", &[]),
        &["`swiss-rol`", "`swiss-roll`"],
    );
    contains(&said(&place, "nowhere.toml", &[]), &["nowhere.toml"]);
}

#[test]
fn folders_that_cannot_serve_are_told() {
    let place = Place::new();
    pictures(&place, "unconditional", "resolution = 8");
    contains(
        &said(&place, "pictures.toml", &[]),
        &["data: the folder of pictures (data.dir) is not there"],
    );
    std::fs::create_dir(place.join("data")).expect("a folder");
    contains(
        &said(&place, "pictures.toml", &[]),
        &["data: no pictures were found", "png"],
    );
    // A folder without subfolders has no classes.
    picture(&place.join("data/a.png"));
    pictures(&place, "class", "resolution = 8");
    contains(
        &said(&place, "pictures.toml", &[]),
        &["1 of 1 pictures have no class, such as ", "a.png"],
    );
    // Captions and pictures that miss each other.
    captions(&place);
    contains(
        &said(&place, "captions.toml", &[]),
        &["1 of 1 pictures have no caption", "a.png"],
    );
    place.write("data/a.txt", "a grey square");
    place.write("data/b.txt", "a picture that is not here");
    contains(
        &said(&place, "captions.toml", &[]),
        &["1 captions have no picture beside them", "b.txt"],
    );
    // Nothing of these runs is in the way of the next.
    std::fs::remove_file(place.join("data/b.txt")).expect("a file");
    pictures(&place, "unconditional", "resolution = 8");
    place.ok(["train", "diffusion", "pictures.toml", "--out", "run", "-q"]);
    assert!(place.join("run/model/model_index.json").exists());
}

#[test]
fn a_corrupt_picture_is_named_skipped_and_counted() {
    let place = Place::new();
    pictures(&place, "unconditional", "resolution = 8");
    picture(&place.join("data/a.png"));
    place.write("data/b.png", "no picture");
    let output = place.run(["train", "diffusion", "pictures.toml", "--out", "run"]);
    let err = common::text(&output.stderr);
    assert!(output.status.success(), "{err}");
    contains(&err, &["warning: ", "b.png is skipped (1 so far): "]);
    std::fs::remove_file(place.join("data/a.png")).expect("a file");
    let message = said(&place, "pictures.toml", &["--max-steps", "1"]);
    assert!(
        message.contains("a run of 4 steps is here already; add --resume"),
        "{message}"
    );
    std::fs::remove_dir_all(place.join("run")).expect("a folder");
    contains(
        &said(&place, "pictures.toml", &[]),
        &["none of its 1 pictures could be read"],
    );
}

#[test]
fn a_resolution_that_cannot_be_halved_is_told() {
    let place = Place::new();
    picture(&place.join("data/a.png"));
    pictures(&place, "unconditional", "resolution = 9");
    contains(
        &said(&place, "pictures.toml", &[]),
        &["data.resolution (width) is 9; expected a multiple of 2"],
    );
    pictures(&place, "unconditional", "resolution = 0");
    said(&place, "pictures.toml", &[]);
}

#[test]
fn a_run_goes_on_with_its_own_configuration_only() {
    let place = Place::new();
    points(&place, 6);
    let run = ["train", "diffusion", "points.toml", "--out", "run", "-q"];
    place.ok(run.iter().chain(&["--max-steps", "3"]));
    let before = super::learned(&place.join("run"), 3);
    let text = std::fs::read_to_string(place.join("points.toml")).expect("the configuration");
    place.write(
        "points.toml",
        text.replace("batch_size = 32", "batch_size = 16"),
    );
    contains(
        &said(&place, "points.toml", &["--resume"]),
        &["batch_size was 32 when this run began and is 16 now"],
    );
    contains(
        &said(&place, "points.toml", &[]),
        &["a run of 3 steps is here already; add --resume"],
    );
    place.write("points.toml", &text);
    contains(
        &said(&place, "points.toml", &["--resume", "--seed", "8"]),
        &["seed was 7 when this run began and is 8 now"],
    );
    assert!(
        super::learned(&place.join("run"), 3) == before,
        "something was lost"
    );
    // What does not touch the numbers may change.
    place.write("points.toml", text.replace("count = 1", "count = 2"));
    place.ok(run.iter().chain(&["--resume"]));
    super::learned(&place.join("run"), 6);
}

#[test]
fn the_digits_say_how_their_pictures_are_made() {
    let place = Place::new();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/digits.toml");
    std::fs::copy(example, place.join("digits.toml")).expect("the example");
    contains(
        &said(&place, "digits.toml", &[]),
        &[
            "digits: the folder of pictures",
            "python examples/export_digits.py",
        ],
    );
}
