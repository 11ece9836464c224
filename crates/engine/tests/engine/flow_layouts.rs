//! The transformer families in the layouts that users have: one file with all, a transformer alone with the rest apart.

use std::path::{Path, PathBuf};

use aquatint_engine::models::{Checkpoint, Location, OpenOptions};
use aquatint_testkit::{flow_folder, flow_single_file, golden};

use crate::support::{References, check_all, open};

/// One guided and one second-order case of a family.
fn cases(family: &str) -> (References, &'static [&'static str]) {
    let references = References::read(&format!("flow/{family}"));
    let picked: &[&str] = match family.starts_with("flux") {
        true => &["pipe/euler/g3.5"],
        false => &["pipe/euler/g7.0", "pipe/heun/g7.0"],
    };
    (references, picked)
}

fn part(name: &str) -> PathBuf {
    golden(&format!("flow/parts/{name}"))
}

fn runs(what: &str, family: &str, model: impl Fn() -> Checkpoint) {
    let (references, picked) = cases(family);
    let what = format!("{family}, {what}");
    check_all(&what, references.pick(picked), &references.tensors, |_| {
        model()
    });
}

const FAMILIES: [&str; 5] = [
    "sd3",
    "sd35_medium",
    "sd35_large",
    "flux_dev",
    "flux_schnell",
];

#[test]
fn one_file_with_everything() {
    for family in FAMILIES {
        let dir = tempfile::tempdir().unwrap();
        let file = flow_single_file(family, dir.path(), |_| true).unwrap();
        beside(dir.path());
        // The tiny FLUX models share Stable Diffusion 3's autoencoder, whose scale is not their family's.
        let config = dir.path().join("config");
        let vae = Path::new("vae/config.json");
        std::fs::create_dir_all(config.join("vae")).unwrap();
        std::fs::copy(part("vae").join("config.json"), config.join(vae)).unwrap();
        let options = OpenOptions {
            config: family.starts_with("flux").then_some(config),
            ..OpenOptions::default()
        };
        let model = open(&file, &options);
        let folder = flow_folder(family, dir.path()).unwrap();
        let want = open(folder, &OpenOptions::default());
        assert_eq!(model.family.id, want.family.id);
        assert_eq!(model.default_size(), 1024, "nothing in the file says 128");
        runs("one file", family, || open(&file, &options));
    }
}

/// Puts T5's tokenizer beside a file.
fn beside(folder: &Path) {
    let from = part("tokenizer_3").join("tokenizer.json");
    std::fs::copy(from, folder.join("tokenizer.json")).unwrap();
}

#[test]
fn a_transformer_alone_with_parts_of_their_own() {
    for family in FAMILIES {
        let dir = tempfile::tempdir().unwrap();
        let bare = |name: &str| name.starts_with("model.diffusion_model.");
        let file = flow_single_file(family, dir.path(), bare).unwrap();
        let t5 = if family.starts_with("flux") { 1 } else { 2 };
        let mut tokenizers = vec![part("tokenizer"), part("tokenizer_2")];
        tokenizers.truncate(t5);
        tokenizers.push(part("tokenizer_3"));
        let mut encoders = vec![part("text_encoder"), part("text_encoder_2")];
        encoders.truncate(t5);
        let options = OpenOptions {
            vae: Some(part("vae")),
            text_encoders: encoders,
            t5: Some(part("text_encoder_3")),
            tokenizers,
            ..OpenOptions::default()
        };
        runs("parts", family, || open(&file, &options));
        let location = Location::Path(file.clone());
        let error = Checkpoint::open(&location, &OpenOptions::default()).unwrap_err();
        let wanted = if family.starts_with("flux") {
            "--t5"
        } else {
            "--text-encoder"
        };
        assert!(error.hint().unwrap().contains(wanted), "{error}");
    }
}

#[test]
fn a_part_that_is_another_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let folder = flow_folder("sd3", dir.path()).unwrap();
    let swapped = OpenOptions {
        t5: Some(part("text_encoder_2")),
        ..OpenOptions::default()
    };
    let location = Location::Path(folder);
    let error = Checkpoint::open(&location, &swapped)
        .unwrap_err()
        .to_string();
    assert!(error.contains("expected a T5 text encoder"), "{error}");
    let swapped = OpenOptions {
        text_encoders: vec![part("text_encoder_3")],
        ..OpenOptions::default()
    };
    let error = Checkpoint::open(&location, &swapped)
        .unwrap_err()
        .to_string();
    assert!(error.contains("found a T5 text encoder"), "{error}");
}
