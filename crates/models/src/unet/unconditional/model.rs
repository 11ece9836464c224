//! The UNet itself.

use aquatint_ops::fused::{Conv2dShape, silu, timestep_embedding};
use aquatint_ops::nn::{Conv2d, GroupNorm};
use aquatint_ops::{Params, Tensor};
use burn::module::Module;

use super::blocks::{Block, Pass};
use super::class::{self, ClassEmbedding, Classes};
use super::config::UNet2DConfig;
use crate::ModelError;
use crate::unet::Trace;
use crate::unet::embedding::{TimestepEmbedding, show};

/// The noise predictor without text (diffusers' `UNet2DModel`). Its fields bear the names of a
/// checkpoint.
#[derive(Module, Debug)]
pub struct UNet2D {
    conv_in: Conv2d,
    time_embedding: TimestepEmbedding,
    class_embedding: Option<ClassEmbedding>,
    down_blocks: Vec<Block>,
    mid_block: Option<Block>,
    up_blocks: Vec<Block>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    #[module(skip)]
    config: UNet2DConfig,
}

impl UNet2D {
    /// Reads the model at `p`, where diffusers' names begin (`conv_in.weight`, ...).
    ///
    /// # Errors
    /// When the configuration does not hold together, or a tensor is missing or misshapen.
    pub fn load(p: &Params<'_>, config: &UNet2DConfig) -> Result<Self, ModelError> {
        config.validate()?;
        let levels = config.levels.len();
        let first = config.channels(0);
        let conv = |name: &str, input, output| {
            Conv2d::load(&p.at(name), input, output, 3, Conv2dShape::same(3))
        };
        let time = p.at("time_embedding");
        Ok(UNet2D {
            conv_in: conv("conv_in", config.in_channels, first)?,
            time_embedding: TimestepEmbedding::load(&time, first, config.time_embed_dim, None)?,
            class_embedding: ClassEmbedding::load(&p.at("class_embedding"), config)?,
            down_blocks: (0..levels)
                .map(|i| Block::load_down(&p.at(format!("down_blocks.{i}")), config, i))
                .collect::<Result<_, _>>()?,
            mid_block: match config.mid {
                true => Some(Block::load_mid(&p.at("mid_block"), config)?),
                false => None,
            },
            up_blocks: (0..levels)
                .map(|i| Block::load_up(&p.at(format!("up_blocks.{i}")), config, levels - 1 - i))
                .collect::<Result<_, _>>()?,
            conv_norm_out: GroupNorm::load(
                &p.at("conv_norm_out"),
                config.groups,
                first,
                config.eps,
            )?,
            conv_out: conv("conv_out", first, config.out_channels)?,
            config: config.clone(),
        })
    }

    /// The configuration it was built with.
    pub fn config(&self) -> &UNet2DConfig {
        &self.config
    }

    /// The model's prediction for a noisy picture or latent. Any size will do, though diffusers
    /// takes only those that every level halves evenly.
    ///
    /// # Shapes
    /// - x: `[batch, height, width, in_channels]`; timesteps and classes: one a batch entry
    /// - output: `[batch, height, width, out_channels]`
    ///
    /// # Errors
    /// [`ModelError::Input`] when the inputs do not fit each other or the model.
    pub fn forward(
        &self,
        x: Tensor<4>,
        timesteps: &[f64],
        classes: Option<&Classes>,
    ) -> Result<Tensor<4>, ModelError> {
        self.forward_traced(x, timesteps, classes, &mut |_, _| {})
    }

    /// As [`UNet2D::forward`]; `trace` is shown each stage.
    pub fn forward_traced(
        &self,
        x: Tensor<4>,
        timesteps: &[f64],
        classes: Option<&Classes>,
        trace: &mut Trace<'_>,
    ) -> Result<Tensor<4>, ModelError> {
        self.check(&x, timesteps, classes)?;
        let x = match self.config.center_input {
            true => x * 2.0 - 1.0,
            false => x,
        };
        let time = self.embed(&x, timesteps, classes, trace);
        let mut pass = Pass {
            time: silu(time),
            trace,
        };
        let x = self.blocks(x, &mut pass);
        let x = self.conv_out.forward(self.conv_norm_out.forward_silu(x));
        (pass.trace)("conv_out", &x);
        Ok(x)
    }

    /// The embedding of a pass: one row for all of the batch when nothing differs in it.
    fn embed(
        &self,
        x: &Tensor<4>,
        timesteps: &[f64],
        classes: Option<&Classes>,
        trace: &mut Trace<'_>,
    ) -> Tensor<2> {
        let timesteps = match timesteps.iter().all(|t| *t == timesteps[0]) {
            true => &timesteps[..1],
            false => timesteps,
        };
        let sinusoid = timestep_embedding(
            timesteps,
            self.config.channels(0),
            self.config.flip_sin_to_cos,
            self.config.freq_shift,
            &x.device(),
        );
        let time = self.time_embedding.forward(sinusoid, None);
        show(trace, "time_embedding", &time);
        let class = match (classes, &self.class_embedding) {
            (Some(Classes::Vectors(vectors)), _) => Some(vectors.clone()),
            (Some(classes), Some(embedding)) => embedding.forward(classes, &self.config),
            _ => None,
        };
        match class {
            Some(class) => {
                show(trace, "class_embedding", &class);
                time + class
            }
            None => time,
        }
    }

    fn blocks(&self, x: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<4> {
        let mut x = self.conv_in.forward(x);
        (pass.trace)("conv_in", &x);
        let mut skips = vec![x.clone()];
        for (i, block) in self.down_blocks.iter().enumerate() {
            x = block.down(x, &mut skips, pass, &format!("down_blocks.{i}"));
        }
        if let Some(block) = &self.mid_block {
            x = block.mid(x, pass, "mid_block");
        }
        for (i, block) in self.up_blocks.iter().enumerate() {
            x = block.up(x, &mut skips, pass, &format!("up_blocks.{i}"));
        }
        x
    }

    fn check(
        &self,
        x: &Tensor<4>,
        timesteps: &[f64],
        classes: Option<&Classes>,
    ) -> Result<(), ModelError> {
        let error = |what, found: String, expected: String| ModelError::Input {
            component: "unet",
            what,
            found,
            expected,
        };
        let [batch, height, width, channels] = x.dims();
        // Each halving without padding needs two rows and columns.
        let smallest = match self.config.downsample_padding {
            0 => 1 << (self.config.levels.len() - 1),
            _ => 1,
        };
        let needed = self.config.in_channels;
        if channels != needed || batch == 0 || height.min(width) < smallest {
            let expected =
                format!("[batch, height, width, {needed}] of at least {smallest}x{smallest}");
            return Err(error("the input", format!("{:?}", x.dims()), expected));
        }
        if timesteps.len() != batch {
            let found = timesteps.len().to_string();
            return Err(error("timesteps", found, batch.to_string()));
        }
        class::check(classes, &self.config, batch)
            .map_err(|(found, expected)| error("the classes", found, expected))
    }
}
