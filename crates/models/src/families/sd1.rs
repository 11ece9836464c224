//! Stable Diffusion 1.x (Rombach et al., 2022): CLIP ViT-L/14, epsilon, 512 pixels.

use aquatint_diffusion::Prediction;
use aquatint_diffusion::schedule::SearchedLevels;

use super::{Defaults, Facts, Family, GuidanceUse, Spec, TextUse, scheduler, stored_prediction};
use crate::network::NetworkConfig;
use crate::text::ClipTextConfig;
use crate::unet::UNetConfig;
use crate::vae::{LatentRgb, VaeConfig};

pub(super) const FAMILY: Family = Family {
    id: "sd1",
    title: "Stable Diffusion 1.x",
    detect,
    spec,
    network: || NetworkConfig::UNet(UNetConfig::sd1()),
    vae: VaeConfig::sd1,
    preview: LatentRgb::sd1,
    searched: SearchedLevels::StableDiffusion,
    text: || vec![ClipTextConfig::vit_l_14()],
    t5: None,
};

fn detect(facts: &Facts) -> Option<&'static str> {
    if facts.cross_attention_dim == Some(768) {
        return Some("cross-attention of width 768");
    }
    (!facts.text_time && !facts.open_clip && !facts.linear_projection)
        .then_some("cross-attention with 1x1 convolutions as projections")
}

fn spec(facts: &Facts) -> Spec {
    let prediction = stored_prediction(facts).unwrap_or(Prediction::Epsilon);
    Spec {
        prediction,
        defaults: Defaults {
            size: 512,
            steps: 20,
            guidance: 7.5,
            sampler: "pndm",
        },
        // diffusers' pipeline mends old configurations.
        scheduler: scheduler(facts, prediction, None).in_stable_diffusion_pipeline(),
        own_size: None,
        own_sampler: None,
        text: TextUse::One,
        t5_tokens: 0,
        guidance: GuidanceUse::ClassifierFree,
        zeros_without_negative: false,
        why: String::new(),
    }
}
