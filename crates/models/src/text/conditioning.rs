//! Prompts into what the denoiser is conditioned on.

use std::ops::RangeInclusive;
use std::sync::Arc;

use aquatint_ops::Tensor;
use burn::tensor::TensorData;

use super::chunks::{Chunk, split};
use super::prompt::{Syntax, parse};
use super::{ClipSkip, ClipTextEncoder, ClipTokenizer};
use crate::ModelError;

/// Most chunks that a prompt may have; 4,800 tokens.
pub const MAX_CHUNKS: usize = 64;

/// Chunks that are encoded at once. It bounds the memory of a long prompt.
const BATCH: usize = 8;

/// The embeddings of one prompt.
#[derive(Debug, Clone)]
pub struct Conditioning {
    /// `[1, 77 * chunks, channels]`; channels are the encoders' together.
    pub embeddings: Tensor<3>,
    /// `[1, projection]`: the last encoder's projected pooled output of the first chunk, where the
    /// model takes it (SDXL).
    pub pooled: Option<Tensor<2>>,
}

/// A text encoder and its tokenizer.
#[derive(Debug, Clone)]
pub struct TextEncoder {
    tokenizer: Arc<ClipTokenizer>,
    model: ClipTextEncoder,
}

impl TextEncoder {
    /// Puts an encoder and its tokenizer together.
    ///
    /// # Errors
    /// When the tokenizer's special tokens or its length are not within the encoder's.
    pub fn new(tokenizer: Arc<ClipTokenizer>, model: ClipTextEncoder) -> Result<Self, ModelError> {
        let config = model.config();
        let largest = tokenizer.bos().max(tokenizer.eos()).max(tokenizer.pad());
        if largest as usize >= config.vocab_size {
            return Err(ModelError::Tokenizer(format!(
                "a special token has the id {largest}, but the text encoder's vocabulary has {} \
                 entries; take the tokenizer that belongs to the text encoder",
                config.vocab_size
            )));
        }
        if tokenizer.context() > config.max_position_embeddings {
            return Err(ModelError::Tokenizer(format!(
                "sequences have {} tokens, but the text encoder takes {}; take the tokenizer that \
                 belongs to the text encoder",
                tokenizer.context(),
                config.max_position_embeddings
            )));
        }
        Ok(TextEncoder { tokenizer, model })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &ClipTokenizer {
        &self.tokenizer
    }

    /// The encoder.
    pub fn model(&self) -> &ClipTextEncoder {
        &self.model
    }
}

/// Which of an encoder's states a model takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hidden {
    /// The last layer's, after the final normalisation: Stable Diffusion 1.x and 2.x. With a clip
    /// skip an earlier layer's, normalised too.
    Normalized,
    /// The penultimate layer's as it is, and the pooled output beside: SDXL. With a clip skip
    /// another layer's.
    PenultimateAndPooled,
}

/// The negative prompt of classifier-free guidance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Negative<'a> {
    /// Guidance is off; nothing is encoded.
    Unused,
    /// None was given: zeros where the model wants them (SDXL), else the empty prompt.
    Absent,
    /// A text, which may be empty.
    Text(&'a str),
}

/// How prompts are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EncodeOptions {
    /// How prompts are read. [`Syntax::Plain`] equals diffusers: one chunk, the rest dropped, and
    /// the clip skip for the positive prompt only. [`Syntax::Automatic1111`] takes prompts of any
    /// length and skips for both.
    pub syntax: Syntax,
    /// The layer to take, where it is not the model's own.
    pub clip_skip: Option<ClipSkip>,
}

/// A prompt and its negative, encoded.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// The prompt.
    pub positive: Conditioning,
    /// The negative prompt, unless [`Negative::Unused`]; as long as `positive`.
    pub negative: Option<Conditioning>,
    /// Text that did not fit and has no effect ([`Syntax::Plain`] only), to warn of.
    pub dropped: Vec<String>,
}

/// The text side of a model: its encoders, and what is taken of them.
#[derive(Debug, Clone)]
pub struct Conditioner {
    encoders: Vec<TextEncoder>,
    hidden: Hidden,
    zero_absent: bool,
}

/// The chunks of one prompt for one encoder.
struct Prompt {
    chunks: Vec<Chunk>,
    skip: ClipSkip,
}

impl Conditioner {
    /// Stable Diffusion 1.x and 2.x.
    pub fn stable_diffusion(encoder: TextEncoder) -> Self {
        Conditioner {
            encoders: vec![encoder],
            hidden: Hidden::Normalized,
            zero_absent: false,
        }
    }

    /// SDXL: encoders whose states stand beside each other, the last of which gives the pooled
    /// output (the refiner has only that one). `zero_absent` is `force_zeros_for_empty_prompt` of
    /// `model_index.json`: an absent negative prompt is zeros.
    ///
    /// # Errors
    /// When there is no encoder, the last has no projection, or their lengths differ.
    pub fn sdxl(encoders: Vec<TextEncoder>, zero_absent: bool) -> Result<Self, ModelError> {
        let error = |key: &str, found: String, expected: &str| ModelError::Config {
            component: "text_encoder_2",
            key: key.to_owned(),
            found,
            expected: expected.to_owned(),
        };
        let Some(last) = encoders.last() else {
            return Err(error("encoders", "none".to_owned(), "one or two"));
        };
        if last.model.config().projection.is_none() {
            let expected = "CLIPTextModelWithProjection, whose pooled output SDXL needs";
            return Err(error(
                "architectures",
                "without a projection".to_owned(),
                expected,
            ));
        }
        let length = last.tokenizer.context();
        if let Some(other) = encoders.iter().find(|e| e.tokenizer.context() != length) {
            let found = format!("{length}, but {} before it", other.tokenizer.context());
            return Err(error(
                "model_max_length",
                found,
                "the same for both tokenizers",
            ));
        }
        Ok(Conditioner {
            encoders,
            hidden: Hidden::PenultimateAndPooled,
            zero_absent,
        })
    }

    /// The encoders, in the order of their channels.
    pub fn encoders(&self) -> &[TextEncoder] {
        &self.encoders
    }

    /// Encodes a prompt and its negative to the same number of chunks.
    ///
    /// # Errors
    /// When a prompt has more than [`MAX_CHUNKS`] chunks, or the clip skip is not within an encoder's
    /// layers.
    pub fn encode(
        &self,
        prompt: &str,
        negative: Negative<'_>,
        options: EncodeOptions,
    ) -> Result<Encoded, ModelError> {
        let zeros = negative == Negative::Absent && self.zero_absent;
        let mut texts = vec![prompt];
        match negative {
            Negative::Text(text) => texts.push(text),
            Negative::Absent if !zeros => texts.push(""),
            Negative::Absent | Negative::Unused => {}
        }
        let mut dropped = Vec::new();
        // prompts[encoder][text]
        let mut prompts = Vec::with_capacity(self.encoders.len());
        for encoder in &self.encoders {
            let of_encoder = texts.iter().enumerate().map(|(i, text)| {
                let chunks = chunks(text, &encoder.tokenizer, options.syntax, &mut dropped)?;
                let skip = self.skip(i, options);
                Ok(Prompt { chunks, skip })
            });
            prompts.push(of_encoder.collect::<Result<Vec<_>, ModelError>>()?);
        }
        let all = || prompts.iter().flatten();
        let count = all().map(|p| p.chunks.len()).max().unwrap_or(1);
        if count > MAX_CHUNKS {
            return Err(ModelError::Prompt(format!(
                "found {count} chunks of {} tokens, expected at most {MAX_CHUNKS}; shorten the prompt",
                self.encoders[0].tokenizer.chunk()
            )));
        }
        let mut conditionings = (0..texts.len())
            .map(|i| self.join(prompts.iter_mut().map(|of| &mut of[i]), count))
            .collect::<Result<Vec<_>, _>>()?
            .into_iter();
        let positive = match conditionings.next() {
            Some(positive) => positive,
            None => return Err(ModelError::Prompt("there is no prompt".to_owned())),
        };
        let negative = match zeros {
            true => Some(positive.zeros_like()),
            false => conditionings.next(),
        };
        Ok(Encoded {
            positive,
            negative,
            dropped,
        })
    }

    /// The layer that text `i` (0 the prompt, 1 the negative) is taken from.
    fn skip(&self, i: usize, options: EncodeOptions) -> ClipSkip {
        let own = match self.hidden {
            Hidden::Normalized => ClipSkip::LAST,
            Hidden::PenultimateAndPooled => ClipSkip::PENULTIMATE,
        };
        match options.syntax {
            // diffusers takes the negative prompt from the model's own layer.
            Syntax::Plain if i > 0 => own,
            _ => options.clip_skip.unwrap_or(own),
        }
    }

    /// One prompt through every encoder, side by side on the channels.
    fn join<'a>(
        &self,
        prompts: impl Iterator<Item = &'a mut Prompt>,
        count: usize,
    ) -> Result<Conditioning, ModelError> {
        let mut states = Vec::with_capacity(self.encoders.len());
        let mut pooled = None;
        for (encoder, prompt) in self.encoders.iter().zip(prompts) {
            prompt.chunks.resize(count, Chunk::default());
            let (state, projected) = self.run(encoder, prompt)?;
            states.push(state);
            pooled = projected;
        }
        Ok(Conditioning {
            embeddings: Tensor::cat(states, 2),
            pooled: pooled.filter(|_| self.hidden == Hidden::PenultimateAndPooled),
        })
    }

    /// `[1, tokens * chunks, channels]` and the first chunk's projected pooled output.
    fn run(
        &self,
        encoder: &TextEncoder,
        prompt: &Prompt,
    ) -> Result<(Tensor<3>, Option<Tensor<2>>), ModelError> {
        let mut states = Vec::new();
        let mut pooled = None;
        for chunks in prompt.chunks.chunks(BATCH) {
            let frames: Vec<_> = chunks
                .iter()
                .map(|chunk| encoder.tokenizer.frame(&chunk.ids))
                .collect();
            let output = encoder.model.forward(&frames, prompt.skip)?;
            let hidden = match self.hidden {
                Hidden::Normalized if prompt.skip == ClipSkip::LAST => output.last_hidden,
                Hidden::Normalized => encoder.model.final_norm(output.hidden),
                Hidden::PenultimateAndPooled => output.hidden,
            };
            for (i, chunk) in chunks.iter().enumerate() {
                states.push(weigh(hidden.clone().narrow(0, i, 1), 1, &chunk.weights));
            }
            pooled = pooled.or(output.text_embeds.map(|embeds| embeds.narrow(0, 0, 1)));
        }
        Ok((Tensor::cat(states, 1), pooled))
    }
}

impl Conditioning {
    fn zeros_like(&self) -> Self {
        Conditioning {
            embeddings: self.embeddings.zeros_like(),
            pooled: self.pooled.as_ref().map(Tensor::zeros_like),
        }
    }
}

/// The chunks of a text, read as `syntax` says.
pub(super) fn chunks(
    text: &str,
    tokenizer: &ClipTokenizer,
    syntax: Syntax,
    dropped: &mut Vec<String>,
) -> Result<Vec<Chunk>, ModelError> {
    match syntax {
        Syntax::Automatic1111 => split(&parse(text, syntax), tokenizer),
        Syntax::Plain => {
            let mut ids = tokenizer.encode(text)?;
            let room = tokenizer.chunk();
            if ids.len() > room {
                let rest = tokenizer.decode(&ids.split_off(room))?;
                // The encoders of a model have the same words, and drop the same.
                if !dropped.contains(&rest) {
                    dropped.push(rest);
                }
            }
            let weights = vec![1.0; ids.len()];
            Ok(vec![Chunk { ids, weights }])
        }
    }
}

/// Multiplies each token's embedding by its weight, then all of them so that their mean is what it
/// was, as AUTOMATIC1111's web UI does ("Original" emphasis).
///
/// Where the mean is so near zero that the weights more than halve or double it, beyond what they
/// themselves are, or turn its sign, it says nothing about scale and is left as it comes. (The web
/// UI would then amplify or negate the whole prompt.)
///
/// # Shapes
/// - hidden: `[1, tokens, channels]`; weights: one a token of text, which begins at token `first`
pub(super) fn weigh(hidden: Tensor<3>, first: usize, weights: &[f32]) -> Tensor<3> {
    if weights.iter().all(|&w| w == 1.0) {
        return hidden;
    }
    let [_, tokens, channels] = hidden.dims();
    let mut factors = vec![1f32; tokens];
    factors[first..first + weights.len()].copy_from_slice(weights);
    let means = token_means(&hidden);
    let before: f64 = means.iter().sum();
    let after: f64 = means
        .iter()
        .zip(&factors)
        .map(|(m, &f)| m * f64::from(f))
        .sum();
    let restore = before / after;
    if plausible(&factors).contains(&restore) {
        factors
            .iter_mut()
            .for_each(|f| *f = (f64::from(*f) * restore) as f32);
    }
    let factors = TensorData::new(factors, [1, tokens, 1]);
    let factors = Tensor::<3>::from_data(factors, (&hidden.device(), hidden.dtype()));
    hidden * factors.expand([1, tokens, channels])
}

/// By how much weights may change a mean that says something about scale.
fn plausible(factors: &[f32]) -> RangeInclusive<f64> {
    let (least, most) = factors.iter().fold((1f32, 1f32), |(least, most), &f| {
        (least.min(f), most.max(f))
    });
    let high = 1.0 / f64::from(least).max(0.1);
    (1.0 / f64::from(most)).min(0.5)..=high.max(2.0)
}

/// The mean of each token's channels.
fn token_means(hidden: &Tensor<3>) -> Vec<f64> {
    let channels = hidden.dims()[2].max(1);
    let data = hidden.clone().into_data().convert::<f32>();
    let values: Vec<f32> = data.iter::<f32>().collect();
    let mean = |row: &[f32]| row.iter().map(|&v| f64::from(v)).sum::<f64>() / channels as f64;
    values.chunks_exact(channels).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use aquatint_ops::Device;

    fn tokens(values: &[[f32; 2]]) -> Tensor<3> {
        let flat: Vec<f32> = values.iter().flatten().copied().collect();
        Tensor::from_data(
            TensorData::new(flat, [1, values.len(), 2]),
            &Device::default(),
        )
    }

    fn values(tensor: Tensor<3>) -> Vec<f32> {
        tensor.into_data().iter::<f32>().collect()
    }

    #[test]
    fn weights_keep_the_mean() {
        let weighed = values(weigh(
            tokens(&[[1.0, 3.0], [2.0, 4.0], [5.0, 1.0]]),
            1,
            &[2.0],
        ));
        // Doubling the middle token takes the sum from 16 to 22.
        let want = [1.0, 3.0, 4.0, 8.0, 5.0, 1.0].map(|v| v * 16.0 / 22.0);
        for (got, want) in weighed.iter().zip(want) {
            assert!((got - want).abs() < 1e-6, "{weighed:?}");
        }
    }

    #[test]
    fn a_mean_near_zero_is_left() {
        let weighed = values(weigh(
            tokens(&[[1.0, -1.0], [2.0, -1.9], [-1.0, 0.95]]),
            1,
            &[2.0],
        ));
        assert_eq!(weighed, [1.0, -1.0, 4.0, -3.8, -1.0, 0.95]);
    }

    #[test]
    fn weights_of_one_change_nothing() {
        let all = [[1.0, -1.0], [2.0, -1.9], [-1.0, 0.95]];
        assert_eq!(values(weigh(tokens(&all), 1, &[1.0])), all.as_flattened());
    }
}
