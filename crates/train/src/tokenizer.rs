//! `train tokenizer`: a vocabulary from captions.

use std::path::Path;

use aquatint_models::text::learn_tokenizer;

use crate::TrainError;
use crate::data::Folder;
use crate::export;

/// Learns a CLIP tokenizer of at most `size` tokens from the captions of a folder and writes its files to `out`. Gives the
/// number of tokens.
///
/// # Errors
/// A folder without captions, a size that is too small, a disk that refuses.
pub fn train_tokenizer(data: &Path, size: usize, out: &Path) -> Result<usize, TrainError> {
    let folder = Folder::scan(data)?;
    if folder.examples.iter().all(|e| e.captions.is_empty()) {
        folder.require_captions()?;
    }
    let captions = folder.examples.iter().flat_map(|e| &e.captions);
    let learned = learn_tokenizer(captions.map(String::as_str), size)?;
    let output = export::Folder::begin(out)?;
    for (name, content) in &learned.files {
        output.text(name, content)?;
    }
    output.finish()?;
    Ok(learned.vocabulary)
}
