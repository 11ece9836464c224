//! What the `unet/config.json` of a `UNet2DModel` says.

use serde_json::{Value, json};

use crate::ModelError;
use crate::config::{Config, config_error};

const COMPONENT: &str = "unet";

/// The shape of a UNet without text.
#[derive(Debug, Clone, PartialEq)]
pub struct UNet2DConfig {
    /// Height and width of what it was trained on.
    pub sample_size: Option<[usize; 2]>,
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// The levels, from full resolution down; each halves the size of the one before.
    pub levels: Vec<UNet2DLevel>,
    /// Residual blocks of a level on the way down; one more on the way up.
    pub layers: usize,
    /// Whether there is a middle between the way down and the way up.
    pub mid: bool,
    /// Whether the middle has an attention between its two residual blocks.
    pub mid_attention: bool,
    /// The outputs of the middle's blocks are divided by this.
    pub mid_scale: f64,
    /// Channels of an attention head; `None` is one head.
    pub head_dim: Option<usize>,
    /// Groups of every group normalisation.
    pub groups: usize,
    /// Groups of the normalisation in the middle's attention. `None` is [`groups`](Self::groups), or
    /// no normalisation at all where [`scale_shift`](Self::scale_shift) is set.
    pub mid_attention_groups: Option<usize>,
    /// Epsilon of every normalisation.
    pub eps: f64,
    /// Whether the time embedding scales and shifts what the second norm of a residual block gives;
    /// else it is added before that norm.
    pub scale_shift: bool,
    /// 1, or 0 for padding on the bottom and right only.
    pub downsample_padding: usize,
    /// Whether the input is moved from `[0, 1]` to `[-1, 1]`.
    pub center_input: bool,
    /// Whether the timestep embedding has cosines first.
    pub flip_sin_to_cos: bool,
    /// Frequency shift of the timestep embedding.
    pub freq_shift: f64,
    /// Channels of the time embedding.
    pub time_embed_dim: usize,
    /// How a class is told, when the model is told one.
    pub classes: Option<ClassKind>,
}

/// One level: a block on the way down and one on the way up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UNet2DLevel {
    /// Channels.
    pub channels: usize,
    /// Whether the block on the way down has attentions.
    pub down_attention: bool,
    /// Whether the block on the way up has attentions.
    pub up_attention: bool,
}

/// How a class is told to a UNet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClassKind {
    /// One of so many, by its number.
    Table(usize),
    /// A number that is embedded as a timestep is.
    Timestep,
    /// A vector of the time embedding's channels, added as it is.
    Identity,
}

impl UNet2DConfig {
    /// Reads the text of a `config.json`. Absent keys have diffusers' defaults, unknown ones are
    /// ignored.
    ///
    /// # Errors
    /// [`ModelError::Config`] for a value that is malformed or that this version cannot run.
    pub fn from_json(json: &str) -> Result<Self, ModelError> {
        let c = Config::parse(COMPONENT, json)?;
        refuse_what_cannot_run(&c)?;
        let levels = read_levels(&c)?;
        let config = UNet2DConfig {
            sample_size: c.maybe_size("sample_size")?,
            in_channels: c.count("in_channels", 3)?,
            out_channels: c.count("out_channels", 3)?,
            layers: c.count("layers_per_block", 2)?,
            mid: !c.is_null("mid_block_type"),
            mid_attention: c.flag("add_attention", true)?,
            mid_scale: c.number("mid_block_scale_factor", 1.0)?,
            head_dim: match c.is_null("attention_head_dim") {
                true => None,
                false => Some(c.count("attention_head_dim", 8)?),
            },
            groups: c.count("norm_num_groups", 32)?,
            mid_attention_groups: c.maybe_count("attn_norm_num_groups")?,
            eps: c.number("norm_eps", 1e-5)?,
            scale_shift: c.is("resnet_time_scale_shift", "scale_shift"),
            downsample_padding: c.padding("downsample_padding")?,
            center_input: c.flag("center_input_sample", false)?,
            flip_sin_to_cos: c.flag("flip_sin_to_cos", true)?,
            freq_shift: c.number("freq_shift", 0.0)?,
            time_embed_dim: c.count("time_embedding_dim", levels[0].channels * 4)?,
            classes: read_classes(&c)?,
            levels,
        };
        config.validate()?;
        Ok(config)
    }

    /// The `config.json` of this model, as diffusers reads it.
    pub fn to_json(&self) -> Value {
        let kind = |attention: bool, way: &str| match attention {
            true => format!("Attn{way}Block2D"),
            false => format!("{way}Block2D"),
        };
        let downs = self.levels.iter().map(|l| kind(l.down_attention, "Down"));
        let ups = self.levels.iter().rev().map(|l| kind(l.up_attention, "Up"));
        let channels: Vec<usize> = self.levels.iter().map(|l| l.channels).collect();
        json!({
            "_class_name": "UNet2DModel",
            "sample_size": match self.sample_size {
                Some([h, w]) if h == w => json!(h),
                other => json!(other),
            },
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "center_input_sample": self.center_input,
            "time_embedding_type": "positional",
            "time_embedding_dim": self.time_embed_dim,
            "freq_shift": whole(self.freq_shift),
            "flip_sin_to_cos": self.flip_sin_to_cos,
            "down_block_types": downs.collect::<Vec<_>>(),
            "mid_block_type": self.mid.then_some("UNetMidBlock2D"),
            "up_block_types": ups.collect::<Vec<_>>(),
            "block_out_channels": channels,
            "layers_per_block": self.layers,
            "mid_block_scale_factor": whole(self.mid_scale),
            "downsample_padding": self.downsample_padding,
            "downsample_type": "conv",
            "upsample_type": "conv",
            "dropout": 0.0,
            "act_fn": "silu",
            "attention_head_dim": self.head_dim,
            "norm_num_groups": self.groups,
            "attn_norm_num_groups": self.mid_attention_groups,
            "norm_eps": self.eps,
            "resnet_time_scale_shift": if self.scale_shift { "scale_shift" } else { "default" },
            "add_attention": self.mid_attention,
            "class_embed_type": match self.classes {
                Some(ClassKind::Timestep) => Some("timestep"),
                Some(ClassKind::Identity) => Some("identity"),
                Some(ClassKind::Table(_)) | None => None,
            },
            "num_class_embeds": match self.classes {
                Some(ClassKind::Table(n)) => Some(n),
                _ => None,
            },
        })
    }

    /// Whether the sizes fit together, so that the model can be built and run.
    ///
    /// # Errors
    /// [`ModelError::Config`] that names the first key that does not fit.
    pub fn validate(&self) -> Result<(), ModelError> {
        let wrong = |key: &str, found: String, expected: String| {
            Err(config_error(COMPONENT, key, found, expected))
        };
        let Some(first) = self.levels.first().map(|level| level.channels) else {
            return wrong("block_out_channels", "empty".into(), "a level".into());
        };
        for level in &self.levels {
            if self.groups == 0 || level.channels % self.groups != 0 {
                let expected = format!("multiples of norm_num_groups ({})", self.groups);
                return wrong("block_out_channels", level.channels.to_string(), expected);
            }
        }
        for channels in self.attention_channels() {
            let dim = self.head_dim.unwrap_or(channels);
            if dim == 0 || channels % dim != 0 {
                let expected = format!("a divisor of the level's channels ({channels})");
                return wrong("attention_head_dim", dim.to_string(), expected);
            }
        }
        let last = self.levels.last().map_or(first, |level| level.channels);
        match self.mid_attention_groups {
            Some(groups) if !last.is_multiple_of(groups) => {
                let expected = format!("a divisor of the last level's channels ({last})");
                return wrong("attn_norm_num_groups", groups.to_string(), expected);
            }
            _ => {}
        }
        if self.downsample_padding > 1 {
            let found = self.downsample_padding.to_string();
            return wrong("downsample_padding", found, "0 or 1".into());
        }
        if self.mid_scale == 0.0 {
            let found = "0".to_owned();
            return wrong("mid_block_scale_factor", found, "not zero".into());
        }
        if self.freq_shift >= (first / 2) as f64 {
            let expected = format!("less than half of the first channels ({first})");
            return wrong("freq_shift", self.freq_shift.to_string(), expected);
        }
        Ok(())
    }

    /// Channels of level `i`, the last level's for those below it.
    pub(crate) fn channels(&self, i: usize) -> usize {
        let i = i.min(self.levels.len().saturating_sub(1));
        self.levels.get(i).map_or(0, |level| level.channels)
    }

    /// Heads of an attention over `channels`.
    pub(crate) fn heads(&self, channels: usize) -> usize {
        channels / self.head_dim.unwrap_or(channels).max(1)
    }

    /// Whether the middle has an attention.
    pub(crate) fn has_mid_attention(&self) -> bool {
        self.mid && self.mid_attention
    }

    /// Channels of each level that has an attention somewhere.
    fn attention_channels(&self) -> impl Iterator<Item = usize> {
        let last = self.levels.len().wrapping_sub(1);
        let mid = self.has_mid_attention();
        self.levels.iter().enumerate().filter_map(move |(i, l)| {
            (l.down_attention || l.up_attention || (mid && i == last)).then_some(l.channels)
        })
    }
}

/// A number as an integer where it is one, as published configurations write it.
fn whole(number: f64) -> Value {
    match number.fract() == 0.0 && number.abs() < 1e9 {
        true => json!(number as i64),
        false => json!(number),
    }
}

/// Keys with values that lead to other networks than this one.
fn refuse_what_cannot_run(c: &Config) -> Result<(), ModelError> {
    c.only("act_fn", &["silu", "swish"])?;
    c.only("class_embed_type", &["timestep", "identity"])?;
    c.only("downsample_type", &["conv"])?;
    c.only("mid_block_type", &["UNetMidBlock2D"])?;
    c.only("resnet_time_scale_shift", &["default", "scale_shift"])?;
    c.only("time_embedding_type", &["positional"])?;
    c.only("upsample_type", &["conv"])?;
    match c.is_null("norm_num_groups") {
        true => Err(c.error("norm_num_groups", "null", "a number of groups")),
        false => Ok(()),
    }
}

fn read_levels(c: &Config) -> Result<Vec<UNet2DLevel>, ModelError> {
    const ATTN_DOWN: &str = "AttnDownBlock2D";
    const ATTN_UP: &str = "AttnUpBlock2D";
    let downs = c.names(
        "down_block_types",
        &["DownBlock2D", ATTN_DOWN, ATTN_DOWN, ATTN_DOWN],
    )?;
    let ups = c.names("up_block_types", &[ATTN_UP, ATTN_UP, ATTN_UP, "UpBlock2D"])?;
    let n = downs.len();
    let channels = c.counts("block_out_channels", &[224, 448, 672, 896])?;
    for (key, len) in [
        ("up_block_types", ups.len()),
        ("block_out_channels", channels.len()),
    ] {
        if len != n {
            let expected = format!("{n}, as down_block_types has");
            return Err(c.error(key, format!("{len} entries"), expected));
        }
    }
    // Before diffusers 0.4 the names began so.
    let kind = |key: &str, name: &str, plain: &str, attention: &str| match name
        .strip_prefix("UNetRes")
        .unwrap_or(name)
    {
        name if name == attention => Ok(true),
        name if name == plain => Ok(false),
        _ => Err(c.error(key, name, format!("{plain} or {attention}"))),
    };
    (0..n)
        .map(|i| {
            Ok(UNet2DLevel {
                channels: channels[i],
                down_attention: kind("down_block_types", &downs[i], "DownBlock2D", ATTN_DOWN)?,
                up_attention: kind("up_block_types", &ups[n - 1 - i], "UpBlock2D", ATTN_UP)?,
            })
        })
        .collect()
}

fn read_classes(c: &Config) -> Result<Option<ClassKind>, ModelError> {
    let table = c.maybe_count("num_class_embeds")?;
    Ok(match c.get("class_embed_type").and_then(Value::as_str) {
        Some("timestep") => Some(ClassKind::Timestep),
        Some("identity") => Some(ClassKind::Identity),
        _ => table.map(ClassKind::Table),
    })
}
