//! Prompts to embeddings.

use aquatint_models::Checkpoint;
use aquatint_models::families::TextUse;
use aquatint_models::text::prompt::Syntax;
use aquatint_models::text::{ClipSkip, Conditioner, EncodeOptions, Encoded, Negative, TextEncoder};
use aquatint_ops::Device;

use crate::EngineError;
use crate::request::{PromptSyntax, Request};

/// Loads the text side of a model.
pub(crate) fn load(model: &Checkpoint, device: &Device) -> Result<Conditioner, EngineError> {
    let mut encoders = model
        .load_text(device)?
        .into_iter()
        .map(|(tokenizer, encoder)| TextEncoder::new(tokenizer, encoder))
        .collect::<Result<Vec<_>, _>>()?;
    let conditioner = match (model.spec.text, encoders.len()) {
        (TextUse::One, 1) => Conditioner::stable_diffusion(encoders.remove(0)),
        _ => Conditioner::sdxl(encoders, model.spec.zeros_without_negative)?,
    };
    Ok(conditioner)
}

/// Encodes a request's prompts. The negative one is needed only where guidance acts.
pub(crate) fn encode(conditioner: &Conditioner, request: &Request) -> Result<Encoded, EngineError> {
    let negative = match &request.negative {
        _ if !crate::schedule::needs_uncond(request)? => Negative::Unused,
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
    let encoded = conditioner.encode(&request.prompt, negative, options)?;
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
