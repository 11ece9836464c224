//! The original namings of the diffusion transformers (Stability's `mmdit`, Black Forest Labs' `flux`), and GGML's of T5.

use super::{Place, number, swap_head};

const MMDIT_HEADS: &[(&str, &str)] = &[
    ("pos_embed.proj", "x_embedder.proj"),
    ("pos_embed.pos_embed", "pos_embed"),
    (
        "time_text_embed.timestep_embedder.linear_1",
        "t_embedder.mlp.0",
    ),
    (
        "time_text_embed.timestep_embedder.linear_2",
        "t_embedder.mlp.2",
    ),
    ("time_text_embed.text_embedder.linear_1", "y_embedder.mlp.0"),
    ("time_text_embed.text_embedder.linear_2", "y_embedder.mlp.2"),
    ("norm_out.linear", "final_layer.adaLN_modulation.1"),
    ("proj_out", "final_layer.linear"),
];

const MMDIT_BLOCK: &[(&str, &str)] = &[
    ("norm1.linear", "x_block.adaLN_modulation.1"),
    ("norm1_context.linear", "context_block.adaLN_modulation.1"),
    ("attn.to_out.0", "x_block.attn.proj"),
    ("attn.to_add_out", "context_block.attn.proj"),
    ("attn.norm_q", "x_block.attn.ln_q"),
    ("attn.norm_k", "x_block.attn.ln_k"),
    ("attn.norm_added_q", "context_block.attn.ln_q"),
    ("attn.norm_added_k", "context_block.attn.ln_k"),
    ("attn2.to_out.0", "x_block.attn2.proj"),
    ("attn2.norm_q", "x_block.attn2.ln_q"),
    ("attn2.norm_k", "x_block.attn2.ln_k"),
    ("ff.net.0.proj", "x_block.mlp.fc1"),
    ("ff.net.2", "x_block.mlp.fc2"),
    ("ff_context.net.0.proj", "context_block.mlp.fc1"),
    ("ff_context.net.2", "context_block.mlp.fc2"),
];

/// Queries, keys and values, and what they are parts of.
const MMDIT_FUSED: &[(&str, usize, &str)] = &[
    ("attn.to_q", 0, "x_block.attn.qkv"),
    ("attn.to_k", 1, "x_block.attn.qkv"),
    ("attn.to_v", 2, "x_block.attn.qkv"),
    ("attn.add_q_proj", 0, "context_block.attn.qkv"),
    ("attn.add_k_proj", 1, "context_block.attn.qkv"),
    ("attn.add_v_proj", 2, "context_block.attn.qkv"),
    ("attn2.to_q", 0, "x_block.attn2.qkv"),
    ("attn2.to_k", 1, "x_block.attn2.qkv"),
    ("attn2.to_v", 2, "x_block.attn2.qkv"),
];

/// The place of a diffusers name in Stability's naming. `layers` is the number of blocks.
pub(super) fn mmdit(name: &str, layers: usize) -> Place {
    let Some((block, rest)) = name.strip_prefix("transformer_blocks.").and_then(number) else {
        return Place {
            // Shift and scale there, scale and shift here.
            swapped: name.starts_with("norm_out."),
            ..Place::plain(swap_head(name, MMDIT_HEADS))
        };
    };
    let at = format!("joint_blocks.{block}");
    if let Some(place) = fused(rest, MMDIT_FUSED, 3, &at) {
        return place;
    }
    Place {
        swapped: block + 1 == layers && rest.starts_with("norm1_context."),
        ..Place::plain(format!("{at}.{}", swap_head(rest, MMDIT_BLOCK)))
    }
}

const FLUX_HEADS: &[(&str, &str)] = &[
    ("x_embedder", "img_in"),
    ("context_embedder", "txt_in"),
    (
        "time_text_embed.timestep_embedder.linear_1",
        "time_in.in_layer",
    ),
    (
        "time_text_embed.timestep_embedder.linear_2",
        "time_in.out_layer",
    ),
    (
        "time_text_embed.text_embedder.linear_1",
        "vector_in.in_layer",
    ),
    (
        "time_text_embed.text_embedder.linear_2",
        "vector_in.out_layer",
    ),
    (
        "time_text_embed.guidance_embedder.linear_1",
        "guidance_in.in_layer",
    ),
    (
        "time_text_embed.guidance_embedder.linear_2",
        "guidance_in.out_layer",
    ),
    ("norm_out.linear", "final_layer.adaLN_modulation.1"),
    ("proj_out", "final_layer.linear"),
];

const FLUX_DOUBLE: &[(&str, &str)] = &[
    ("norm1.linear", "img_mod.lin"),
    ("norm1_context.linear", "txt_mod.lin"),
    ("attn.to_out.0", "img_attn.proj"),
    ("attn.to_add_out", "txt_attn.proj"),
    ("attn.norm_q.weight", "img_attn.norm.query_norm.scale"),
    ("attn.norm_k.weight", "img_attn.norm.key_norm.scale"),
    ("attn.norm_added_q.weight", "txt_attn.norm.query_norm.scale"),
    ("attn.norm_added_k.weight", "txt_attn.norm.key_norm.scale"),
    ("ff.net.0.proj", "img_mlp.0"),
    ("ff.net.2", "img_mlp.2"),
    ("ff_context.net.0.proj", "txt_mlp.0"),
    ("ff_context.net.2", "txt_mlp.2"),
];

const FLUX_DOUBLE_FUSED: &[(&str, usize, &str)] = &[
    ("attn.to_q", 0, "img_attn.qkv"),
    ("attn.to_k", 1, "img_attn.qkv"),
    ("attn.to_v", 2, "img_attn.qkv"),
    ("attn.add_q_proj", 0, "txt_attn.qkv"),
    ("attn.add_k_proj", 1, "txt_attn.qkv"),
    ("attn.add_v_proj", 2, "txt_attn.qkv"),
];

const FLUX_SINGLE: &[(&str, &str)] = &[
    ("norm.linear", "modulation.lin"),
    ("attn.norm_q.weight", "norm.query_norm.scale"),
    ("attn.norm_k.weight", "norm.key_norm.scale"),
    ("proj_out", "linear2"),
];

/// Queries, keys and values have as many rows as the model has channels; the feed-forward behind them four times that.
const FLUX_SINGLE_FUSED: &[(&str, usize, &str)] = &[
    ("attn.to_q", 0, "linear1"),
    ("attn.to_k", 1, "linear1"),
    ("attn.to_v", 2, "linear1"),
    ("proj_mlp", 3, "linear1"),
];

/// The place of a diffusers name in Black Forest Labs' naming.
pub(super) fn flux(name: &str) -> Place {
    if let Some((block, rest)) = name.strip_prefix("transformer_blocks.").and_then(number) {
        let at = format!("double_blocks.{block}");
        return fused(rest, FLUX_DOUBLE_FUSED, 3, &at)
            .unwrap_or_else(|| Place::plain(format!("{at}.{}", swap_head(rest, FLUX_DOUBLE))));
    }
    let single = name.strip_prefix("single_transformer_blocks.");
    if let Some((block, rest)) = single.and_then(number) {
        let at = format!("single_blocks.{block}");
        let Some(place) = fused(rest, FLUX_SINGLE_FUSED, 7, &at) else {
            return Place::plain(format!("{at}.{}", swap_head(rest, FLUX_SINGLE)));
        };
        let span = if rest.starts_with("proj_mlp.") { 4 } else { 1 };
        return Place { span, ..place };
    }
    Place {
        swapped: name.starts_with("norm_out."),
        ..Place::plain(swap_head(name, FLUX_HEADS))
    }
}

/// The place of a tensor that is one of `of` parts of another.
fn fused(rest: &str, table: &[(&str, usize, &str)], of: usize, at: &str) -> Option<Place> {
    table.iter().find_map(|(from, part, to)| {
        let kind = rest.strip_prefix(from)?.strip_prefix('.')?;
        Some(Place {
            part: Some((*part, of)),
            ..Place::plain(format!("{at}.{to}.{kind}"))
        })
    })
}

const T5_HEADS: &[(&str, &str)] = &[
    ("shared", "token_embd"),
    ("encoder.embed_tokens", "token_embd"),
    ("encoder.final_layer_norm", "enc.output_norm"),
];

const T5_BLOCK: &[(&str, &str)] = &[
    ("layer.0.SelfAttention.q", "attn_q"),
    ("layer.0.SelfAttention.k", "attn_k"),
    ("layer.0.SelfAttention.v", "attn_v"),
    ("layer.0.SelfAttention.o", "attn_o"),
    (
        "layer.0.SelfAttention.relative_attention_bias",
        "attn_rel_b",
    ),
    ("layer.0.layer_norm", "attn_norm"),
    ("layer.1.layer_norm", "ffn_norm"),
    ("layer.1.DenseReluDense.wi_0", "ffn_gate"),
    ("layer.1.DenseReluDense.wi_1", "ffn_up"),
    ("layer.1.DenseReluDense.wo", "ffn_down"),
];

/// The place of a transformers name of T5 in GGML's naming.
pub(super) fn t5_ggml(name: &str) -> Place {
    match name.strip_prefix("encoder.block.").and_then(number) {
        Some((block, rest)) => {
            Place::plain(format!("enc.blk.{block}.{}", swap_head(rest, T5_BLOCK)))
        }
        None => Place::plain(swap_head(name, T5_HEADS)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_names_of_stable_diffusion_3() {
        let p = mmdit("transformer_blocks.3.attn.add_k_proj.bias", 24);
        assert_eq!(p.name, "joint_blocks.3.context_block.attn.qkv.bias");
        assert_eq!((p.part, p.span, p.swapped), (Some((1, 3)), 1, false));
        let p = mmdit("transformer_blocks.3.norm1_context.linear.weight", 24);
        assert!(!p.swapped);
        let p = mmdit("transformer_blocks.23.norm1_context.linear.weight", 24);
        assert_eq!(
            p.name,
            "joint_blocks.23.context_block.adaLN_modulation.1.weight"
        );
        assert!(p.swapped);
        assert!(mmdit("norm_out.linear.bias", 24).swapped);
        assert_eq!(mmdit("pos_embed.pos_embed", 24).name, "pos_embed");
        assert_eq!(
            mmdit("context_embedder.bias", 24).name,
            "context_embedder.bias"
        );
    }

    #[test]
    fn known_names_of_flux() {
        let p = flux("single_transformer_blocks.7.proj_mlp.weight");
        assert_eq!(p.name, "single_blocks.7.linear1.weight");
        assert_eq!((p.part, p.span), (Some((3, 7)), 4));
        let p = flux("single_transformer_blocks.7.attn.to_v.bias");
        assert_eq!((p.part, p.span), (Some((2, 7)), 1));
        let p = flux("transformer_blocks.0.attn.norm_added_q.weight");
        assert_eq!(p.name, "double_blocks.0.txt_attn.norm.query_norm.scale");
        assert_eq!(flux("x_embedder.bias").name, "img_in.bias");
    }

    #[test]
    fn known_names_of_t5() {
        let p = t5_ggml("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight");
        assert_eq!(p.name, "enc.blk.0.attn_rel_b.weight");
        assert_eq!(t5_ggml("shared.weight").name, "token_embd.weight");
    }
}
