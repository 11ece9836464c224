//! FLUX.1 dev and schnell (Black Forest Labs, 2024): straight flow, T5, and CLIP's pooled state.

use aquatint_diffusion::schedule::SearchedLevels;
use aquatint_diffusion::{FlowSpacing, Prediction, SchedulerConfig};

use super::{Defaults, Facts, Family, GuidanceUse, Spec, TextUse};
use crate::flux::FluxConfig;
use crate::network::NetworkConfig;
use crate::t5::T5Config;
use crate::text::ClipTextConfig;
use crate::vae::{LatentRgb, VaeConfig};

/// Distilled to be told a guidance scale.
pub(super) const DEV: Family = Family {
    id: "flux-dev",
    title: "FLUX.1 dev",
    detect: |facts| {
        let told = flux(facts)?.guidance;
        told.then_some("a FLUX transformer that is told a guidance scale")
    },
    spec: |facts| {
        let published = SchedulerConfig {
            shift: Some(3.0),
            use_dynamic_shifting: Some(true),
            ..SchedulerConfig::default()
        };
        spec(facts, published, (28, 3.5), GuidanceUse::Embedded)
    },
    network: || NetworkConfig::Flux(FluxConfig::dev()),
    vae: VaeConfig::flux,
    preview: LatentRgb::flux,
    searched: SearchedLevels::StableDiffusion,
    text: || vec![ClipTextConfig::vit_l_14()],
    t5: Some(T5Config::xxl),
};

/// Distilled to few steps, without guidance.
pub(super) const SCHNELL: Family = Family {
    id: "flux-schnell",
    title: "FLUX.1 schnell",
    detect: |facts| flux(facts).map(|_| "a FLUX transformer without guidance"),
    spec: |facts| {
        let published = SchedulerConfig {
            shift: Some(1.0),
            ..SchedulerConfig::default()
        };
        spec(facts, published, (4, 0.0), GuidanceUse::Unused)
    },
    network: || NetworkConfig::Flux(FluxConfig::schnell()),
    ..DEV
};

fn flux(facts: &Facts) -> Option<&FluxConfig> {
    match &facts.transformer {
        Some(NetworkConfig::Flux(config)) => Some(config),
        _ => None,
    }
}

fn spec(
    facts: &Facts,
    published: SchedulerConfig,
    (steps, guidance): (u32, f64),
    used: GuidanceUse,
) -> Spec {
    let prediction = facts.prediction_marker.unwrap_or(Prediction::Flow);
    let scheduler = SchedulerConfig {
        prediction_type: Some(prediction),
        flow_spacing: FlowSpacing::Even,
        ..facts.scheduler.clone().unwrap_or(SchedulerConfig {
            class_name: Some("FlowMatchEulerDiscreteScheduler".into()),
            ..published
        })
    };
    Spec {
        prediction,
        defaults: Defaults {
            size: 1024,
            steps,
            guidance,
            sampler: "euler",
        },
        scheduler,
        own_size: None,
        own_sampler: None,
        text: TextUse::T5AndPooled,
        t5_tokens: 512,
        guidance: used,
        zeros_without_negative: false,
        why: String::new(),
    }
}
