//! Prompts into what the diffusion transformers are conditioned on: CLIP encoders and T5 together.

use aquatint_ops::{Device, Tensor};
use burn::tensor::DType;

use super::chunks::Chunk;
use super::conditioning::{chunks, weigh};
use super::prompt::{Piece, parse};
use super::{
    ClipSkip, Conditioning, EncodeOptions, Encoded, MAX_CHUNKS, Negative, Syntax, TextEncoder,
};
use crate::ModelError;
use crate::t5::{T5Encoder, T5Mask, T5Tokenizer};

/// How the encoders' states become one conditioning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JointShape {
    /// Stable Diffusion 3: the penultimate layers of two CLIP encoders side by side, filled up with zeros, and T5's
    /// states behind them; both projections pooled. Encoders that are left out give zeros.
    StableDiffusion3 {
        /// Channels of the conditioning.
        context: usize,
        /// Channels of the pooled one.
        pooled: usize,
    },
    /// FLUX: T5's states; the first CLIP encoder's pooled state.
    Flux,
}

/// The text side of a diffusion transformer.
#[derive(Debug)]
pub struct JointConditioner {
    clips: [Option<TextEncoder>; 2],
    t5: Option<(T5Tokenizer, T5Encoder)>,
    shape: JointShape,
    /// Tokens that T5 reads.
    tokens: usize,
    device: Device,
}

/// Tokens of a chunk of CLIP's, where both encoders are left out.
const CLIP_TOKENS: usize = 77;

impl JointConditioner {
    /// Puts the encoders together; `tokens` is how many T5 reads, padding included.
    pub fn new(
        clips: [Option<TextEncoder>; 2],
        t5: Option<(T5Tokenizer, T5Encoder)>,
        shape: JointShape,
        tokens: usize,
        device: &Device,
    ) -> Self {
        JointConditioner {
            clips,
            t5,
            shape,
            tokens,
            device: device.clone(),
        }
    }

    /// Encodes a prompt and its negative to the same number of tokens. An absent negative prompt is an empty one.
    ///
    /// # Errors
    /// When a prompt has too many chunks, or the clip skip is not within an encoder's layers.
    pub fn encode(
        &self,
        prompt: &str,
        negative: Negative<'_>,
        options: EncodeOptions,
    ) -> Result<Encoded, ModelError> {
        let mut texts = vec![prompt];
        match negative {
            Negative::Text(text) => texts.push(text),
            Negative::Absent => texts.push(""),
            Negative::Unused => {}
        }
        let mut dropped = Vec::new();
        let mut prompts = Vec::with_capacity(texts.len());
        for text in &texts {
            prompts.push(self.chunked(text, options.syntax, &mut dropped)?);
        }
        let count = prompts.iter().flatten().flatten().map(Vec::len).max();
        let count = count.unwrap_or(1);
        if count > MAX_CHUNKS {
            return Err(ModelError::Prompt(format!(
                "found {count} chunks, expected at most {MAX_CHUNKS}; shorten the prompt"
            )));
        }
        let mut encoded = Vec::with_capacity(texts.len());
        for (i, (text, mut clips)) in texts.iter().zip(prompts).enumerate() {
            for chunks in clips.iter_mut().flatten() {
                chunks.resize(count, Chunk::default());
            }
            // diffusers takes the negative prompt from the model's own layer.
            let skip = match options.syntax {
                Syntax::Plain if i > 0 => None,
                _ => options.clip_skip,
            };
            let t5 = self.t5_states(text, options.syntax, &mut dropped)?;
            encoded.push(self.combine(&clips, count, skip, t5)?);
        }
        let mut encoded = encoded.into_iter();
        let positive = encoded
            .next()
            .ok_or_else(|| ModelError::Prompt("there is no prompt".to_owned()))?;
        Ok(Encoded {
            positive,
            negative: encoded.next(),
            dropped,
        })
    }

    /// The chunks of a text for each CLIP encoder.
    fn chunked(
        &self,
        text: &str,
        syntax: Syntax,
        dropped: &mut Vec<String>,
    ) -> Result<[Option<Vec<Chunk>>; 2], ModelError> {
        // FLUX takes one state of CLIP's; what does not fit it still reaches T5.
        let mut unheard = Vec::new();
        let dropped = match self.t5 {
            Some(_) => &mut unheard,
            None => dropped,
        };
        let mut one = |clip: &Option<TextEncoder>| {
            clip.as_ref()
                .map(|clip| chunks(text, clip.tokenizer(), syntax, dropped))
                .transpose()
        };
        Ok([one(&self.clips[0])?, one(&self.clips[1])?])
    }

    /// T5's states of a text, `[1, tokens, channels]`.
    fn t5_states(
        &self,
        text: &str,
        syntax: Syntax,
        dropped: &mut Vec<String>,
    ) -> Result<Option<Tensor<3>>, ModelError> {
        let Some((tokenizer, encoder)) = &self.t5 else {
            return Ok(None);
        };
        let (mut ids, mut weights) = (Vec::new(), Vec::new());
        match syntax {
            Syntax::Plain => ids = tokenizer.encode(text)?,
            Syntax::Automatic1111 => {
                for piece in parse(text, syntax) {
                    let Piece::Text(piece) = piece else { continue };
                    ids.extend(tokenizer.encode(&piece.text)?);
                    weights.resize(ids.len(), piece.weight as f32);
                }
            }
        }
        let room = self.tokens - 1;
        if ids.len() > room {
            dropped.push(tokenizer.decode(&ids.split_off(room))?);
            weights.truncate(room);
        }
        ids.push(tokenizer.eos());
        ids.resize(self.tokens, tokenizer.pad());
        let states = encoder.forward(&[ids], T5Mask::All)?;
        Ok(Some(weigh(states, 0, &weights)))
    }

    fn combine(
        &self,
        clips: &[Option<Vec<Chunk>>; 2],
        count: usize,
        skip: Option<ClipSkip>,
        t5: Option<Tensor<3>>,
    ) -> Result<Conditioning, ModelError> {
        let states = self
            .clips
            .iter()
            .zip(clips)
            .map(|(clip, chunks)| match (clip, chunks) {
                (Some(clip), Some(chunks)) => clip_states(clip, chunks, skip, self.shape).map(Some),
                _ => Ok(None),
            })
            .collect::<Result<Vec<_>, ModelError>>()?;
        match self.shape {
            JointShape::Flux => {
                let missing = || ModelError::Prompt("a text encoder of FLUX is missing".to_owned());
                let (_, pooled) = states.into_iter().flatten().next().ok_or_else(missing)?;
                Ok(Conditioning {
                    embeddings: t5.ok_or_else(missing)?,
                    pooled: Some(pooled),
                })
            }
            JointShape::StableDiffusion3 { context, pooled } => {
                Ok(self.stable_diffusion_3(&states, count, context, pooled, t5))
            }
        }
    }

    fn stable_diffusion_3(
        &self,
        states: &[Option<(Tensor<3>, Tensor<2>)>],
        count: usize,
        context: usize,
        pooled: usize,
        t5: Option<Tensor<3>>,
    ) -> Conditioning {
        let present = || states.iter().flatten();
        let tokens = present()
            .next()
            .map_or(CLIP_TOKENS * count, |(state, _)| state.dims()[1]);
        let known: usize = present().map(|(_, pooled)| pooled.dims()[1]).sum();
        let zeros = |tokens, channels| {
            Tensor::<3>::zeros([1, tokens, channels], (&self.device, DType::F32))
        };
        let (mut rows, mut pools) = (Vec::new(), Vec::new());
        for (slot, state) in states.iter().enumerate() {
            match state {
                Some((state, pooled)) => {
                    rows.push(state.clone());
                    pools.push(pooled.clone());
                }
                // The first encoder is as wide as its projection; the second leaves room behind it.
                None => {
                    let missing = states.iter().filter(|s| s.is_none()).count();
                    let width = (pooled - known) / missing;
                    if slot == 0 && width > 0 {
                        rows.push(zeros(tokens, width));
                    }
                    pools.push(zeros(1, width).reshape([1, width]));
                }
            }
        }
        let used: usize = rows.iter().map(|row| row.dims()[2]).sum();
        if used < context {
            rows.push(zeros(tokens, context - used));
        }
        let words = Tensor::cat(rows, 2);
        let t5 = t5.unwrap_or_else(|| zeros(self.tokens, context));
        Conditioning {
            embeddings: Tensor::cat(vec![words, t5], 1),
            pooled: Some(Tensor::cat(pools, 1)),
        }
    }
}

/// The states of a CLIP encoder over its chunks, `[1, tokens, channels]`, and the pooled one of the first chunk.
fn clip_states(
    clip: &TextEncoder,
    chunks: &[Chunk],
    skip: Option<ClipSkip>,
    shape: JointShape,
) -> Result<(Tensor<3>, Tensor<2>), ModelError> {
    let skip = skip.unwrap_or(ClipSkip::PENULTIMATE);
    // FLUX reads no states of CLIP's but the pooled one.
    let chunks = match shape {
        JointShape::Flux => &chunks[..1],
        JointShape::StableDiffusion3 { .. } => chunks,
    };
    let frames: Vec<Vec<u32>> = chunks
        .iter()
        .map(|chunk| clip.tokenizer().frame(&chunk.ids))
        .collect();
    let output = clip.model().forward(&frames, skip)?;
    let states = chunks
        .iter()
        .enumerate()
        .map(|(i, chunk)| weigh(output.hidden.clone().narrow(0, i, 1), 1, &chunk.weights));
    let pooled = match (shape, output.text_embeds) {
        (JointShape::StableDiffusion3 { .. }, Some(projected)) => projected,
        _ => output.pooled,
    };
    Ok((Tensor::cat(states.collect(), 1), pooled.narrow(0, 0, 1)))
}
