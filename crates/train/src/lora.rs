//! Low-rank additions (Hu et al. 2021): their first weights, and the files that others read.

use std::collections::BTreeMap;

use aquatint_ops::{LowRank, ParamSource, RawTensor};

use crate::Init;
use crate::config::{LoraConfig, LoraLayout};
use crate::networks::Stored;
use crate::run::Weights;

/// A model's own source, with low-rank additions to the layers that the configuration names.
pub(crate) struct Adapted<'a> {
    pub base: &'a dyn ParamSource,
    pub config: &'a LoraConfig,
    pub init: Init,
}

/// What a text encoder's attention is made of.
const TEXT_TARGETS: &[&str] = &["q_proj", "k_proj", "v_proj", "out_proj"];

/// Around a UNet's transformers; linear layers in some models, convolutions in others.
const PROJECTIONS: &[&str] = &[".proj_in", ".proj_out"];

/// Ends of the names of an addition's two matrices.
const DOWN: &str = ".lora_A.weight";
const UP: &str = ".lora_B.weight";

/// Whether a parameter belongs to an addition.
pub(crate) fn is_addition(name: &str) -> bool {
    name.ends_with(DOWN) || name.ends_with(UP)
}

impl ParamSource for Adapted<'_> {
    fn tensor(
        &self,
        name: &str,
        shape: &[usize],
    ) -> Result<RawTensor, Box<dyn std::error::Error + Send + Sync>> {
        if name.ends_with(UP) {
            // The addition begins as nothing.
            return Ok(RawTensor::from_f32(
                &vec![0.0; shape.iter().product()],
                shape,
            ));
        }
        if name.ends_with(DOWN) {
            return self.init.tensor(name, shape);
        }
        self.base.tensor(name, shape)
    }

    fn has(&self, name: &str) -> bool {
        self.base.has(name)
    }

    fn low_rank(&self, layer: &str) -> Option<LowRank> {
        let ends = |name: &str| {
            let rest = layer.strip_suffix(name);
            rest.is_some_and(|rest| rest.ends_with('.'))
        };
        let adapted = match layer.split_once('.')?.0 {
            "unet" => self.config.targets.iter().any(|t| ends(t)),
            "text_encoder" => self.config.text_encoder && TEXT_TARGETS.iter().any(|t| ends(t)),
            _ => false,
        };
        adapted.then(|| LowRank {
            rank: self.config.rank,
            scale: self.config.alpha / self.config.rank as f64,
        })
    }
}

/// The additions as a file holds them.
///
/// diffusers' layout has no place for alpha, and readers take it to be the rank: the factor goes into the second matrix.
/// Where a UNet's `proj_in` and `proj_out` are 1x1 convolutions (not `linear`), readers expect their additions to be too.
pub(crate) fn tensors(weights: &Weights, config: &LoraConfig, linear: bool) -> Weights {
    let scale = (config.alpha / config.rank as f64) as f32;
    let mut found = BTreeMap::new();
    for (name, stored) in weights {
        let down = name.strip_suffix(DOWN);
        let Some(layer) = down.or_else(|| name.strip_suffix(UP)) else {
            continue;
        };
        let (is_down, layer) = (down.is_some(), published(layer));
        let mut stored = stored.clone();
        if !linear && PROJECTIONS.iter().any(|end| layer.ends_with(end)) {
            stored.shape.extend([1, 1]);
        }
        match config.layout {
            LoraLayout::Diffusers => {
                let factor = if is_down { 1.0 } else { scale };
                stored.values.iter_mut().for_each(|v| *v *= factor);
                let end = if is_down { DOWN } else { UP };
                found.insert(format!("{layer}{end}"), stored);
            }
            LoraLayout::Kohya => {
                let layer = kohya(&layer);
                let end = if is_down { "lora_down" } else { "lora_up" };
                found.insert(format!("{layer}.{end}.weight"), stored);
                let alpha = Stored {
                    shape: Vec::new(),
                    values: vec![config.alpha as f32],
                };
                found.insert(format!("{layer}.alpha"), alpha);
            }
        }
    }
    found
}

/// The name that readers know a layer by: transformers 5 writes text encoders without `text_model.`, files of
/// additions keep it.
fn published(layer: &str) -> String {
    match layer.strip_prefix("text_encoder.") {
        Some(rest) if !rest.starts_with("text_model.") => format!("text_encoder.text_model.{rest}"),
        _ => layer.to_owned(),
    }
}

/// `unet.a.b` as kohya's scripts spell it.
fn kohya(layer: &str) -> String {
    let spelled = match layer.split_once('.') {
        Some(("unet", rest)) => format!("lora_unet.{rest}"),
        Some(("text_encoder", rest)) => format!("lora_te.{rest}"),
        _ => layer.to_owned(),
    };
    spelled.replace('.', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights() -> Weights {
        let stored = |shape: [usize; 2], x: f32| Stored {
            shape: shape.to_vec(),
            values: vec![x; shape[0] * shape[1]],
        };
        let name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0";
        [
            (format!("{name}{DOWN}"), stored([2, 3], 1.0)),
            (format!("{name}{UP}"), stored([3, 2], 2.0)),
            ("unet.conv_in.weight".into(), stored([1, 1], 0.0)),
        ]
        .into()
    }

    #[test]
    fn files_are_named_as_their_readers_expect() {
        let mut config = LoraConfig {
            rank: 2,
            alpha: 1.0,
            ..LoraConfig::default()
        };
        let name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0";
        let found = tensors(&weights(), &config, true);
        assert_eq!(found.len(), 2);
        assert_eq!(found[&format!("{name}{UP}")].values, [1.0; 6]);
        config.layout = LoraLayout::Kohya;
        let found = tensors(&weights(), &config, true);
        let layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0";
        let names: Vec<&str> = found.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                format!("{layer}.alpha"),
                format!("{layer}.lora_down.weight"),
                format!("{layer}.lora_up.weight")
            ]
        );
        assert_eq!(found[&format!("{layer}.alpha")].values, [1.0]);
    }

    #[test]
    fn additions_to_convolutions_are_convolutions() {
        let stored = Stored {
            shape: vec![2, 3],
            values: vec![1.0; 6],
        };
        let layer = "unet.mid_block.attentions.0.proj_in";
        let weights = [(format!("{layer}{DOWN}"), stored)].into();
        let shape = |linear| {
            let found = tensors(&weights, &LoraConfig::default(), linear);
            found[&format!("{layer}{DOWN}")].shape.clone()
        };
        assert_eq!((shape(false), shape(true)), (vec![2, 3, 1, 1], vec![2, 3]));
    }
}
