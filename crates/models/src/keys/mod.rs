//! Key maps: where a checkpoint keeps the tensor that a model asks for.
//!
//! Models ask for diffusers' (transformers') names. A [`Layout`] says how a file spells them: under
//! which prefix, and in which naming. Source of the LDM naming: CompVis latent-diffusion and
//! Stability generative-models; of OpenCLIP's: mlfoundations/open_clip.

use std::collections::BTreeSet;

use aquatint_weights::Remap;

mod open_clip;
mod original;
mod transformers;
mod unet;
mod vae;

pub use original::Renaming;
pub(crate) use original::{to_diffusers, to_original};

/// Where a requested tensor lies in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Name in the file, prefix included.
    pub name: String,
    /// Part `.0` of `.1` equal parts along axis 0 (fused query, key and value).
    pub part: Option<(usize, usize)>,
    /// How many of those parts, from that one on.
    pub span: usize,
    /// The file keeps the two halves of axis 0 the other way round.
    pub swapped: bool,
    /// The file keeps the transpose of the matrix.
    pub transposed: bool,
}

impl Place {
    fn plain(name: impl Into<String>) -> Self {
        Place {
            name: name.into(),
            part: None,
            span: 1,
            swapped: false,
            transposed: false,
        }
    }

    /// The row of a key map that makes the tensor here, whose first axis is `len` long, one called `to`; without the
    /// halves' turn.
    pub(crate) fn row(&self, to: &str, len: Option<usize>) -> Remap {
        let mut row = Remap::new(&self.name, to);
        if let Some((part, of)) = self.part {
            row = match len {
                Some(len) if self.span > 1 && len.is_multiple_of(of) => {
                    let one = len / of;
                    row.rows(part * one..(part + self.span) * one)
                }
                _ => row.part(part, of),
            };
        }
        match self.transposed {
            true => row.transposed(),
            false => row,
        }
    }
}

/// A naming of a component's tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// diffusers and transformers: what the models ask for.
    Diffusers,
    /// LDM UNet, with its number of resnets a level.
    LdmUNet {
        /// Resnets in a down level.
        layers: usize,
    },
    /// LDM autoencoder, with its number of levels.
    LdmVae {
        /// Levels of the decoder.
        levels: usize,
    },
    /// OpenCLIP text tower.
    OpenClip,
    /// Stability's MMDiT, with its number of blocks.
    Mmdit {
        /// Joint blocks.
        layers: usize,
    },
    /// Black Forest Labs' FLUX transformer.
    Flux,
    /// T5 as GGML names it.
    T5Ggml,
}

/// Prefix and naming of one component in one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Put before every name.
    pub prefix: String,
    /// How names are spelled.
    pub naming: Naming,
}

impl Layout {
    /// diffusers' names with no prefix.
    pub fn diffusers() -> Self {
        Layout {
            prefix: String::new(),
            naming: Naming::Diffusers,
        }
    }

    /// Where the tensor `name` (diffusers' naming) is kept. `has` answers whether the file holds a
    /// name: a few places depend on what is there.
    pub fn place(&self, name: &str, has: &dyn Fn(&str) -> bool) -> Place {
        let mut place = match self.naming {
            Naming::Diffusers => Place::plain(name),
            Naming::LdmUNet { layers } => Place::plain(unet::ldm(name, layers, &|n| {
                has(&format!("{}{n}", self.prefix))
            })),
            Naming::LdmVae { levels } => Place::plain(vae::ldm(name, levels)),
            Naming::OpenClip => open_clip::place(name),
            Naming::Mmdit { layers } => transformers::mmdit(name, layers),
            Naming::Flux => transformers::flux(name),
            Naming::T5Ggml => transformers::t5_ggml(name),
        };
        place.name.insert_str(0, &self.prefix);
        place
    }
}

/// The names that the original code gives to a layer of a UNet (diffusers' naming), with `layers` resnets in a down
/// level: several where what surrounds the layer decides.
pub(crate) fn ldm_unet_names(layer: &str, layers: usize) -> [String; 2] {
    // A name of a module is one of its tensors' without the end.
    [true, false].map(|is_there| {
        let name = unet::ldm(&format!("{layer}.weight"), layers, &|_| is_there);
        name.strip_suffix(".weight").unwrap_or(&name).to_owned()
    })
}

/// The names of a set, for the finders below.
pub(crate) fn names(set: &aquatint_weights::WeightSet) -> BTreeSet<&str> {
    set.names().collect()
}

/// Finds the UNet among a file's names.
pub fn find_unet(names: &BTreeSet<&str>) -> Option<Layout> {
    let has = |n: &str| names.contains(n);
    for prefix in ["model.diffusion_model.", "diffusion_model.", "unet.", ""] {
        if has(&format!("{prefix}input_blocks.0.0.weight")) {
            let naming = Naming::LdmUNet {
                layers: unet::ldm_layers(names, prefix),
            };
            return Some(Layout {
                prefix: prefix.to_owned(),
                naming,
            });
        }
        if has(&format!("{prefix}conv_in.weight"))
            && has(&format!("{prefix}time_embedding.linear_1.weight"))
        {
            return Some(Layout {
                prefix: prefix.to_owned(),
                naming: Naming::Diffusers,
            });
        }
    }
    None
}

/// Finds the autoencoder among a file's names.
pub fn find_vae(names: &BTreeSet<&str>) -> Option<Layout> {
    let has = |n: &str| names.contains(n);
    for prefix in ["first_stage_model.", "vae.", ""] {
        if has(&format!("{prefix}decoder.mid.block_1.norm1.weight")) {
            let levels = (0..)
                .take_while(|i| has(&format!("{prefix}decoder.up.{i}.block.0.norm1.weight")))
                .count();
            return Some(Layout {
                prefix: prefix.to_owned(),
                naming: Naming::LdmVae { levels },
            });
        }
        if has(&format!("{prefix}decoder.mid_block.resnets.0.norm1.weight")) {
            return Some(Layout {
                prefix: prefix.to_owned(),
                naming: Naming::Diffusers,
            });
        }
    }
    None
}

/// Finds the text encoder number `index` (0 or 1) among a file's names.
pub fn find_text(names: &BTreeSet<&str>, index: usize) -> Option<Layout> {
    let has = |n: String| names.contains(n.as_str());
    let clip: &[&str] = match index {
        0 => &[
            "cond_stage_model.transformer.",
            "conditioner.embedders.0.transformer.",
            "text_encoders.clip_l.transformer.",
            "text_encoder.",
            "",
        ],
        _ => &["text_encoders.clip_g.transformer.", "text_encoder_2.", ""],
    };
    for prefix in clip {
        for inner in ["text_model.", ""] {
            if has(format!("{prefix}{inner}embeddings.token_embedding.weight")) {
                return Some(Layout {
                    prefix: (*prefix).to_owned(),
                    naming: Naming::Diffusers,
                });
            }
        }
    }
    let open: &[&str] = match index {
        0 => &[
            "cond_stage_model.model.",
            "conditioner.embedders.0.model.",
            "",
        ],
        _ => &["conditioner.embedders.1.model.", ""],
    };
    for prefix in open {
        if has(format!("{prefix}transformer.resblocks.0.ln_1.weight")) {
            return Some(Layout {
                prefix: (*prefix).to_owned(),
                naming: Naming::OpenClip,
            });
        }
    }
    None
}

/// Which diffusion transformer a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransformerKind {
    /// Of Stable Diffusion 3.
    Mmdit,
    /// Of FLUX.1.
    Flux,
}

/// Finds a diffusion transformer among a file's names.
pub fn find_transformer(names: &BTreeSet<&str>) -> Option<(Layout, TransformerKind)> {
    let has = |prefix: &str, name: &str| names.contains(format!("{prefix}{name}").as_str());
    for prefix in [
        "model.diffusion_model.",
        "diffusion_model.",
        "transformer.",
        "",
    ] {
        let layout = |naming| Layout {
            prefix: prefix.to_owned(),
            naming,
        };
        if has(prefix, "joint_blocks.0.x_block.attn.qkv.weight") {
            let block =
                |i: &usize| has(prefix, &format!("joint_blocks.{i}.x_block.attn.qkv.weight"));
            let layers = (0..1000).take_while(block).count();
            return Some((layout(Naming::Mmdit { layers }), TransformerKind::Mmdit));
        }
        if has(prefix, "double_blocks.0.img_attn.qkv.weight") {
            return Some((layout(Naming::Flux), TransformerKind::Flux));
        }
        if has(prefix, "transformer_blocks.0.attn.add_q_proj.weight") {
            let kind = match (
                has(prefix, "pos_embed.proj.weight"),
                has(prefix, "single_transformer_blocks.0.proj_mlp.weight"),
            ) {
                (true, _) => TransformerKind::Mmdit,
                (_, true) => TransformerKind::Flux,
                _ => continue,
            };
            return Some((layout(Naming::Diffusers), kind));
        }
    }
    None
}

/// Finds T5's encoder among a file's names.
pub fn find_t5(names: &BTreeSet<&str>) -> Option<Layout> {
    for prefix in [
        "text_encoders.t5xxl.transformer.",
        "text_encoder_3.",
        "text_encoder_2.",
        "",
    ] {
        let name = format!("{prefix}encoder.block.0.layer.0.SelfAttention.q.weight");
        if names.contains(name.as_str()) {
            return Some(Layout {
                prefix: prefix.to_owned(),
                naming: Naming::Diffusers,
            });
        }
    }
    names.contains("enc.blk.0.attn_q.weight").then(|| Layout {
        prefix: String::new(),
        naming: Naming::T5Ggml,
    })
}

/// A naming of a tiny autoencoder's tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TinyNaming {
    /// `decoder.layers.0.weight`.
    Diffusers,
    /// The original decoder in a file of its own: `1.weight`, `3.conv.0.weight`.
    Original,
}

/// Finds a tiny autoencoder among a file's names.
pub fn find_taesd(names: &BTreeSet<&str>) -> Option<TinyNaming> {
    if names.contains("decoder.layers.0.weight") {
        return Some(TinyNaming::Diffusers);
    }
    let original = names.contains("1.weight") && names.contains("3.conv.0.weight");
    original.then_some(TinyNaming::Original)
}

/// Splits off the number that `rest` begins with: `"3.norm1.weight"` to `(3, "norm1.weight")`.
fn number(rest: &str) -> Option<(usize, &str)> {
    let (digits, rest) = rest.split_once('.').unwrap_or((rest, ""));
    Some((digits.parse().ok()?, rest))
}

/// Replaces a leading path component according to a table.
fn swap_head(rest: &str, table: &[(&str, &str)]) -> String {
    for (from, to) in table {
        if let Some(tail) = rest.strip_prefix(from)
            && (tail.is_empty() || tail.starts_with('.'))
        {
            return format!("{to}{tail}");
        }
    }
    rest.to_owned()
}
