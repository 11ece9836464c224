//! Stable Diffusion 2.x (Stability AI, 2022): OpenCLIP ViT-H/14, epsilon at 512 or v at 768 pixels.

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
    id: "sd2",
    title: "Stable Diffusion 2.x",
    detect,
    spec,
    network: || NetworkConfig::UNet(UNetConfig::sd2()),
    vae: VaeConfig::sd1,
    preview: LatentRgb::sd1,
    searched: SearchedLevels::StableDiffusion,
    text: || vec![ClipTextConfig::vit_h_14()],
    t5: None,
};

fn detect(facts: &Facts) -> Option<&'static str> {
    if facts.text_time {
        return None;
    }
    if facts.cross_attention_dim == Some(1024) {
        return Some("cross-attention of width 1024");
    }
    if facts.cross_attention_dim == Some(768) {
        return None;
    }
    if facts.open_clip {
        return Some("an OpenCLIP text encoder");
    }
    facts
        .linear_projection
        .then_some("cross-attention with linear projections")
}

fn spec(facts: &Facts) -> Spec {
    // The 768-pixel models predict v, the 512-pixel ones epsilon; nothing but training differs, so a
    // file that says nothing is taken for the more common 768-pixel one.
    let prediction = stored_prediction(facts).unwrap_or(Prediction::V);
    let turbo = is_turbo(facts);
    let spacing = turbo.then_some(TimestepSpacing::Trailing);
    let small = turbo || prediction == Prediction::Epsilon;
    Spec {
        prediction,
        defaults: Defaults {
            size: if small { 512 } else { 768 },
            steps: if turbo { 1 } else { 20 },
            guidance: if turbo { 0.0 } else { 7.5 },
            sampler: if turbo { "euler" } else { "ddim" },
        },
        // diffusers' pipeline mends old configurations.
        scheduler: scheduler(facts, prediction, spacing).in_stable_diffusion_pipeline(),
        own_size: None,
        own_sampler: None,
        text: TextUse::One,
        t5_tokens: 0,
        guidance: GuidanceUse::ClassifierFree,
        zeros_without_negative: false,
        why: String::new(),
    }
}
