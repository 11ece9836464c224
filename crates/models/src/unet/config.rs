//! What `unet/config.json` says, with every list resolved to one entry a level.

use crate::ModelError;
use crate::config::{Config, config_error};

const COMPONENT: &str = "unet";

/// The shape of a UNet.
#[derive(Debug, Clone, PartialEq)]
pub struct UNetConfig {
    /// Height and width of the latents it was trained on.
    pub sample_size: Option<[usize; 2]>,
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// The levels, from full resolution down; each halves the size of the one before.
    pub levels: Vec<UNetLevel>,
    /// What stands between the way down and the way up.
    pub mid: MidKind,
    /// The mid block's output is divided by this.
    pub mid_scale: f64,
    /// Groups of every group normalisation.
    pub groups: usize,
    /// Epsilon of the residual blocks' normalisations.
    pub eps: f64,
    /// Kernel of the first convolution, odd.
    pub conv_in_kernel: usize,
    /// Kernel of the last convolution, odd.
    pub conv_out_kernel: usize,
    /// 1, or 0 for padding on the bottom and right only.
    pub downsample_padding: usize,
    /// Whether a transformer's projections are stored as Linear (else as 1x1 convolutions).
    pub linear_projection: bool,
    /// Whether the input is moved from `[0, 1]` to `[-1, 1]`.
    pub center_input: bool,
    /// Whether the timestep embedding has cosines first.
    pub flip_sin_to_cos: bool,
    /// Frequency shift of the timestep embedding.
    pub freq_shift: f64,
    /// Channels of the time embedding.
    pub time_embed_dim: usize,
    /// Channels of an embedded guidance scale (LCM), when the model was distilled with one.
    pub time_cond_dim: Option<usize>,
    /// SDXL's added conditioning.
    pub added: Option<AddedConfig>,
}

/// One level of a UNet: a block on the way down and one on the way up.
#[derive(Debug, Clone, PartialEq)]
pub struct UNetLevel {
    /// Channels.
    pub channels: usize,
    /// Residual blocks on the way down; one more on the way up.
    pub layers: usize,
    /// Whether the block on the way down has transformers.
    pub down_attention: bool,
    /// Whether the block on the way up has transformers.
    pub up_attention: bool,
    /// Blocks in each transformer.
    pub transformer_layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Channels of the text that is attended to.
    pub context_dim: usize,
    /// Whether the first attention of each block sees the text too (and not the picture).
    pub only_cross_attention: bool,
}

/// What stands between the way down and the way up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MidKind {
    /// Nothing.
    Absent,
    /// One residual block.
    Resnet,
    /// Two residual blocks with a transformer between them.
    Attention,
}

/// SDXL's added conditioning: a pooled text embedding and sizes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddedConfig {
    /// Channels of the sinusoidal embedding of each size.
    pub time_dim: usize,
    /// Channels of the pooled text embedding and all embedded sizes together.
    pub input_dim: usize,
}

impl UNetConfig {
    /// Reads the text of a `config.json`. Absent keys have diffusers' defaults, unknown ones are
    /// ignored.
    ///
    /// # Errors
    /// [`ModelError::Config`] for a value that is malformed or that this version cannot run.
    pub fn from_json(json: &str) -> Result<Self, ModelError> {
        let c = Config::parse(COMPONENT, json)?;
        refuse_what_cannot_run(&c)?;
        let levels = read_levels(&c)?;
        let config = UNetConfig {
            sample_size: c.maybe_size("sample_size")?,
            in_channels: c.count("in_channels", 4)?,
            out_channels: c.count("out_channels", 4)?,
            mid: read_mid(&c)?,
            mid_scale: c.number("mid_block_scale_factor", 1.0)?,
            groups: c.count("norm_num_groups", 32)?,
            eps: c.number("norm_eps", 1e-5)?,
            conv_in_kernel: c.count("conv_in_kernel", 3)?,
            conv_out_kernel: c.count("conv_out_kernel", 3)?,
            downsample_padding: c.padding("downsample_padding")?,
            linear_projection: c.flag("use_linear_projection", false)?,
            center_input: c.flag("center_input_sample", false)?,
            flip_sin_to_cos: c.flag("flip_sin_to_cos", true)?,
            freq_shift: c.number("freq_shift", 0.0)?,
            time_embed_dim: c.count("time_embedding_dim", levels[0].channels * 4)?,
            time_cond_dim: c.maybe_count("time_cond_proj_dim")?,
            added: read_added(&c)?,
            levels,
        };
        config.validate()?;
        Ok(config)
    }

    /// Whether the sizes fit together, so that the model can be built and run.
    ///
    /// # Errors
    /// [`ModelError::Config`] that names the first key that does not fit.
    pub fn validate(&self) -> Result<(), ModelError> {
        let wrong = |key: &str, found: String, expected: String| {
            Err(config_error(COMPONENT, key, found, expected))
        };
        let first = match self.levels.first() {
            Some(level) => level.channels,
            None => return wrong("block_out_channels", "empty".into(), "a level".into()),
        };
        for level in &self.levels {
            if self.groups == 0 || level.channels % self.groups != 0 {
                let expected = format!("multiples of norm_num_groups ({})", self.groups);
                return wrong("block_out_channels", level.channels.to_string(), expected);
            }
        }
        for level in self.attention_levels() {
            if level.heads == 0 || level.channels % level.heads != 0 {
                let expected = format!("a divisor of the level's channels ({})", level.channels);
                return wrong("attention_head_dim", level.heads.to_string(), expected);
            }
            if Some(level.context_dim) != self.context_dim() {
                let found = format!("{} and {:?}", level.context_dim, self.context_dim());
                return wrong("cross_attention_dim", found, "one value".into());
            }
        }
        for (key, kernel) in [
            ("conv_in_kernel", self.conv_in_kernel),
            ("conv_out_kernel", self.conv_out_kernel),
        ] {
            if kernel % 2 == 0 || kernel > 15 {
                return wrong(key, kernel.to_string(), "an odd number up to 15".into());
            }
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
        if self.time_cond_dim.is_some_and(|n| n < 4) {
            let found = format!("{:?}", self.time_cond_dim);
            return wrong("time_cond_proj_dim", found, "at least 4".into());
        }
        self.validate_added(&wrong)
    }

    fn validate_added(
        &self,
        wrong: &dyn Fn(&str, String, String) -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        match &self.added {
            Some(added) if added.time_dim >= added.input_dim => wrong(
                "projection_class_embeddings_input_dim",
                added.input_dim.to_string(),
                format!("more than addition_time_embed_dim ({})", added.time_dim),
            ),
            Some(added) if self.freq_shift >= (added.time_dim / 2) as f64 => wrong(
                "addition_time_embed_dim",
                added.time_dim.to_string(),
                format!("more than twice freq_shift ({})", self.freq_shift),
            ),
            _ => Ok(()),
        }
    }

    /// Channels of the text that the transformers attend to; `None` when there are none.
    pub fn context_dim(&self) -> Option<usize> {
        self.attention_levels().next().map(|l| l.context_dim)
    }

    /// Levels that have a transformer somewhere.
    fn attention_levels(&self) -> impl Iterator<Item = &UNetLevel> {
        let last = self.levels.len().wrapping_sub(1);
        let mid = self.mid == MidKind::Attention;
        self.levels.iter().enumerate().filter_map(move |(i, l)| {
            (l.down_attention || l.up_attention || (mid && i == last)).then_some(l)
        })
    }
}

/// Keys with values that lead to other networks than this one.
fn refuse_what_cannot_run(c: &Config) -> Result<(), ModelError> {
    c.only("act_fn", &["silu", "swish"])?;
    c.only("addition_embed_type", &["text_time"])?;
    c.only("attention_type", &["default"])?;
    c.only("resnet_time_scale_shift", &["default"])?;
    c.only("time_embedding_type", &["positional"])?;
    c.only_flag("dual_cross_attention", false)?;
    c.only_flag("class_embeddings_concat", false)?;
    for key in [
        "class_embed_type",
        "num_class_embeds",
        "cross_attention_norm",
        "encoder_hid_dim",
        "encoder_hid_dim_type",
        "reverse_transformer_layers_per_block",
        "time_embedding_act_fn",
        "timestep_post_act",
    ] {
        c.only(key, &[])?;
    }
    match c.is_null("norm_num_groups") {
        true => Err(c.error("norm_num_groups", "null", "a number of groups")),
        false => Ok(()),
    }
}

fn read_levels(c: &Config) -> Result<Vec<UNetLevel>, ModelError> {
    const CROSS_DOWN: &str = "CrossAttnDownBlock2D";
    const CROSS_UP: &str = "CrossAttnUpBlock2D";
    let downs = c.names(
        "down_block_types",
        &[CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, "DownBlock2D"],
    )?;
    let ups = c.names(
        "up_block_types",
        &["UpBlock2D", CROSS_UP, CROSS_UP, CROSS_UP],
    )?;
    let n = downs.len();
    let channels = c.counts("block_out_channels", &[320, 640, 1280, 1280])?;
    for (key, len) in [
        ("up_block_types", ups.len()),
        ("block_out_channels", channels.len()),
    ] {
        if len != n {
            let expected = format!("{n}, as down_block_types has");
            return Err(c.error(key, format!("{len} entries"), expected));
        }
    }
    let kind = |key: &str, name: &str, plain: &str, cross: &str| match name {
        name if name == cross => Ok(true),
        name if name == plain => Ok(false),
        other => Err(c.error(key, other, format!("{plain} or {cross}"))),
    };
    // In published configurations `attention_head_dim` is the number of heads: a misnomer that
    // diffusers keeps (its issue 2011).
    let heads = match c.get("num_attention_heads") {
        Some(_) => c.counts_for("num_attention_heads", n, 8)?,
        None => c.counts_for("attention_head_dim", n, 8)?,
    };
    let layers = c.counts_for("layers_per_block", n, 2)?;
    let depths = c.counts_for("transformer_layers_per_block", n, 1)?;
    let contexts = c.counts_for("cross_attention_dim", n, 1280)?;
    let only_cross = c.flags("only_cross_attention", n, false)?;
    (0..n)
        .map(|i| {
            Ok(UNetLevel {
                channels: channels[i],
                layers: layers[i],
                down_attention: kind("down_block_types", &downs[i], "DownBlock2D", CROSS_DOWN)?,
                up_attention: kind("up_block_types", &ups[n - 1 - i], "UpBlock2D", CROSS_UP)?,
                transformer_layers: depths[i],
                heads: heads[i],
                context_dim: contexts[i],
                only_cross_attention: only_cross[i],
            })
        })
        .collect()
}

fn read_mid(c: &Config) -> Result<MidKind, ModelError> {
    let key = "mid_block_type";
    if c.is_null(key) {
        return Ok(MidKind::Absent);
    }
    c.only(key, &["UNetMidBlock2DCrossAttn", "UNetMidBlock2D"])?;
    Ok(match c.get(key).and_then(|v| v.as_str()) {
        Some("UNetMidBlock2D") => MidKind::Resnet,
        _ => MidKind::Attention,
    })
}

fn read_added(c: &Config) -> Result<Option<AddedConfig>, ModelError> {
    if c.get("addition_embed_type").is_none() {
        return Ok(None);
    }
    let need = |key: &str| {
        c.maybe_count(key)?
            .ok_or_else(|| c.error(key, "absent", "a count, for addition_embed_type text_time"))
    };
    Ok(Some(AddedConfig {
        time_dim: need("addition_time_embed_dim")?,
        input_dim: need("projection_class_embeddings_input_dim")?,
    }))
}
