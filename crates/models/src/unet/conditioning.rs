//! What a UNet is told besides the noisy latent and the timestep.

use aquatint_ops::Tensor;

use super::transformer::Attention;

/// The conditioning of a run, the same at each of its steps.
#[derive(Debug, Clone)]
pub struct Conditioning {
    pub(crate) context: Tensor<3>,
    pub(crate) projected: Option<Vec<KeysValues>>,
    pub(crate) added: Option<AddedConditioning>,
    pub(crate) guidance: Option<f64>,
}

/// SDXL's added conditioning.
#[derive(Debug, Clone)]
pub struct AddedConditioning {
    /// Pooled text embeddings, `[batch, channels]`.
    pub text_embeds: Tensor<2>,
    /// Sizes, one row a batch entry: original height and width, crop top and left, target height
    /// and width (the refiner: original size, crop, aesthetic score).
    pub time_ids: Vec<Vec<f64>>,
}

/// Keys and values of one attention over the text, each `[batch, tokens, channels]`.
#[derive(Debug, Clone)]
pub(crate) struct KeysValues {
    pub keys: Tensor<3>,
    pub values: Tensor<3>,
}

impl Conditioning {
    /// Conditioning on text embeddings `[batch, tokens, channels]`.
    ///
    /// [`super::UNet2DCondition::prepare`] projects them once for all steps of a run.
    pub fn new(context: Tensor<3>) -> Self {
        Conditioning {
            context,
            projected: None,
            added: None,
            guidance: None,
        }
    }

    /// With SDXL's added conditioning.
    pub fn with_added(mut self, added: AddedConditioning) -> Self {
        self.added = Some(added);
        self
    }

    /// With a guidance scale, for models distilled with one (LCM's `time_cond_proj_dim`). Others
    /// ignore it.
    pub fn with_guidance_scale(mut self, scale: f64) -> Self {
        self.guidance = Some(scale);
        self
    }

    /// The text embeddings, `[batch, tokens, channels]`.
    pub fn context(&self) -> &Tensor<3> {
        &self.context
    }
}

/// Hands out the keys and values of the text in the order in which a forward pass asks for them.
pub(crate) struct ContextCursor<'a> {
    conditioning: &'a Conditioning,
    next: usize,
}

impl<'a> ContextCursor<'a> {
    pub fn new(conditioning: &'a Conditioning) -> Self {
        ContextCursor {
            conditioning,
            next: 0,
        }
    }

    /// The text's keys and values for `attention`, which is the next one of the pass.
    pub fn keys_values(&mut self, attention: &Attention) -> KeysValues {
        let at = self.next;
        self.next += 1;
        match self.conditioning.projected.as_ref().and_then(|p| p.get(at)) {
            Some(projected) => projected.clone(),
            None => attention.keys_values(self.conditioning.context.clone()),
        }
    }
}
