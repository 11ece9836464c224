//! The LDM UNet: a flat list of input and output blocks.

use std::collections::BTreeSet;

use super::{number, swap_head};

const RESNET: &[(&str, &str)] = &[
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
];

const HEADS: &[(&str, &str)] = &[
    ("conv_in", "input_blocks.0.0"),
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("add_embedding.linear_1", "label_emb.0.0"),
    ("add_embedding.linear_2", "label_emb.0.2"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
];

/// The LDM name of a diffusers name. `layers` is the number of resnets in a down level.
pub(super) fn ldm(name: &str, layers: usize, has: &dyn Fn(&str) -> bool) -> String {
    let mapped = if let Some(rest) = name.strip_prefix("down_blocks.") {
        number(rest).and_then(|(level, rest)| down(level, rest, layers))
    } else if let Some(rest) = name.strip_prefix("up_blocks.") {
        number(rest).and_then(|(level, rest)| up(level, rest, layers, has))
    } else if let Some(rest) = name.strip_prefix("mid_block.") {
        mid(rest)
    } else {
        Some(swap_head(name, HEADS))
    };
    mapped.unwrap_or_else(|| name.to_owned())
}

fn down(level: usize, rest: &str, layers: usize) -> Option<String> {
    if let Some(rest) = rest.strip_prefix("resnets.") {
        let (j, rest) = number(rest)?;
        let block = 1 + level * (layers + 1) + j;
        Some(format!(
            "input_blocks.{block}.0.{}",
            swap_head(rest, RESNET)
        ))
    } else if let Some(rest) = rest.strip_prefix("attentions.") {
        let (j, rest) = number(rest)?;
        Some(format!(
            "input_blocks.{}.1.{rest}",
            1 + level * (layers + 1) + j
        ))
    } else {
        let rest = rest.strip_prefix("downsamplers.0.conv.")?;
        Some(format!(
            "input_blocks.{}.0.op.{rest}",
            (level + 1) * (layers + 1)
        ))
    }
}

fn mid(rest: &str) -> Option<String> {
    if let Some(rest) = rest.strip_prefix("resnets.") {
        let (j, rest) = number(rest)?;
        Some(format!(
            "middle_block.{}.{}",
            2 * j,
            swap_head(rest, RESNET)
        ))
    } else {
        let rest = rest.strip_prefix("attentions.0.")?;
        Some(format!("middle_block.1.{rest}"))
    }
}

fn up(level: usize, rest: &str, layers: usize, has: &dyn Fn(&str) -> bool) -> Option<String> {
    if let Some(rest) = rest.strip_prefix("resnets.") {
        let (j, rest) = number(rest)?;
        let block = level * (layers + 1) + j;
        Some(format!(
            "output_blocks.{block}.0.{}",
            swap_head(rest, RESNET)
        ))
    } else if let Some(rest) = rest.strip_prefix("attentions.") {
        let (j, rest) = number(rest)?;
        Some(format!(
            "output_blocks.{}.1.{rest}",
            level * (layers + 1) + j
        ))
    } else {
        let rest = rest.strip_prefix("upsamplers.0.conv.")?;
        // After the attention where there is one, else right after the resnet.
        let block = level * (layers + 1) + layers;
        let second = format!("output_blocks.{block}.2.conv.{rest}");
        if has(&second) {
            Some(second)
        } else {
            Some(format!("output_blocks.{block}.1.conv.{rest}"))
        }
    }
}

/// Whether a place of an upsampler (as [`ldm`] asks for it) comes after an attention, told by the names in diffusers'
/// naming.
pub(super) fn follows_attention(name: &str, layers: usize, own: &dyn Fn(&str) -> bool) -> bool {
    let Some((block, rest)) = name.strip_prefix("output_blocks.").and_then(number) else {
        return false;
    };
    let level = block / (layers + 1);
    rest.starts_with("2.conv.")
        && own(&format!(
            "up_blocks.{level}.attentions.{layers}.norm.weight"
        ))
}

/// Resnets in a down level, read off where the first downsampler stands.
pub(super) fn ldm_layers(names: &BTreeSet<&str>, prefix: &str) -> usize {
    (1..64)
        .find(|i| {
            let name = format!("{prefix}input_blocks.{i}.0.op.weight");
            names.contains(name.as_str())
        })
        .map_or(2, |i| i - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_names() {
        let yes = |_: &str| true;
        let no = |_: &str| false;
        for (diffusers, want) in [
            ("conv_in.weight", "input_blocks.0.0.weight"),
            (
                "down_blocks.0.resnets.1.conv1.bias",
                "input_blocks.2.0.in_layers.2.bias",
            ),
            (
                "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight",
                "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight",
            ),
            (
                "down_blocks.2.downsamplers.0.conv.weight",
                "input_blocks.9.0.op.weight",
            ),
            (
                "mid_block.resnets.1.norm2.weight",
                "middle_block.2.out_layers.0.weight",
            ),
            (
                "up_blocks.3.resnets.2.conv_shortcut.weight",
                "output_blocks.11.0.skip_connection.weight",
            ),
            (
                "up_blocks.1.upsamplers.0.conv.bias",
                "output_blocks.5.2.conv.bias",
            ),
            ("conv_norm_out.weight", "out.0.weight"),
        ] {
            assert_eq!(ldm(diffusers, 2, &yes), want);
        }
        assert_eq!(
            ldm("up_blocks.0.upsamplers.0.conv.bias", 2, &no),
            "output_blocks.2.1.conv.bias"
        );
    }
}
