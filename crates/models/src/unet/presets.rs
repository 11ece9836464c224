//! The published generations, for files that come with no `config.json`.

use super::config::{AddedConfig, MidKind, UNetConfig, UNetLevel};

impl UNetConfig {
    /// Stable Diffusion 1.x.
    pub fn sd1() -> Self {
        UNetConfig {
            sample_size: Some([64, 64]),
            in_channels: 4,
            out_channels: 4,
            levels: levels(&[(320, 1, 8), (640, 1, 8), (1280, 1, 8), (1280, 0, 8)], 768),
            mid: MidKind::Attention,
            mid_scale: 1.0,
            groups: 32,
            eps: 1e-5,
            conv_in_kernel: 3,
            conv_out_kernel: 3,
            downsample_padding: 1,
            linear_projection: false,
            center_input: false,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            time_embed_dim: 1280,
            time_cond_dim: None,
            added: None,
        }
    }

    /// Stable Diffusion 2.x.
    pub fn sd2() -> Self {
        UNetConfig {
            sample_size: Some([96, 96]),
            levels: levels(
                &[(320, 1, 5), (640, 1, 10), (1280, 1, 20), (1280, 0, 20)],
                1024,
            ),
            linear_projection: true,
            ..Self::sd1()
        }
    }

    /// Stable Diffusion XL, the base model.
    pub fn sdxl() -> Self {
        UNetConfig {
            sample_size: Some([128, 128]),
            levels: levels(&[(320, 0, 5), (640, 2, 10), (1280, 10, 20)], 2048),
            linear_projection: true,
            added: Some(AddedConfig {
                time_dim: 256,
                input_dim: 2816,
            }),
            ..Self::sd1()
        }
    }
}

/// Levels of (channels, transformer depth or 0 for none, heads), alike on the way down and up.
fn levels(table: &[(usize, usize, usize)], context_dim: usize) -> Vec<UNetLevel> {
    table
        .iter()
        .map(|&(channels, depth, heads)| UNetLevel {
            channels,
            layers: 2,
            down_attention: depth > 0,
            up_attention: depth > 0,
            transformer_layers: depth.max(1),
            heads,
            context_dim,
            only_cross_attention: false,
        })
        .collect()
}
