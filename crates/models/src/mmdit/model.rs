//! The whole transformer: latents to tokens, blocks, tokens to a velocity.

use aquatint_ops::fused::Conv2dShape;
use aquatint_ops::nn::{Conv2d, Linear};
use aquatint_ops::{Params, Tensor};
use burn::module::{Module, Param};

use super::MmditConfig;
use super::block::Block;
use crate::ModelError;
use crate::dit::{NormOut, TextConditioning, TimeText, Trace, activated};

/// diffusers' `SD3Transformer2DModel`.
#[derive(Module, Debug)]
pub struct Mmdit {
    proj: Conv2d,
    /// `[1, positions, channels]`, a square of rows.
    pos_embed: Param<Tensor<3>>,
    time_text: TimeText,
    context_embedder: Linear,
    blocks: Vec<Block>,
    norm_out: NormOut,
    proj_out: Linear,
    #[module(skip)]
    config: MmditConfig,
}

impl Mmdit {
    /// Reads the model at `p`, in diffusers' names.
    ///
    /// # Errors
    /// When the configuration does not hold together, or a tensor is missing or misshapen.
    pub fn load(p: &Params<'_>, config: &MmditConfig) -> Result<Self, ModelError> {
        config.validate()?;
        let (c, patch) = (config.channels(), config.patch_size);
        let shape = Conv2dShape {
            stride: patch,
            padding: [0; 4],
            upsample: false,
        };
        let positions = config.max_positions * config.max_positions;
        let proj = p.at("pos_embed.proj");
        Ok(Mmdit {
            proj: Conv2d::load(&proj, config.in_channels, c, patch, shape)?,
            pos_embed: p.vector("pos_embed.pos_embed", [1, positions, c])?,
            time_text: TimeText::load(&p.at("time_text_embed"), config.pooled_dim, c, false)?,
            context_embedder: Linear::load(&p.at("context_embedder"), config.context_dim, c, true)?,
            blocks: (0..config.layers())
                .map(|i| Block::load(&p.at(format!("transformer_blocks.{i}")), config, i))
                .collect::<Result<_, _>>()?,
            norm_out: NormOut::load(&p.at("norm_out"), c)?,
            proj_out: Linear::load(
                &p.at("proj_out"),
                c,
                patch * patch * config.out_channels,
                true,
            )?,
            config: config.clone(),
        })
    }

    /// The configuration it was built with.
    pub fn config(&self) -> &MmditConfig {
        &self.config
    }

    /// The velocity of latents `[batch, height, width, channels]` at one time in training steps a batch entry. The
    /// blocks in `skip` are left out, for skip-layer guidance.
    ///
    /// # Errors
    /// [`ModelError::Input`] for latents or a text of the wrong shape, or larger than the position embeddings.
    pub fn forward(
        &self,
        latents: Tensor<4>,
        timesteps: &[f64],
        text: &TextConditioning,
        skip: &[usize],
    ) -> Result<Tensor<4>, ModelError> {
        self.forward_traced(latents, timesteps, text, skip, &mut |_, _, _| {})
    }

    /// As [`Mmdit::forward`]; `trace` is shown each stage, under its name in the checkpoint.
    ///
    /// # Errors
    /// As [`Mmdit::forward`].
    pub fn forward_traced(
        &self,
        latents: Tensor<4>,
        timesteps: &[f64],
        text: &TextConditioning,
        skip: &[usize],
        trace: &mut Trace<'_>,
    ) -> Result<Tensor<4>, ModelError> {
        let [batch, height, width, _] = latents.dims();
        self.check(latents.dims(), timesteps, text)?;
        let patch = self.config.patch_size;
        let (rows, columns) = (height / patch, width / patch);
        let c = self.config.channels();
        let x = self
            .proj
            .forward(latents)
            .reshape([batch, rows * columns, c]);
        let mut x = x + self.positions(rows, columns);
        trace("pos_embed", &x, None);
        let embedding = self.time_text.forward(timesteps, 0.0, text.pooled.clone());
        let embedding = activated(embedding);
        let mut context = self.context_embedder.forward(text.context.clone());
        trace("context_embedder", &context, None);
        for (i, block) in self.blocks.iter().enumerate() {
            if skip.contains(&i) {
                continue;
            }
            let (picture, words) = block.forward(x, context.clone(), &embedding);
            trace(&format!("transformer_blocks.{i}"), &picture, words.as_ref());
            x = picture;
            context = words.unwrap_or(context);
        }
        let x = self.norm_out.forward(x, &embedding);
        trace("norm_out", &x, None);
        let y = self.proj_out.forward(x);
        let out = self.config.out_channels;
        Ok(y.reshape([batch, rows, columns, patch, patch, out])
            .permute([0, 1, 3, 2, 4, 5])
            .reshape([batch, rows * patch, columns * patch, out]))
    }

    /// The position embeddings of a picture, from the middle of the table, `[1, rows * columns, channels]`.
    fn positions(&self, rows: usize, columns: usize) -> Tensor<3> {
        let (side, c) = (self.config.max_positions, self.config.channels());
        let table = self.pos_embed.val().reshape([side, side, c]);
        let (top, left) = ((side - rows) / 2, (side - columns) / 2);
        table
            .narrow(0, top, rows)
            .narrow(1, left, columns)
            .reshape([1, rows * columns, c])
    }

    fn check(
        &self,
        [batch, height, width, channels]: [usize; 4],
        timesteps: &[f64],
        text: &TextConditioning,
    ) -> Result<(), ModelError> {
        let config = &self.config;
        let patch = config.patch_size;
        let most = config.max_positions * patch;
        let sides = [height, width];
        if channels != config.in_channels
            || sides.iter().any(|s| s % patch != 0 || *s == 0 || *s > most)
        {
            let found = format!("{:?}", [batch, height, width, channels]);
            let expected = format!(
                "[batch, height, width, {}], sides multiples of {patch} and at most {most}",
                config.in_channels
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
