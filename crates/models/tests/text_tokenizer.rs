//! The tokenizer against transformers' `CLIPTokenizer` (golden/clip_tokens.py).

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use aquatint_models::text::{ClipTokenizer, Padding};
use aquatint_testkit::golden;
use serde::Deserialize;

#[derive(Deserialize)]
struct Row {
    prompt: String,
    /// What the pipeline of diffusers says it drops.
    dropped: Option<String>,
    sd1: Vec<u32>,
    sd2: Vec<u32>,
    tiny: Vec<u32>,
    tiny_pad: Vec<u32>,
}

fn rows() -> Vec<Row> {
    let text = std::fs::read_to_string(golden("clip_tokens.json")).unwrap();
    let rows: Vec<Row> = serde_json::from_str(&text).unwrap();
    assert!(rows.len() > 300);
    rows
}

#[track_caller]
fn same(tokenizer: &ClipTokenizer, ids: impl Fn(&Row) -> &Vec<u32>) {
    let rows = rows();
    let wrong: Vec<_> = rows
        .iter()
        .filter(|row| &tokenizer.encode(&row.prompt).unwrap() != ids(row))
        .map(|row| {
            (
                &row.prompt,
                tokenizer.encode(&row.prompt).unwrap(),
                ids(row),
            )
        })
        .collect();
    assert!(
        wrong.is_empty(),
        "{} of {}: {:?}",
        wrong.len(),
        rows.len(),
        &wrong[..wrong.len().min(3)]
    );
}

#[test]
fn the_embedded_vocabulary_gives_the_ids_of_transformers() {
    let tokenizer = ClipTokenizer::embedded(Padding::EndOfText).unwrap();
    same(&tokenizer, |row| &row.sd1);
    assert_eq!(
        (tokenizer.bos(), tokenizer.eos(), tokenizer.pad()),
        (49406, 49407, 49407)
    );
    assert_eq!((tokenizer.comma(), tokenizer.context()), (Some(267), 77));
    assert_eq!(tokenizer.vocabulary(), 49408);
    // Built once.
    let again = ClipTokenizer::embedded(Padding::EndOfText).unwrap();
    assert!(Arc::ptr_eq(&tokenizer, &again));
}

#[test]
fn awkward_prompts_are_framed_as_by_transformers() {
    #[derive(Deserialize)]
    struct Framed {
        prompt: String,
        ids: Vec<u32>,
        ids_pad_bang: Vec<u32>,
    }
    #[derive(Deserialize)]
    struct File {
        tokens: Vec<Framed>,
    }
    // Of golden/make_tokens.py: with begin and end, neither padded nor cut.
    let text = std::fs::read_to_string(golden("tokens.json")).unwrap();
    let file: File = serde_json::from_str(&text).unwrap();
    assert!(!file.tokens.is_empty());
    for row in file.tokens {
        for (padding, want) in [
            (Padding::EndOfText, &row.ids),
            (Padding::Exclamation, &row.ids_pad_bang),
        ] {
            let tokenizer = ClipTokenizer::embedded(padding).unwrap();
            let mut found = vec![tokenizer.bos()];
            found.extend(tokenizer.encode(&row.prompt).unwrap());
            found.push(tokenizer.eos());
            assert_eq!(&found, want, "{}", row.prompt);
        }
    }
}

#[test]
fn so_it_does_with_the_padding_of_sd2() {
    let tokenizer = ClipTokenizer::embedded(Padding::Exclamation).unwrap();
    same(&tokenizer, |row| &row.sd2);
    assert_eq!((tokenizer.eos(), tokenizer.pad()), (49407, 0));
}

#[test]
fn folders_give_the_ids_of_transformers() {
    let read = |folder: &str| ClipTokenizer::from_folder(golden(folder)).unwrap();
    same(&read("sd1/tokenizer"), |row| &row.tiny);
    same(&read("sd2/tokenizer"), |row| &row.tiny_pad);
    // A tokenizer.json alone, as transformers 5 writes it.
    let saved = read("tokenizer_saved");
    same(&saved, |row| &row.tiny_pad);
    assert_eq!(saved.pad(), 0);
}

#[test]
fn sequences_are_framed_padded_and_cut() {
    let tokenizer = ClipTokenizer::embedded(Padding::EndOfText).unwrap();
    let mut cut = 0;
    for row in rows() {
        let tokens = tokenizer.tokens(&row.prompt).unwrap();
        let fit = row.sd1.len().min(75);
        assert_eq!(tokens.ids.len(), 77);
        assert_eq!(tokens.ids[0], 49406);
        assert_eq!(tokens.ids[1..=fit], row.sd1[..fit]);
        assert!(tokens.ids[fit + 1..].iter().all(|&id| id == 49407));
        assert_eq!(tokens.dropped, row.dropped, "{}", row.prompt);
        cut += usize::from(tokens.dropped.is_some());
    }
    assert!(cut > 5);
}

#[test]
fn a_long_text_takes_no_long_time() {
    let tokenizer = ClipTokenizer::embedded(Padding::EndOfText).unwrap();
    let start = std::time::Instant::now();
    for text in [
        "a".repeat(200_000),
        "!".repeat(200_000),
        " ".repeat(200_000),
        "ab ".repeat(70_000),
    ] {
        tokenizer.encode(&text).unwrap();
    }
    // Quadratic work would take minutes.
    assert!(start.elapsed().as_secs() < 30, "{:?}", start.elapsed());
}

#[test]
fn broken_folders_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let error = || {
        ClipTokenizer::from_folder(dir.path())
            .unwrap_err()
            .to_string()
    };
    assert!(error().contains("vocab.json"), "{}", error());
    write(
        "vocab.json",
        r#"{"a": 0, "b": 1, "<|startoftext|>": 2, "<|endoftext|>": 3}"#,
    );
    assert!(error().contains("merges.txt"), "{}", error());
    write("merges.txt", "#version: 0.2\na b\n");
    assert!(error().contains("needs the token \"ab\""), "{}", error());
    write("merges.txt", "a b c\n");
    assert!(error().contains("expected two tokens"), "{}", error());
    write("merges.txt", "");
    ClipTokenizer::from_folder(dir.path()).unwrap();
    write("tokenizer_config.json", "{");
    assert!(error().contains("tokenizer_config.json"), "{}", error());
    write(
        "tokenizer_config.json",
        r#"{"model_max_length": 1e30, "pad_token": "!"}"#,
    );
    // A special token that the vocabulary has not becomes a new entry, as in transformers.
    assert_eq!(ClipTokenizer::from_folder(dir.path()).unwrap().pad(), 4);
    write(
        "tokenizer.json",
        r#"{"model": {"type": "WordPiece", "vocab": {}}}"#,
    );
    assert!(error().contains("WordPiece, expected BPE"), "{}", error());
    write(
        "tokenizer.json",
        r#"{"model": {"vocab": {"a": 1}, "merges": [["a", "a"]]}}"#,
    );
    assert!(error().contains("needs the token \"aa\""), "{}", error());
    write(
        "tokenizer.json",
        r#"{"model": {"vocab": {"a": 4294967295}, "merges": []}}"#,
    );
    assert!(error().contains("expected below"), "{}", error());
    write("tokenizer.json", "[]");
    error();
}
