//! How files of low-rank additions name the layers of a model.
//!
//! kohya's scripts join the parts of a name by underscores, so every spelling is brought to that form.

use crate::keys::{self, Layout, Naming, Place};
use crate::network::NetworkConfig;

/// Suffixes of a module's tensors, the longer before those that they end in, with their role.
const ROLES: &[(&str, Role)] = &[
    (".lora_linear_layer.down.weight", Role::Down),
    (".lora_linear_layer.up.weight", Role::Up),
    (".lora_A.default.weight", Role::Down),
    (".lora_B.default.weight", Role::Up),
    (".lora_down.weight", Role::Down),
    (".lora_mid.weight", Role::Mid),
    (".lora_up.weight", Role::Up),
    (".lora.down.weight", Role::Down),
    (".lora.up.weight", Role::Up),
    ("_lora.down.weight", Role::Down),
    ("_lora.up.weight", Role::Up),
    (".lora_A.weight", Role::Down),
    (".lora_B.weight", Role::Up),
    (".alpha", Role::Alpha),
];

/// Parts of the names of tensors that are no plain low-rank addition, and what they are.
const OTHERS: &[(&str, &str)] = &[
    ("dora_scale", "a DoRA (weight-decomposed)"),
    ("lora_magnitude_vector", "a DoRA (weight-decomposed)"),
    ("hada_w", "a LoHa (Hadamard products)"),
    ("lokr_w", "a LoKr (Kronecker products)"),
    ("oft_", "an OFT (orthogonal fine-tuning)"),
    ("boft_", "an OFT (orthogonal fine-tuning)"),
    ("lora_B.bias", "a LoRA with biases"),
    ("lora_up.bias", "a LoRA with biases"),
    (".diff", "full differences of weights"),
    ("bundle_emb.", "embeddings beside a LoRA"),
];

/// What a tensor is to its module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Down,
    Mid,
    Up,
    Alpha,
}

/// A part of a model that is added to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub enum Component {
    /// The network that denoises: a UNet or a transformer.
    UNet,
    /// A text encoder, by its place.
    Text(usize),
}

/// A tensor's module, as it is spelled, and its role.
pub(super) fn split(tensor: &str) -> Option<(&str, Role)> {
    ROLES
        .iter()
        .find_map(|(end, role)| Some((tensor.strip_suffix(end)?, *role)))
}

/// What a file with such a tensor is, when it is no plain low-rank addition.
pub(super) fn other_kind(tensor: &str) -> Option<&'static str> {
    OTHERS
        .iter()
        .find_map(|(part, kind)| tensor.contains(part).then_some(*kind))
}

/// The part and the name, joined by underscores, of a module as a file spells it.
pub(super) fn place(module: &str) -> (Component, String) {
    const PREFIXES: &[(&str, Component)] = &[
        ("lora_unet_", Component::UNet),
        ("lora_te1_", Component::Text(0)),
        ("lora_te2_", Component::Text(1)),
        ("lora_te_", Component::Text(0)),
        ("unet.", Component::UNet),
        ("lora_transformer_", Component::UNet),
        ("transformer.", Component::UNet),
        ("model.diffusion_model.", Component::UNet),
        ("diffusion_model.", Component::UNet),
        ("text_encoder_2.", Component::Text(1)),
        ("text_encoder.", Component::Text(0)),
        ("text_encoders.clip_l.transformer.", Component::Text(0)),
        ("text_encoders.clip_g.transformer.", Component::Text(1)),
    ];
    let module = module.strip_prefix("base_model.model.").unwrap_or(module);
    let found = PREFIXES
        .iter()
        .find_map(|(prefix, component)| Some((*component, module.strip_prefix(prefix)?)));
    let (component, inner) = found.unwrap_or(match module.starts_with("text_model.") {
        true => (Component::Text(0), module),
        // peft's files of one network name no part.
        false => (Component::UNet, module),
    });
    match component {
        Component::UNet => (component, joined(&of_processor(inner))),
        Component::Text(_) => (component, text(&of_text_processor(inner))),
    }
}

/// The names of a layer of the network: as diffusers has it, and as the original code has it (kohya's files of SDXL and
/// of the transformers), with the layer's place in what has several layers in one there.
pub(super) fn network(layer: &str, config: &NetworkConfig) -> Vec<(String, Option<Place>)> {
    let mut names = vec![(joined(layer), None)];
    let naming = match config {
        NetworkConfig::UNet(config) => {
            let per_level = config.levels.first().map_or(2, |level| level.layers);
            let originals = keys::ldm_unet_names(layer, per_level);
            names.extend(originals.map(|original| (joined(&original), None)));
            return names;
        }
        NetworkConfig::Mmdit(config) => Naming::Mmdit {
            layers: config.layers(),
        },
        NetworkConfig::Flux(_) => Naming::Flux,
    };
    let original = Layout {
        prefix: String::new(),
        naming,
    };
    let place = original.place(&format!("{layer}.weight"), &|_| false);
    let name = place.name.strip_suffix(".weight").unwrap_or(&place.name);
    names.push((joined(name), Some(place)));
    names
}

/// The name of a layer of a text encoder: transformers 5 writes without `text_model.`.
pub(super) fn text(layer: &str) -> String {
    let name = joined(layer);
    match name.strip_prefix("text_model_") {
        Some(rest) => rest.to_owned(),
        None => name,
    }
}

fn joined(name: &str) -> String {
    name.replace('.', "_")
}

/// diffusers before 0.22 hung additions to a processor of the attention.
fn of_processor(module: &str) -> String {
    match module.split_once(".processor.") {
        Some((attention, "to_out")) => format!("{attention}.to_out.0"),
        Some((attention, part)) => format!("{attention}.{part}"),
        None => module.to_owned(),
    }
}

/// The same of a text encoder, whose parts had the UNet's names.
fn of_text_processor(module: &str) -> String {
    const PARTS: &[(&str, &str)] = &[
        (".self_attn.to_q", ".self_attn.q_proj"),
        (".self_attn.to_k", ".self_attn.k_proj"),
        (".self_attn.to_v", ".self_attn.v_proj"),
        (".self_attn.to_out", ".self_attn.out_proj"),
    ];
    for (old, new) in PARTS {
        if let Some(layer) = module.strip_suffix(old) {
            return format!("{layer}{new}");
        }
    }
    module.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_layer_is_one_place() {
        let query = "down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q";
        let out = "mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0";
        for (tensor, component, name) in [
            (
                "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight",
                Component::UNet,
                query,
            ),
            (
                "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight",
                Component::UNet,
                query,
            ),
            (
                "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight",
                Component::UNet,
                query,
            ),
            (
                "base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight",
                Component::UNet,
                query,
            ),
            (
                "mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_out_lora.up.weight",
                Component::UNet,
                out,
            ),
            (
                "lora_te1_text_model_encoder_layers_3_mlp_fc1.alpha",
                Component::Text(0),
                "encoder_layers_3_mlp_fc1",
            ),
            (
                "lora_te2_text_model_encoder_layers_3_mlp_fc1.lora_up.weight",
                Component::Text(1),
                "encoder_layers_3_mlp_fc1",
            ),
            (
                "text_encoder_2.text_model.encoder.layers.3.self_attn.q_proj.lora_linear_layer.up.weight",
                Component::Text(1),
                "encoder_layers_3_self_attn_q_proj",
            ),
            (
                "text_encoder.text_model.encoder.layers.3.self_attn.to_out_lora.down.weight",
                Component::Text(0),
                "encoder_layers_3_self_attn_out_proj",
            ),
            (
                "diffusion_model.input_blocks.4.1.proj_in.lora_down.weight",
                Component::UNet,
                "input_blocks_4_1_proj_in",
            ),
        ] {
            let (module, _) = split(tensor).unwrap();
            assert_eq!(place(module), (component, name.to_owned()), "{tensor}");
        }
    }

    #[test]
    fn a_layer_has_the_original_codes_name_too() {
        let sdxl = NetworkConfig::UNet(crate::unet::UNetConfig::sdxl());
        let flux = NetworkConfig::Flux(crate::flux::FluxConfig::dev());
        let sd3 = NetworkConfig::Mmdit(crate::mmdit::MmditConfig::sd3_medium());
        for (config, layer, want) in [
            (
                &sdxl,
                "up_blocks.0.upsamplers.0.conv",
                "output_blocks_2_2_conv",
            ),
            (
                &sdxl,
                "down_blocks.1.attentions.1.transformer_blocks.0.ff.net.0.proj",
                "input_blocks_5_1_transformer_blocks_0_ff_net_0_proj",
            ),
            (
                &flux,
                "single_transformer_blocks.7.proj_mlp",
                "single_blocks_7_linear1",
            ),
            (
                &sd3,
                "transformer_blocks.3.attn.add_k_proj",
                "joint_blocks_3_context_block_attn_qkv",
            ),
        ] {
            let names = network(layer, config);
            assert!(names.iter().any(|(name, _)| name == want), "{names:?}");
        }
        let names = network("single_transformer_blocks.7.proj_mlp", &flux);
        let place = names[1].1.as_ref().unwrap();
        assert_eq!((place.part, place.span), (Some((3, 7)), 4));
    }

    #[test]
    fn other_kinds_are_known_by_name() {
        assert!(other_kind("lora_unet_x.dora_scale").is_some());
        assert!(other_kind("lora_unet_x.hada_w1_a").is_some());
        assert!(other_kind("lora_unet_x.lora_down.weight").is_none());
    }
}
