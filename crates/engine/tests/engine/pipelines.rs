//! Every reference run of diffusers' own pipelines, through the whole engine, from the folder.

use aquatint_engine::layout;
use aquatint_engine::models::OpenOptions;
use aquatint_testkit::{golden, turbo_folder};

use crate::support::{References, check_all, open, override_scheduler, request};

fn family(name: &str) {
    let references = References::read(name);
    let dir = tempfile::tempdir().unwrap();
    let turbo = (name == "sdxl").then(|| turbo_folder(dir.path()).unwrap());
    check_all(name, &references.cases, &references.tensors, |case| {
        assert_eq!(case.model, name);
        let path = match (case.scheduler.as_str(), &turbo) {
            ("scheduler_turbo", Some(turbo)) => turbo.clone(),
            ("scheduler", _) => golden(name),
            other => panic!("{}: {other:?}", case.name),
        };
        let mut model = open(path, &OpenOptions::default());
        override_scheduler(&mut model, case);
        model
    });
}

#[test]
fn stable_diffusion_1() {
    family("sd1");
}

#[test]
fn stable_diffusion_2() {
    family("sd2");
}

#[test]
fn stable_diffusion_xl() {
    family("sdxl");
}

/// What the issue lists, so that a golden that goes missing shows.
#[test]
fn the_cases_are_those_of_the_task() {
    let samplers = [
        "ddpm",
        "ddim",
        "euler",
        "euler_a",
        "heun",
        "dpm2",
        "dpmpp_2m",
        "dpmpp_2m_sde",
        "unipc",
        "lms",
        "pndm",
        "deis",
        "lcm",
        "tcd",
    ];
    for name in ["sd1", "sd2", "sdxl"] {
        let cases = References::read(name).cases;
        for sampler in samplers {
            for guided in [true, false] {
                let is = |c: &&aquatint_testkit::Case| {
                    c.sampler == sampler && (c.guidance > 1.0) == guided
                };
                assert!(cases.iter().any(|c| is(&c)), "{name} {sampler} {guided}");
            }
        }
        let karras = |c: &aquatint_testkit::Case| c.sampler == "dpmpp_2m" && c.schedule == "karras";
        assert!(cases.iter().any(karras), "{name}");
    }
}

/// Asking for the schedule "normal" by name is asking for none.
#[test]
fn the_normal_schedule_is_the_samplers_own() {
    for name in ["sd1", "sd2", "sdxl"] {
        let model = open(golden(name), &OpenOptions::default());
        for case in References::read(name).cases {
            if case.schedule != "normal" {
                continue;
            }
            let own = request(&case);
            let mut named = own.clone();
            named.schedule = Some("normal".into());
            let [own, named] = [own, named].map(|r| layout(&model, &r).unwrap());
            assert_eq!(own.steps, named.steps, "{}", case.name);
        }
    }
}
