//! The UNet behind the samplers' contract: flat latents in PyTorch's order on the one side,
//! channels-last tensors on the other.

use aquatint_diffusion::{BoxError, Branches, Network, Outputs};
use aquatint_models::text::Encoded;
use aquatint_models::unet::{AddedConditioning, Conditioning, UNet2DCondition};
use aquatint_models::{Checkpoint, NetworkConfig};
use aquatint_ops::{Device, Tensor};
use burn::tensor::{DType, TensorData};

use crate::EngineError;
use crate::request::Request;
use crate::transformer::TransformerNetwork;

/// The network of any family with the conditioning of a run.
#[derive(Debug)]
// There is one a run.
#[allow(clippy::large_enum_variant)]
pub(crate) enum AnyNetwork {
    UNet(UNetNetwork),
    Transformer(TransformerNetwork),
}

impl AnyNetwork {
    pub(crate) fn load(
        encoded: &Encoded,
        request: &Request,
        model: &Checkpoint,
        device: &Device,
    ) -> Result<Self, EngineError> {
        Ok(match &model.network.config {
            NetworkConfig::UNet(_) => {
                let unet = model.load_unet(device)?;
                AnyNetwork::UNet(UNetNetwork::new(unet, encoded, request, model, device)?)
            }
            NetworkConfig::Mmdit(_) | NetworkConfig::Flux(_) => {
                AnyNetwork::Transformer(TransformerNetwork::load(encoded, request, model, device)?)
            }
        })
    }

    /// Batch, channels, height, width of the latents.
    pub(crate) fn latent_shape(&self) -> [usize; 4] {
        match self {
            AnyNetwork::UNet(unet) => unet.shape,
            AnyNetwork::Transformer(transformer) => transformer.latent_shape(),
        }
    }
}

impl Network for AnyNetwork {
    fn run(
        &mut self,
        input: &[f32],
        timestep: f64,
        branches: Branches,
    ) -> Result<Outputs, BoxError> {
        match self {
            AnyNetwork::UNet(unet) => unet.run(input, timestep, branches),
            AnyNetwork::Transformer(transformer) => transformer.run(input, timestep, branches),
        }
    }

    fn run_skipping(&mut self, input: &[f32], timestep: f64) -> Result<Vec<f32>, BoxError> {
        match self {
            AnyNetwork::UNet(unet) => unet.run_skipping(input, timestep),
            AnyNetwork::Transformer(transformer) => transformer.run_skipping(input, timestep),
        }
    }
}

/// Batch, channels, height and width of a request's latents.
///
/// # Errors
/// A side that the model cannot make.
pub(crate) fn latent_shape(
    model: &Checkpoint,
    request: &Request,
) -> Result<[usize; 4], EngineError> {
    let config = &model.network.config;
    let factor = model.vae.config.factor();
    let grain = factor * config.patch_size();
    let sides = [request.height as usize, request.width as usize];
    if let Some(side) = sides.iter().find(|s| !s.is_multiple_of(grain)) {
        return Err(EngineError::Usage {
            message: format!(
                "found a side of {side}, expected a multiple of {grain} for this model"
            ),
            hint: format!("try {}", side.next_multiple_of(grain)),
        });
    }
    if let Some(longest) = config.longest_side().map(|n| n * factor)
        && let Some(side) = sides.iter().find(|s| **s > longest)
    {
        return Err(EngineError::Usage {
            message: format!("found a side of {side}, expected at most {longest} for this model"),
            hint: "take a smaller picture".into(),
        });
    }
    Ok([
        request.batch as usize,
        config.out_channels(),
        sides[0] / factor,
        sides[1] / factor,
    ])
}

/// A UNet with the conditioning of a run.
#[derive(Debug)]
pub(crate) struct UNetNetwork {
    unet: UNet2DCondition,
    /// On the prompt alone.
    cond: Conditioning,
    /// On the negative prompt and the prompt, in that order, as diffusers stacks them.
    both: Option<Conditioning>,
    shape: [usize; 4],
    device: Device,
}

impl UNetNetwork {
    pub(crate) fn new(
        unet: UNet2DCondition,
        encoded: &Encoded,
        request: &Request,
        model: &Checkpoint,
        device: &Device,
    ) -> Result<Self, EngineError> {
        let config = model.network.config.unet()?;
        let shape = latent_shape(model, request)?;
        let sides = [request.height as usize, request.width as usize];
        let text = |one: &aquatint_models::text::Conditioning| {
            let added = one.pooled.clone();
            (one.embeddings.clone(), added)
        };
        let (positive, pooled) = text(&encoded.positive);
        let sizes = vec![
            sides[0] as f64,
            sides[1] as f64,
            0.0,
            0.0,
            sides[0] as f64,
            sides[1] as f64,
        ];
        let build = |context: Tensor<3>, pooled: Option<Tensor<2>>| {
            let entries = context.dims()[0];
            let mut conditioning = Conditioning::new(context);
            if let (Some(text_embeds), true) = (pooled, config.added.is_some()) {
                conditioning = conditioning.with_added(AddedConditioning {
                    text_embeds,
                    time_ids: vec![sizes.clone(); entries],
                });
            }
            if config.time_cond_dim.is_some() {
                conditioning = conditioning.with_guidance_scale(request.guidance - 1.0);
            }
            unet.prepare(conditioning)
        };
        let cond = build(positive.clone(), pooled.clone())?;
        let both = match &encoded.negative {
            None => None,
            Some(negative) => {
                let (negative, negative_pooled) = text(negative);
                let context = Tensor::cat(vec![negative, positive], 0);
                let pooled = match (negative_pooled, pooled) {
                    (Some(n), Some(p)) => Some(Tensor::cat(vec![n, p], 0)),
                    _ => None,
                };
                Some(build(context, pooled)?)
            }
        };
        Ok(UNetNetwork {
            unet,
            cond,
            both,
            shape,
            device: device.clone(),
        })
    }
}

impl Network for UNetNetwork {
    fn run(
        &mut self,
        input: &[f32],
        timestep: f64,
        branches: Branches,
    ) -> Result<Outputs, BoxError> {
        let both = self.both.as_ref();
        let both = both.filter(|_| matches!(branches, Branches::CondAndUncond));
        image_by_image(input, self.shape, &self.device, both.is_some(), |x| {
            let y = match both {
                Some(both) => self.unet.forward(x, &[timestep; 2], both)?,
                None => self.unet.forward(x, &[timestep], &self.cond)?,
            };
            from_channels_last(y)
        })
    }
}

/// Runs a network on each image of a batch, twice over where `both` is said: without what it is told, then with it.
///
/// Image by image: the kernels order their sums by the size of a call, so that a picture's bits would depend on its
/// neighbours in the batch.
pub(crate) fn image_by_image(
    input: &[f32],
    [batch, channels, height, width]: [usize; 4],
    device: &Device,
    both: bool,
    mut forward: impl FnMut(Tensor<4>) -> Result<Vec<f32>, BoxError>,
) -> Result<Outputs, BoxError> {
    let mut cond = Vec::with_capacity(input.len());
    let mut uncond = Vec::new();
    for image in input.chunks_exact(input.len() / batch.max(1)) {
        let x = to_channels_last(image, [1, channels, height, width], device);
        if both {
            let mut values = forward(x.repeat_dim(0, 2))?;
            cond.extend(values.split_off(values.len() / 2));
            uncond.extend(values);
        } else {
            cond.extend(forward(x)?);
        }
    }
    let uncond = both.then_some(uncond);
    Ok(Outputs { cond, uncond })
}

/// `[batch, channels, height, width]` values as a `[batch, height, width, channels]` tensor.
pub(crate) fn to_channels_last(values: &[f32], shape: [usize; 4], device: &Device) -> Tensor<4> {
    let data = TensorData::new(values.to_vec(), shape);
    Tensor::<4>::from_data(data, (device, DType::F32)).permute([0, 2, 3, 1])
}

/// The reverse of [`to_channels_last`].
pub(crate) fn from_channels_last(y: Tensor<4>) -> Result<Vec<f32>, BoxError> {
    let data = y.permute([0, 3, 1, 2]).into_data();
    data.try_into_vec::<f32>()
        .map_err(|e| format!("{e:?}").into())
}
