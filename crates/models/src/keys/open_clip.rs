//! OpenCLIP's text tower, with its fused query, key and value.

use super::{Place, number, swap_head};

const LAYER: &[(&str, &str)] = &[
    ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
    ("self_attn.out_proj", "attn.out_proj"),
];

/// The place of a transformers name.
pub(super) fn place(name: &str) -> Place {
    let inner = name.strip_prefix("text_model.").unwrap_or(name);
    match inner {
        "embeddings.token_embedding.weight" => return Place::plain("token_embedding.weight"),
        "embeddings.position_embedding.weight" => return Place::plain("positional_embedding"),
        // OpenCLIP multiplies by it from the right, so it is the transpose of a Linear's weight.
        "text_projection.weight" => {
            return Place {
                transposed: true,
                ..Place::plain("text_projection")
            };
        }
        _ => {}
    }
    if let Some(rest) = inner.strip_prefix("final_layer_norm.") {
        return Place::plain(format!("ln_final.{rest}"));
    }
    let Some((layer, rest)) = inner.strip_prefix("encoder.layers.").and_then(number) else {
        return Place::plain(inner);
    };
    for (part, proj) in [
        "self_attn.q_proj.",
        "self_attn.k_proj.",
        "self_attn.v_proj.",
    ]
    .iter()
    .enumerate()
    {
        if let Some(kind) = rest.strip_prefix(proj) {
            return Place {
                part: Some((part, 3)),
                ..Place::plain(format!("transformer.resblocks.{layer}.attn.in_proj_{kind}"))
            };
        }
    }
    Place::plain(format!(
        "transformer.resblocks.{layer}.{}",
        swap_head(rest, LAYER)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fused_projections_are_thirds() {
        let p = place("text_model.encoder.layers.3.self_attn.k_proj.bias");
        assert_eq!(p.name, "transformer.resblocks.3.attn.in_proj_bias");
        assert_eq!(p.part, Some((1, 3)));
        let p = place("encoder.layers.0.mlp.fc2.weight");
        assert_eq!(p.name, "transformer.resblocks.0.mlp.c_proj.weight");
        assert!(place("text_projection.weight").transposed);
    }
}
