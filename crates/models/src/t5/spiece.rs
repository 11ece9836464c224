//! SentencePiece's `spiece.model`: a protocol buffer with the pieces and the normalization.

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

/// Those of T5's sentinels that are not among the pieces, in the order of their numbers.
pub(super) fn sentinels(pieces: &[Piece]) -> impl Iterator<Item = String> {
    let names = (0..SENTINELS).rev().map(|i| format!("<extra_id_{i}>"));
    names.filter(|name| !pieces.iter().any(|p| p.text == *name))
}

/// The tokenizer of pieces, as transformers builds T5's.
pub(super) fn build(
    Model {
        mut pieces,
        charsmap,
    }: Model,
) -> Result<Tokenizer, String> {
    // What fills a vocabulary up at its end stands where the sentinels belong.
    while pieces.last().is_some_and(|p| p.kind == UNUSED) {
        pieces.pop();
    }
    let unknown = pieces.iter().position(|p| p.kind == UNKNOWN);
    let unknown = unknown.ok_or("there is no unknown token; expected a SentencePiece model")?;
    let special: Vec<String> = pieces
        .iter()
        .filter(|p| matches!(p.kind, UNKNOWN | CONTROL | USER))
        .map(|p| p.text.clone())
        .collect();
    let sentinels: Vec<String> = sentinels(&pieces).collect();
    let vocabulary = pieces
        .into_iter()
        .map(|p| {
            // The price of the unknown is that of the least likely piece, among which only words count. What is unused
            // keeps its place, under a name that no word has: words hold no spaces.
            match p.kind {
                UNUSED => (format!(" {}", p.text), 0.0),
                UNKNOWN | CONTROL | USER => (p.text, 0.0),
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

pub(super) const NORMAL: u64 = 1;
pub(super) const UNKNOWN: u64 = 2;
pub(super) const CONTROL: u64 = 3;
pub(super) const USER: u64 = 4;
pub(super) const UNUSED: u64 = 5;

/// A token's text, logarithm of its probability, and kind.
pub(super) struct Piece {
    pub text: String,
    pub score: f32,
    pub kind: u64,
}

/// What is used of `ModelProto`.
pub(super) struct Model {
    pub pieces: Vec<Piece>,
    pub charsmap: Vec<u8>,
}

impl Model {
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
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
            kind: NORMAL,
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

    #[test]
    fn a_length_past_the_end_is_an_error() {
        assert!(Model::read(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]).is_err());
        assert!(tokenizer(&[]).is_err());
    }
}
