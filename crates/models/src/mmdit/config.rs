//! What `transformer/config.json` of a Stable Diffusion 3 says.

use crate::ModelError;
use crate::config::{Config, config_error};
use crate::unet::Cost;
use crate::unet::cost::Tally;

const COMPONENT: &str = "transformer";

/// The shape of an [`super::Mmdit`].
#[derive(Debug, Clone, PartialEq)]
pub struct MmditConfig {
    /// Height and width of the latents that it was trained on.
    pub sample_size: Option<usize>,
    /// Side of the square of latent positions that one token is.
    pub patch_size: usize,
    /// Channels of a latent.
    pub in_channels: usize,
    /// Channels of the velocity.
    pub out_channels: usize,
    /// Attention heads.
    pub heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Channels of the text embeddings.
    pub context_dim: usize,
    /// Channels of the pooled text embedding.
    pub pooled_dim: usize,
    /// Rows and columns of the table of position embeddings.
    pub max_positions: usize,
    /// Whether queries and keys are normalised.
    pub qk_norm: bool,
    /// Of each block, whether the picture attends to itself a second time.
    pub dual_attention: Vec<bool>,
}

impl MmditConfig {
    /// Stable Diffusion 3 Medium.
    pub fn sd3_medium() -> Self {
        MmditConfig {
            sample_size: Some(128),
            patch_size: 2,
            in_channels: 16,
            out_channels: 16,
            heads: 24,
            head_dim: 64,
            context_dim: 4096,
            pooled_dim: 2048,
            max_positions: 192,
            qk_norm: false,
            dual_attention: vec![false; 24],
        }
    }

    /// Stable Diffusion 3.5 Medium: the first 13 of 24 blocks attend twice.
    pub fn sd35_medium() -> Self {
        MmditConfig {
            max_positions: 384,
            qk_norm: true,
            dual_attention: (0..24).map(|i| i < 13).collect(),
            ..Self::sd3_medium()
        }
    }

    /// Stable Diffusion 3.5 Large.
    pub fn sd35_large() -> Self {
        MmditConfig {
            heads: 38,
            qk_norm: true,
            dual_attention: vec![false; 38],
            ..Self::sd3_medium()
        }
    }

    /// Reads the text of a `config.json`. Absent keys have diffusers' defaults.
    ///
    /// # Errors
    /// [`ModelError::Config`] for a value that is malformed or that this version cannot run.
    pub fn from_json(json: &str) -> Result<Self, ModelError> {
        let c = Config::parse(COMPONENT, json)?;
        c.only("qk_norm", &["rms_norm"])?;
        let layers = c.count("num_layers", 18)?;
        let mut dual_attention = vec![false; layers];
        for layer in c
            .maybe_numbers("dual_attention_layers")?
            .unwrap_or_default()
        {
            match dual_attention.get_mut(layer as usize) {
                Some(dual) if layer >= 0.0 && layer.fract() == 0.0 => *dual = true,
                _ => {
                    let expected = format!("layers from 0 to {}", layers - 1);
                    return Err(c.error("dual_attention_layers", layer, expected));
                }
            }
        }
        let in_channels = c.count("in_channels", 16)?;
        let config = MmditConfig {
            sample_size: c.maybe_count("sample_size")?,
            patch_size: c.count("patch_size", 2)?,
            in_channels,
            out_channels: c.count("out_channels", in_channels)?,
            heads: c.count("num_attention_heads", 18)?,
            head_dim: c.count("attention_head_dim", 64)?,
            context_dim: c.count("joint_attention_dim", 4096)?,
            pooled_dim: c.count("pooled_projection_dim", 2048)?,
            max_positions: c.count("pos_embed_max_size", 96)?,
            qk_norm: c.is("qk_norm", "rms_norm"),
            dual_attention,
        };
        let projected = c.count("caption_projection_dim", config.channels())?;
        if projected != config.channels() {
            let expected = format!("{}, the heads' channels", config.channels());
            return Err(c.error("caption_projection_dim", projected, expected));
        }
        config.validate()?;
        Ok(config)
    }

    /// Holds what the layers take for granted.
    ///
    /// # Errors
    /// [`ModelError::Config`] that names the key.
    pub fn validate(&self) -> Result<(), ModelError> {
        if self.in_channels != self.out_channels {
            return Err(config_error(
                COMPONENT,
                "out_channels",
                self.out_channels,
                format!("{}, as in_channels", self.in_channels),
            ));
        }
        if self.patch_size > 16 || self.max_positions > 4096 {
            let found = format!("{} and {}", self.patch_size, self.max_positions);
            return Err(config_error(
                COMPONENT,
                "patch_size and pos_embed_max_size",
                found,
                "at most 16 and 4096",
            ));
        }
        Ok(())
    }

    /// Channels of a token.
    pub fn channels(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Blocks.
    pub fn layers(&self) -> usize {
        self.dual_attention.len()
    }

    /// The cost of a pass over latents of `height` by `width` and a text of `tokens`.
    pub fn cost(&self, batch: usize, height: usize, width: usize, tokens: usize) -> Cost {
        let mut tally = Tally::default();
        let (c, patch) = (self.channels(), self.patch_size.max(1));
        let picture = (height / patch) * (width / patch);
        let patches = patch * patch * self.in_channels;
        tally.linear(picture, patches, c);
        tally.linear(tokens, self.context_dim, c);
        let all = picture + tokens;
        for (i, &dual) in self.dual_attention.iter().enumerate() {
            let last = i + 1 == self.layers();
            // Attention's four projections, and the feed-forward's two of four times the channels.
            tally.linear(picture, c, 12 * c);
            tally.linear(tokens, c, if last { 3 * c } else { 12 * c });
            tally.linear(
                1,
                c,
                if dual { 9 * c } else { 6 * c } + if last { 2 * c } else { 6 * c },
            );
            tally.attention(all, all, c);
            if dual {
                tally.linear(picture, c, 4 * c);
                tally.attention(picture, picture, c);
            }
        }
        tally.linear(picture, c, patches);
        // Both streams, their norms, joined queries, keys and values, and the attention's output; or the wide part of
        // the picture's feed-forward.
        tally.alive([all, 1], 6 * c);
        tally.alive([picture, 1], 6 * c);
        tally.finish(batch)
    }
}
