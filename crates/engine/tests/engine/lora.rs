//! Whole runs with low-rank additions, against diffusers' pipelines after `load_lora_weights`.

use std::path::Path;

use aquatint_engine::models::lora::{Lora, MergeOptions, merge};
use aquatint_engine::models::{Checkpoint, Location, OpenOptions};
use aquatint_engine::{PromptSyntax, Request};
use aquatint_testkit::{
    Tensors, assert_close, compare, flow_folder, flow_single_file, golden, pixels_within,
};

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

/// A run of `golden/lora_flow.py`.
fn flow_request(family: &str) -> Request {
    Request {
        prompt: "a photograph of an astronaut riding a horse on the moon".into(),
        negative: (!family.starts_with("flux")).then(|| "blurry, low quality, deformed".into()),
        width: 64,
        height: 64,
        steps: 3,
        guidance: 4.0,
        seed: 77,
        prompt_syntax: PromptSyntax::Plain,
        ..Request::default()
    }
}

fn with(case: &str, weight: f64) -> OpenOptions {
    OpenOptions {
        loras: vec![Lora {
            path: golden(&format!("lora/{case}.safetensors")),
            weight,
        }],
        ..OpenOptions::default()
    }
}

#[test]
fn runs_of_transformers_equal_diffusers() {
    let references = Tensors::read(golden("lora/flow_references.safetensors")).unwrap();
    for family in ["sd35_medium", "flux_dev"] {
        let dir = tempfile::tempdir().unwrap();
        let folder = flow_folder(family, dir.path()).unwrap();
        for kind in ["diffusers", "kohya"] {
            let case = format!("{family}_{kind}");
            let model = open(&folder, &with(&case, 1.0));
            assert!(model.loras[0].layers > 20, "{:?}", model.loras);
            let traced = run(&model, &flow_request(family)).unwrap();
            assert_eq!(traced.latents.len(), 3);
            for (i, latents) in traced.latents.iter().enumerate() {
                let stage = format!("{case}/step{i}");
                assert_close(&stage, latents, references.get(&stage), LATENTS);
            }
            let want = references.get(&format!("{case}/image")).u8();
            let found = pixels_within(&traced.pictures[0].rgb, want, 1);
            assert!(found >= PIXELS, "{case}: {found}");
        }
    }
}

/// Merged into a folder, whose layers are as diffusers has them, and into a file in the original layout, where several
/// are one tensor.
#[test]
fn merged_transformers_draw_what_they_do_with_the_addition() {
    for (family, kind) in [
        ("sd35_medium", "kohya"),
        ("flux_dev", "kohya"),
        ("flux_dev", "diffusers"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let folder = flow_folder(family, dir.path()).unwrap();
        let lora = with(&format!("{family}_{kind}"), 0.7);
        let request = flow_request(family);
        let last = |model: &Checkpoint| run(model, &request).unwrap().latents.remove(2);
        let want = last(&open(&folder, &lora));
        let merged = |source: &Path, out: &str| {
            let out = dir.path().join(out);
            let how = MergeOptions {
                // f16 would round the sums.
                dtype: Some(aquatint_engine::weights::DType::F32),
                overwrite: false,
            };
            merge(&Location::Path(source.to_owned()), &lora, &out, &how).unwrap();
            out
        };
        let plain = OpenOptions::default();
        let found = compare(&last(&open(merged(&folder, "merged"), &plain)), &want);
        assert!(found.relative < LATENTS, "{family}: {}", found.relative);
        let single = flow_single_file(family, dir.path(), |_| true).unwrap();
        let tokenizer = golden("flow/parts/tokenizer_3/tokenizer.json");
        std::fs::copy(tokenizer, dir.path().join("tokenizer.json")).unwrap();
        let single = merged(&single, "merged.safetensors");
        let mut model = open(single, &plain);
        // What the one file does not tell.
        model.spec.scheduler = open(&folder, &plain).spec.scheduler;
        let found = compare(&last(&model), &want);
        assert!(
            found.relative < LATENTS,
            "{family}, one file: {}",
            found.relative
        );
    }
}
