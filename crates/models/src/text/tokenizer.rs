//! CLIP's tokenizer: byte-pair encoding of lower-cased text.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{
    Lowercase, NFC, NormalizerWrapper, Replace, replace::ReplacePattern,
};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer, normalizers, pre_tokenizers};

use super::vocabulary::{Added, BOS, EOS, Files, Parts, SUFFIX, Vocabulary};
use crate::ModelError;
use crate::folder::Folder;

/// Tokens of a sequence where a folder does not say.
const CONTEXT: usize = 77;

/// Words, as CLIP splits them: the special tokens, English contractions, runs of letters, single
/// digits, runs of anything else.
const WORDS: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// What fills a sequence up to its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// `<|endoftext|>`, as Stable Diffusion 1.x and the first encoder of SDXL.
    EndOfText,
    /// `!` (id 0), as Stable Diffusion 2.x and the second encoder of SDXL. It is a special token
    /// then: a `!` in the text becomes it too, as in transformers.
    Exclamation,
}

/// The tokens of one sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// Begin, the text, end, padding: [`ClipTokenizer::context`] ids.
    pub ids: Vec<u32>,
    /// The text that did not fit and is not in `ids`.
    pub dropped: Option<String>,
}

/// CLIP's tokenizer, equal to the `CLIPTokenizer` of transformers 5: NFC, white space runs to one
/// space, lower case; then byte-pair encoding.
#[derive(Debug)]
pub struct ClipTokenizer {
    inner: Tokenizer,
    bos: u32,
    eos: u32,
    pad: u32,
    comma: Option<u32>,
    context: usize,
    vocabulary: usize,
}

impl ClipTokenizer {
    /// OpenAI's vocabulary, which Stable Diffusion 1.x, 2.x and SDXL all use. Built at first use,
    /// once.
    ///
    /// # Errors
    /// Never, unless the build embedded something else.
    pub fn embedded(padding: Padding) -> Result<Arc<Self>, ModelError> {
        static BUILT: [OnceLock<Arc<ClipTokenizer>>; 2] = [OnceLock::new(), OnceLock::new()];
        let (slot, added, pad) = match padding {
            Padding::EndOfText => (&BUILT[0], vec![Added::new(EOS, false)], EOS),
            Padding::Exclamation => {
                let added = vec![Added::new("!", false), Added::new(EOS, true)];
                (&BUILT[1], added, "!")
            }
        };
        if let Some(tokenizer) = slot.get() {
            return Ok(tokenizer.clone());
        }
        let mut added = added;
        added.push(Added::new(BOS, true));
        let tokenizer = Self::build(Parts {
            vocabulary: Vocabulary::embedded()?,
            added,
            bos: BOS.to_owned(),
            eos: EOS.to_owned(),
            unk: EOS.to_owned(),
            pad: pad.to_owned(),
            context: Some(CONTEXT),
        })?;
        Ok(slot.get_or_init(|| Arc::new(tokenizer)).clone())
    }

    /// The tokenizer of a model folder (`tokenizer/`): `tokenizer.json`, or `vocab.json` and
    /// `merges.txt`, with the special tokens of `tokenizer_config.json` and
    /// `special_tokens_map.json`.
    ///
    /// # Errors
    /// When a file is missing or is not what its name says.
    pub fn from_folder(folder: impl AsRef<Path>) -> Result<Self, ModelError> {
        let folder = Folder::Disk(folder.as_ref().to_owned());
        Self::from_files(&folder.path(), &|name| folder.text(name))
    }

    /// As [`ClipTokenizer::from_folder`], with the texts of the files given by `text`.
    pub(crate) fn from_files(
        path: &Path,
        text: &dyn Fn(&str) -> Result<Option<String>, ModelError>,
    ) -> Result<Self, ModelError> {
        Self::build(Parts::read(&Files { path, text })?)
    }

    fn build(parts: Parts) -> Result<Self, ModelError> {
        let largest = parts.vocabulary.tokens.values().max().copied();
        let names: Vec<_> = parts.added.iter().map(|a| a.content.clone()).collect();
        let model = BPE::builder()
            .vocab_and_merges(parts.vocabulary.tokens, parts.vocabulary.merges)
            .unk_token(parts.unk)
            .continuing_subword_prefix(String::new())
            .end_of_word_suffix(SUFFIX.to_owned())
            .build()
            .map_err(failed)?;
        let mut inner = Tokenizer::new(model);
        set_steps(&mut inner).map_err(failed)?;
        let added = parts.added.into_iter().map(|a| {
            AddedToken::from(a.content, true)
                .normalized(a.normalized)
                .lstrip(a.lstrip)
                .rstrip(a.rstrip)
                .single_word(a.single_word)
        });
        inner.add_special_tokens(added).map_err(failed)?;
        let id = |token: &str| {
            inner.token_to_id(token).ok_or_else(|| {
                ModelError::Tokenizer(format!(
                    "the special token {token:?} is not in the vocabulary"
                ))
            })
        };
        let added = names.iter().filter_map(|name| inner.token_to_id(name));
        let largest = added.chain(largest).max().unwrap_or(0);
        Ok(ClipTokenizer {
            vocabulary: largest as usize + 1,
            bos: id(&parts.bos)?,
            eos: id(&parts.eos)?,
            pad: id(&parts.pad)?,
            comma: inner.token_to_id(&format!(",{SUFFIX}")),
            context: parts.context.unwrap_or(CONTEXT),
            inner,
        })
    }

    /// The ids of a text, with no special tokens around it and of any length.
    ///
    /// # Errors
    /// When the vocabulary has neither the text's bytes nor an unknown token.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let encoding = self.inner.encode_fast(text, false).map_err(failed)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Begin, the text, end and padding, as `tokenizer(text, padding="max_length",
    /// truncation=True)` of transformers.
    ///
    /// # Errors
    /// As [`ClipTokenizer::encode`].
    pub fn tokens(&self, text: &str) -> Result<Tokens, ModelError> {
        let mut ids = self.encode(text)?;
        let room = self.chunk();
        let dropped = match ids.len() > room {
            true => Some(self.decode(&ids.split_off(room))?),
            false => None,
        };
        Ok(Tokens {
            ids: self.frame(&ids),
            dropped,
        })
    }

    /// Puts begin and end around at most [`ClipTokenizer::chunk`] ids, and padding after them.
    pub fn frame(&self, ids: &[u32]) -> Vec<u32> {
        let ids = &ids[..ids.len().min(self.chunk())];
        let mut framed = Vec::with_capacity(self.context);
        framed.push(self.bos);
        framed.extend_from_slice(ids);
        framed.push(self.eos);
        framed.resize(self.context, self.pad);
        framed
    }

    /// The text of ids, for messages.
    ///
    /// # Errors
    /// When the library cannot decode; ids outside the vocabulary are left out.
    pub fn decode(&self, ids: &[u32]) -> Result<String, ModelError> {
        let text = self.inner.decode(ids, false).map_err(failed)?;
        Ok(text.replace(SUFFIX, " ").trim().to_owned())
    }

    /// Tokens of a framed sequence: 77.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Tokens of text that a framed sequence holds: 75.
    pub fn chunk(&self) -> usize {
        self.context - 2
    }

    /// One more than the largest id.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Id of `<|startoftext|>`.
    pub fn bos(&self) -> u32 {
        self.bos
    }

    /// Id of `<|endoftext|>`.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// Id of the padding.
    pub fn pad(&self) -> u32 {
        self.pad
    }

    /// Id of a comma that ends a word, where the vocabulary has one.
    pub fn comma(&self) -> Option<u32> {
        self.comma
    }
}

/// The steps around the byte-pair encoding, as transformers sets them.
pub(super) fn set_steps(tokenizer: &mut Tokenizer) -> tokenizers::Result<()> {
    let spaces = Replace::new(ReplacePattern::Regex(r"\s+".to_owned()), " ")?;
    let steps: Vec<NormalizerWrapper> = vec![NFC.into(), spaces.into(), Lowercase.into()];
    tokenizer.with_normalizer(Some(normalizers::Sequence::new(steps)))?;
    let words = SplitPattern::Regex(WORDS.to_owned());
    let split = Split::new(words, SplitDelimiterBehavior::Removed, true)?;
    // transformers leaves ByteLevel's own splitting (GPT-2's) on.
    let bytes = ByteLevel::new(false, true, true);
    let steps: Vec<PreTokenizerWrapper> = vec![split.into(), bytes.into()];
    tokenizer.with_pre_tokenizer(Some(pre_tokenizers::sequence::Sequence::new(steps)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    Ok(())
}

pub(super) fn failed(error: impl std::fmt::Display) -> ModelError {
    ModelError::Tokenizer(error.to_string())
}
