//! SentencePiece's `spiece.model`: a protocol buffer with the pieces and the normalization. GGUF files hold the same in
//! their metadata.

use aquatint_weights::WeightSet;
use aquatint_weights::gguf::{Array, Value};
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::Precompiled;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;
use tokenizers::{AddedToken, Tokenizer};

/// T5's sentinels, which the file does not hold.
const SENTINELS: usize = 100;

/// The tokenizer of a file, as transformers builds T5's.
pub(super) fn tokenizer(bytes: &[u8]) -> Result<Tokenizer, String> {
    build(Model::read(bytes)?)
}

/// The tokenizer of a GGUF file's metadata, where it has one.
pub(super) fn from_gguf(set: &WeightSet) -> Option<Result<Tokenizer, String>> {
    set.gguf_value("tokenizer.ggml.tokens")?;
    Some(Model::from_gguf(set).and_then(build))
}

fn build(Model { pieces, charsmap }: Model) -> Result<Tokenizer, String> {
    let unknown = pieces.iter().position(|p| p.kind == UNKNOWN);
    let unknown = unknown.ok_or("there is no unknown token; expected a SentencePiece model")?;
    let special: Vec<String> = pieces
        .iter()
        .filter(|p| matches!(p.kind, UNKNOWN | CONTROL | USER))
        .map(|p| p.text.clone())
        .collect();
    let sentinels = (0..SENTINELS).rev().map(|i| format!("<extra_id_{i}>"));
    let sentinels: Vec<String> = sentinels.filter(|s| !special.contains(s)).collect();
    let vocabulary = pieces
        .into_iter()
        .map(|p| {
            // What fills a vocabulary up keeps its place, under a name that no word has: words hold no spaces. Its
            // score must not count, for the price of the unknown is that of the least likely piece.
            match p.kind {
                UNUSED => (format!(" {}", p.text), 0.0),
                _ => (p.text, f64::from(p.score)),
            }
        })
        .chain(sentinels.iter().map(|s| (s.clone(), 0.0)))
        .collect();
    let failed = |e: tokenizers::Error| e.to_string();
    let model = Unigram::from(vocabulary, Some(unknown), false).map_err(failed)?;
    let mut tokenizer = Tokenizer::new(model);
    if !charsmap.is_empty() {
        let normalizer = Precompiled::from(&charsmap).map_err(|e| e.to_string())?;
        tokenizer
            .with_normalizer(Some(normalizer))
            .map_err(failed)?;
    }
    let space = Metaspace::new('▁', PrependScheme::Always, true);
    let steps: Vec<PreTokenizerWrapper> = vec![WhitespaceSplit.into(), space.clone().into()];
    tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
    tokenizer.with_decoder(Some(space));
    let added = special.into_iter().chain(sentinels);
    let added = added.map(|token| AddedToken::from(token, true));
    tokenizer.add_special_tokens(added).map_err(failed)?;
    Ok(tokenizer)
}

const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER: u64 = 4;
const UNUSED: u64 = 5;

struct Piece {
    text: String,
    score: f32,
    kind: u64,
}

/// What is used of `ModelProto`.
struct Model {
    pieces: Vec<Piece>,
    charsmap: Vec<u8>,
}

impl Model {
    fn from_gguf(set: &WeightSet) -> Result<Self, String> {
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

    fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut model = Model {
            pieces: Vec::new(),
            charsmap: Vec::new(),
        };
        for field in Fields(bytes) {
            match field? {
                (1, Wire::Bytes(piece)) => model.pieces.push(Piece::read(piece)?),
                (3, Wire::Bytes(normalizer)) => {
                    for field in Fields(normalizer) {
                        if let (2, Wire::Bytes(map)) = field? {
                            model.charsmap = map.to_vec();
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(model)
    }
}

impl Piece {
    fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut piece = Piece {
            text: String::new(),
            score: 0.0,
            kind: 1,
        };
        for field in Fields(bytes) {
            match field? {
                (1, Wire::Bytes(text)) => {
                    let text = std::str::from_utf8(text);
                    piece.text = text.map_err(|_| "a piece is not UTF-8")?.to_owned();
                }
                (2, Wire::Word(bits)) => piece.score = f32::from_bits(bits),
                (3, Wire::Number(kind)) => piece.kind = kind,
                _ => {}
            }
        }
        Ok(piece)
    }
}

enum Wire<'a> {
    Number(u64),
    Word(u32),
    Bytes(&'a [u8]),
    Other,
}

/// The fields of a protocol buffer's message, with their numbers.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(head)
    }

    fn number(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn field(&mut self) -> Option<(u64, Wire<'a>)> {
        let tag = self.number()?;
        let value = match tag & 7 {
            0 => Wire::Number(self.number()?),
            1 => {
                self.take(8)?;
                Wire::Other
            }
            2 => {
                let length = usize::try_from(self.number()?).ok()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => {
                let b = self.take(4)?;
                Wire::Word(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            }
            _ => return None,
        };
        Some((tag >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Wire<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or_else(|| {
            "the file ends early or is damaged; expected a SentencePiece model".to_owned()
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn damaged_files_are_refused_and_nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = tokenizer(&bytes);
        }
    }

    /// A GGUF file without tensors, whose metadata are a tokenizer's.
    fn gguf(model: &Model) -> Vec<u8> {
        let text = |s: &[u8]| [&(s.len() as u64).to_le_bytes()[..], s].concat();
        let n = model.pieces.len() as u64;
        let array = |kind: u32, count: u64, data: Vec<u8>| {
            let head = [
                &9u32.to_le_bytes()[..],
                &kind.to_le_bytes(),
                &count.to_le_bytes(),
            ];
            [head.concat(), data].concat()
        };
        let each = |f: &dyn Fn(&Piece) -> Vec<u8>| model.pieces.iter().flat_map(f).collect();
        let pairs = [
            ("tokens", array(8, n, each(&|p| text(p.text.as_bytes())))),
            (
                "scores",
                array(6, n, each(&|p| p.score.to_le_bytes().to_vec())),
            ),
            (
                "token_type",
                array(5, n, each(&|p| (p.kind as i32).to_le_bytes().to_vec())),
            ),
            (
                "precompiled_charsmap",
                array(0, model.charsmap.len() as u64, model.charsmap.clone()),
            ),
        ];
        let mut file = b"GGUF".to_vec();
        file.extend(3u32.to_le_bytes());
        file.extend(0u64.to_le_bytes());
        file.extend((pairs.len() as u64).to_le_bytes());
        for (key, value) in pairs {
            file.extend(text(format!("tokenizer.ggml.{key}").as_bytes()));
            file.extend(value);
        }
        file
    }

    #[test]
    fn the_metadata_of_a_gguf_file_give_the_same_tokens() {
        let folder = aquatint_testkit::golden("flow/parts/tokenizer_3");
        let bytes = std::fs::read(folder.join("spiece.model")).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t5.gguf");
        let mut model = Model::read(&bytes).unwrap();
        // As converters fill the vocabulary up.
        model.pieces.push(Piece {
            text: "[PAD590]".into(),
            score: -1000.0,
            kind: UNUSED,
        });
        std::fs::write(&path, gguf(&model)).unwrap();
        let set = WeightSet::open(&path).unwrap();
        let found = from_gguf(&set).unwrap().unwrap();
        let want = tokenizer(&bytes).unwrap();
        for text in ["a red apple", "Ｆｕｌｌ ½ [PAD590] 富士山", ""] {
            let [found, want] = [&found, &want].map(|t| t.encode(text, false).unwrap());
            assert_eq!(found.get_ids(), want.get_ids(), "{text}");
        }
    }

    #[test]
    fn a_length_past_the_end_is_an_error() {
        assert!(Model::read(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]).is_err());
        assert!(tokenizer(&[]).is_err());
    }
}
