//! The UNet itself.

use aquatint_ops::fused::{Conv2dShape, silu};
use aquatint_ops::nn::{Conv2d, GroupNorm};
use aquatint_ops::{Params, Tensor};
use burn::module::Module;

use super::Trace;
use super::blocks::{DownBlock, MidBlock, Pass, UpBlock};
use super::conditioning::{Conditioning, ContextCursor};
use super::config::UNetConfig;
use super::embedding::{TimestepEmbedding, embed};
use super::transformer::SpatialTransformer;
use crate::ModelError;

/// The noise predictor of Stable Diffusion (diffusers' `UNet2DConditionModel`). Its fields bear the
/// names of a checkpoint.
#[derive(Module, Debug)]
pub struct UNet2DCondition {
    conv_in: Conv2d,
    time_embedding: TimestepEmbedding,
    add_embedding: Option<TimestepEmbedding>,
    down_blocks: Vec<DownBlock>,
    mid_block: Option<MidBlock>,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    #[module(skip)]
    config: UNetConfig,
}

impl UNet2DCondition {
    /// Reads the model at `p`, where diffusers' names begin (`conv_in.weight`, ...).
    ///
    /// # Errors
    /// When the configuration does not hold together, or a tensor is missing or misshapen.
    pub fn load(p: &Params<'_>, config: &UNetConfig) -> Result<Self, ModelError> {
        config.validate()?;
        let levels = config.levels.len();
        let first = config.levels[0].channels;
        let time = config.time_embed_dim;
        let conv = |name: &str, input, output, kernel| {
            let shape = Conv2dShape::same(kernel);
            Conv2d::load(&p.at(name), input, output, kernel, shape)
        };
        Ok(UNet2DCondition {
            conv_in: conv("conv_in", config.in_channels, first, config.conv_in_kernel)?,
            time_embedding: TimestepEmbedding::load(
                &p.at("time_embedding"),
                first,
                time,
                config.time_cond_dim,
            )?,
            add_embedding: match &config.added {
                Some(added) => Some(TimestepEmbedding::load(
                    &p.at("add_embedding"),
                    added.input_dim,
                    time,
                    None,
                )?),
                None => None,
            },
            down_blocks: (0..levels)
                .map(|i| DownBlock::load(&p.at(format!("down_blocks.{i}")), config, i))
                .collect::<Result<_, _>>()?,
            mid_block: MidBlock::load(&p.at("mid_block"), config)?,
            up_blocks: (0..levels)
                .map(|i| UpBlock::load(&p.at(format!("up_blocks.{i}")), config, levels - 1 - i))
                .collect::<Result<_, _>>()?,
            conv_norm_out: GroupNorm::load(
                &p.at("conv_norm_out"),
                config.groups,
                first,
                config.eps,
            )?,
            conv_out: conv(
                "conv_out",
                first,
                config.out_channels,
                config.conv_out_kernel,
            )?,
            config: config.clone(),
        })
    }

    /// The configuration it was built with.
    pub fn config(&self) -> &UNetConfig {
        &self.config
    }

    /// Projects the text to the keys and values of every attention, once for all steps of a run.
    /// The result holds, for Stable Diffusion 1.x, about 0.1 MB a token and batch entry.
    ///
    /// # Errors
    /// When the text has not the channels that the model attends to.
    pub fn prepare(&self, mut conditioning: Conditioning) -> Result<Conditioning, ModelError> {
        self.check_context(&conditioning)?;
        let projected = self
            .transformers()
            .flat_map(SpatialTransformer::cross_attentions)
            .map(|attention| attention.keys_values(conditioning.context.clone()))
            .collect();
        conditioning.projected = Some(projected);
        Ok(conditioning)
    }

    /// The model's prediction for a noisy latent.
    ///
    /// # Shapes
    /// - x: `[batch, height, width, in_channels]`; timesteps: one a batch entry
    /// - output: `[batch, height, width, out_channels]`
    ///
    /// # Errors
    /// [`ModelError::Input`] when the inputs do not fit each other or the model.
    pub fn forward(
        &self,
        x: Tensor<4>,
        timesteps: &[f64],
        conditioning: &Conditioning,
    ) -> Result<Tensor<4>, ModelError> {
        self.forward_traced(x, timesteps, conditioning, &mut |_, _| {})
    }

    /// As [`UNet2DCondition::forward`]; `trace` is shown each stage.
    pub fn forward_traced(
        &self,
        x: Tensor<4>,
        timesteps: &[f64],
        conditioning: &Conditioning,
        trace: &mut Trace<'_>,
    ) -> Result<Tensor<4>, ModelError> {
        self.check(&x, timesteps, conditioning)?;
        let x = match self.config.center_input {
            true => x * 2.0 - 1.0,
            false => x,
        };
        let time = embed(
            &self.config,
            &self.time_embedding,
            self.add_embedding.as_ref(),
            timesteps,
            conditioning,
            trace,
        );
        let mut pass = Pass {
            time: silu(time),
            context: ContextCursor::new(conditioning),
            trace,
        };
        let x = self.blocks(x, &mut pass);
        let x = self.conv_out.forward(self.conv_norm_out.forward_silu(x));
        (pass.trace)("conv_out", &x);
        Ok(x)
    }

    fn blocks(&self, x: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<4> {
        let mut x = self.conv_in.forward(x);
        (pass.trace)("conv_in", &x);
        let mut skips = vec![x.clone()];
        for (i, block) in self.down_blocks.iter().enumerate() {
            x = block.forward(x, &mut skips, pass, &format!("down_blocks.{i}"));
        }
        if let Some(block) = &self.mid_block {
            x = block.forward(x, pass, "mid_block");
        }
        for (i, block) in self.up_blocks.iter().enumerate() {
            x = block.forward(x, &mut skips, pass, &format!("up_blocks.{i}"));
        }
        x
    }

    /// Its transformers, in the order of a pass.
    fn transformers(&self) -> impl Iterator<Item = &SpatialTransformer> {
        let down = self.down_blocks.iter().flat_map(DownBlock::transformers);
        let mid = self.mid_block.iter().flat_map(MidBlock::transformers);
        let up = self.up_blocks.iter().flat_map(UpBlock::transformers);
        down.chain(mid).chain(up)
    }

    fn check_context(&self, conditioning: &Conditioning) -> Result<(), ModelError> {
        let [_, tokens, channels] = conditioning.context.dims();
        let needed = self.config.context_dim();
        if tokens == 0 || needed.is_some_and(|needed| needed != channels) {
            let found = format!("{tokens} tokens of {channels} channels");
            let expected = format!("at least one token of {needed:?} channels");
            return Err(input_error("the text", found, expected));
        }
        Ok(())
    }

    fn check(
        &self,
        x: &Tensor<4>,
        timesteps: &[f64],
        conditioning: &Conditioning,
    ) -> Result<(), ModelError> {
        let [batch, height, width, channels] = x.dims();
        // Each halving without padding needs two rows and columns.
        let smallest = match self.config.downsample_padding {
            0 => 1 << (self.config.levels.len() - 1),
            _ => 1,
        };
        if channels != self.config.in_channels || batch == 0 || height.min(width) < smallest {
            let expected = format!(
                "[batch, height, width, {}] of at least {smallest}x{smallest}",
                self.config.in_channels
            );
            return Err(input_error(
                "the latent",
                format!("{:?}", x.dims()),
                expected,
            ));
        }
        let text = conditioning.context.dims()[0];
        for (what, found) in [("timesteps", timesteps.len()), ("the text's batch", text)] {
            if found != batch {
                return Err(input_error(what, found, batch));
            }
        }
        self.check_context(conditioning)?;
        self.check_added(batch, conditioning)
    }

    fn check_added(&self, batch: usize, conditioning: &Conditioning) -> Result<(), ModelError> {
        let Some(shape) = &self.config.added else {
            return Ok(());
        };
        let what = "the added conditioning";
        let Some(added) = &conditioning.added else {
            return Err(input_error(what, "absent", "pooled text and sizes"));
        };
        let [rows, channels] = added.text_embeds.dims();
        let fits = |ids: &Vec<f64>| channels + ids.len() * shape.time_dim == shape.input_dim;
        if rows != batch || added.time_ids.len() != batch || !added.time_ids.iter().all(fits) {
            let ids: Vec<usize> = added.time_ids.iter().map(Vec::len).collect();
            let found = format!("pooled text {:?} and sizes {ids:?}", [rows, channels]);
            let expected = format!(
                "{batch} rows of {} channels, each size taking {}",
                shape.input_dim, shape.time_dim
            );
            return Err(input_error(what, found, expected));
        }
        Ok(())
    }
}

fn input_error(
    what: &'static str,
    found: impl std::fmt::Display,
    expected: impl std::fmt::Display,
) -> ModelError {
    ModelError::Input {
        component: "unet",
        what,
        found: found.to_string(),
        expected: expected.to_string(),
    }
}
