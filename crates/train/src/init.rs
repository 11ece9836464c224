//! Where the weights of a new network begin.

use std::cell::RefCell;
use std::collections::HashMap;

use aquatint_diffusion::training::Draw;
use aquatint_ops::{ParamSource, RawTensor};

/// Gives a new network its first weights, as PyTorch's layers do.
///
/// - Linear layers and convolutions: evenly within `±1 / sqrt(fan_in)`, weight and bias (`kaiming_uniform_` with
///   `a = sqrt 5`).
/// - Norms: 1 and 0.
/// - Embedding tables: normal with deviation 0.02 (CLIP).
/// - The last layer of each residual branch, and of the network: 0, so that a new network is the identity and
///   predicts 0 (Ho et al. 2020).
///
/// A tensor depends on the seed and its name alone, not on the order in which a network is built.
#[derive(Debug)]
pub struct Init {
    seed: u64,
    /// Prefix of the names, so that two networks of one run differ.
    part: &'static str,
    /// Inputs of a layer whose weight was given, for its bias.
    fan_in: RefCell<HashMap<String, usize>>,
}

/// Ends of the names of layers that close a residual branch, or the network.
const CLOSING: &[&str] = &[
    "conv2", "to_out.0", "ff.net.2", "proj_out", "conv_out", "out_proj", "mlp.fc2",
];

/// Layers of that name which close nothing: the autoencoder's coders end in `conv_out` too.
const NOT_CLOSING: &[&str] = &["encoder.conv_out", "decoder.conv_out"];

impl Init {
    /// For one part of a model (`unet`, `vae`, `text_encoder`).
    pub fn new(seed: u64, part: &'static str) -> Self {
        Self {
            seed,
            part,
            fan_in: RefCell::default(),
        }
    }

    fn values(&self, name: &str, shape: &[usize]) -> Vec<f32> {
        let len = shape.iter().product();
        let (layer, kind) = name.rsplit_once('.').unwrap_or(("", name));
        let last = layer
            .rsplit('.')
            .find(|part| part.parse::<usize>().is_err());
        if last.is_some_and(|l| l.contains("norm")) {
            return vec![if kind == "bias" { 0.0 } else { 1.0 }; len];
        }
        let draw = Draw::new(self.seed, hash(self.part, name));
        if last.is_some_and(|l| {
            l.contains("embedding") && !l.starts_with("time") && !l.starts_with("add")
        }) && shape.len() == 2
            && kind == "weight"
        {
            let mut values = vec![0.0; len];
            draw.normal(0, &mut values);
            values.iter_mut().for_each(|v| *v *= 0.02);
            return values;
        }
        let fan_in = match shape.len() {
            0 | 1 => self.fan_in.borrow().get(layer).copied(),
            _ => Some(shape[1..].iter().product()),
        };
        if let (2.., Some(fan_in)) = (shape.len(), fan_in) {
            self.fan_in.borrow_mut().insert(layer.into(), fan_in);
        }
        let ends = |names: &[&str]| {
            names
                .iter()
                .any(|n| layer == *n || layer.ends_with(&format!(".{n}")))
        };
        if ends(CLOSING) && !ends(NOT_CLOSING) {
            return vec![0.0; len];
        }
        let bound = 1.0 / (fan_in.unwrap_or(1).max(1) as f64).sqrt();
        (0..len)
            .map(|i| ((2.0 * draw.choice(i) - 1.0) * bound) as f32)
            .collect()
    }
}

impl ParamSource for Init {
    fn tensor(
        &self,
        name: &str,
        shape: &[usize],
    ) -> Result<RawTensor, Box<dyn std::error::Error + Send + Sync>> {
        Ok(RawTensor::from_f32(&self.values(name, shape), shape))
    }

    /// A new autoencoder has an encoder; nothing else that is optional is there.
    fn has(&self, name: &str) -> bool {
        name == "encoder.conv_in.weight"
    }
}

/// FNV-1a of a tensor's full name: which random numbers it gets.
fn hash(part: &str, name: &str) -> u64 {
    part.bytes()
        .chain(*b"/")
        .chain(name.bytes())
        .fold(0xcbf2_9ce4_8422_2325, |h, byte| {
            (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(values: &[f32]) -> (f64, f64, f32) {
        let n = values.len() as f64;
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let square = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / n;
        let largest = values.iter().fold(0.0, |m: f32, v| m.max(v.abs()));
        (mean, square.sqrt(), largest)
    }

    #[test]
    fn weights_begin_as_those_of_torch() {
        let init = Init::new(1, "unet");
        let weight = init.values("mid_block.resnets.0.conv1.weight", &[64, 32, 3, 3]);
        let bound = 1.0 / 288f64.sqrt();
        let (mean, deviation, largest) = moments(&weight);
        // 18,432 values: the mean is known to 0.0043 of the deviation; four times that is the bound.
        assert!(mean.abs() < 0.018 * bound && (deviation * 3f64.sqrt() / bound - 1.0).abs() < 0.02);
        assert!(f64::from(largest) <= bound);
        let bias = init.values("mid_block.resnets.0.conv1.bias", &[64]);
        assert!(f64::from(moments(&bias).2) <= bound && moments(&bias).1 > 0.0);
        assert_eq!(init.values("conv_norm_out.weight", &[4]), [1.0; 4]);
        assert_eq!(
            init.values("mid_block.attentions.0.group_norm.bias", &[4]),
            [0.0; 4]
        );
        assert_eq!(
            init.values("mid_block.resnets.0.conv2.weight", &[2, 2, 3, 3]),
            [0.0; 36]
        );
        assert_eq!(init.values("a.attn1.to_out.0.bias", &[4]), [0.0; 4]);
        assert!(
            init.values("decoder.conv_out.weight", &[3, 8, 3, 3])
                .iter()
                .any(|&v| v != 0.0)
        );
        let table = init.values("text_model.embeddings.token_embedding.weight", &[500, 64]);
        assert!((moments(&table).1 - 0.02).abs() < 5e-4);
        let time = init.values("time_embedding.linear_1.weight", &[64, 16]);
        assert!(moments(&time).2 > 0.2, "a linear layer, not a table");
    }

    #[test]
    fn a_tensor_depends_on_seed_and_name_alone() {
        let of = |seed, part, name| Init::new(seed, part).values(name, &[8, 8]);
        let first = of(1, "unet", "a.conv1.weight");
        assert_eq!(first, of(1, "unet", "a.conv1.weight"));
        assert_ne!(first, of(2, "unet", "a.conv1.weight"));
        assert_ne!(first, of(1, "vae", "a.conv1.weight"));
        assert_ne!(first, of(1, "unet", "b.conv1.weight"));
    }
}
