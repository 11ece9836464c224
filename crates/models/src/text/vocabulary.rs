//! The vocabulary of a CLIP tokenizer: tokens and merges, from a folder or embedded.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use tokenizers::models::bpe::Vocab;

use crate::ModelError;

/// The embedded merges; see `data/README.md`.
const MERGES: &[u8] = include_bytes!("../../data/clip_merges.txt.zst");
/// Bytes of the embedded merges once decompressed; a test holds it.
const MERGES_LENGTH: usize = 524_619;

/// Ids are below this. Far above any vocabulary; it keeps sums of ids from overflowing.
const MAX_ID: u32 = 1 << 24;

/// Marks the end of a word.
pub(super) const SUFFIX: &str = "</w>";
pub(super) const BOS: &str = "<|startoftext|>";
pub(super) const EOS: &str = "<|endoftext|>";

/// Tokens with their ids, and the merges in order of rank.
pub(super) struct Vocabulary {
    pub tokens: Vocab,
    pub merges: Vec<(String, String)>,
}

/// A token that is found in the text before it is split into words.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Added {
    pub content: String,
    /// Looked for after normalisation (lower case), not before.
    pub normalized: bool,
    pub lstrip: bool,
    pub rstrip: bool,
    pub single_word: bool,
}

impl Added {
    pub fn new(content: &str, normalized: bool) -> Self {
        Added {
            content: content.to_owned(),
            normalized,
            lstrip: false,
            rstrip: false,
            single_word: false,
        }
    }
}

/// What a tokenizer is built from.
pub(super) struct Parts {
    pub vocabulary: Vocabulary,
    /// Without repetitions, in the order of their ids where they have one.
    pub added: Vec<Added>,
    pub bos: String,
    pub eos: String,
    pub unk: String,
    pub pad: String,
    /// Tokens of a sequence, the special ones included, where the folder says so.
    pub context: Option<usize>,
}

impl Vocabulary {
    /// The vocabulary of OpenAI's CLIP: 49,408 tokens.
    pub fn embedded() -> Result<Self, ModelError> {
        let bytes = zstd::bulk::decompress(MERGES, MERGES_LENGTH)
            .map_err(|e| ModelError::Tokenizer(format!("the embedded vocabulary: {e}")))?;
        let text = String::from_utf8(bytes)
            .map_err(|e| ModelError::Tokenizer(format!("the embedded vocabulary: {e}")))?;
        let merges = parse_merges(&text, Path::new("the embedded vocabulary"))?;
        Ok(Self::of_merges(merges))
    }

    /// CLIP's layout: bytes, bytes that end a word, merges, begin and end.
    pub fn of_merges(merges: Vec<(String, String)>) -> Self {
        let bytes = byte_characters();
        let words = bytes.iter().map(|c| format!("{c}{SUFFIX}"));
        let tokens = bytes
            .iter()
            .map(char::to_string)
            .chain(words)
            .chain(merges.iter().map(|(a, b)| format!("{a}{b}")))
            .chain([BOS.to_owned(), EOS.to_owned()])
            .zip(0..)
            .collect();
        Vocabulary { tokens, merges }
    }

    /// The builder of the BPE takes each merge's parts and product for granted.
    fn check(self, path: &Path) -> Result<Self, ModelError> {
        if let Some((token, id)) = self.tokens.iter().find(|(_, id)| **id >= MAX_ID) {
            let message = format!("the token {token:?} has the id {id}, expected below {MAX_ID}");
            return Err(json_error(path, message));
        }
        for (a, b) in &self.merges {
            for token in [a, b, &format!("{a}{b}")] {
                if !self.tokens.contains_key(token) {
                    let message = format!(
                        "the merge {a:?} {b:?} needs the token {token:?}, which the vocabulary has \
                         not; vocabulary and merges must be of one tokenizer"
                    );
                    return Err(json_error(path, message));
                }
            }
        }
        Ok(self)
    }
}

/// The characters that stand for the 256 bytes, in the order of their tokens (GPT-2): the printable
/// ones of Latin-1 as themselves, then the others as U+0100 and up.
pub(super) fn byte_characters() -> Vec<char> {
    let printable = |b: &u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let kept = (0..=255u8).filter(printable).map(char::from);
    let moved = (0..=255u8).filter(|b| !printable(b)).count();
    kept.chain(('\u{100}'..).take(moved)).collect()
}

fn parse_merges(text: &str, path: &Path) -> Result<Vec<(String, String)>, ModelError> {
    text.lines()
        .filter(|line| !line.starts_with("#version") && !line.is_empty())
        .map(|line| split_merge(line, path))
        .collect()
}

fn split_merge(line: &str, path: &Path) -> Result<(String, String), ModelError> {
    match line.split_once(' ') {
        Some((a, b)) if !a.is_empty() && !b.is_empty() && !b.contains(' ') => {
            Ok((a.to_owned(), b.to_owned()))
        }
        _ => Err(json_error(
            path,
            format!("found the merge {line:?}, expected two tokens and a space between"),
        )),
    }
}

/// The files of a `tokenizer/` folder, on the disk or elsewhere.
pub(crate) struct Files<'a> {
    /// The folder, for messages.
    pub path: &'a Path,
    /// The text of a file; `None` when it is not there.
    pub text: &'a dyn Fn(&str) -> Result<Option<String>, ModelError>,
}

impl Files<'_> {
    fn needed(&self, name: &str) -> Result<(PathBuf, String), ModelError> {
        let path = self.path.join(name);
        match (self.text)(name)? {
            Some(text) => Ok((path, text)),
            None => Err(ModelError::Io {
                path,
                source: std::io::ErrorKind::NotFound.into(),
            }),
        }
    }

    fn config(&self, name: &str) -> Result<Config, ModelError> {
        let Some(text) = (self.text)(name)? else {
            return Ok(Config::default());
        };
        serde_json::from_str(&text).map_err(|e| json_error(&self.path.join(name), e.to_string()))
    }
}

impl Parts {
    /// Reads a `tokenizer/` folder: `tokenizer.json`, or `vocab.json` and `merges.txt`; beside them
    /// `tokenizer_config.json` and `special_tokens_map.json`, where they are.
    pub fn read(files: &Files<'_>) -> Result<Self, ModelError> {
        let config = files.config("tokenizer_config.json")?;
        let map = files.config("special_tokens_map.json")?;
        let (vocabulary, mut added) = match (files.text)("tokenizer.json")? {
            Some(text) => read_whole(&files.path.join("tokenizer.json"), &text)?,
            None => (read_pair(files)?, Vec::new()),
        };
        let listed = config.added_tokens_decoder.iter();
        added.extend(listed.map(|(id, token)| (id.parse().unwrap_or(u32::MAX), token.clone())));
        added.sort_by_key(|(id, _)| *id);
        let mut added: Vec<Added> = added.into_iter().map(|(_, token)| token.added()).collect();
        let fixed = added.len();
        let mut special = |of_config: Option<Special>, of_map: Option<Special>, default: &str| {
            let token = of_config
                .or(of_map)
                .map_or_else(|| Added::new(default, false), Special::added);
            // The last to name a token decides how it is found, unless the tokenizer lists it.
            match added.iter().position(|a| a.content == token.content) {
                Some(at) if at < fixed => {}
                Some(at) => added[at] = token.clone(),
                None => added.push(token.clone()),
            }
            token.content
        };
        Ok(Parts {
            bos: special(config.bos_token, map.bos_token, BOS),
            eos: special(config.eos_token, map.eos_token, EOS),
            unk: special(config.unk_token, map.unk_token, EOS),
            pad: special(config.pad_token, map.pad_token, EOS),
            vocabulary,
            added,
            context: config.model_max_length.and_then(context),
        })
    }
}

/// transformers writes 1e30 for "no limit".
fn context(length: f64) -> Option<usize> {
    (3.0..=1e6).contains(&length).then_some(length as usize)
}

/// The keys that we use of `tokenizer_config.json` and `special_tokens_map.json`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Config {
    bos_token: Option<Special>,
    eos_token: Option<Special>,
    unk_token: Option<Special>,
    pad_token: Option<Special>,
    model_max_length: Option<f64>,
    added_tokens_decoder: HashMap<String, Special>,
}

/// A special token, as a string or with its properties.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum Special {
    Text(String),
    Token {
        content: String,
        #[serde(default)]
        normalized: bool,
        #[serde(default)]
        lstrip: bool,
        #[serde(default)]
        rstrip: bool,
        #[serde(default)]
        single_word: bool,
    },
}

impl Special {
    fn added(self) -> Added {
        match self {
            Special::Text(content) => Added::new(&content, false),
            Special::Token {
                content,
                normalized,
                lstrip,
                rstrip,
                single_word,
            } => Added {
                content,
                normalized,
                lstrip,
                rstrip,
                single_word,
            },
        }
    }
}

/// The parts that we use of `tokenizer.json`. Its normalizer and splitting are not among them:
/// transformers, too, builds those of CLIP itself.
#[derive(Deserialize)]
struct Whole {
    model: WholeModel,
    #[serde(default)]
    added_tokens: Vec<WholeAdded>,
}

#[derive(Deserialize)]
struct WholeModel {
    vocab: Vocab,
    merges: Vec<Merge>,
}

#[derive(Deserialize)]
struct WholeAdded {
    id: u32,
    #[serde(flatten)]
    token: Special,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Line(String),
}

fn read_whole(path: &Path, text: &str) -> Result<(Vocabulary, Vec<(u32, Special)>), ModelError> {
    let value: Value = serde_json::from_str(text).map_err(|e| json_error(path, e.to_string()))?;
    let kind = value["model"]["type"].as_str().unwrap_or("BPE");
    if kind != "BPE" {
        let message = format!("the model is {kind}, expected BPE, as CLIP's tokenizers are");
        return Err(json_error(path, message));
    }
    let whole: Whole =
        serde_json::from_value(value).map_err(|e| json_error(path, e.to_string()))?;
    let merges = whole.model.merges.into_iter().map(|merge| match merge {
        Merge::Pair(a, b) => Ok((a, b)),
        Merge::Line(line) => split_merge(&line, path),
    });
    let vocabulary = Vocabulary {
        tokens: whole.model.vocab,
        merges: merges.collect::<Result<_, _>>()?,
    };
    let added = whole.added_tokens.into_iter().map(|a| (a.id, a.token));
    Ok((vocabulary.check(path)?, added.collect()))
}

fn read_pair(files: &Files<'_>) -> Result<Vocabulary, ModelError> {
    if (files.text)("vocab.json")?.is_none() {
        return Err(ModelError::Tokenizer(format!(
            "{}: found neither tokenizer.json nor vocab.json, expected one of them",
            files.path.display()
        )));
    }
    let (path, text) = files.needed("vocab.json")?;
    let tokens = serde_json::from_str(&text).map_err(|e| {
        json_error(
            &path,
            format!("{e}; expected an object of tokens and their ids"),
        )
    })?;
    let (path, text) = files.needed("merges.txt")?;
    let merges = parse_merges(&text, &path)?;
    Vocabulary { tokens, merges }.check(&path)
}

fn json_error(path: &Path, message: String) -> ModelError {
    ModelError::Json {
        path: PathBuf::from(path),
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_vocabulary_is_that_of_clip() {
        let vocabulary = Vocabulary::embedded().unwrap();
        assert_eq!(vocabulary.merges.len(), 48_894);
        assert_eq!(vocabulary.tokens.len(), 49_408);
        for (token, id) in [
            ("!", 0),
            ("!</w>", 256),
            (",</w>", 267),
            (BOS, 49_406),
            (EOS, 49_407),
        ] {
            assert_eq!(vocabulary.tokens[token], id, "{token}");
        }
        vocabulary.check(Path::new("embedded")).unwrap();
    }
}
