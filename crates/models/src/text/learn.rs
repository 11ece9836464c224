//! Learning a tokenizer's vocabulary from captions.

use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::{
    OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, Tokenizer, Trainer,
};

use super::tokenizer::{failed, set_steps};
use super::vocabulary::{BOS, EOS, SUFFIX, Vocabulary, byte_characters};
use crate::ModelError;

/// The files of a CLIP tokenizer, by name.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenizerFiles {
    /// `vocab.json`, `merges.txt`, `tokenizer_config.json` and `special_tokens_map.json`, with their contents.
    pub files: Vec<(&'static str, String)>,
    /// Tokens that the vocabulary has: at most as many as were asked for.
    pub vocabulary: usize,
}

/// Tokens that every vocabulary has: 256 bytes, the same at the end of a word, begin and end.
pub const LEAST_VOCABULARY: usize = 514;

/// Learns a byte-pair vocabulary of at most `size` tokens in CLIP's layout: 256 bytes, 256 bytes that end a word, merges
/// in the order they were learned, begin and end of text. Pairs that occur once are not merged.
///
/// # Errors
/// A size below [`LEAST_VOCABULARY`], or what the library refuses.
pub fn learn_tokenizer<'a>(
    captions: impl IntoIterator<Item = &'a str>,
    size: usize,
) -> Result<TokenizerFiles, ModelError> {
    if !(LEAST_VOCABULARY..=1 << 20).contains(&size) {
        return Err(ModelError::Tokenizer(format!(
            "found a vocabulary of {size}, expected {LEAST_VOCABULARY} to {}",
            1 << 20
        )));
    }
    let merges = learn_merges(captions, size - LEAST_VOCABULARY)?;
    let vocabulary = Vocabulary::of_merges(merges);
    let mut tokens: Vec<(&String, &u32)> = vocabulary.tokens.iter().collect();
    tokens.sort_by_key(|(_, id)| **id);
    let table: serde_json::Map<String, Value> = tokens
        .iter()
        .map(|(token, id)| ((*token).clone(), json!(id)))
        .collect();
    let mut merges = String::from("#version: 0.2\n");
    for (a, b) in &vocabulary.merges {
        merges += &format!("{a} {b}\n");
    }
    let special = json!({
        "bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": EOS,
    });
    let mut config = json!({
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "add_prefix_space": false,
        "do_lower_case": true,
        "errors": "replace",
    });
    if let (Value::Object(config), Value::Object(special)) = (&mut config, &special) {
        config.extend(special.clone());
    }
    Ok(TokenizerFiles {
        vocabulary: vocabulary.tokens.len(),
        files: vec![
            ("vocab.json", Value::Object(table).to_string()),
            ("merges.txt", merges),
            ("tokenizer_config.json", format!("{config:#}\n")),
            ("special_tokens_map.json", format!("{special:#}\n")),
        ],
    })
}

/// The first merges of a BPE over the words of the captions.
fn learn_merges<'a>(
    captions: impl IntoIterator<Item = &'a str>,
    most: usize,
) -> Result<Vec<(String, String)>, ModelError> {
    let mut steps = Tokenizer::new(BPE::default());
    set_steps(&mut steps).map_err(failed)?;
    let words = |caption: &str| -> tokenizers::Result<Vec<String>> {
        let mut normalized = tokenizers::NormalizedString::from(caption);
        if let Some(normalizer) = steps.get_normalizer() {
            tokenizers::Normalizer::normalize(normalizer, &mut normalized)?;
        }
        let mut split = PreTokenizedString::from(normalized);
        if let Some(splitter) = steps.get_pre_tokenizer() {
            splitter.pre_tokenize(&mut split)?;
        }
        let parts = split.get_splits(OffsetReferential::Normalized, OffsetType::Byte);
        Ok(parts
            .into_iter()
            .map(|(word, ..)| word.to_owned())
            .collect())
    };
    // The trainer counts its alphabet, with and without the end of a word, against the size.
    let mut trainer = BpeTrainer::builder()
        .vocab_size(LEAST_VOCABULARY + most)
        .min_frequency(2)
        .show_progress(false)
        .initial_alphabet(byte_characters().into_iter().collect())
        .end_of_word_suffix(SUFFIX.to_owned())
        .build();
    // The library wants an iterator that other threads may take.
    let captions: Vec<&str> = captions.into_iter().collect();
    trainer.feed(captions.into_iter(), words).map_err(failed)?;
    let mut model = BPE::default();
    trainer.train(&mut model).map_err(failed)?;
    let model = serde_json::to_value(&model).map_err(failed)?;
    let pair = |merge: &Value| match merge {
        Value::Array(parts) => match parts.as_slice() {
            [Value::String(a), Value::String(b)] => Some((a.clone(), b.clone())),
            _ => None,
        },
        Value::String(text) => text
            .split_once(' ')
            .map(|(a, b)| (a.to_owned(), b.to_owned())),
        _ => None,
    };
    let merges = model["merges"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    Ok(merges.iter().filter_map(pair).take(most).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::ClipTokenizer;

    #[test]
    fn a_learned_tokenizer_has_clips_layout_and_keeps_frequent_words_whole() {
        let captions = [
            "a red apple",
            "A red  house",
            "the green apple",
            "an apple, red",
            "zebra's",
        ];
        let captions = captions.iter().cycle().take(25).copied();
        let learned = learn_tokenizer(captions, 600).unwrap_or_else(|e| panic!("{e}"));
        assert!((LEAST_VOCABULARY + 10..=600).contains(&learned.vocabulary));
        let dir = tempfile::tempdir().expect("tempdir");
        for (name, content) in &learned.files {
            std::fs::write(dir.path().join(name), content).expect("file");
        }
        let tokenizer = ClipTokenizer::from_folder(dir.path()).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(tokenizer.vocabulary(), learned.vocabulary);
        assert_eq!(tokenizer.bos() as usize, learned.vocabulary - 2);
        let ids = tokenizer
            .encode("Red APPLE")
            .unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(ids.len(), 2);
        // Bytes come first, in CLIP's order.
        assert_eq!(
            tokenizer.encode("!").unwrap_or_else(|e| panic!("{e}")),
            [256]
        );
        // Any text has tokens.
        assert!(
            !tokenizer
                .encode("日本 é")
                .unwrap_or_else(|e| panic!("{e}"))
                .is_empty()
        );
        let few = learn_tokenizer(["a"], 100);
        assert!(few.is_err_and(|e| e.to_string().contains("expected 514")));
    }

    #[test]
    fn learning_twice_gives_the_same_files() {
        let captions = || (0..200).map(|i| ["red fox", "blue whale", "red whale"][i % 3]);
        let learn = || learn_tokenizer(captions(), 560).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(learn(), learn());
    }
}
