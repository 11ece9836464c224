//! The shape of a network read off its tensors, for single files that come with no configuration.
//!
//! What tensors do not show (heads, activations, scaling factors) is the family's.

use aquatint_weights::WeightSet;

use crate::ModelError;
use crate::flux::FluxConfig;
use crate::keys::{Layout, Naming};
use crate::mmdit::MmditConfig;
use crate::t5::T5Config;
use crate::text::ClipTextConfig;
use crate::unet::{AddedConfig, UNetConfig, UNetLevel};
use crate::vae::VaeConfig;

/// Answers for diffusers' names over a file of any naming.
pub(crate) struct Shapes<'a> {
    set: &'a WeightSet,
    layout: &'a Layout,
}

impl<'a> Shapes<'a> {
    pub(crate) fn new(set: &'a WeightSet, layout: &'a Layout) -> Self {
        Shapes { set, layout }
    }

    fn has(&self, name: &str) -> bool {
        self.shape(name).is_some()
    }

    pub(crate) fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let place = self.layout.place(name, &|n| self.set.contains(n));
        let mut shape = self.set.info(&place.name)?.shape.clone();
        if let (Some((_, of)), Some(first)) = (place.part, shape.first_mut()) {
            *first = *first / of * place.span;
        }
        if place.transposed {
            shape.reverse();
        }
        Some(shape)
    }

    fn axis(&self, name: &str, axis: usize) -> Result<usize, ModelError> {
        self.shape(name)
            .and_then(|s| s.get(axis).copied())
            .filter(|&n| n > 0)
            .ok_or_else(|| ModelError::Missing {
                path: self.set.path().to_owned(),
                name: self.layout.place(name, &|n| self.set.contains(n)).name,
            })
    }

    fn count(&self, name: impl Fn(usize) -> String) -> usize {
        (0..1000).take_while(|&i| self.has(&name(i))).count()
    }
}

/// The UNet of a file. `base` is the family's published one: it gives what tensors do not show.
/// `pooled` is the width of the pooled text embedding, where it is known.
pub(crate) fn unet(
    shapes: &Shapes<'_>,
    base: UNetConfig,
    pooled: Option<usize>,
) -> Result<UNetConfig, ModelError> {
    let depth = shapes.count(|i| format!("down_blocks.{i}.resnets.0.conv1.weight"));
    // The way up mirrors the way down.
    let levels = (0..depth)
        .map(|i| level(shapes, i, depth, &base))
        .collect::<Result<Vec<_>, _>>()?;
    let added = match shapes.shape("add_embedding.linear_1.weight") {
        Some(shape) => Some(AddedConfig {
            input_dim: shape.get(1).copied().unwrap_or(0),
            time_dim: time_dim(&shape, pooled, base.added.as_ref()),
        }),
        None => None,
    };
    let projection = first_attention(shapes, depth)
        .and_then(|at| shapes.shape(&format!("{at}.proj_in.weight")))
        .map_or(base.linear_projection, |shape| shape.len() == 2);
    let config = UNetConfig {
        in_channels: shapes.axis("conv_in.weight", 1)?,
        out_channels: shapes.axis("conv_out.weight", 0)?,
        time_embed_dim: shapes.axis("time_embedding.linear_1.weight", 0)?,
        linear_projection: projection,
        groups: groups(levels.iter().map(|l| l.channels), base.groups),
        levels,
        added,
        ..base
    };
    config.validate()?;
    Ok(config)
}

/// Width of the embedding of each of the six sizes: what the pooled text leaves of the input.
fn time_dim(shape: &[usize], pooled: Option<usize>, published: Option<&AddedConfig>) -> usize {
    let input = shape.get(1).copied().unwrap_or(0);
    let left = pooled
        .and_then(|p| input.checked_sub(p))
        .filter(|n| *n > 0 && n % 6 == 0);
    left.map_or_else(|| published.map_or(256, |a| a.time_dim), |n| n / 6)
}

fn first_attention(shapes: &Shapes<'_>, depth: usize) -> Option<String> {
    (0..depth)
        .map(|i| format!("down_blocks.{i}.attentions.0"))
        .chain(["mid_block.attentions.0".to_owned()])
        .find(|at| shapes.has(&format!("{at}.proj_in.weight")))
}

fn level(
    shapes: &Shapes<'_>,
    i: usize,
    depth: usize,
    base: &UNetConfig,
) -> Result<UNetLevel, ModelError> {
    let channels = shapes.axis(&format!("down_blocks.{i}.resnets.0.conv1.weight"), 0)?;
    let down = format!("down_blocks.{i}.attentions.0");
    let up = format!("up_blocks.{}.attentions.0", depth - 1 - i);
    let mid = "mid_block.attentions.0".to_owned();
    let norm = |at: &str| format!("{at}.norm.weight");
    let (down_attention, up_attention) = (shapes.has(&norm(&down)), shapes.has(&norm(&up)));
    let at = match (down_attention, up_attention) {
        (true, _) => down,
        (_, true) => up,
        _ => mid,
    };
    // The middle block goes by the last level.
    let blocks = match down_attention || up_attention || i + 1 == depth {
        true => shapes.count(|b| format!("{at}.transformer_blocks.{b}.norm1.weight")),
        false => 1,
    };
    let context = shapes
        .shape(&format!("{at}.transformer_blocks.0.attn2.to_k.weight"))
        .and_then(|s| s.get(1).copied());
    Ok(UNetLevel {
        channels,
        layers: shapes.count(|j| format!("down_blocks.{i}.resnets.{j}.conv1.weight")),
        down_attention,
        up_attention,
        transformer_layers: blocks.max(1),
        heads: heads(base, channels),
        context_dim: context.unwrap_or_else(|| base.context_dim().unwrap_or(0)),
        only_cross_attention: false,
    })
}

/// Stable Diffusion 1.x has the same number of heads at every level; later generations have heads of
/// the same size.
fn heads(base: &UNetConfig, channels: usize) -> usize {
    let first = &base.levels[0];
    let same_number = base.levels.iter().all(|l| l.heads == first.heads);
    let wanted = if same_number {
        first.heads
    } else {
        channels * first.heads / first.channels
    };
    largest_divisor(channels, wanted.max(1))
}

fn largest_divisor(n: usize, at_most: usize) -> usize {
    (1..=at_most.min(n))
        .rev()
        .find(|d| n.is_multiple_of(*d))
        .unwrap_or(1)
}

/// The published number of groups where groups then have at least 4 channels, else fewer: the rule
/// of small models, since tensors do not show it.
fn groups(channels: impl Iterator<Item = usize>, published: usize) -> usize {
    let common = channels.fold(0, gcd);
    largest_divisor(common.max(1), published.min((common / 4).max(1)))
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The autoencoder of a file.
pub(crate) fn vae(shapes: &Shapes<'_>, base: VaeConfig) -> Result<VaeConfig, ModelError> {
    let depth = shapes.count(|i| format!("decoder.up_blocks.{i}.resnets.0.conv1.weight"));
    // The decoder's first level is the encoder's last.
    let channels = (0..depth)
        .rev()
        .map(|i| shapes.axis(&format!("decoder.up_blocks.{i}.resnets.0.conv1.weight"), 0))
        .collect::<Result<Vec<_>, _>>()?;
    let up = shapes.count(|j| format!("decoder.up_blocks.0.resnets.{j}.conv1.weight"));
    let config = VaeConfig {
        out_channels: shapes.axis("decoder.conv_out.weight", 0)?,
        latent_channels: shapes.axis("decoder.conv_in.weight", 1)?,
        layers: up.saturating_sub(1).max(1),
        groups: groups(channels.iter().copied(), base.groups),
        channels,
        quant_conv: shapes.has("quant_conv.weight"),
        post_quant_conv: shapes.has("post_quant_conv.weight"),
        mid_attention: shapes.has("decoder.mid_block.attentions.0.to_q.weight"),
        ..base
    };
    config.validate()?;
    Ok(config)
}

/// A text encoder of a file.
pub(crate) fn text(
    shapes: &Shapes<'_>,
    base: ClipTextConfig,
    drop_last: bool,
) -> Result<ClipTextConfig, ModelError> {
    let tokens = ["text_model.embeddings", "embeddings"]
        .into_iter()
        .find(|p| shapes.has(&format!("{p}.token_embedding.weight")))
        .unwrap_or("text_model.embeddings");
    let inner = tokens.trim_end_matches("embeddings");
    let vocab_size = shapes.axis(&format!("{tokens}.token_embedding.weight"), 0)?;
    let hidden_size = shapes.axis(&format!("{tokens}.token_embedding.weight"), 1)?;
    let layers = shapes.count(|i| format!("{inner}encoder.layers.{i}.layer_norm1.weight"));
    // Stable Diffusion 2.x leaves out OpenCLIP's last layer.
    let layers = if drop_last {
        layers.saturating_sub(1)
    } else {
        layers
    };
    // Every published encoder has heads of 64 channels.
    let heads = largest_divisor(hidden_size, (hidden_size / 64).max(1));
    Ok(ClipTextConfig {
        vocab_size,
        hidden_size,
        intermediate_size: shapes.axis(&format!("{inner}encoder.layers.0.mlp.fc1.weight"), 0)?,
        num_hidden_layers: layers.max(1),
        num_attention_heads: heads,
        max_position_embeddings: shapes.axis(&format!("{tokens}.position_embedding.weight"), 0)?,
        // The last of CLIP's tokens; small vocabularies keep it last.
        eos_token_id: base.eos_token_id.min(vocab_size.saturating_sub(1) as u32),
        projection: match base.projection {
            Some(_) => Some(shapes.axis("text_projection.weight", 0)?),
            None => None,
        },
        ..base
    })
}

/// The transformer of Stable Diffusion 3 of a file.
///
/// Every published one has as many heads as blocks; where queries and keys are normalised, the norms' length is a
/// head's.
pub(crate) fn mmdit(shapes: &Shapes<'_>) -> Result<MmditConfig, ModelError> {
    let block = |i: usize, rest: &str| format!("transformer_blocks.{i}.{rest}.weight");
    let layers = shapes.count(|i| block(i, "attn.to_q"));
    let channels = shapes.axis("context_embedder.weight", 0)?;
    let norm = shapes.shape(&block(0, "attn.norm_q"));
    let heads = match norm.as_deref() {
        Some(&[head]) if head > 0 => channels / head,
        _ => largest_divisor(channels, layers.max(1)),
    };
    let patch = shapes.axis("pos_embed.proj.weight", 2)?;
    let table = shapes.shape("pos_embed.pos_embed").unwrap_or_default();
    let positions = table.iter().rev().nth(1).copied().unwrap_or(0);
    let config = MmditConfig {
        sample_size: None,
        patch_size: patch,
        in_channels: shapes.axis("pos_embed.proj.weight", 1)?,
        out_channels: shapes.axis("proj_out.weight", 0)? / (patch * patch),
        heads,
        head_dim: channels / heads.max(1),
        context_dim: shapes.axis("context_embedder.weight", 1)?,
        pooled_dim: shapes.axis("time_text_embed.text_embedder.linear_1.weight", 1)?,
        max_positions: positions.isqrt(),
        qk_norm: norm.is_some(),
        dual_attention: (0..layers)
            .map(|i| shapes.has(&block(i, "attn2.to_q")))
            .collect(),
    };
    config.validate()?;
    Ok(config)
}

/// The transformer of FLUX.1 of a file. How a head's channels are shared among the axes does not show: as published
/// where heads have the published size, else a quarter for the first.
pub(crate) fn flux(shapes: &Shapes<'_>, base: FluxConfig) -> Result<FluxConfig, ModelError> {
    let channels = shapes.axis("x_embedder.weight", 0)?;
    let head_dim = shapes.axis("transformer_blocks.0.attn.norm_q.weight", 0)?;
    let first = head_dim / 8 * 2;
    let axes = match base.axes.iter().sum::<usize>() == head_dim {
        true => base.axes,
        false => [first, (head_dim - first) / 2, (head_dim - first) / 2],
    };
    let config = FluxConfig {
        in_channels: shapes.axis("x_embedder.weight", 1)?,
        double_blocks: shapes.count(|i| format!("transformer_blocks.{i}.attn.to_q.weight")),
        single_blocks: shapes.count(|i| format!("single_transformer_blocks.{i}.attn.to_q.weight")),
        heads: channels / head_dim,
        head_dim,
        context_dim: shapes.axis("context_embedder.weight", 1)?,
        pooled_dim: shapes.axis("time_text_embed.text_embedder.linear_1.weight", 1)?,
        guidance: shapes.has("time_text_embed.guidance_embedder.linear_1.weight"),
        axes,
    };
    config.validate()?;
    Ok(config)
}

/// T5 of a file: all of its shape shows.
pub(crate) fn t5(shapes: &Shapes<'_>, base: T5Config) -> Result<T5Config, ModelError> {
    let block = |i: usize| format!("encoder.block.{i}.layer.0.SelfAttention.q.weight");
    let bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
    let embedding = ["shared.weight", "encoder.embed_tokens.weight"]
        .into_iter()
        .find(|name| shapes.has(name))
        .unwrap_or("shared.weight");
    let num_heads = shapes.axis(bias, 1)?;
    let config = T5Config {
        vocab_size: shapes.axis(embedding, 0)?,
        d_model: shapes.axis(embedding, 1)?,
        d_kv: shapes.axis(&block(0), 0)? / num_heads,
        d_ff: shapes.axis("encoder.block.0.layer.1.DenseReluDense.wi_0.weight", 0)?,
        num_layers: shapes.count(block),
        num_heads,
        buckets: shapes.axis(bias, 0)?,
        ..base
    };
    config.validate()?;
    Ok(config)
}

/// Whether the file's names are those of OpenCLIP.
pub(crate) fn is_open_clip(layout: &Layout) -> bool {
    layout.naming == Naming::OpenClip
}
