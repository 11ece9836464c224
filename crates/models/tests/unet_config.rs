//! Configurations of UNets and autoencoders: presets, defaults, refusals, and what they cost.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // helpers of tests are tests

use aquatint_models::unet::{MidKind, UNetConfig};
use aquatint_models::vae::{Tiling, VaeConfig};
use proptest::prelude::*;

const SD1: &str = r#"{
  "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "act_fn": "silu",
  "attention_head_dim": 8, "block_out_channels": [320, 640, 1280, 1280],
  "center_input_sample": false, "cross_attention_dim": 768,
  "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
  "downsample_padding": 1, "flip_sin_to_cos": true, "freq_shift": 0, "in_channels": 4,
  "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32,
  "out_channels": 4, "sample_size": 64,
  "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]
}"#;

const SDXL: &str = r#"{
  "act_fn": "silu", "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
  "attention_head_dim": [5, 10, 20], "block_out_channels": [320, 640, 1280],
  "class_embed_type": null, "cross_attention_dim": 2048, "dual_cross_attention": false,
  "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
  "layers_per_block": 2, "mid_block_type": "UNetMidBlock2DCrossAttn", "num_attention_heads": null,
  "only_cross_attention": false, "projection_class_embeddings_input_dim": 2816,
  "sample_size": 128, "transformer_layers_per_block": [1, 2, 10], "upcast_attention": null,
  "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
  "use_linear_projection": true
}"#;

#[test]
fn the_published_configurations_are_the_presets() {
    assert_eq!(UNetConfig::from_json(SD1).unwrap(), UNetConfig::sd1());
    let mut sdxl = UNetConfig::sdxl();
    sdxl.levels[0].transformer_layers = 1;
    assert_eq!(UNetConfig::from_json(SDXL).unwrap(), sdxl);
    for preset in [UNetConfig::sd1(), UNetConfig::sd2(), UNetConfig::sdxl()] {
        preset.validate().unwrap();
    }
    VaeConfig::sd1().validate().unwrap();
    VaeConfig::sdxl().validate().unwrap();
}

#[test]
fn an_empty_configuration_has_the_defaults_of_diffusers() {
    let config = UNetConfig::from_json("{}").unwrap();
    assert_eq!(config.levels.len(), 4);
    assert_eq!(config.levels[3].channels, 1280);
    assert_eq!(config.levels[0].context_dim, 1280);
    assert!(config.levels[0].down_attention && !config.levels[3].up_attention);
    assert_eq!(config.mid, MidKind::Attention);
    assert_eq!(config.time_embed_dim, 1280);
    let none = UNetConfig::from_json(r#"{"mid_block_type": null}"#).unwrap();
    assert_eq!(none.mid, MidKind::Absent);
}

#[test]
fn what_cannot_run_is_refused_by_its_key() {
    for (json, key) in [
        (r#"{"act_fn": "mish"}"#, "act_fn"),
        (r#"{"addition_embed_type": "image"}"#, "addition_embed_type"),
        (
            r#"{"addition_embed_type": "text_time"}"#,
            "addition_time_embed_dim",
        ),
        (r#"{"attention_head_dim": 7}"#, "attention_head_dim"),
        (r#"{"attention_head_dim": [8, 8]}"#, "attention_head_dim"),
        (
            r#"{"block_out_channels": [320, 640]}"#,
            "block_out_channels",
        ),
        (
            r#"{"block_out_channels": [321, 640, 1280, 1280]}"#,
            "block_out_channels",
        ),
        (r#"{"block_out_channels": []}"#, "block_out_channels"),
        (r#"{"class_embed_type": "timestep"}"#, "class_embed_type"),
        (r#"{"conv_in_kernel": 4}"#, "conv_in_kernel"),
        (
            r#"{"cross_attention_dim": [768, 768, 1024, 768]}"#,
            "cross_attention_dim",
        ),
        (
            r#"{"down_block_types": ["AttnDownBlock2D"]}"#,
            "up_block_types",
        ),
        (r#"{"down_block_types": "DownBlock2D"}"#, "down_block_types"),
        (r#"{"downsample_padding": 2}"#, "downsample_padding"),
        (r#"{"dual_cross_attention": true}"#, "dual_cross_attention"),
        (
            r#"{"encoder_hid_dim_type": "text_proj"}"#,
            "encoder_hid_dim_type",
        ),
        (r#"{"freq_shift": 160}"#, "freq_shift"),
        (r#"{"layers_per_block": 0}"#, "layers_per_block"),
        (r#"{"layers_per_block": 1000000}"#, "layers_per_block"),
        (r#"{"mid_block_scale_factor": 0}"#, "mid_block_scale_factor"),
        (
            r#"{"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}"#,
            "mid_block_type",
        ),
        (r#"{"norm_num_groups": null}"#, "norm_num_groups"),
        (r#"{"norm_num_groups": 33}"#, "block_out_channels"),
        (r#"{"num_class_embeds": 1000}"#, "num_class_embeds"),
        (
            r#"{"resnet_time_scale_shift": "scale_shift"}"#,
            "resnet_time_scale_shift",
        ),
        (
            r#"{"time_embedding_type": "fourier"}"#,
            "time_embedding_type",
        ),
        (
            r#"{"transformer_layers_per_block": [[1, 1], 1, 1, 1]}"#,
            "transformer_layers_per_block",
        ),
        (
            r#"{"up_block_types": ["UpBlock2D", "UpBlock2D", "UpBlock2D", "ResnetUpsampleBlock2D"]}"#,
            "up_block_types",
        ),
    ] {
        let error = UNetConfig::from_json(json).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("unet: {key} is ")),
            "{json}: {error}"
        );
        assert!(error.contains(", expected "), "{error}");
    }
    for (json, key) in [
        (r#"{"block_out_channels": [128, 100]}"#, "down_block_types"),
        (r#"{"block_out_channels": [100]}"#, "block_out_channels"),
        (
            r#"{"down_block_types": ["AttnDownEncoderBlock2D"]}"#,
            "down_block_types",
        ),
        (r#"{"scaling_factor": 0}"#, "scaling_factor"),
        (
            r#"{"latents_mean": [0], "latents_std": [1]}"#,
            "latents_mean",
        ),
        (r#"{"act_fn": "relu"}"#, "act_fn"),
    ] {
        let error = VaeConfig::from_json(json).unwrap_err().to_string();
        assert!(error.starts_with(&format!("vae: {key}")), "{json}: {error}");
    }
}

proptest! {
    /// Any JSON value under any key is read or refused, and what is read has a cost.
    #[test]
    fn no_value_panics(
        key in prop::sample::select(vec![
            "sample_size", "in_channels", "out_channels", "down_block_types", "up_block_types",
            "mid_block_type", "block_out_channels", "layers_per_block", "cross_attention_dim",
            "attention_head_dim", "num_attention_heads", "transformer_layers_per_block",
            "only_cross_attention", "norm_num_groups", "norm_eps", "freq_shift", "time_embedding_dim",
            "time_cond_proj_dim", "downsample_padding", "conv_in_kernel", "mid_block_scale_factor",
            "latent_channels", "scaling_factor", "shift_factor", "latents_mean", "latents_std",
        ]),
        value in prop::sample::select(vec![
            "null", "0", "1", "-1", "2", "3", "65536", "65537", "18446744073709551615", "1e300", "0.5",
            "true", "\"x\"", "\"UNetMidBlock2D\"", "[]", "[1]", "[1, 2, 3, 4]", "[0, 0, 0, 0]",
            "[32, 32, 32, 32]", "[65536, 65536, 65536, 65536]", "[[1], 2]", "{}", "[null]",
            "[true, false, true, false]",
        ]),
    ) {
        let json = format!("{{\"{key}\": {value}}}");
        if let Ok(config) = UNetConfig::from_json(&json) {
            prop_assert!(config.cost(1, 9, 5, 77).multiply_adds() > 0);
            config.cost(usize::MAX, usize::MAX, usize::MAX, usize::MAX);
        }
        if let Ok(config) = VaeConfig::from_json(&json) {
            prop_assert!(config.decode_cost(1, 9, 5).multiply_adds() > 0);
            config.decode_cost(usize::MAX, usize::MAX, usize::MAX);
        }
    }
}

/// Floating-point operations as PyTorch's `FlopCounterMode` counts them on diffusers' models
/// (torch 2.15, diffusers 0.42.1): two for each multiply-add.
#[test]
fn work_is_what_pytorch_counts() {
    let flops = |cost: aquatint_models::unet::Cost| 2 * cost.multiply_adds();
    let sd1 = UNetConfig::sd1().cost(2, 64, 64, 77);
    assert_eq!(flops(sd1), 1_606_546_882_560);
    assert_eq!(2 * sd1.attention, 252_104_540_160);
    let share = sd1.convolution as f64 / sd1.multiply_adds() as f64;
    assert!((0.45..0.55).contains(&share), "{share}");
    assert_eq!(
        flops(UNetConfig::sd1().cost(1, 45, 61, 77)),
        536_961_656_320
    );
    assert_eq!(
        flops(UNetConfig::sd2().cost(2, 96, 96, 77)),
        4_298_211_491_840
    );
    assert_eq!(
        flops(UNetConfig::sdxl().cost(2, 128, 128, 77)),
        13_522_472_796_160
    );
    assert_eq!(
        flops(VaeConfig::sd1().decode_cost(1, 64, 64)),
        2_514_518_933_504
    );
    assert_eq!(
        flops(VaeConfig::sd1().encode_cost(1, 512, 512)),
        1_116_658_466_816
    );
}

#[test]
fn tiles_bound_the_memory() {
    let vae = VaeConfig::sd1();
    let tile = vae.decode_cost(1, 64, 64);
    // 2048x2048: what the lower part needs is about what a tile needs.
    let whole = vae.decode_cost(1, 256, 256);
    let tiled = vae.tiled_decode_cost(1, 256, 256, Tiling::default());
    assert!(whole.activation_bytes > 15 * tile.activation_bytes);
    assert!(tiled.activation_bytes < 2 * tile.activation_bytes);
    let more = tiled.multiply_adds() as f64 / whole.multiply_adds() as f64;
    assert!((1.2..2.0).contains(&more), "{more}");
    let one = vae.tiled_decode_cost(1, 64, 64, Tiling::default());
    assert_eq!(one.multiply_adds(), tile.multiply_adds());
    // 4096x4096: the attention sees a quarter of the positions.
    let largest = vae.tiled_decode_cost(1, 512, 512, Tiling::default());
    let positions: u64 = 512 * 512;
    assert_eq!(largest.attention, 2 * positions * positions / 4 * 512);
    // Nonsense is counted without a panic; decoding refuses it.
    for (tile, overlap) in [(0, 0), (1, 5), (usize::MAX, usize::MAX)] {
        vae.tiled_decode_cost(1, 100, 100, Tiling { tile, overlap });
    }
}
