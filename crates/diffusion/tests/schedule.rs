//! Every schedule against the references' numbers, and the properties that all of them share.

#![allow(clippy::unwrap_used)] // In helpers too: a golden that is not as it must be fails the test.
use aquatint_diffusion::schedule::{
    ModelSigmas, SCHEDULES, ScheduleError, ScheduleOptions, SearchedLevels, find,
};
use aquatint_testkit::{Tensors, golden};
use proptest::prelude::*;

const STEPS: [usize; 8] = [1, 2, 4, 10, 20, 50, 150, 1000];

fn reference() -> Tensors {
    Tensors::read(golden("schedules.safetensors")).unwrap()
}

/// The options and the model that the part of a golden's name after `@` stands for.
fn setup<'a>(
    name: &str,
    option: &str,
    sigmas: &'a [f64],
) -> (ModelSigmas<'a>, ScheduleOptions, usize) {
    let mut model = ModelSigmas::new(sigmas);
    let mut options = ScheduleOptions::default();
    match (name, option) {
        (_, "") => {}
        ("karras", rho) => options.karras_rho = rho.parse().unwrap(),
        ("polyexponential", rho) => options.polyexponential_rho = rho.parse().unwrap(),
        ("beta", shapes) => {
            let (a, b) = shapes.split_once(',').unwrap();
            options.beta_shapes = (a.parse().unwrap(), b.parse().unwrap());
        }
        ("gits", coefficient) => options.gits_coefficient = coefficient.parse().unwrap(),
        ("align_your_steps", "sd") => model.searched = SearchedLevels::StableDiffusion,
        ("align_your_steps", "sdxl") => model.searched = SearchedLevels::StableDiffusionXl,
        other => panic!("{other:?}"),
    }
    (model, options, sigmas.len())
}

fn assert_near(context: &str, got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{context}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(
            (g - w).abs() <= tolerance * w.abs(),
            "{context}, sigma {i}: {g} for {w}"
        );
    }
}

#[test]
fn the_sigmas_are_the_references() {
    let reference = reference();
    let sigmas = reference.get("sigmas").f64();
    let mut compared = std::collections::BTreeMap::new();
    for (key, tensor) in reference.iter().filter(|(key, _)| *key != "sigmas") {
        let (head, steps) = key.split_once('/').unwrap();
        let (name, option) = head.split_once('@').unwrap_or((head, ""));
        let steps: usize = steps.parse().unwrap();
        let (model, options, train) = setup(name, option, sigmas);
        let info = find(name).unwrap();
        if steps > info.most_steps(train) {
            assert_eq!((name, steps), ("ddim_uniform", 1000));
            continue;
        }
        let got = info.sigmas(&model, steps, &options).unwrap();
        assert_eq!(got.len(), steps + 1, "{key}");
        *compared.entry(name.to_string()).or_insert(0) += 1;
        match (name, tensor.shape()[0] == steps + 1) {
            // k_diffusion computes in f32: up to seven powers of one rounding and torch.linspace.
            ("normal" | "sgm_uniform" | "karras" | "exponential" | "polyexponential", true) => {
                let want: Vec<f64> = tensor.f32().iter().map(|&v| f64::from(v)).collect();
                assert_near(key, &got, &want, 3e-6);
            }
            // f64 on both sides, in another order of operations.
            (_, true) => assert_near(key, &got, tensor.f64(), 1e-12),
            // ComfyUI leaves doubles out; ours holds all that it keeps.
            ("beta", false) => {
                for want in tensor.f64() {
                    assert!(got.contains(want), "{key}: {want} is missing");
                }
            }
            // ComfyUI goes on to the top; ours are its lowest ones.
            ("ddim_uniform", false) => {
                let want = tensor.f64();
                assert_near(key, &got, &want[want.len() - got.len()..], 0.0);
            }
            (other, false) => panic!("{other}: another length"),
        }
    }
    for info in SCHEDULES {
        assert!(compared[info.name] >= STEPS.len() - 1, "{}", info.name);
    }
    assert_eq!(compared["gits"], 15 * 19 + 3);
}

#[test]
fn one_step_starts_at_the_top() {
    let reference = reference();
    let model = ModelSigmas::new(reference.get("sigmas").f64());
    for info in SCHEDULES {
        let sigmas = info.sigmas(&model, 1, &ScheduleOptions::default()).unwrap();
        assert_eq!(sigmas.len(), 2, "{}", info.name);
        if info.name == "ddim_uniform" {
            assert_eq!(sigmas, [model.sigmas[1], 0.0]);
        } else {
            // The searched levels and SD's table agree to the fifth digit.
            assert!(
                (sigmas[0] / model.sigma_max - 1.0).abs() < 1e-5,
                "{}",
                info.name
            );
        }
    }
}

#[test]
fn zero_steps_and_too_many_are_errors() {
    let reference = reference();
    let model = ModelSigmas::new(reference.get("sigmas").f64());
    let options = ScheduleOptions::default();
    for info in SCHEDULES {
        let most = info.most_steps(model.sigmas.len());
        for steps in [0, most + 1, usize::MAX] {
            let error = info.sigmas(&model, steps, &options).unwrap_err();
            let expected = ScheduleError::Steps {
                steps,
                schedule: info.name,
                most,
            };
            assert_eq!(error, expected);
        }
        let sigmas = info.sigmas(&model, most, &options).unwrap();
        assert_eq!(sigmas.len(), most + 1, "{}", info.name);
    }
}

#[test]
fn a_table_that_is_no_noise_schedule_is_an_error() {
    let good = [0.1, 1.0, 20.0];
    let mut models = vec![
        ModelSigmas::new(&[]),
        ModelSigmas::new(&[1.0]),
        ModelSigmas::new(&[0.0, 1.0]),
        ModelSigmas::new(&[-1.0, 1.0]),
        ModelSigmas::new(&[1.0, 1.0]),
        ModelSigmas::new(&[2.0, 1.0]),
        ModelSigmas::new(&[1.0, f64::NAN]),
        ModelSigmas::new(&[1.0, f64::INFINITY]),
    ];
    for (min, max) in [
        (0.0, 20.0),
        (0.1, f64::NAN),
        (0.1, f64::INFINITY),
        (3.0, 2.0),
        (f64::NAN, 20.0),
    ] {
        models.push(ModelSigmas {
            sigma_min: min,
            sigma_max: max,
            ..ModelSigmas::new(&good)
        });
    }
    for info in SCHEDULES {
        for model in &models {
            let found = info.sigmas(model, 1, &ScheduleOptions::default());
            assert!(
                matches!(found, Err(ScheduleError::ModelSigmas { .. })),
                "{} {model:?}",
                info.name
            );
        }
    }
}

#[test]
fn options_out_of_range_are_errors() {
    let sigmas = [0.03, 1.0, 20.0];
    let model = ModelSigmas::new(&sigmas);
    let default = ScheduleOptions::default();
    for bad in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e300] {
        for (name, options) in [
            (
                "karras",
                ScheduleOptions {
                    karras_rho: bad,
                    ..default
                },
            ),
            (
                "polyexponential",
                ScheduleOptions {
                    polyexponential_rho: bad,
                    ..default
                },
            ),
            (
                "linear_quadratic",
                ScheduleOptions {
                    linear_share: bad,
                    ..default
                },
            ),
            (
                "gits",
                ScheduleOptions {
                    gits_coefficient: bad,
                    ..default
                },
            ),
        ] {
            let found = find(name).unwrap().sigmas(&model, 3, &options);
            assert!(found.is_err(), "{name} {bad}: {found:?}");
        }
    }
    for coefficient in [0.79, 0.75, 1.22, 1.55] {
        let options = ScheduleOptions {
            gits_coefficient: coefficient,
            ..default
        };
        let found = find("gits").unwrap().sigmas(&model, 3, &options);
        assert!(matches!(found, Err(ScheduleError::Option { .. })));
    }
    for shapes in [(0.0, 1.0), (1.0, f64::NAN)] {
        let options = ScheduleOptions {
            beta_shapes: shapes,
            ..default
        };
        let found = find("beta").unwrap().sigmas(&model, 2, &options);
        assert!(matches!(found, Err(ScheduleError::Option { .. })));
    }
}

#[test]
fn searched_levels_refuse_a_model_of_less_noise() {
    let sigmas = [0.001, 0.5, 1.0];
    let model = ModelSigmas::new(&sigmas);
    for name in ["align_your_steps", "gits"] {
        let found = find(name)
            .unwrap()
            .sigmas(&model, 10, &ScheduleOptions::default());
        assert!(matches!(found, Err(ScheduleError::OtherModel { .. })));
    }
    let sigmas = [0.002, 1.0, 700.0];
    let video = ModelSigmas {
        searched: SearchedLevels::StableVideo,
        ..ModelSigmas::new(&sigmas)
    };
    let ays = find("ays").unwrap();
    let found = ays.sigmas(&video, 10, &ScheduleOptions::default()).unwrap();
    assert_eq!((found[0], found[9], found[10]), (700.0, 0.034, 0.0));
}

#[test]
fn names_are_unique_and_found() {
    let mut seen = std::collections::BTreeSet::new();
    for info in SCHEDULES {
        assert!(!info.summary.is_empty() && !info.reference.is_empty());
        for name in std::iter::once(&info.name).chain(info.aliases) {
            assert!(seen.insert(*name), "{name} twice");
            let written = name.to_uppercase().replace('_', "-");
            assert_eq!(find(&written).unwrap().name, info.name);
        }
    }
    let error = find("karas").unwrap_err().to_string();
    assert!(error.contains("karas") && error.contains("linear_quadratic"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// On any rising table: as many sigmas as asked for, finite, falling, within the model's range,
    /// with 0 at the end.
    #[test]
    fn any_model_gets_a_falling_schedule(
        first in 1e-4_f64..0.5,
        ratios in prop::collection::vec(1.000_1_f64..1.03, 1..400),
        share in 0.0_f64..1.0,
    ) {
        let mut table = vec![first];
        for ratio in &ratios {
            table.push(table[table.len() - 1] * ratio);
        }
        let model = ModelSigmas::new(&table);
        for info in SCHEDULES {
            if matches!(info.name, "align_your_steps" | "gits") {
                continue; // Their levels are their own.
            }
            let most = info.most_steps(table.len()).min(1000);
            let steps = 1 + (share * (most - 1) as f64) as usize;
            let sigmas = info.sigmas(&model, steps, &ScheduleOptions::default()).unwrap();
            prop_assert_eq!(sigmas.len(), steps + 1);
            prop_assert_eq!(sigmas[steps], 0.0);
            prop_assert!(sigmas.is_sorted_by(|a, b| a.is_finite() && a > b), "{}", info.name);
            // The tangent of an arctangent near a right angle loses digits: 1e5 times 1e-16.
            prop_assert!(sigmas[0] <= model.sigma_max * (1.0 + 1e-9), "{}", info.name);
            if info.name != "ddim_uniform" {
                prop_assert!(sigmas[0] >= model.sigma_max * (1.0 - 1e-9), "{}", info.name);
            }
        }
    }
}
