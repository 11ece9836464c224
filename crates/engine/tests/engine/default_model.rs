//! The model that ships, against diffusers' pictures from the very same folder.

use std::collections::BTreeMap;
use std::path::Path;

use aquatint_engine::models::OpenOptions;
use aquatint_engine::{PromptSyntax, Request};
use aquatint_testkit::{golden, model, psnr, read_png};
use serde::Deserialize;

use crate::determinism::assert_same;
use crate::support::{open, run};

/// Decibels that the pictures must agree within.
const PSNR: f64 = 45.0;
const RERUN: &str =
    "run `python golden/default_references.py` again (golden/README.md has the versions)";

#[derive(Deserialize)]
struct References {
    /// Checksums of the model's files when the pictures were made.
    files: BTreeMap<String, u64>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    picture: String,
    sampler: String,
    schedule: String,
    steps: u32,
    guidance: f64,
    seed: u64,
    prompt: String,
    negative: Option<String>,
    width: u32,
    height: u32,
}

fn references() -> References {
    let path = golden("default/references.json");
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|e| panic!("{}: {e}; {RERUN}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// The sum of `(i + 1) * byte[i]`, modulo 2^64, as the script takes it.
fn checksum(path: &Path) -> Option<u64> {
    let bytes = std::fs::read(path).ok()?;
    let add = |sum: u64, (i, byte): (u64, &u8)| sum.wrapping_add(i.wrapping_mul((*byte).into()));
    Some((1u64..).zip(&bytes).fold(0, add))
}

/// The files that make the pictures: the index, and all of the components.
fn files(folder: &Path) -> BTreeMap<String, Option<u64>> {
    let mut found = BTreeMap::new();
    for part in std::fs::read_dir(folder).unwrap() {
        let part = part.unwrap().path();
        let name = part.file_name().unwrap().to_string_lossy().into_owned();
        if name == "model_index.json" {
            found.insert(name, checksum(&part));
        } else if part.is_dir() {
            for file in std::fs::read_dir(&part).unwrap() {
                let file = file.unwrap().path();
                let inner = file.file_name().unwrap().to_string_lossy().into_owned();
                found.insert(format!("{name}/{inner}"), checksum(&file));
            }
        }
    }
    found
}

#[track_caller]
fn assert_same_model(references: &References) {
    let now = files(&model("default"));
    let names = references.files.keys().chain(now.keys());
    let mut changed: Vec<&str> = names
        .filter(|name| references.files.get(*name).copied() != now.get(*name).copied().flatten())
        .map(String::as_str)
        .collect();
    changed.sort_unstable();
    changed.dedup();
    assert!(
        changed.is_empty(),
        "the files of models/default have changed since their references were made ({}); {RERUN}",
        changed.join(", ")
    );
}

fn request(case: &Case) -> Request {
    Request {
        prompt: case.prompt.clone(),
        negative: case.negative.clone(),
        width: case.width,
        height: case.height,
        steps: case.steps,
        guidance: case.guidance,
        sampler: case.sampler.clone(),
        schedule: (case.schedule != "normal").then(|| case.schedule.clone()),
        seed: case.seed,
        prompt_syntax: PromptSyntax::Plain,
        ..Request::default()
    }
}

#[test]
fn the_pictures_are_those_of_diffusers() {
    let references = references();
    assert!(references.cases.len() >= 4);
    assert_same_model(&references);
    let shipped = open(model("default"), &OpenOptions::default());
    let mut failed = Vec::new();
    for case in &references.cases {
        let made = run(&shipped, &request(case)).unwrap();
        let (width, height, want) = read_png(golden("default").join(&case.picture)).unwrap();
        let picture = &made.pictures[0];
        let size = (picture.width, picture.height);
        assert_eq!(size, (width, height), "{}", case.picture);
        let found = psnr(&picture.rgb, &want);
        eprintln!("{}: {found:.1} dB", case.picture);
        // Written so that NaN fails too.
        if found.is_nan() || found < PSNR {
            failed.push(format!("{}: {found:.2} dB, wanted {PSNR}", case.picture));
        }
        // A picture of one colour would agree with anything as dull.
        let spread = picture.rgb.iter().max().unwrap() - picture.rgb.iter().min().unwrap();
        assert!(spread > 50, "{}: the picture is empty", case.picture);
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Its layers are large enough for the kernels to share among threads.
#[test]
fn threads_do_not_change_the_picture() {
    let shipped = open(model("default"), &OpenOptions::default());
    let request = Request {
        prompt: "a red apple".into(),
        width: 128,
        height: 128,
        steps: 2,
        sampler: "euler_a".into(),
        ..Request::default()
    };
    let runs = [1, 2, 3].map(|n| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build();
        pool.unwrap().install(|| run(&shipped, &request).unwrap())
    });
    for other in &runs[1..] {
        assert_same("the shipped model", &runs[0], other);
    }
}
