//! Stable Diffusion 3 and 3.5 (Esser et al., 2024): MMDiT, straight flow, two CLIP encoders and T5.

use aquatint_diffusion::schedule::SearchedLevels;
use aquatint_diffusion::{Prediction, SchedulerConfig};

use super::{Defaults, Facts, Family, GuidanceUse, Spec, TextUse};
use crate::mmdit::MmditConfig;
use crate::network::NetworkConfig;
use crate::t5::T5Config;
use crate::text::ClipTextConfig;
use crate::vae::{LatentRgb, VaeConfig};

/// What the rows have in common.
const BASE: Family = Family {
    id: "sd3",
    title: "Stable Diffusion 3",
    detect: |facts| mmdit(facts).map(|_| "an MMDiT without norms of queries and keys"),
    spec: |facts| spec(facts, defaults(28, 7.0)),
    network: || NetworkConfig::Mmdit(MmditConfig::sd3_medium()),
    vae: VaeConfig::sd3,
    preview: LatentRgb::sd3,
    searched: SearchedLevels::StableDiffusion,
    text: || {
        vec![
            ClipTextConfig {
                projection: Some(768),
                ..ClipTextConfig::vit_l_14()
            },
            ClipTextConfig::vit_big_g_14(),
        ]
    },
    t5: Some(T5Config::xxl),
};

/// Stable Diffusion 3 Medium.
pub(super) const MEDIUM: Family = BASE;

/// Stable Diffusion 3.5 Medium.
pub(super) const MEDIUM_35: Family = Family {
    id: "sd3.5-medium",
    title: "Stable Diffusion 3.5 Medium",
    detect: |facts| {
        let dual = mmdit(facts)?.dual_attention.contains(&true);
        dual.then_some("an MMDiT whose first blocks attend twice")
    },
    spec: |facts| spec(facts, defaults(40, 4.5)),
    network: || NetworkConfig::Mmdit(MmditConfig::sd35_medium()),
    ..BASE
};

/// Stable Diffusion 3.5 Large, and Large Turbo, which differs in its training alone.
pub(super) const LARGE_35: Family = Family {
    id: "sd3.5-large",
    title: "Stable Diffusion 3.5 Large",
    detect: |facts| {
        mmdit(facts)?
            .qk_norm
            .then_some("an MMDiT with norms of queries and keys")
    },
    spec: |facts| {
        let turbo = facts.name.contains("turbo");
        let (steps, guidance) = if turbo { (4, 0.0) } else { (28, 3.5) };
        spec(facts, defaults(steps, guidance))
    },
    network: || NetworkConfig::Mmdit(MmditConfig::sd35_large()),
    ..BASE
};

fn mmdit(facts: &Facts) -> Option<&MmditConfig> {
    match &facts.transformer {
        Some(NetworkConfig::Mmdit(config)) => Some(config),
        _ => None,
    }
}

fn defaults(steps: u32, guidance: f64) -> Defaults {
    Defaults {
        size: 1024,
        steps,
        guidance,
        sampler: "euler",
    }
}

fn spec(facts: &Facts, defaults: Defaults) -> Spec {
    let published = SchedulerConfig {
        class_name: Some("FlowMatchEulerDiscreteScheduler".into()),
        shift: Some(3.0),
        ..SchedulerConfig::default()
    };
    let mut scheduler = facts.scheduler.clone().unwrap_or(published);
    let prediction = facts.prediction_marker.unwrap_or(Prediction::Flow);
    scheduler.prediction_type = Some(prediction);
    Spec {
        prediction,
        defaults,
        scheduler,
        own_size: None,
        own_sampler: None,
        text: TextUse::Joint,
        t5_tokens: 256,
        guidance: GuidanceUse::ClassifierFree,
        zeros_without_negative: false,
        why: String::new(),
    }
}
