//! The transformer families against diffusers' own pipelines, through the whole engine.

use std::path::PathBuf;

use aquatint_engine::diffusion::TimeShift;
use aquatint_engine::models::{Checkpoint, OpenOptions};
use aquatint_engine::{EngineError, Request, layout};
use aquatint_testkit::{Case, compare, flow_folder};

use crate::support::{LATENTS, References, check_all, open, recorded, request, run};

fn folder(family: &str, into: &std::path::Path) -> PathBuf {
    flow_folder(family, into).unwrap()
}

/// What a case changes in its folder: parts left out, and options given to `from_config`.
fn model(case: &Case, path: &std::path::Path) -> Checkpoint {
    if case.name.contains("no_t5") {
        for part in ["text_encoder_3", "tokenizer_3"] {
            std::fs::remove_dir_all(path.join(part)).unwrap();
        }
    }
    let mut model = open(path, &OpenOptions::default());
    let config = &mut model.spec.scheduler;
    let options = &case.diffusers;
    let number = |key: &str| options[key].as_f64();
    config.use_dynamic_shifting = options["use_dynamic_shifting"]
        .as_bool()
        .or(config.use_dynamic_shifting);
    config.shift_terminal = number("shift_terminal").or(config.shift_terminal);
    config.base_shift = number("base_shift").or(config.base_shift);
    config.max_shift = number("max_shift").or(config.max_shift);
    if options["time_shift_type"] == "linear" {
        config.time_shift_type = Some(TimeShift::Linear);
    }
    model
}

fn family(name: &str, fewest: usize) {
    let references = References::read(&format!("flow/{name}"));
    // DEIS as diffusers runs it on flows stops at the noise of its last step; see its own test.
    let cases: Vec<&Case> = references
        .cases
        .iter()
        .filter(|case| case.sampler != "deis")
        .collect();
    assert!(cases.len() >= fewest, "{name}: {}", cases.len());
    let dirs: Vec<_> = cases.iter().map(|_| tempfile::tempdir().unwrap()).collect();
    let mut next = dirs.iter();
    check_all(name, cases, &references.tensors, |case| {
        model(case, &folder(name, next.next().unwrap().path()))
    });
}

#[test]
fn stable_diffusion_3() {
    family("sd3", 15);
}

#[test]
fn stable_diffusion_3_5_medium() {
    family("sd35_medium", 3);
}

#[test]
fn stable_diffusion_3_5_large() {
    family("sd35_large", 3);
}

#[test]
fn flux_dev() {
    family("flux_dev", 4);
}

#[test]
fn flux_schnell() {
    family("flux_schnell", 1);
}

#[test]
fn deis_follows_diffusers_up_to_its_last_step() {
    // diffusers repeats the last noise level, so that its last step does nothing and the picture keeps that noise.
    let references = References::read("flow/sd3");
    let case = references.pick(&["pipe/deis"])[0];
    let dir = tempfile::tempdir().unwrap();
    let model = model(case, &folder("sd3", dir.path()));
    let traced = run(&model, &request(case)).unwrap();
    for (i, latents) in traced.latents[..case.steps - 1].iter().enumerate() {
        let want = format!("{}/step{:02}", case.name, recorded(case, i));
        let found = compare(latents, references.tensors.get(&want).f32());
        assert!(found.relative < LATENTS, "{want}: {}", found.relative);
    }
    let theirs = |i: usize| {
        let name = format!("{}/step{i:02}", case.name);
        references.tensors.get(&name).f32().to_vec()
    };
    assert_eq!(theirs(case.steps - 1), theirs(case.steps - 2));
    let plan = layout(&model, &request(case)).unwrap();
    assert!(plan.ends_clean());
    let told = aquatint_engine::find_sampler("deis").unwrap().summary;
    assert!(told.contains("on flows"), "{told}");
}

#[test]
fn pictures_of_a_batch_are_those_of_single_runs() {
    for name in ["sd35_medium", "flux_dev"] {
        let dir = tempfile::tempdir().unwrap();
        let model = open(folder(name, dir.path()), &OpenOptions::default());
        let one = Request {
            prompt: "a (red:1.3) apple".into(),
            width: 64,
            height: 96,
            steps: 2,
            guidance: 3.0,
            seed: 5,
            ..Request::default()
        };
        let two = Request {
            batch: 2,
            ..one.clone()
        };
        let alone = run(&model, &one).unwrap();
        let both = run(&model, &two).unwrap();
        assert_eq!(both.seeds, [5, 6]);
        assert_eq!(alone.pictures[0].rgb, both.pictures[0].rgb);
        assert_ne!(both.pictures[0].rgb, both.pictures[1].rgb);
    }
}

#[test]
fn what_a_flow_cannot_do_is_told_with_what_it_can() {
    let dir = tempfile::tempdir().unwrap();
    let model = open(folder("sd3", dir.path()), &OpenOptions::default());
    let base = Request {
        width: 64,
        height: 64,
        steps: 2,
        ..Request::default()
    };
    let told = |request: &Request| match run(&model, request) {
        Err(error @ EngineError::Usage { .. }) => error.to_string(),
        Err(error) => panic!("{error:?}"),
        Ok(_) => panic!("it ran"),
    };
    let pndm = Request {
        sampler: "pndm".into(),
        ..base.clone()
    };
    let text = told(&pndm);
    assert!(
        text.contains("pndm is not for flow models") && text.contains("euler_a"),
        "{text}"
    );
    let odd = Request {
        width: 72,
        ..base.clone()
    };
    assert!(told(&odd).contains("multiple of 16"), "{}", told(&odd));
    // Positions are embedded for 12 tokens a side.
    let large = Request {
        height: 256,
        ..base
    };
    assert!(told(&large).contains("at most 192"), "{}", told(&large));
}

#[test]
fn encoders_may_be_left_out_as_long_as_one_is_there() {
    let request = Request {
        prompt: "a red apple".into(),
        width: 64,
        height: 64,
        steps: 2,
        guidance: 4.0,
        ..Request::default()
    };
    let mut pictures = Vec::new();
    let all = ["", "_2", "_3"];
    for kept in [&all[..], &["_2", "_3"], &["", "_3"], &[""], &["_3"]] {
        let dir = tempfile::tempdir().unwrap();
        let path = folder("sd3", dir.path());
        for suffix in all.iter().filter(|s| !kept.contains(s)) {
            std::fs::remove_dir_all(path.join(format!("text_encoder{suffix}"))).unwrap();
        }
        let model = open(&path, &OpenOptions::default());
        pictures.push(run(&model, &request).unwrap().pictures.remove(0).rgb);
    }
    for (i, one) in pictures.iter().enumerate() {
        assert!(pictures[..i].iter().all(|other| other != one), "{i}");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = folder("flux_dev", dir.path());
    std::fs::remove_dir_all(path.join("text_encoder_2")).unwrap();
    let location = aquatint_engine::models::Location::Path(path);
    let error = Checkpoint::open(&location, &OpenOptions::default()).unwrap_err();
    assert!(error.to_string().contains("holds no T5"), "{error}");
    assert!(error.hint().unwrap().contains("--t5"), "{:?}", error.hint());
}
