//! The whole transformer: latents packed to tokens, blocks, tokens to a velocity.

use aquatint_ops::nn::Linear;
use aquatint_ops::{Device, Params, Tensor};
use burn::module::Module;
use burn::tensor::{DType, TensorData};

use super::FluxConfig;
use super::block::{Angles, DoubleBlock, SingleBlock};
use super::config::PATCH;
use crate::ModelError;
use crate::dit::{NormOut, TextConditioning, TimeText, Trace, activated, join, part};

/// Base of the frequencies of the rotary embedding.
const THETA: f64 = 10000.0;

/// diffusers' `FluxTransformer2DModel`, with the packing of latents that its pipeline does.
#[derive(Module, Debug)]
pub struct Flux {
    x_embedder: Linear,
    context_embedder: Linear,
    time_text: TimeText,
    double_blocks: Vec<DoubleBlock>,
    single_blocks: Vec<SingleBlock>,
    norm_out: NormOut,
    proj_out: Linear,
    #[module(skip)]
    config: FluxConfig,
}

impl Flux {
    /// Reads the model at `p`, in diffusers' names.
    ///
    /// # Errors
    /// When the configuration does not hold together, or a tensor is missing or misshapen.
    pub fn load(p: &Params<'_>, config: &FluxConfig) -> Result<Self, ModelError> {
        config.validate()?;
        let c = config.channels();
        let linear = |name: &str, input, output| Linear::load(&p.at(name), input, output, true);
        Ok(Flux {
            x_embedder: linear("x_embedder", config.in_channels, c)?,
            context_embedder: linear("context_embedder", config.context_dim, c)?,
            time_text: TimeText::load(
                &p.at("time_text_embed"),
                config.pooled_dim,
                c,
                config.guidance,
            )?,
            double_blocks: (0..config.double_blocks)
                .map(|i| DoubleBlock::load(&p.at(format!("transformer_blocks.{i}")), config))
                .collect::<Result<_, _>>()?,
            single_blocks: (0..config.single_blocks)
                .map(|i| SingleBlock::load(&p.at(format!("single_transformer_blocks.{i}")), config))
                .collect::<Result<_, _>>()?,
            norm_out: NormOut::load(&p.at("norm_out"), c)?,
            proj_out: linear("proj_out", c, config.in_channels)?,
            config: config.clone(),
        })
    }

    /// The configuration it was built with.
    pub fn config(&self) -> &FluxConfig {
        &self.config
    }

    /// The velocity of latents `[batch, height, width, channels]` at one time in training steps a batch entry.
    /// `guidance` is the scale that a guidance-distilled model is told; others ignore it.
    ///
    /// # Errors
    /// [`ModelError::Input`] for latents or a text of the wrong shape.
    pub fn forward(
        &self,
        latents: Tensor<4>,
        timesteps: &[f64],
        guidance: f64,
        text: &TextConditioning,
    ) -> Result<Tensor<4>, ModelError> {
        self.forward_traced(latents, timesteps, guidance, text, &mut |_, _, _| {})
    }

    /// As [`Flux::forward`]; `trace` is shown each stage, under its name in the checkpoint.
    ///
    /// # Errors
    /// As [`Flux::forward`].
    pub fn forward_traced(
        &self,
        latents: Tensor<4>,
        timesteps: &[f64],
        guidance: f64,
        text: &TextConditioning,
        trace: &mut Trace<'_>,
    ) -> Result<Tensor<4>, ModelError> {
        self.check(latents.dims(), timesteps, text)?;
        let [batch, height, width, channels] = latents.dims();
        let (rows, columns) = (height / PATCH, width / PATCH);
        let packed = latents
            .reshape([batch, rows, PATCH, columns, PATCH, channels])
            .permute([0, 1, 3, 5, 2, 4])
            .reshape([batch, rows * columns, self.config.in_channels]);
        let mut x = self.x_embedder.forward(packed);
        let embedding = self
            .time_text
            .forward(timesteps, guidance, text.pooled.clone());
        let embedding = activated(embedding);
        let mut context = self.context_embedder.forward(text.context.clone());
        trace("context_embedder", &context, None);
        let words = context.dims()[1];
        let angles = self.angles(words, rows, columns, &context.device());
        for (i, block) in self.double_blocks.iter().enumerate() {
            (x, context) = block.forward(x, context, &embedding, &angles);
            trace(&format!("transformer_blocks.{i}"), &x, Some(&context));
        }
        let mut joined = join([context, x]);
        for (i, block) in self.single_blocks.iter().enumerate() {
            joined = block.forward(joined, &embedding, &angles);
            let [context, x] = part(joined.clone(), words);
            trace(
                &format!("single_transformer_blocks.{i}"),
                &x,
                Some(&context),
            );
        }
        let [_, x] = part(joined, words);
        let x = self.norm_out.forward(x, &embedding);
        trace("norm_out", &x, None);
        Ok(self
            .proj_out
            .forward(x)
            .reshape([batch, rows, columns, channels, PATCH, PATCH])
            .permute([0, 1, 4, 2, 5, 3])
            .reshape([batch, height, width, channels]))
    }

    /// The angles of a text, which has no positions, and of a picture's rows and columns. In f64, then rounded, as
    /// the reference.
    fn angles(&self, words: usize, rows: usize, columns: usize, device: &Device) -> Angles {
        let half = self.config.head_dim / 2;
        let tokens = words + rows * columns;
        let mut cos = vec![1f32; tokens * half];
        let mut sin = vec![0f32; tokens * half];
        for token in 0..rows * columns {
            let position = [0, token / columns, token % columns];
            let mut at = (words + token) * half;
            for (axis, &size) in self.config.axes.iter().enumerate() {
                for i in 0..size / 2 {
                    let frequency = THETA.powf(-((2 * i) as f64) / size as f64);
                    let angle = position[axis] as f64 * frequency;
                    (cos[at], sin[at]) = (angle.cos() as f32, angle.sin() as f32);
                    at += 1;
                }
            }
        }
        let tensor = |values| {
            Tensor::from_data(
                TensorData::new(values, [tokens, half]),
                (device, DType::F32),
            )
        };
        Angles {
            cos: tensor(cos),
            sin: tensor(sin),
        }
    }

    fn check(
        &self,
        [batch, height, width, channels]: [usize; 4],
        timesteps: &[f64],
        text: &TextConditioning,
    ) -> Result<(), ModelError> {
        let config = &self.config;
        let uneven = |side: usize| side == 0 || !side.is_multiple_of(PATCH);
        if channels != config.latent_channels() || uneven(height) || uneven(width) {
            let found = format!("{:?}", [batch, height, width, channels]);
            let expected = format!(
                "[batch, height, width, {}], sides multiples of {PATCH}",
                config.latent_channels()
            );
            return Err(ModelError::Input {
                component: "transformer",
                what: "the latents",
                found,
                expected,
            });
        }
        text.check(
            batch,
            timesteps.len(),
            [config.context_dim, config.pooled_dim],
        )
    }
}
