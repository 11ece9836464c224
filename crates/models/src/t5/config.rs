//! What a T5's `config.json` says.

use crate::ModelError;
use crate::config::{Config, config_error};
use crate::unet::Cost;
use crate::unet::cost::Tally;

const COMPONENT: &str = "T5 text encoder";

/// The shape of a T5 encoder of version 1.1: gated GELU, its own embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct T5Config {
    /// Entries of the token embedding.
    pub vocab_size: usize,
    /// Channels.
    pub d_model: usize,
    /// Channels of a head; heads need not add up to `d_model`.
    pub d_kv: usize,
    /// Channels within the feed-forward layers.
    pub d_ff: usize,
    /// Layers.
    pub num_layers: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Kinds of distances that the attention tells apart; a multiple of 4.
    pub buckets: usize,
    /// From which distance on all count alike.
    pub max_distance: usize,
    /// Epsilon of the norms.
    pub layer_norm_eps: f64,
}

impl T5Config {
    /// T5 v1.1 XXL, which Stable Diffusion 3 and FLUX read prompts with.
    pub fn xxl() -> Self {
        T5Config {
            vocab_size: 32128,
            d_model: 4096,
            d_kv: 64,
            d_ff: 10240,
            num_layers: 24,
            num_heads: 64,
            buckets: 32,
            max_distance: 128,
            layer_norm_eps: 1e-6,
        }
    }

    /// Reads the text of a `config.json`. Absent keys have transformers' defaults.
    ///
    /// # Errors
    /// [`ModelError::Config`] for a value that is malformed or that this version cannot run.
    pub fn from_json(json: &str) -> Result<Self, ModelError> {
        let c = Config::parse(COMPONENT, json)?;
        if !c.is("feed_forward_proj", "gated-gelu") {
            let found = c
                .get("feed_forward_proj")
                .map_or("absent".to_owned(), ToString::to_string);
            return Err(c.error("feed_forward_proj", found, "gated-gelu, as T5 1.1 has it"));
        }
        let config = T5Config {
            vocab_size: c.count("vocab_size", 32128)?,
            d_model: c.count("d_model", 512)?,
            d_kv: c.count("d_kv", 64)?,
            d_ff: c.count("d_ff", 2048)?,
            num_layers: c.count("num_layers", 6)?,
            num_heads: c.count("num_heads", 8)?,
            buckets: c.count("relative_attention_num_buckets", 32)?,
            max_distance: c.count("relative_attention_max_distance", 128)?,
            layer_norm_eps: c.number("layer_norm_epsilon", 1e-6)?,
        };
        config.validate()?;
        Ok(config)
    }

    /// The cost of encoding one sequence of `tokens`.
    pub fn cost(&self, tokens: usize) -> Cost {
        let mut tally = Tally::default();
        let inner = self.num_heads * self.d_kv;
        for _ in 0..self.num_layers {
            tally.linear(tokens, self.d_model, 4 * inner);
            tally.linear(tokens, self.d_model, 3 * self.d_ff);
            tally.attention(tokens, tokens, inner);
        }
        // The bias of every head, the logits and their softmax beside it; or the wide parts of the feed-forward.
        tally.alive([tokens, tokens], 3 * self.num_heads);
        tally.alive([tokens, 1], 3 * self.d_ff + 2 * self.d_model);
        tally.finish(1)
    }

    /// Holds what the layers take for granted.
    ///
    /// # Errors
    /// [`ModelError::Config`] that names the key.
    pub fn validate(&self) -> Result<(), ModelError> {
        let wrong =
            |key, found: usize, expected: &str| Err(config_error(COMPONENT, key, found, expected));
        if self.buckets < 4 || !self.buckets.is_multiple_of(4) {
            return wrong(
                "relative_attention_num_buckets",
                self.buckets,
                "a multiple of 4",
            );
        }
        if self.max_distance <= self.buckets / 4 {
            return wrong(
                "relative_attention_max_distance",
                self.max_distance,
                "more than a quarter of the buckets",
            );
        }
        Ok(())
    }
}
