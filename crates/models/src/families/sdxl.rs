//! Stable Diffusion XL (Podell et al., 2023) and SDXL-Turbo (Sauer et al., 2023).

use aquatint_diffusion::schedule::SearchedLevels;
use aquatint_diffusion::{Prediction, TimestepSpacing};

use super::{
    Defaults, Facts, Family, GuidanceUse, Spec, TextUse, is_turbo, scheduler, stored_prediction,
};
use crate::network::NetworkConfig;
use crate::text::ClipTextConfig;
use crate::unet::UNetConfig;
use crate::vae::{LatentRgb, VaeConfig};

pub(super) const FAMILY: Family = Family {
    id: "sdxl",
    title: "Stable Diffusion XL",
    detect,
    spec,
    network: || NetworkConfig::UNet(UNetConfig::sdxl()),
    vae: VaeConfig::sdxl,
    preview: LatentRgb::sdxl,
    searched: SearchedLevels::StableDiffusionXl,
    text: || vec![ClipTextConfig::vit_l_14(), ClipTextConfig::vit_big_g_14()],
    t5: None,
};

fn detect(facts: &Facts) -> Option<&'static str> {
    facts
        .text_time
        .then_some("pooled text and sizes added to the timestep")
}

fn spec(facts: &Facts) -> Spec {
    let prediction = stored_prediction(facts).unwrap_or(Prediction::Epsilon);
    let turbo = is_turbo(facts);
    let spacing = match turbo {
        true => TimestepSpacing::Trailing,
        false => TimestepSpacing::Leading,
    };
    Spec {
        prediction,
        defaults: Defaults {
            size: if turbo { 512 } else { 1024 },
            steps: if turbo { 1 } else { 20 },
            guidance: if turbo { 0.0 } else { 5.0 },
            sampler: if turbo { "euler_a" } else { "euler" },
        },
        scheduler: scheduler(facts, prediction, Some(spacing)),
        own_size: None,
        own_sampler: None,
        text: TextUse::Two,
        t5_tokens: 0,
        guidance: GuidanceUse::ClassifierFree,
        zeros_without_negative: true,
        why: String::new(),
    }
}
