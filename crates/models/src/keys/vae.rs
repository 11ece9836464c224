//! The LDM autoencoder.

use super::{number, swap_head};

const ATTENTION: &[(&str, &str)] = &[
    ("group_norm", "norm"),
    ("to_q", "q"),
    ("to_k", "k"),
    ("to_v", "v"),
    ("to_out.0", "proj_out"),
];

/// The LDM name of a diffusers name. `levels` is the number of levels of the decoder, whose LDM
/// order is the reverse.
pub(super) fn ldm(name: &str, levels: usize) -> String {
    let Some((side, rest)) = name.split_once('.') else {
        return name.to_owned();
    };
    if side != "encoder" && side != "decoder" {
        return name.to_owned();
    }
    let mapped = if let Some(rest) = rest.strip_prefix("down_blocks.") {
        number(rest).and_then(|(i, rest)| level("down", i, rest))
    } else if let Some(rest) = rest.strip_prefix("up_blocks.") {
        number(rest).and_then(|(i, rest)| level("up", levels.checked_sub(i + 1)?, rest))
    } else if let Some(rest) = rest.strip_prefix("mid_block.") {
        mid(rest)
    } else {
        Some(swap_head(rest, &[("conv_norm_out", "norm_out")]))
    };
    match mapped {
        Some(rest) => format!("{side}.{rest}"),
        None => name.to_owned(),
    }
}

fn resnet(rest: &str) -> String {
    swap_head(rest, &[("conv_shortcut", "nin_shortcut")])
}

fn level(kind: &str, index: usize, rest: &str) -> Option<String> {
    if let Some(rest) = rest.strip_prefix("resnets.") {
        let (j, rest) = number(rest)?;
        Some(format!("{kind}.{index}.block.{j}.{}", resnet(rest)))
    } else if let Some(rest) = rest.strip_prefix("downsamplers.0.") {
        Some(format!("{kind}.{index}.downsample.{rest}"))
    } else {
        let rest = rest.strip_prefix("upsamplers.0.")?;
        Some(format!("{kind}.{index}.upsample.{rest}"))
    }
}

fn mid(rest: &str) -> Option<String> {
    if let Some(rest) = rest.strip_prefix("resnets.") {
        let (j, rest) = number(rest)?;
        Some(format!("mid.block_{}.{}", j + 1, resnet(rest)))
    } else {
        let rest = rest.strip_prefix("attentions.0.")?;
        Some(format!("mid.attn_1.{}", swap_head(rest, ATTENTION)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_names() {
        for (diffusers, want) in [
            (
                "encoder.down_blocks.1.resnets.0.conv_shortcut.weight",
                "encoder.down.1.block.0.nin_shortcut.weight",
            ),
            (
                "encoder.down_blocks.0.downsamplers.0.conv.bias",
                "encoder.down.0.downsample.conv.bias",
            ),
            (
                "decoder.up_blocks.0.resnets.2.norm1.weight",
                "decoder.up.3.block.2.norm1.weight",
            ),
            (
                "decoder.mid_block.attentions.0.to_out.0.weight",
                "decoder.mid.attn_1.proj_out.weight",
            ),
            (
                "decoder.mid_block.resnets.1.conv2.bias",
                "decoder.mid.block_2.conv2.bias",
            ),
            ("decoder.conv_norm_out.bias", "decoder.norm_out.bias"),
            ("post_quant_conv.weight", "post_quant_conv.weight"),
        ] {
            assert_eq!(ldm(diffusers, 4), want);
        }
    }
}
