//! What other programs call the families in GGUF files, and which weights they keep exact there.
//!
//! Names are those of the original layouts, as stable-diffusion.cpp and ComfyUI-GGUF read them; of the layouts of
//! diffusers only stable-diffusion.cpp reads most.

/// A `general.architecture`, and names of tensors that tell it, all of them. The more particular come first.
const ARCHITECTURES: &[(&str, &[&str])] = &[
    ("flux", &["double_blocks.0.img_attn.proj.weight"]),
    ("flux", &["single_transformer_blocks.0.proj_mlp.weight"]),
    ("sd3", &["joint_blocks.0.x_block.attn.qkv.weight"]),
    ("sd3", &["transformer_blocks.0.attn.add_q_proj.weight"]),
    ("sdxl", &["label_emb.0.0.weight", "input_blocks.0.0.weight"]),
    (
        "sdxl",
        &[
            "add_embedding.linear_1.weight",
            "down_blocks.0.downsamplers.0.conv.weight",
        ],
    ),
    (
        "sd1",
        &[
            "input_blocks.3.0.op.weight",
            "output_blocks.8.1.transformer_blocks.0.attn1.to_q.weight",
        ],
    ),
    (
        "sd1",
        &["down_blocks.0.downsamplers.0.conv.weight", "conv_in.weight"],
    ),
    (
        "t5encoder",
        &["encoder.block.0.layer.0.SelfAttention.q.weight"],
    ),
    ("t5encoder", &["enc.blk.0.attn_q.weight"]),
];

/// Before a network's names in files that hold more than it.
const PREFIX: &str = "model.diffusion_model.";

/// Parts of the names of weights that a network begins and ends with. They are few, and what they lose shows in
/// every number after them.
const DELICATE: &[&str] = &[
    // The transformers.
    "img_in.",
    "txt_in.",
    "time_in.",
    "vector_in.",
    "guidance_in.",
    "final_layer.",
    "x_embedder.",
    "t_embedder.",
    "y_embedder.",
    "pos_embed",
    "context_embedder.",
    "time_text_embed.",
    "proj_out.weight",
    "norm_out.",
    // The UNets.
    "time_embed",
    "label_emb.",
    "add_embedding.",
    // The text encoders.
    "embedding",
    "relative_attention_bias",
    "attn_rel_b",
];

/// The `general.architecture` of a network with tensors of these names; nothing for what those programs have no
/// name for, such as an autoencoder.
pub fn gguf_architecture(has: &dyn Fn(&str) -> bool) -> Option<&'static str> {
    let here = |name: &str| has(name) || has(&format!("{PREFIX}{name}"));
    let row = ARCHITECTURES
        .iter()
        .find(|row| row.1.iter().all(|name| here(name)));
    row.map(|row| row.0)
}

/// Whether a weight of that name is kept exact when a network is quantised.
pub fn is_delicate(name: &str) -> bool {
    // Inside a block a projection of that name is one of many.
    let inside = name.contains("_blocks.") || name.contains("attentions.");
    DELICATE
        .iter()
        .any(|part| name.contains(part) && !(inside && *part == "proj_out.weight"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architectures_by_their_tensors() {
        let of = |names: &[&str]| gguf_architecture(&|n| names.contains(&n));
        assert_eq!(of(&["double_blocks.0.img_attn.proj.weight"]), Some("flux"));
        assert_eq!(
            of(&["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"]),
            Some("sd3")
        );
        let unet = "input_blocks.3.0.op.weight";
        let last = "output_blocks.8.1.transformer_blocks.0.attn1.to_q.weight";
        assert_eq!(of(&[unet, last]), Some("sd1"));
        assert_eq!(
            of(&["label_emb.0.0.weight", "input_blocks.0.0.weight", unet]),
            Some("sdxl")
        );
        assert_eq!(of(&["encoder.conv_in.weight"]), None);
    }

    #[test]
    fn what_is_kept() {
        for name in [
            "model.diffusion_model.time_embed.0.weight",
            "final_layer.linear.weight",
            "proj_out.weight",
            "text_model.embeddings.token_embedding.weight",
        ] {
            assert!(is_delicate(name), "{name}");
        }
        for name in [
            "down_blocks.0.attentions.0.proj_out.weight",
            "single_transformer_blocks.3.proj_out.weight",
            "double_blocks.0.img_mlp.0.weight",
            "token_embd.weight",
        ] {
            assert!(!is_delicate(name), "{name}");
        }
    }
}
