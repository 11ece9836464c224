//! Prompts to embeddings.

use aquatint_models::families::{GuidanceUse, TextUse};
use aquatint_models::text::prompt::Syntax;
use aquatint_models::text::{
    ClipSkip, Conditioner, EncodeOptions, Encoded, JointConditioner, JointShape, Negative,
    TextEncoder,
};
use aquatint_models::{Checkpoint, NetworkConfig};
use aquatint_ops::Device;

use crate::EngineError;
use crate::request::{PromptSyntax, Request};

/// The text side of a model.
#[derive(Debug)]
// There is one a run.
#[allow(clippy::large_enum_variant)]
pub(crate) enum TextSide {
    /// Of a UNet.
    Clip(Conditioner),
    /// Of a transformer.
    Joint(JointConditioner),
}

/// Tokens that T5 reads for a request.
pub(crate) fn t5_tokens(model: &Checkpoint, request: &Request) -> usize {
    let asked = request.t5_tokens.map(|n| n as usize);
    asked.unwrap_or(model.spec.t5_tokens)
}

/// Loads the text side of a model.
pub(crate) fn load(
    model: &Checkpoint,
    request: &Request,
    device: &Device,
) -> Result<TextSide, EngineError> {
    let mut encoders = model
        .load_text(device)?
        .into_iter()
        .map(|(tokenizer, encoder)| TextEncoder::new(tokenizer, encoder))
        .collect::<Result<Vec<_>, _>>()?;
    let shape = match (&model.spec.text, &model.network.config) {
        (TextUse::Joint, NetworkConfig::Mmdit(config)) => JointShape::StableDiffusion3 {
            context: config.context_dim,
            pooled: config.pooled_dim,
        },
        (TextUse::T5AndPooled, _) => JointShape::Flux,
        (TextUse::One, _) if encoders.len() == 1 => {
            let one = Conditioner::stable_diffusion(encoders.remove(0));
            return Ok(TextSide::Clip(one));
        }
        _ => {
            let zeros = model.spec.zeros_without_negative;
            return Ok(TextSide::Clip(Conditioner::sdxl(encoders, zeros)?));
        }
    };
    let mut clips = [None, None];
    for (part, encoder) in model.text.iter().zip(encoders) {
        if let Some(clip) = clips.get_mut(part.slot) {
            *clip = Some(encoder);
        }
    }
    let t5 = model.load_t5(device)?;
    let tokens = t5_tokens(model, request);
    Ok(TextSide::Joint(JointConditioner::new(
        clips, t5, shape, tokens, device,
    )))
}

/// Why a negative prompt that was given is not heard; an empty one says nothing anyhow.
pub(crate) fn unheard(model: &Checkpoint, request: &Request) -> Option<String> {
    let given = request.negative.as_deref()?;
    if given.trim().is_empty() || crate::schedule::needs_uncond(model, request).unwrap_or(true) {
        return None;
    }
    Some(match model.spec.guidance {
        GuidanceUse::ClassifierFree => format!(
            "the negative prompt has no effect at a guidance of {}: it acts above 1",
            request.guidance
        ),
        GuidanceUse::Embedded | GuidanceUse::Unused => format!(
            "the negative prompt has no effect: {} runs without one, unless --true-guidance is above 1",
            model.family.title
        ),
    })
}

/// Lets go of the encoders' pages, when their work is done.
pub(crate) fn release(model: &Checkpoint) {
    for part in &model.text {
        part.encoder.source.release_pages();
    }
    if let Some(part) = &model.t5 {
        part.encoder.source.release_pages();
    }
}

/// Encodes a request's prompts. The negative one is needed only where guidance acts.
pub(crate) fn encode(
    side: &TextSide,
    model: &Checkpoint,
    request: &Request,
) -> Result<Encoded, EngineError> {
    let negative = match &request.negative {
        _ if !crate::schedule::needs_uncond(model, request)? => Negative::Unused,
        Some(text) => Negative::Text(text),
        None => Negative::Absent,
    };
    let options = EncodeOptions {
        syntax: match request.prompt_syntax {
            PromptSyntax::Weighted => Syntax::Automatic1111,
            PromptSyntax::Plain => Syntax::Plain,
        },
        clip_skip: request
            .clip_skip
            .map(|n| ClipSkip::new(n as usize))
            .transpose()?,
    };
    let encoded = match side {
        TextSide::Clip(clip) => clip.encode(&request.prompt, negative, options)?,
        TextSide::Joint(joint) => joint.encode(&request.prompt, negative, options)?,
    };
    check(&encoded)?;
    Ok(encoded)
}

/// Embeddings that are not finite would only show as a failed denoising.
fn check(encoded: &Encoded) -> Result<(), EngineError> {
    let all = [Some(&encoded.positive), encoded.negative.as_ref()];
    for one in all.into_iter().flatten() {
        let sum = one.embeddings.clone().abs().max().into_scalar::<f32>();
        if !sum.is_finite() {
            return Err(EngineError::NonFinite {
                stage: "text encoder".into(),
                found: "embeddings with NaN or infinity".into(),
            });
        }
    }
    Ok(())
}
