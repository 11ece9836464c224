//! Whole runs with low-rank additions, against diffusers' pipelines after `load_lora_weights`.

use aquatint_engine::models::OpenOptions;
use aquatint_engine::models::lora::Lora;
use aquatint_engine::{PromptSyntax, Request};
use aquatint_testkit::{Tensors, assert_close, golden, pixels_within};

use crate::support::{LATENTS, PIXELS, open, run};

fn equals_diffusers(case: &str, loras: &[(&str, f64)]) {
    let family = case.split('_').next().unwrap();
    let options = OpenOptions {
        loras: loras
            .iter()
            .map(|(name, weight)| Lora {
                path: golden(&format!("lora/{name}.safetensors")),
                weight: *weight,
            })
            .collect(),
        ..OpenOptions::default()
    };
    // As golden/lora.py runs them.
    let request = Request {
        prompt: "a photograph of an astronaut riding a horse on the moon".into(),
        negative: Some("blurry, low quality, deformed".into()),
        width: 64,
        height: 64,
        steps: 3,
        guidance: 6.0,
        sampler: "ddim".into(),
        seed: 77,
        prompt_syntax: PromptSyntax::Plain,
        ..Request::default()
    };
    let references = Tensors::read(golden("lora/references.safetensors")).unwrap();
    let traced = run(&open(golden(family), &options), &request).unwrap();
    for (i, latents) in traced.latents.iter().enumerate() {
        let stage = format!("{case}/step{i}");
        assert_close(&stage, latents, references.get(&stage), LATENTS);
    }
    assert_eq!(traced.latents.len(), 3);
    let want = references.get(&format!("{case}/image")).u8();
    let found = pixels_within(&traced.pictures[0].rgb, want, 1);
    assert!(found >= PIXELS, "{case}: {found}");
}

#[test]
fn runs_equal_diffusers() {
    for case in [
        "sd1_kohya",
        "sd1_processor",
        "sd1_diffusers",
        "sdxl_kohya",
        "sdxl_diffusers",
    ] {
        equals_diffusers(case, &[(case, 1.0)]);
    }
    equals_diffusers("sd1_both", &[("sd1_kohya", 0.8), ("sd1_diffusers", -0.5)]);
}
