//! The diffusion transformers behind the samplers' contract.

use aquatint_diffusion::{BoxError, Branches, Network, Outputs};
use aquatint_models::dit::TextConditioning;
use aquatint_models::flux::Flux;
use aquatint_models::mmdit::Mmdit;
use aquatint_models::text::{Conditioning, Encoded};
use aquatint_models::{Checkpoint, ModelError, NetworkConfig};
use aquatint_ops::{Device, Tensor};

use crate::EngineError;
use crate::network::{from_channels_last, image_by_image, latent_shape};
use crate::request::Request;

/// A transformer with the conditioning of a run.
#[derive(Debug)]
pub(crate) struct TransformerNetwork {
    kind: Kind,
    /// On the prompt alone.
    cond: TextConditioning,
    /// On the negative prompt and the prompt, in that order, as diffusers stacks them.
    both: Option<TextConditioning>,
    /// Layers that skip-layer guidance leaves out.
    skip: Vec<usize>,
    shape: [usize; 4],
    device: Device,
}

#[derive(Debug)]
// There is one a run.
#[allow(clippy::large_enum_variant)]
enum Kind {
    Mmdit(Mmdit),
    Flux { model: Flux, guidance: f64 },
}

impl TransformerNetwork {
    pub(crate) fn load(
        encoded: &Encoded,
        request: &Request,
        model: &Checkpoint,
        device: &Device,
    ) -> Result<Self, EngineError> {
        let shape = latent_shape(model, request)?;
        let kind = match &model.network.config {
            NetworkConfig::Mmdit(config) => Kind::Mmdit(model.load_mmdit(config, device)?),
            NetworkConfig::Flux(config) => Kind::Flux {
                model: model.load_flux(config, device)?,
                guidance: request.guidance,
            },
            other => {
                return Err(EngineError::Model(ModelError::Unsupported {
                    found: format!("a {} where only a transformer will do", other.title()),
                    hint: String::new(),
                }));
            }
        };
        let cond = conditioning(&encoded.positive)?;
        let both = match &encoded.negative {
            None => None,
            Some(negative) => {
                let negative = conditioning(negative)?;
                Some(TextConditioning {
                    context: Tensor::cat(vec![negative.context, cond.context.clone()], 0),
                    pooled: Tensor::cat(vec![negative.pooled, cond.pooled.clone()], 0),
                })
            }
        };
        Ok(TransformerNetwork {
            kind,
            cond,
            both,
            skip: request
                .skip_layers
                .as_ref()
                .map_or_else(Vec::new, |skip| skip.layers.clone()),
            shape,
            device: device.clone(),
        })
    }

    /// Batch, channels, height, width of the latents.
    pub(crate) fn latent_shape(&self) -> [usize; 4] {
        self.shape
    }

    fn forward(
        &self,
        x: Tensor<4>,
        timestep: f64,
        text: &TextConditioning,
        skip: &[usize],
    ) -> Result<Vec<f32>, BoxError> {
        let times = vec![timestep; x.dims()[0]];
        let y = match &self.kind {
            Kind::Mmdit(model) => model.forward(x, &times, text, skip)?,
            Kind::Flux { model, guidance } => model.forward(x, &times, *guidance, text)?,
        };
        from_channels_last(y)
    }
}

fn conditioning(one: &Conditioning) -> Result<TextConditioning, EngineError> {
    let pooled = one.pooled.clone().ok_or_else(|| {
        EngineError::Model(ModelError::Prompt("the pooled text is missing".to_owned()))
    })?;
    Ok(TextConditioning {
        context: one.embeddings.clone(),
        pooled,
    })
}

impl Network for TransformerNetwork {
    fn run(
        &mut self,
        input: &[f32],
        timestep: f64,
        branches: Branches,
    ) -> Result<Outputs, BoxError> {
        let both = self.both.as_ref();
        let both = both.filter(|_| matches!(branches, Branches::CondAndUncond));
        image_by_image(input, self.shape, &self.device, both.is_some(), |x| {
            self.forward(x, timestep, both.unwrap_or(&self.cond), &[])
        })
    }

    fn run_skipping(&mut self, input: &[f32], timestep: f64) -> Result<Vec<f32>, BoxError> {
        let found = image_by_image(input, self.shape, &self.device, false, |x| {
            self.forward(x, timestep, &self.cond, &self.skip)
        })?;
        Ok(found.cond)
    }
}
