//! Components of model folders: plain, variants, shards.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use aquatint_weights::{DType, Error, TensorView, WeightSet, safetensors};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::Path;
use tempfile::TempDir;

/// Stems of a diffusers component.
const UNET: &[&str] = &["diffusion_pytorch_model", "model"];

fn view(name: &str, byte: u8) -> TensorView {
    TensorView::new(name, DType::U8, vec![2], Bytes::from(vec![byte; 2])).unwrap()
}

fn write(folder: &Path, file: &str, names: &[&str], byte: u8) {
    let tensors: Vec<TensorView> = names.iter().map(|n| view(n, byte)).collect();
    safetensors::write(folder.join(file), &tensors, &BTreeMap::new()).unwrap();
}

fn index(folder: &Path, file: &str, rows: &[(&str, &str)]) {
    let rows: Vec<String> = rows.iter().map(|(n, s)| format!("{n:?}:{s:?}")).collect();
    let text = format!(
        r#"{{"metadata":{{"total_size":4}},"weight_map":{{{}}}}}"#,
        rows.join(",")
    );
    std::fs::write(folder.join(file), text).unwrap();
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn names(set: &WeightSet) -> Vec<&str> {
    set.names().collect()
}

fn open(dir: &TempDir, variant: Option<&str>) -> Result<WeightSet, Error> {
    WeightSet::open_component(dir.path(), UNET, variant)
}

/// The first byte of tensor "a" says which file it came from.
fn byte(set: &WeightSet) -> u8 {
    set.get("a").unwrap().data[0]
}

/// The message of an error that has a hint and stays on one line.
fn message(result: Result<WeightSet, Error>) -> String {
    let error = result.unwrap_err();
    assert!(error.hint().is_some(), "{error}");
    let text = error.to_string();
    assert!(!text.contains('\n'), "{text}");
    text
}

#[test]
fn the_file_without_suffix_comes_first_then_the_only_variant() {
    let dir = folder();
    write(
        dir.path(),
        "diffusion_pytorch_model.fp16.safetensors",
        &["a"],
        16,
    );
    write(dir.path(), "other.safetensors", &["a"], 99);
    assert_eq!(byte(&open(&dir, None).unwrap()), 16);
    write(
        dir.path(),
        "diffusion_pytorch_model.safetensors",
        &["a"],
        32,
    );
    assert_eq!(byte(&open(&dir, None).unwrap()), 32);
    assert_eq!(byte(&open(&dir, Some("fp16")).unwrap()), 16);
    assert_eq!(
        message(open(&dir, Some("bf16")))
            .split_once(": ")
            .unwrap()
            .1,
        "no weights of variant \"bf16\", found the variants \"(none)\", \"fp16\""
    );
}

#[test]
fn several_variants_and_no_plain_file_ask_for_a_choice() {
    let dir = folder();
    write(dir.path(), "model.fp16.safetensors", &["a"], 1);
    write(dir.path(), "model.ema.fp16.safetensors", &["a"], 2);
    let text = message(open(&dir, None));
    assert!(
        text.contains("several variants and none without a suffix"),
        "{text}"
    );
    assert!(
        text.ends_with("found the variants \"ema.fp16\", \"fp16\""),
        "{text}"
    );
    assert_eq!(byte(&open(&dir, Some("ema.fp16")).unwrap()), 2);
}

#[test]
fn the_first_stem_that_has_weights_decides() {
    let dir = folder();
    write(dir.path(), "model.safetensors", &["a"], 1);
    assert_eq!(byte(&open(&dir, None).unwrap()), 1);
    write(dir.path(), "diffusion_pytorch_model.safetensors", &["a"], 2);
    assert_eq!(byte(&open(&dir, None).unwrap()), 2);
}

#[test]
fn shards_of_plain_and_variant_names() {
    let dir = folder();
    let p = dir.path();
    write(p, "model-00001-of-00002.safetensors", &["a"], 1);
    write(p, "model-00002-of-00002.safetensors", &["b"], 2);
    let rows = [
        ("a", "model-00001-of-00002.safetensors"),
        ("b", "model-00002-of-00002.safetensors"),
    ];
    index(p, "model.safetensors.index.json", &rows);
    write(p, "model.fp16-00001-of-00002.safetensors", &["a"], 11);
    write(p, "model.fp16-00002-of-00002.safetensors", &["b"], 12);
    let rows = [
        ("a", "model.fp16-00001-of-00002.safetensors"),
        ("b", "model.fp16-00002-of-00002.safetensors"),
    ];
    index(p, "model.safetensors.index.fp16.json", &rows);
    for (variant, first) in [(None, 1), (Some("fp16"), 11)] {
        let set = open(&dir, variant).unwrap();
        assert_eq!(names(&set), ["a", "b"]);
        assert_eq!((set.files().len(), byte(&set)), (2, first));
        assert_eq!(set.get("b").unwrap().data[0], first + 1);
        assert!(
            set.origin("b")
                .unwrap()
                .0
                .to_str()
                .unwrap()
                .ends_with("-00002-of-00002.safetensors")
        );
    }
    let direct = WeightSet::open(p.join("model.safetensors.index.json")).unwrap();
    assert_eq!(names(&direct), ["a", "b"]);
    // A whole file of the same variant is preferred to shards.
    write(p, "model.safetensors", &["a"], 5);
    assert_eq!(byte(&open(&dir, None).unwrap()), 5);
}

#[test]
fn missing_shards_are_named() {
    let dir = folder();
    write(dir.path(), "model-00001-of-00003.safetensors", &["a"], 1);
    let rows = [
        ("a", "model-00001-of-00003.safetensors"),
        ("b", "model-00002-of-00003.safetensors"),
        ("c", "model-00003-of-00003.safetensors"),
    ];
    index(dir.path(), "model.safetensors.index.json", &rows);
    let text = message(open(&dir, None));
    assert!(
        text.ends_with(
            "2 of 3 shards are missing: \"model-00002-of-00003.safetensors\", \"model-00003-of-00003.safetensors\""
        ),
        "{text}"
    );
}

#[test]
fn tensors_missing_from_their_shard_are_named() {
    let dir = folder();
    write(dir.path(), "s1.safetensors", &["a"], 1);
    write(dir.path(), "s2.safetensors", &["b"], 1);
    let rows = [
        ("a", "s1.safetensors"),
        ("b", "s1.safetensors"),
        ("c", "s2.safetensors"),
    ];
    index(dir.path(), "model.safetensors.index.json", &rows);
    let text = message(open(&dir, None));
    assert!(
        text.contains("do not hold \"b\", \"c\"; the first should be in \"s1.safetensors\""),
        "{text}"
    );
}

#[test]
fn what_the_index_does_not_mention_stays_visible_and_the_index_settles_repeated_names() {
    let dir = folder();
    write(dir.path(), "s1.safetensors", &["a", "extra"], 1);
    write(dir.path(), "s2.safetensors", &["a", "b"], 2);
    index(
        dir.path(),
        "model.safetensors.index.json",
        &[("a", "s2.safetensors"), ("b", "s2.safetensors")],
    );
    // s1 is not named at all, so it is not opened.
    assert_eq!(names(&open(&dir, None).unwrap()), ["a", "b"]);
    write(dir.path(), "s1.safetensors", &["a", "extra", "c"], 1);
    let rows = [
        ("a", "s2.safetensors"),
        ("b", "s2.safetensors"),
        ("c", "s1.safetensors"),
    ];
    index(dir.path(), "model.safetensors.index.json", &rows);
    let set = open(&dir, None).unwrap();
    assert_eq!(names(&set), ["a", "b", "c", "extra"]);
    assert_eq!(byte(&set), 2);
}

#[test]
fn shard_names_cannot_leave_the_folder() {
    let dir = folder();
    let inner = dir.path().join("unet");
    std::fs::create_dir(&inner).unwrap();
    write(dir.path(), "outside.safetensors", &["a"], 1);
    write(&inner, "inside.safetensors", &["a"], 1);
    let absolute = dir.path().join("outside.safetensors");
    for shard in [
        "../outside.safetensors",
        absolute.to_str().unwrap(),
        "sub/inside.safetensors",
        "./inside.safetensors",
        "..\\outside.safetensors",
        "C:outside.safetensors",
        "..",
        ".",
        "",
        "/",
        "inside.safetensors/",
        "inside.safetensors\0",
    ] {
        let rows = format!(
            r#"{{"weight_map":{{"a":{}}}}}"#,
            serde_json::to_string(shard).unwrap()
        );
        std::fs::write(inner.join("model.safetensors.index.json"), rows).unwrap();
        let text = message(WeightSet::open_component(&inner, UNET, None));
        assert!(
            text.contains("expected a file of the same folder"),
            "{shard}: {text}"
        );
    }
}

#[test]
fn damaged_indices() {
    let dir = folder();
    let path = dir.path().join("model.safetensors.index.json");
    for (text, word) in [
        ("{", "EOF"),
        ("[]", "expected an object"),
        (r#"[{"a":"x"}]"#, "expected an object"),
        ("{}", "missing field `weight_map`"),
        (r#"{"weight_map":{}}"#, "names no tensor"),
        (r#"{"weight_map":[]}"#, "an object of strings"),
        (r#"{"weight_map":{"a":1}}"#, "expected a string"),
        (
            r#"{"weight_map":{"a":"x","a":"y"}}"#,
            "key \"a\" is there twice",
        ),
        ("not json", "expected"),
        ("\u{0}", "expected value"),
    ] {
        std::fs::write(&path, text).unwrap();
        let said = message(open(&dir, None));
        assert!(
            said.contains("damaged index of shards") && said.contains(word),
            "{text}: {said}"
        );
    }
    std::fs::write(&path, "").unwrap();
    assert!(message(open(&dir, None)).contains("the file is empty"));
    std::fs::write(&path, r#"{"weight_map":{"a":"s.safetensors"}}"#).unwrap();
    std::fs::write(dir.path().join("s.safetensors"), "hello").unwrap();
    assert!(message(open(&dir, None)).contains("is a text file"));
}

#[test]
fn folders_without_weights_say_what_is_there() {
    let dir = folder();
    assert!(message(open(&dir, None)).ends_with(
        "no weights here, expected diffusion_pytorch_model.safetensors or model.safetensors"
    ));
    std::fs::write(dir.path().join("diffusion_pytorch_model.bin"), "x").unwrap();
    std::fs::write(dir.path().join("config.json"), "{}").unwrap();
    let error = open(&dir, None).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("; found only \"diffusion_pytorch_model.bin\""),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("convert the weights"));
    write(dir.path(), "model-00001-of-00002.safetensors", &["a"], 1);
    let error = open(&dir, None).unwrap_err();
    let text = error.to_string();
    assert!(
        text.ends_with("\"diffusion_pytorch_model.bin\", \"model-00001-of-00002.safetensors\""),
        "{text}"
    );
    assert!(error.hint().unwrap().contains("index.json"));
    let missing = WeightSet::open_component(dir.path().join("vae"), UNET, None);
    assert!(matches!(missing, Err(Error::NotFound { .. })));
    let file = WeightSet::open_component(dir.path().join("config.json"), UNET, None);
    assert!(matches!(file, Err(Error::NotADirectory { .. })));
}

#[test]
fn files_given_apart_make_one_name_space() {
    let dir = folder();
    write(dir.path(), "unet.safetensors", &["unet.a"], 1);
    write(dir.path(), "vae.safetensors", &["vae.a"], 2);
    write(dir.path(), "again.safetensors", &["vae.a"], 3);
    let open = |name: &str| WeightSet::open(dir.path().join(name)).unwrap();
    let both = open("unet.safetensors")
        .merged(&open("vae.safetensors"))
        .unwrap();
    assert_eq!(names(&both), ["unet.a", "vae.a"]);
    assert_eq!(both.get("vae.a").unwrap().data[..], [2, 2]);
    let error = both.merged(&open("again.safetensors")).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("\"vae.a\" is there twice") && text.contains("again.safetensors"),
        "{text}"
    );
}

#[test]
fn inspecting_counts_types_and_parameters() {
    let dir = folder();
    let path = dir.path().join("m.safetensors");
    let half = TensorView::new("h", DType::F16, vec![3, 2], Bytes::from(vec![0; 12])).unwrap();
    let notes = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    safetensors::write(&path, &[view("a", 0), half], &notes).unwrap();
    let seen = WeightSet::open(&path).unwrap().inspect();
    assert_eq!(
        (seen.parameters, seen.bytes, seen.tensors.len()),
        (8, 14, 2)
    );
    assert_eq!(seen.files[0].metadata["format"], "pt");
    assert_eq!(seen.files[0].bytes, std::fs::metadata(&path).unwrap().len());
    let json = serde_json::to_value(&seen).unwrap();
    assert_eq!(json["dtypes"][0]["dtype"], "F16");
    assert_eq!(json["dtypes"][0]["parameters"], 6);
    assert_eq!(json["tensors"][1]["shape"], serde_json::json!([3, 2]));
}

/// Any one byte of an index changed: opened or refused, never a panic, and never a file outside.
#[test]
fn every_changed_byte_of_an_index() {
    let dir = folder();
    write(dir.path(), "s1.safetensors", &["a"], 1);
    index(
        dir.path(),
        "model.safetensors.index.json",
        &[("a", "s1.safetensors")],
    );
    let path = dir.path().join("model.safetensors.index.json");
    let bytes = std::fs::read(&path).unwrap();
    for at in 0..bytes.len() {
        std::fs::write(&path, &bytes[..at]).unwrap();
        message(WeightSet::open(&path));
        for value in [
            0,
            b'"',
            b'{',
            b'}',
            b'/',
            b'.',
            b',',
            b' ',
            0xff,
            bytes[at] ^ 1,
        ] {
            let mut changed = bytes.clone();
            changed[at] = value;
            std::fs::write(&path, changed).unwrap();
            match WeightSet::open(&path) {
                Ok(set) => assert_eq!(names(&set), ["a"]),
                error => assert!(!message(error).contains(char::is_control)),
            }
        }
    }
}
