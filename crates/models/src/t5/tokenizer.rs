//! T5's tokenizer: a Unigram model over normalized text (Kudo, 2018).

use std::path::Path;

use aquatint_weights::WeightSet;
use tokenizers::Tokenizer;

use super::{gguf, spiece};
use crate::ModelError;
use crate::folder::Folder;

/// The tokens of one sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct T5Tokens {
    /// The text, the end token, padding.
    pub ids: Vec<u32>,
    /// How many of them are not padding.
    pub length: usize,
    /// The text that did not fit and is not in `ids`.
    pub dropped: Option<String>,
}

/// T5's tokenizer, equal to the `T5Tokenizer` of transformers 5.
#[derive(Debug)]
pub struct T5Tokenizer {
    inner: Tokenizer,
    eos: u32,
    pad: u32,
}

impl T5Tokenizer {
    /// The tokenizer of a model folder: `tokenizer.json`, or `spiece.model`.
    ///
    /// # Errors
    /// When neither is there, or it is damaged.
    pub fn from_folder(folder: impl AsRef<Path>) -> Result<Self, ModelError> {
        Self::read(&Folder::Disk(folder.as_ref().to_owned()), "")
    }

    /// A `tokenizer.json` or `spiece.model`, or a folder of one.
    ///
    /// # Errors
    /// When it is not there, or damaged.
    pub fn from_path(path: impl AsRef<Path>) -> Result<Self, ModelError> {
        let path = path.as_ref();
        if path.is_dir() {
            return Self::from_folder(path);
        }
        let bytes = std::fs::read(path).map_err(|source| ModelError::Io {
            path: path.to_owned(),
            source,
        })?;
        match bytes.first() {
            Some(b'{') => Self::from_json(path, &bytes),
            _ => Self::from_spiece(path, &bytes),
        }
    }

    /// As [`T5Tokenizer::from_folder`], in the part `part` of a model's folder.
    pub(crate) fn read(folder: &Folder, part: &str) -> Result<Self, ModelError> {
        let name = |file: &str| match part {
            "" => file.to_owned(),
            part => format!("{part}/{file}"),
        };
        let (json, spiece) = (name("tokenizer.json"), name("spiece.model"));
        if let Some(bytes) = folder.bytes(&json)? {
            return Self::from_json(&folder.path().join(json), &bytes);
        }
        match folder.bytes(&spiece)? {
            Some(bytes) => Self::from_spiece(&folder.path().join(spiece), &bytes),
            None => Err(ModelError::Io {
                path: folder.path().join(json),
                source: std::io::ErrorKind::NotFound.into(),
            }),
        }
    }

    /// The tokenizer that a GGUF file of T5 brings along, if it does.
    ///
    /// # Errors
    /// When its parts do not fit together.
    pub fn from_gguf(set: &WeightSet) -> Option<Result<Self, ModelError>> {
        let inner = gguf::tokenizer(set)?;
        let whole = inner.and_then(Self::new);
        Some(whole.map_err(|e| damaged(set.path(), e)))
    }

    fn from_json(path: &Path, bytes: &[u8]) -> Result<Self, ModelError> {
        Self::new(Tokenizer::from_bytes(bytes).map_err(|e| damaged(path, e))?)
            .map_err(|e| damaged(path, e))
    }

    fn from_spiece(path: &Path, bytes: &[u8]) -> Result<Self, ModelError> {
        let inner = spiece::tokenizer(bytes).map_err(|e| damaged(path, e))?;
        Self::new(inner).map_err(|e| damaged(path, e))
    }

    fn new(mut inner: Tokenizer) -> Result<Self, String> {
        // Length and end are this type's own.
        inner.with_truncation(None).map_err(|e| e.to_string())?;
        inner.with_padding(None);
        let id = |token: &str| {
            let missing = || format!("the token {token:?} is missing, which T5 has");
            inner.token_to_id(token).ok_or_else(missing)
        };
        Ok(T5Tokenizer {
            eos: id("</s>")?,
            pad: id("<pad>")?,
            inner,
        })
    }

    /// The ids of a text, without the end token, of any length.
    ///
    /// # Errors
    /// When the library cannot encode.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let encoding = self.inner.encode_fast(text, false).map_err(failed)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text, its end token and padding to `length` tokens (2 or more), as `tokenizer(text,
    /// padding="max_length", max_length=length, truncation=True)` of transformers.
    ///
    /// # Errors
    /// As [`T5Tokenizer::encode`].
    pub fn tokens(&self, text: &str, length: usize) -> Result<T5Tokens, ModelError> {
        let mut ids = self.encode(text)?;
        let room = length.saturating_sub(1);
        let dropped = match ids.len() > room {
            true => Some(self.decode(&ids.split_off(room))?),
            false => None,
        };
        ids.push(self.eos);
        let used = ids.len();
        ids.resize(length.max(used), self.pad);
        Ok(T5Tokens {
            ids,
            length: used,
            dropped,
        })
    }

    /// The text of ids, for messages.
    ///
    /// # Errors
    /// When the library cannot decode; ids outside the vocabulary are left out.
    pub fn decode(&self, ids: &[u32]) -> Result<String, ModelError> {
        let text = self.inner.decode(ids, false).map_err(failed)?;
        Ok(text.trim().to_owned())
    }

    /// One more than the largest id.
    pub fn vocabulary(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Id of `</s>`.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// Id of `<pad>`.
    pub fn pad(&self) -> u32 {
        self.pad
    }
}

fn failed(error: impl std::fmt::Display) -> ModelError {
    ModelError::Tokenizer(error.to_string())
}

fn damaged(path: &Path, error: impl std::fmt::Display) -> ModelError {
    ModelError::Tokenizer(format!("{}: {error}", path.display()))
}
