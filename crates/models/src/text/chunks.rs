//! Prompts of any length, cut into chunks that an encoder takes, as AUTOMATIC1111's web UI cuts them.

use super::ClipTokenizer;
use super::prompt::{Piece, Weighted};
use crate::ModelError;

/// When a chunk is full and a comma is among its last tokens, up to this many back, the tokens after
/// the comma move to the next chunk.
const BACKTRACK: usize = 20;

/// Tokens of text, without begin and end, and the weight of each.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Chunk {
    pub ids: Vec<u32>,
    pub weights: Vec<f32>,
}

/// The chunks of a prompt: at least one, each of at most [`ClipTokenizer::chunk`] tokens.
pub(super) fn split(pieces: &[Piece], tokenizer: &ClipTokenizer) -> Result<Vec<Chunk>, ModelError> {
    let mut splitter = Splitter::new(tokenizer.chunk(), tokenizer.comma());
    for piece in pieces {
        match piece {
            Piece::Break => splitter.end_chunk(),
            Piece::Text(Weighted { text, weight }) => {
                for id in tokenizer.encode(text)? {
                    splitter.push(id, *weight as f32);
                }
            }
        }
    }
    Ok(splitter.finish())
}

struct Splitter {
    room: usize,
    comma: Option<u32>,
    done: Vec<Chunk>,
    chunk: Chunk,
    /// Where the last comma of `chunk` stands.
    last_comma: Option<usize>,
}

impl Splitter {
    fn new(room: usize, comma: Option<u32>) -> Self {
        Splitter {
            room,
            comma,
            done: Vec::new(),
            chunk: Chunk::default(),
            last_comma: None,
        }
    }

    fn push(&mut self, id: u32, weight: f32) {
        let length = self.chunk.ids.len();
        let full = length == self.room;
        if Some(id) == self.comma {
            self.last_comma = Some(length);
        } else if let Some(comma) = self.last_comma
            && full
            && length - comma <= BACKTRACK
        {
            let moved = Chunk {
                ids: self.chunk.ids.split_off(comma + 1),
                weights: self.chunk.weights.split_off(comma + 1),
            };
            self.end_chunk();
            self.chunk = moved;
        }
        if self.chunk.ids.len() == self.room {
            self.end_chunk();
        }
        self.chunk.ids.push(id);
        self.chunk.weights.push(weight);
    }

    fn end_chunk(&mut self) {
        self.done.push(std::mem::take(&mut self.chunk));
        self.last_comma = None;
    }

    fn finish(mut self) -> Vec<Chunk> {
        if !self.chunk.ids.is_empty() || self.done.is_empty() {
            self.end_chunk();
        }
        self.done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::Syntax;
    use crate::text::prompt::parse;
    use aquatint_testkit::golden;
    use proptest::prelude::*;
    use serde::Deserialize;

    const COMMA: u32 = 9;

    /// Lengths of the chunks of `ids`, ten tokens a chunk.
    fn lengths(ids: &[u32]) -> Vec<usize> {
        let mut splitter = Splitter::new(10, Some(COMMA));
        ids.iter().for_each(|&id| splitter.push(id, 1.0));
        splitter.finish().iter().map(|c| c.ids.len()).collect()
    }

    #[test]
    fn full_chunks_and_the_rest() {
        assert_eq!(lengths(&[]), [0]);
        assert_eq!(lengths(&[1; 10]), [10]);
        assert_eq!(lengths(&[1; 25]), [10, 10, 5]);
    }

    #[test]
    fn what_follows_a_comma_moves_together() {
        assert_eq!(lengths(&[1, 1, 1, 1, COMMA, 1, 1, 1, 1, 1, 1]), [5, 6]);
        // A comma where the chunk is full stays with the next.
        assert_eq!(lengths(&[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, COMMA, 1]), [10, 2]);
        // A comma further back than 20 is left alone.
        let mut splitter = Splitter::new(30, Some(COMMA));
        splitter.push(COMMA, 1.0);
        (0..40).for_each(|_| splitter.push(1, 1.0));
        let lengths: Vec<_> = splitter.finish().iter().map(|c| c.ids.len()).collect();
        assert_eq!(lengths, [30, 11]);
    }

    #[derive(Deserialize)]
    struct Row {
        prompt: String,
        parsed: Vec<(String, f64)>,
        /// Ids, and weights unless all are 1.
        chunks: Vec<(Vec<u32>, Vec<f64>)>,
    }

    #[test]
    fn chunks_equal_the_web_ui() {
        let text = std::fs::read_to_string(golden("webui_prompts.json")).unwrap();
        let rows: Vec<Row> = serde_json::from_str(&text).unwrap();
        let tokenizer = ClipTokenizer::from_folder(golden("sd2/tokenizer")).unwrap();
        let mut compared = 0;
        for row in rows {
            // A BREAK in brackets is text there; see the module `prompt`.
            if row.parsed.iter().any(|(t, w)| {
                t.contains("BREAK") && *w != -1.0 && t != "aBREAK BREAKb _BREAK BREAK_"
            }) {
                continue;
            }
            let found = split(&parse(&row.prompt, Syntax::Automatic1111), &tokenizer).unwrap();
            let want: Vec<Chunk> = row
                .chunks
                .iter()
                .map(|(ids, weights)| Chunk {
                    ids: ids.clone(),
                    weights: match weights.is_empty() {
                        true => vec![1.0; ids.len()],
                        false => weights.iter().map(|&w| w as f32).collect(),
                    },
                })
                .collect();
            assert_eq!(found, want, "{}", row.prompt);
            compared += 1;
        }
        assert!(compared > 120, "{compared}");
    }

    proptest! {
        #[test]
        fn no_token_is_lost(ids in prop::collection::vec(5u32..12, 0..200), room in 1usize..40) {
            let mut splitter = Splitter::new(room, Some(COMMA));
            ids.iter().for_each(|&id| splitter.push(id, id as f32));
            let chunks = splitter.finish();
            prop_assert!(chunks.iter().all(|c| c.ids.len() <= room));
            let joined: Vec<u32> = chunks.iter().flat_map(|c| c.ids.clone()).collect();
            let weights: Vec<u32> = chunks.iter().flat_map(|c| &c.weights).map(|&w| w as u32).collect();
            prop_assert_eq!(&joined, &ids);
            prop_assert_eq!(&weights, &ids);
        }
    }
}
