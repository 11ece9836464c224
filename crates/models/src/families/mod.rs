//! The model families: how each is told from the others, and what it is like.
//!
//! No family's name stands anywhere else: everything that differs is in a row of [`FAMILIES`].

mod exchange;
mod flux;
mod sd1;
mod sd2;
mod sd3;
mod sdxl;

use aquatint_diffusion::schedule::SearchedLevels;
use aquatint_diffusion::{Prediction, SchedulerConfig, TimestepSpacing};

pub use exchange::{gguf_architecture, is_delicate};

use crate::ModelError;
use crate::network::NetworkConfig;
use crate::t5::T5Config;
use crate::text::ClipTextConfig;
use crate::vae::{LatentRgb, VaeConfig};

/// What is known of a model before it is loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// Channels of the latents that the UNet reads.
    pub in_channels: usize,
    /// Channels of the latents that it gives.
    pub out_channels: usize,
    /// Width of the text embeddings; `None` without cross-attention.
    pub cross_attention_dim: Option<usize>,
    /// Whether pooled text and picture sizes are added to the timestep (SDXL).
    pub text_time: bool,
    /// Whether tokens are projected by linear layers (from SD 2.x on), not 1x1 convolutions.
    pub linear_projection: bool,
    /// Whether the first text encoder is stored as OpenCLIP names it.
    pub open_clip: bool,
    /// Side of the latents that the UNet was trained on, when the configuration says.
    pub sample_size: Option<usize>,
    /// The folder's scheduler configuration.
    pub scheduler: Option<SchedulerConfig>,
    /// Name of the file or folder, in lower case.
    pub name: String,
    /// The network, when it is a transformer: then nothing of the above says anything but the channels.
    pub transformer: Option<NetworkConfig>,
    /// Whether the file carries a marker of v-prediction, or of epsilon, in its tensors.
    pub prediction_marker: Option<Prediction>,
}

/// What a picture is made with when the user does not say.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Defaults {
    /// Picture side in pixels.
    pub size: u32,
    /// Sampler steps.
    pub steps: u32,
    /// Guidance scale; at most 1 is off.
    pub guidance: f64,
    /// Sampler, when the scheduler's class does not name one.
    pub sampler: &'static str,
}

/// How the text encoders' outputs become the UNet's context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextUse {
    /// One encoder; its last layer with the final norm.
    One,
    /// Two encoders, the penultimate layers side by side, and the second's projection pooled.
    Two,
    /// Stable Diffusion 3: two such encoders, both projections pooled, and T5 behind them in the sequence. Any may be
    /// left out.
    Joint,
    /// FLUX: T5, and the pooled state of one encoder.
    T5AndPooled,
}

/// What the guidance scale of a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuidanceUse {
    /// That of classifier-free guidance: the network runs on the negative prompt too.
    ClassifierFree,
    /// A number that the network is told.
    Embedded,
    /// Nothing: the network was distilled without one.
    Unused,
}

/// What a family is like, given the facts.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// What the network predicts.
    pub prediction: Prediction,
    /// Defaults of a request.
    pub defaults: Defaults,
    /// Scheduler configuration.
    pub scheduler: SchedulerConfig,
    /// Width and height that the model's folder asks for in `aquatint.json`.
    pub own_size: Option<[u32; 2]>,
    /// Sampler that the model's folder asks for in `aquatint.json`.
    pub own_sampler: Option<&'static str>,
    /// Use of the text encoders.
    pub text: TextUse,
    /// Tokens that T5 reads, where the family has it.
    pub t5_tokens: usize,
    /// Use of the guidance scale.
    pub guidance: GuidanceUse,
    /// Whether an absent negative prompt is zeros (SDXL), not an encoded empty text.
    pub zeros_without_negative: bool,
    /// Why this family and prediction: evidence in words.
    pub why: String,
}

/// A family of models.
pub struct Family {
    /// Short name, such as `sd1`.
    pub id: &'static str,
    /// Name for people.
    pub title: &'static str,
    /// The evidence for this family, or `None`.
    pub detect: fn(&Facts) -> Option<&'static str>,
    /// What the family is like.
    pub spec: fn(&Facts) -> Spec,
    /// Network of a single file that has no configuration.
    pub network: fn() -> NetworkConfig,
    /// Autoencoder of a single file that has no configuration.
    pub vae: fn() -> VaeConfig,
    /// Linear approximation of the decoder, for previews.
    pub preview: fn() -> LatentRgb,
    /// Which searched noise levels are the family's.
    pub searched: SearchedLevels,
    /// Text encoders of a single file that has no configuration.
    pub text: fn() -> Vec<ClipTextConfig>,
    /// T5 of such a file, where the family has one.
    pub t5: Option<fn() -> T5Config>,
}

impl std::fmt::Debug for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Family").field(&self.id).finish()
    }
}

/// Every family, the more particular first.
pub static FAMILIES: &[Family] = &[
    flux::DEV,
    flux::SCHNELL,
    sd3::MEDIUM_35,
    sd3::LARGE_35,
    sd3::MEDIUM,
    sdxl::FAMILY,
    sd2::FAMILY,
    sd1::FAMILY,
];

/// The family of a model, with the evidence.
///
/// # Errors
/// [`ModelError::Unsupported`] that says what the model is, when this version cannot run it.
pub fn detect(facts: &Facts) -> Result<(&'static Family, &'static str), ModelError> {
    let unsupported = |found: String, hint: &str| {
        Err(ModelError::Unsupported {
            found,
            hint: hint.into(),
        })
    };
    let found = || {
        FAMILIES
            .iter()
            .find_map(|f| (f.detect)(facts).map(|why| (f, why)))
    };
    if let (Some(_), Some(found)) = (&facts.transformer, found()) {
        return Ok(found);
    }
    match facts.in_channels {
        4 => {}
        n if n == facts.out_channels => {}
        9 => {
            return unsupported(
                "an inpainting model (9 input channels)".into(),
                "use the text-to-image model of the same family",
            );
        }
        8 => {
            return unsupported(
                "an image-editing model (8 input channels)".into(),
                "use the text-to-image model of the same family",
            );
        }
        n => {
            return unsupported(
                format!(
                    "a UNet with {n} input and {} output channels",
                    facts.out_channels
                ),
                "give a text-to-image model",
            );
        }
    }
    if facts.cross_attention_dim.is_none() {
        return unsupported(
            "a UNet without cross-attention".into(),
            "give a text-to-image model",
        );
    }
    if facts.cross_attention_dim == Some(1280) && facts.text_time {
        return unsupported(
            "the SDXL refiner".into(),
            "use the SDXL base model; it makes pictures by itself",
        );
    }
    found().map_or_else(
        || {
            unsupported(
                "a UNet of no known family".into(),
                "Stable Diffusion 1.x, 2.x, XL, 3, 3.5 and FLUX.1 are supported",
            )
        },
        Ok,
    )
}

/// What a low-rank addition tells of the model that it was made for.
#[derive(Debug)]
pub(crate) struct LoraClues<'a> {
    /// Width of the text that its attentions read.
    pub context: Option<usize>,
    /// Whether it changes a second text encoder.
    pub second_encoder: bool,
    /// Names of its layers, joined by underscores.
    pub names: Vec<&'a str>,
}

/// The family that a low-rank addition seems made for.
pub(crate) fn of_lora(clues: &LoraClues<'_>) -> Option<&'static str> {
    const TRANSFORMERS: &[(&str, &str)] = &[
        ("double_blocks_", "FLUX"),
        ("single_transformer_blocks_", "FLUX"),
        ("joint_blocks_", "Stable Diffusion 3"),
        // FLUX has these too, but then single blocks beside them.
        ("attn_add_q_proj", "Stable Diffusion 3"),
        ("attn_add_k_proj", "Stable Diffusion 3"),
    ];
    let of_context = |width| {
        let family = FAMILIES.iter().find(|f| {
            (f.network)()
                .unet()
                .is_ok_and(|unet| unet.context_dim() == Some(width))
        });
        family.map(|f| f.title)
    };
    let two = || {
        let is_unet = |f: &&Family| (f.network)().unet().is_ok();
        FAMILIES
            .iter()
            .filter(is_unet)
            .find(|f| (f.text)().len() == 2)
    };
    let named = TRANSFORMERS
        .iter()
        .find(|(part, _)| clues.names.iter().any(|name| name.contains(part)));
    named
        .map(|(_, title)| *title)
        .or_else(|| clues.context.and_then(of_context))
        .or_else(|| clues.second_encoder.then(two)?.map(|f| f.title))
}

/// Whether the file's own words say that it is distilled for one to four steps: its name, or the
/// spacing that all distilled models have beside a training size of at most 512 pixels.
fn is_turbo(facts: &Facts) -> bool {
    let trailing = facts.scheduler.as_ref().is_some_and(|s| {
        s.timestep_spacing == Some(TimestepSpacing::Trailing)
            && s.rescale_betas_zero_snr != Some(true)
    });
    facts.name.contains("turbo") || (trailing && facts.sample_size.is_some_and(|side| side <= 64))
}

/// The file's own scheduler configuration, else that of the published models, whose spacing of
/// timesteps is `spacing` (`None` leaves it to each sampler's class, as SD 1.5's and 2.1's do).
fn scheduler(
    facts: &Facts,
    prediction: Prediction,
    spacing: Option<TimestepSpacing>,
) -> SchedulerConfig {
    match &facts.scheduler {
        Some(config) => SchedulerConfig {
            prediction_type: Some(prediction),
            ..config.clone()
        },
        None => SchedulerConfig {
            timestep_spacing: spacing,
            ..SchedulerConfig::stable_diffusion(prediction)
        },
    }
}

fn stored_prediction(facts: &Facts) -> Option<Prediction> {
    facts
        .scheduler
        .as_ref()
        .map(SchedulerConfig::prediction)
        .or(facts.prediction_marker)
}
