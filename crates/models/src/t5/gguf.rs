//! What GGUF files tell of T5 beside its tensors: its tokenizer, in both directions, and its shape. Keys and values are
//! those that llama.cpp's converter writes.

use std::path::{Path, PathBuf};

use aquatint_weights::WeightSet;
use aquatint_weights::gguf::{Array, Value};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use tokenizers::Tokenizer;

use super::T5Config;
use super::spiece::{CONTROL, Model, NORMAL, Piece, UNKNOWN, UNUSED, USER, build, sentinels};
use crate::ModelError;

/// The architecture's name, before the keys of its shape.
const ARCHITECTURE: &str = "t5encoder";
/// The score of what fills a vocabulary up.
const FILL: f32 = -10_000.0;

/// The tokenizer of a GGUF file's metadata, where it has one.
pub(super) fn tokenizer(set: &WeightSet) -> Option<Result<Tokenizer, String>> {
    set.gguf_value("tokenizer.ggml.tokens")?;
    Some(from_gguf(set).and_then(build))
}

fn from_gguf(set: &WeightSet) -> Result<Model, String> {
    let array = |key: &str| match set.gguf_value(&format!("tokenizer.ggml.{key}")) {
        Some(Value::Array(array)) => Some(array),
        _ => None,
    };
    let missing = |key: &str| format!("tokenizer.ggml.{key} is missing or of another type");
    let Some(Array::String(tokens)) = array("tokens") else {
        return Err(missing("tokens"));
    };
    let Some(Array::F32(scores)) = array("scores") else {
        return Err(missing("scores"));
    };
    let kinds: Vec<u64> = match array("token_type") {
        Some(Array::I32(kinds)) => kinds.iter().map(|&k| k.max(0) as u64).collect(),
        Some(Array::U32(kinds)) => kinds.iter().map(|&k| k.into()).collect(),
        _ => return Err(missing("token_type")),
    };
    if tokens.len() != scores.len() || tokens.len() != kinds.len() {
        return Err(format!(
            "found {} tokens with {} scores and {} types, expected as many of each",
            tokens.len(),
            scores.len(),
            kinds.len()
        ));
    }
    let charsmap = match array("precompiled_charsmap") {
        Some(Array::U8(map)) => map.clone(),
        Some(Array::I8(map)) => map.iter().map(|&b| b as u8).collect(),
        _ => Vec::new(),
    };
    let pieces = tokens.iter().zip(scores).zip(kinds);
    let pieces = pieces.map(|((text, &score), kind)| Piece {
        text: text.clone(),
        score,
        kind,
    });
    Ok(Model {
        pieces: pieces.collect(),
        charsmap,
    })
}

/// The pieces of a `tokenizer.json`.
fn from_json(bytes: &[u8]) -> Result<Model, String> {
    let json: serde_json::Value = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    let model = &json["model"];
    let unknown = model["unk_id"].as_u64();
    let (Some(vocabulary), Some(unknown)) = (model["vocab"].as_array(), unknown) else {
        return Err("found no Unigram model with an unknown token, expected T5's".into());
    };
    let added = json["added_tokens"].as_array().into_iter().flatten();
    let mut added: Vec<(u64, &str)> = added
        .filter_map(|token| Some((token["id"].as_u64()?, token["content"].as_str()?)))
        .collect();
    added.sort_unstable();
    let kind = |id: u64, text: &str| match text {
        _ if id == unknown => UNKNOWN,
        "<pad>" | "</s>" => CONTROL,
        _ if added.iter().any(|(_, other)| *other == text) => USER,
        _ => NORMAL,
    };
    let mut pieces = Vec::with_capacity(vocabulary.len());
    for (id, row) in (0..).zip(vocabulary) {
        let (Some(text), Some(score)) = (row[0].as_str(), row[1].as_f64()) else {
            return Err(format!("token {id} is no text with a score"));
        };
        pieces.push(Piece {
            text: text.to_owned(),
            score: score as f32,
            kind: kind(id, text),
        });
    }
    for (id, text) in &added {
        if *id == pieces.len() as u64 {
            pieces.push(Piece {
                text: (*text).to_owned(),
                score: 0.0,
                kind: USER,
            });
        }
    }
    let normalizer = &json["normalizer"];
    let steps = normalizer["normalizers"].as_array().into_iter().flatten();
    let map = std::iter::once(normalizer)
        .chain(steps)
        .find_map(|step| step["precompiled_charsmap"].as_str());
    let charsmap = map.map(|text| BASE64.decode(text)).transpose();
    Ok(Model {
        pieces,
        charsmap: charsmap
            .map_err(|e| format!("precompiled_charsmap: {e}"))?
            .unwrap_or_default(),
    })
}

/// The `tokenizer.json` or `spiece.model` in a folder.
pub(crate) fn tokenizer_file(folder: &Path) -> Option<PathBuf> {
    let files = ["spiece.model", "tokenizer.json"].map(|file| folder.join(file));
    files.into_iter().find(|file| file.is_file())
}

/// The tokenizer's file in the folder of T5's weights, or beside that in a model's folder (`tokenizer_3` for
/// `text_encoder_3`).
pub(crate) fn tokenizer_beside(weights: &Path) -> Option<PathBuf> {
    let weights = weights.canonicalize().ok()?;
    let folder = match weights.is_dir() {
        true => weights.as_path(),
        false => weights.parent()?,
    };
    let name = folder.file_name().and_then(|name| name.to_str());
    let part = name
        .and_then(|name| name.strip_prefix("text_encoder"))
        .map(|suffix| format!("tokenizer{suffix}"));
    let other = part.and_then(|part| tokenizer_file(&folder.parent()?.join(part)));
    tokenizer_file(folder).or(other)
}

/// A tokenizer's file as metadata, with as many tokens as the encoder has embeddings.
///
/// # Errors
/// When it cannot be read, is none of T5, or has more tokens.
pub(crate) fn tokenizer_metadata(
    file: &Path,
    vocabulary: usize,
) -> Result<Vec<(String, Value)>, ModelError> {
    let bytes = std::fs::read(file).map_err(|source| ModelError::Io {
        path: file.to_owned(),
        source,
    })?;
    let model = match bytes.first() {
        Some(b'{') => from_json(&bytes),
        _ => Model::read(&bytes),
    };
    model
        .and_then(|model| to_gguf(model, vocabulary))
        .map_err(|e| ModelError::Tokenizer(format!("{}: {e}", file.display())))
}

fn to_gguf(model: Model, vocabulary: usize) -> Result<Vec<(String, Value)>, String> {
    let Model {
        mut pieces,
        charsmap,
    } = model;
    let place = |text: &str| pieces.iter().position(|p| p.text == text);
    let special = [
        ("eos_token_id", place("</s>")),
        ("padding_token_id", place("<pad>")),
        (
            "unknown_token_id",
            pieces.iter().position(|p| p.kind == UNKNOWN),
        ),
    ];
    if pieces.len() > vocabulary {
        return Err(format!(
            "found {} tokens, expected at most the {vocabulary} that the T5 text encoder knows",
            pieces.len()
        ));
    }
    let own = |kind, score| move |text| Piece { text, score, kind };
    let missing: Vec<String> = sentinels(&pieces).take(vocabulary - pieces.len()).collect();
    pieces.extend(missing.into_iter().map(own(USER, 0.0)));
    let fill = (pieces.len()..vocabulary).map(|i| format!("[PAD{i}]"));
    pieces.extend(fill.map(own(UNUSED, FILL)));

    let mut values: Vec<(String, Value)> = Vec::new();
    let mut put = |key: &str, value| values.push((format!("tokenizer.ggml.{key}"), value));
    put("model", Value::String("t5".into()));
    put("pre", Value::String("default".into()));
    for (key, id) in special {
        let id = id.ok_or("there is no end, padding or unknown token; expected T5's")?;
        put(key, Value::U32(id as u32));
    }
    for (key, truth) in [
        ("add_bos_token", false),
        ("add_eos_token", true),
        ("add_space_prefix", true),
        ("remove_extra_whitespaces", true),
    ] {
        put(key, Value::Bool(truth));
    }
    let scores = pieces.iter().map(|p| p.score).collect();
    let kinds = pieces.iter().map(|p| p.kind as i32).collect();
    let tokens = pieces.into_iter().map(|p| p.text).collect();
    put("tokens", Value::Array(Array::String(tokens)));
    put("scores", Value::Array(Array::F32(scores)));
    put("token_type", Value::Array(Array::I32(kinds)));
    if !charsmap.is_empty() {
        put("precompiled_charsmap", Value::Array(Array::U8(charsmap)));
    }
    Ok(values)
}

/// The encoder's shape as metadata.
pub(crate) fn shape_metadata(config: &T5Config) -> Vec<(String, Value)> {
    /// What T5 was trained on, which no tensor shows.
    const CONTEXT: usize = 512;
    let counts = [
        ("context_length", CONTEXT),
        ("embedding_length", config.d_model),
        ("feed_forward_length", config.d_ff),
        ("block_count", config.num_layers),
        ("vocab_size", config.vocab_size),
        ("attention.head_count", config.num_heads),
        ("attention.key_length", config.d_kv),
        ("attention.value_length", config.d_kv),
        ("attention.relative_buckets_count", config.buckets),
    ];
    let epsilon = Value::F32(config.layer_norm_eps as f32);
    let key = |key: &str| format!("{ARCHITECTURE}.{key}");
    let counts = counts.map(|(name, n)| (key(name), Value::U32(n.try_into().unwrap_or(u32::MAX))));
    let norms = ["layer_norm_epsilon", "layer_norm_rms_epsilon"]
        .map(|name| (key(&format!("attention.{name}")), epsilon.clone()));
    counts.into_iter().chain(norms).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use aquatint_weights::WeightFile;
    use aquatint_weights::gguf::{Metadata, Writer};

    fn file(name: &str) -> PathBuf {
        aquatint_testkit::golden("flow/parts/tokenizer_3").join(name)
    }

    /// A GGUF file without tensors.
    fn set(values: Vec<(String, Value)>, path: &Path) -> WeightSet {
        let metadata: Metadata = values.into_iter().collect();
        Writer::create(path, &[], &metadata)
            .unwrap()
            .finish()
            .unwrap();
        WeightFile::open(path).unwrap().into()
    }

    #[test]
    fn the_metadata_of_a_gguf_file_give_the_same_tokens() {
        let text =
            std::fs::read_to_string(aquatint_testkit::golden("flow/t5_tokens.json")).unwrap();
        let rows: Vec<(String, Vec<u32>)> = serde_json::from_str(&text).unwrap();
        let dir = tempfile::tempdir().unwrap();
        for name in ["spiece.model", "tokenizer.json"] {
            let values = tokenizer_metadata(&file(name), 696).unwrap();
            let set = set(values, &dir.path().join("t5.gguf"));
            let tokens = set.gguf_value("tokenizer.ggml.tokens").unwrap();
            let tokens = tokens.as_strings().unwrap();
            assert_eq!(tokens.len(), 696);
            assert_eq!(
                (&*tokens[589 + 100], &*tokens[690]),
                ("<extra_id_0>", "[PAD690]")
            );
            let found = tokenizer(&set).unwrap().unwrap();
            // The fill is no part of it, which would be more than the encoder knows.
            assert_eq!(found.get_vocab_size(true), 690);
            for (prompt, want) in &rows {
                let ids = found.encode_fast(prompt.as_str(), false).unwrap();
                assert_eq!(ids.get_ids(), &want[..want.len() - 1], "{name}: {prompt:?}");
            }
            let ids = found.encode_fast("<extra_id_99>", false).unwrap();
            assert_eq!(ids.get_ids(), [590]);
        }
    }

    /// As llama.cpp fills a vocabulary up: no sentinels, and many more tokens.
    #[test]
    fn what_fills_a_vocabulary_up_takes_no_place() {
        let mut model = Model::read(&std::fs::read(file("spiece.model")).unwrap()).unwrap();
        let words = model.pieces.len();
        let fill = (words..words + 128).map(|i| Piece {
            text: format!("[PAD{i}]"),
            score: FILL,
            kind: UNUSED,
        });
        model.pieces.extend(fill);
        let found = build(model).unwrap();
        assert_eq!(found.get_vocab_size(true), words + 100);
        let ids = found.encode_fast("[PAD590] <extra_id_0>", false).unwrap();
        assert_eq!(ids.get_ids().last(), Some(&(words as u32 + 99)));
    }

    #[test]
    fn tokenizers_that_are_none_of_t5_are_refused() {
        let error = tokenizer_metadata(&file("spiece.model"), 100).unwrap_err();
        assert!(error.to_string().contains("at most the 100"), "{error}");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        for (text, expected) in [
            ("{", "EOF"),
            (r#"{"model": {"type": "BPE"}}"#, "no Unigram model"),
            (r#"{"model": {"unk_id": 0, "vocab": [[1, 2]]}}"#, "token 0"),
            (r#"{"model": {"unk_id": 0, "vocab": [["a", 0]]}}"#, "no end"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = tokenizer_metadata(&path, 100).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
