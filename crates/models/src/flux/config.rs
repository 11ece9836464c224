//! What `transformer/config.json` of a FLUX.1 says.

use crate::ModelError;
use crate::config::{Config, config_error};
use crate::unet::Cost;
use crate::unet::cost::Tally;

const COMPONENT: &str = "transformer";

/// Side of the square of latent positions that one token is.
pub(crate) const PATCH: usize = 2;

/// The shape of a [`super::Flux`].
#[derive(Debug, Clone, PartialEq)]
pub struct FluxConfig {
    /// Channels of a packed token: four times those of a latent.
    pub in_channels: usize,
    /// Blocks in which text and picture have weights of their own.
    pub double_blocks: usize,
    /// Blocks in which they share them.
    pub single_blocks: usize,
    /// Attention heads.
    pub heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Channels of the text embeddings.
    pub context_dim: usize,
    /// Channels of the pooled text embedding.
    pub pooled_dim: usize,
    /// Whether it is told a guidance scale (dev), or not (schnell).
    pub guidance: bool,
    /// How many channels of a head turn with each of three positions: none, row, column.
    pub axes: [usize; 3],
}

impl FluxConfig {
    /// FLUX.1 dev; schnell is the same without `guidance`.
    pub fn dev() -> Self {
        FluxConfig {
            in_channels: 64,
            double_blocks: 19,
            single_blocks: 38,
            heads: 24,
            head_dim: 128,
            context_dim: 4096,
            pooled_dim: 768,
            guidance: true,
            axes: [16, 56, 56],
        }
    }

    /// FLUX.1 schnell.
    pub fn schnell() -> Self {
        FluxConfig {
            guidance: false,
            ..Self::dev()
        }
    }

    /// Reads the text of a `config.json`. Absent keys have diffusers' defaults.
    ///
    /// # Errors
    /// [`ModelError::Config`] for a value that is malformed or that this version cannot run.
    pub fn from_json(json: &str) -> Result<Self, ModelError> {
        let c = Config::parse(COMPONENT, json)?;
        let patch = c.count("patch_size", 1)?;
        if patch != 1 {
            return Err(c.error("patch_size", patch, 1));
        }
        let in_channels = c.count("in_channels", 64)?;
        let out_channels = c.count("out_channels", in_channels)?;
        if out_channels != in_channels {
            let expected = format!(
                "{in_channels}, as in_channels (an inpainting or control model is not supported)"
            );
            return Err(c.error("out_channels", out_channels, expected));
        }
        let axes = c.counts("axes_dims_rope", &[16, 56, 56])?;
        let Ok(axes) = <[usize; 3]>::try_from(axes.as_slice()) else {
            return Err(c.error("axes_dims_rope", format!("{axes:?}"), "three numbers"));
        };
        let config = FluxConfig {
            in_channels,
            double_blocks: c.count("num_layers", 19)?,
            single_blocks: c.count("num_single_layers", 38)?,
            heads: c.count("num_attention_heads", 24)?,
            head_dim: c.count("attention_head_dim", 128)?,
            context_dim: c.count("joint_attention_dim", 4096)?,
            pooled_dim: c.count("pooled_projection_dim", 768)?,
            guidance: c.flag("guidance_embeds", false)?,
            axes,
        };
        config.validate()?;
        Ok(config)
    }

    /// Holds what the layers take for granted.
    ///
    /// # Errors
    /// [`ModelError::Config`] that names the key.
    pub fn validate(&self) -> Result<(), ModelError> {
        let wrong = |key, found: String, expected: String| {
            Err(config_error(COMPONENT, key, found, expected))
        };
        let sum: usize = self.axes.iter().sum();
        if sum != self.head_dim || self.axes.iter().any(|n| n % 2 != 0) {
            let expected = format!("even numbers that add up to {}", self.head_dim);
            return wrong("axes_dims_rope", format!("{:?}", self.axes), expected);
        }
        if !self.in_channels.is_multiple_of(PATCH * PATCH) {
            let expected = "a multiple of 4".to_owned();
            return wrong("in_channels", self.in_channels.to_string(), expected);
        }
        Ok(())
    }

    /// Channels of a token within.
    pub fn channels(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Channels of a latent.
    pub fn latent_channels(&self) -> usize {
        self.in_channels / (PATCH * PATCH)
    }

    /// The cost of a pass over latents of `height` by `width` and a text of `tokens`.
    pub fn cost(&self, batch: usize, height: usize, width: usize, tokens: usize) -> Cost {
        let mut tally = Tally::default();
        let c = self.channels();
        let picture = (height / PATCH) * (width / PATCH);
        let all = picture + tokens;
        tally.linear(picture, self.in_channels, c);
        tally.linear(tokens, self.context_dim, c);
        for _ in 0..self.double_blocks {
            tally.linear(all, c, 12 * c);
            tally.linear(1, c, 12 * c);
            tally.attention(all, all, c);
        }
        for _ in 0..self.single_blocks {
            // Attention's three projections, the feed-forward's first, and one for both on the way out.
            tally.linear(all, c, 12 * c);
            tally.linear(1, c, 3 * c);
            tally.attention(all, all, c);
        }
        tally.linear(picture, c, self.in_channels);
        // A single block: the stream, its norm, the wide part, and the attention's output joined with it.
        tally.alive([all, 1], 11 * c);
        tally.finish(batch)
    }
}
