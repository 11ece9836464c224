//! What every sampler must do, on every schedule.

// In helpers too: a run that must succeed fails the test.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use aquatint_diffusion::rng::TorchCpu;
use aquatint_diffusion::schedule::{SCHEDULES, ScheduleInfo, ScheduleOptions, SearchedLevels};
use aquatint_diffusion::{
    BoxError, Denoised, Denoiser, Error, Level, NoNoise, NoiseSource, Plan, Prediction, SAMPLERS,
    SamplerInfo, SamplerOptions, SchedulerConfig, Sigmas, TimestepSpacing, sample, sampler,
};
use proptest::prelude::*;

/// Data that is normal with this mean and deviation has a denoiser in closed form.
const MEAN: f64 = 0.4;
const SPREAD: f64 = 0.7;

struct Gaussian {
    calls: usize,
}

impl Denoiser for Gaussian {
    fn denoise(&mut self, x: &[f32], level: Level) -> Result<Denoised, BoxError> {
        self.calls += 1;
        let Level { alpha, sigma, .. } = level;
        let gain = alpha * SPREAD * SPREAD / (alpha * alpha * SPREAD * SPREAD + sigma * sigma);
        let denoised = x
            .iter()
            .map(|&x| (MEAN + gain * (f64::from(x) - alpha * MEAN)) as f32)
            .collect();
        Ok(Denoised {
            denoised,
            uncond_denoised: None,
        })
    }
}

/// The exact end of the probability-flow ODE from `x` at `from`, at noise over signal `to`.
fn exact(x: f32, from: Level, to: Level) -> f64 {
    let spread = |level: Level| (level.alpha * SPREAD).hypot(level.sigma);
    to.alpha * MEAN + (f64::from(x) - from.alpha * MEAN) * spread(to) / spread(from)
}

fn config() -> SchedulerConfig {
    SchedulerConfig::stable_diffusion(Prediction::Epsilon)
}

fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut out = vec![0.0; len];
    TorchCpu::from_seed(seed).normal(&mut out);
    out
}

fn quiet(_: &aquatint_diffusion::Progress<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Runs a plan on the Gaussian denoiser; gives the end and the number of network calls.
fn run(
    plan: &Plan,
    options: &SamplerOptions,
    seed: u64,
    len: usize,
) -> Result<(Vec<f32>, usize), Error> {
    let mut gaussian = Gaussian { calls: 0 };
    let mut source = TorchCpu::from_seed(seed + 1000);
    let initial = plan.initial(&noise(seed, len));
    let end = sample(
        plan,
        options,
        initial,
        &mut gaussian,
        &mut source,
        &mut quiet,
    )?;
    Ok((end, gaussian.calls))
}

fn plan_on(
    info: &'static SamplerInfo,
    schedule: &ScheduleInfo,
    steps: usize,
) -> Result<Plan, Error> {
    let options = ScheduleOptions::default();
    Plan::on_schedule(
        info,
        &config(),
        steps,
        schedule,
        SearchedLevels::default(),
        &options,
    )
}

#[test]
fn names_are_in_lower_case_and_answer_to_one_row_each() {
    let mut seen = BTreeSet::new();
    for row in SAMPLERS {
        assert!(
            !row.summary.is_empty() && !row.reference.is_empty(),
            "{}",
            row.name
        );
        assert!(row.order >= 1);
        for name in [row.name].iter().chain(row.aliases) {
            assert_eq!(*name, name.to_lowercase());
            assert!(seen.insert(*name), "{name} twice");
            assert_eq!(sampler::find(name).unwrap().name, row.name, "{name}");
        }
    }
    assert_eq!(sampler::find("DPM++ 2M SDE").unwrap().name, "dpmpp_2m_sde");
    let message = sampler::find("eular").unwrap_err().to_string();
    assert!(
        message.contains("eular") && message.contains("euler_a"),
        "{message}"
    );
}

#[test]
fn every_sampler_runs_on_every_schedule_from_one_step_up() {
    for row in SAMPLERS {
        for schedule in SCHEDULES {
            for steps in [1, 2, 3, 7, 20, 50] {
                let what = format!("{} on {} in {steps}", row.name, schedule.name);
                let plan = plan_on(row, schedule, steps).unwrap_or_else(|e| panic!("{what}: {e}"));
                let (end, calls) = run(&plan, &SamplerOptions::default(), 7, 32)
                    .unwrap_or_else(|e| panic!("{what}: {e}"));
                assert_eq!(end.len(), 32);
                assert!(end.iter().all(|v| v.is_finite()), "{what}");
                // The mean of the data, give or take its spread: no picture is lost. High
                // orders and steps in pairs need some steps for that from sigma 14.
                let kept = end
                    .iter()
                    .all(|v| (f64::from(*v) - MEAN).abs() < 8.0 * SPREAD);
                assert!(kept || steps < 20, "{what}: {end:?}");
                if row.name != "dpm_adaptive" {
                    assert_eq!(calls, plan.network_calls(), "{what}");
                }
            }
        }
    }
}

#[test]
fn a_thousand_steps_come_near_the_exact_end() {
    for row in SAMPLERS {
        for spacing in [
            TimestepSpacing::Leading,
            TimestepSpacing::Trailing,
            TimestepSpacing::Linspace,
        ] {
            for steps in [999, 1000] {
                let mut config = SchedulerConfig {
                    timestep_spacing: Some(spacing),
                    ..config()
                };
                config.original_inference_steps = Some(1000);
                let what = format!("{} {spacing:?} {steps}", row.name);
                let plan = match Plan::new(row, &config, steps, Sigmas::Config) {
                    // A multistep class's leading stride vanishes at 1000 of 1000.
                    Err(Error::Steps { most: 999, .. }) if steps == 1000 => continue,
                    other => other.unwrap_or_else(|e| panic!("{what}: {e}")),
                };
                let (end, _) = run(&plan, &SamplerOptions::default(), 3, 16)
                    .unwrap_or_else(|e| panic!("{what}: {e}"));
                assert!(
                    end.iter()
                        .all(|v| (f64::from(*v) - MEAN).abs() < 5.0 * SPREAD),
                    "{what}: {end:?}"
                );
                if row.stochastic || row.name == "dpm_adaptive" {
                    continue;
                }
                let (from, to) = (plan.steps[0].from, plan.steps[plan.len() - 1].to);
                for (start, end) in plan.initial(&noise(3, 16)).iter().zip(&end) {
                    // First-order samplers keep an error of some step lengths.
                    assert!(
                        (f64::from(*end) - exact(*start, from, to)).abs() < 2e-2,
                        "{what}: {end}"
                    );
                }
            }
        }
    }
}

/// Largest error at the end of a run over `n` steps that are even in ln(sigma).
fn error_of(row: &'static SamplerInfo, n: usize) -> f64 {
    let (first, last) = (8.0_f64, 0.2_f64);
    let sigmas: Vec<f64> = (0..=n)
        .map(|i| first * (last / first).powf(i as f64 / n as f64))
        .collect();
    let plan = Plan::new(row, &config(), n, Sigmas::Given(&sigmas)).unwrap();
    let options = SamplerOptions {
        eta: Some(0.0),
        ..SamplerOptions::default()
    };
    let (from, to) = (plan.steps[0].from, plan.steps[n - 1].to);
    let start = from.add_noise(&[1.1, 0.4, -0.6], &noise(5, 3));
    let mut gaussian = Gaussian { calls: 0 };
    let end = sample(
        &plan,
        &options,
        start.clone(),
        &mut gaussian,
        &mut NoNoise,
        &mut quiet,
    )
    .unwrap();
    let errors = start
        .iter()
        .zip(&end)
        .map(|(s, e)| (f64::from(*e) - exact(*s, from, to)).abs());
    errors.fold(0.0, f64::max)
}

#[test]
fn deterministic_samplers_converge_at_their_order() {
    // TCD at eta 0 ends on a training step, LCM restarts from noise, and the adaptive one chooses its
    // own steps; the SDEs without eta have no deterministic form.
    let without = [
        "tcd",
        "lcm",
        "dpm_adaptive",
        "ddpm",
        "dpmpp_2m_sde",
        "er_sde",
    ];
    for row in SAMPLERS.iter().filter(|row| !without.contains(&row.name)) {
        let (coarse, fine) = (error_of(row, 24), error_of(row, 48));
        let order = (coarse / fine).log2();
        // A warm-up by an Euler step holds multistep formulas of higher order at 2.
        let due = f64::from(row.order.min(2));
        assert!(
            order > due - 0.25,
            "{}: {order:.2}, errors {coarse:.1e} and {fine:.1e}",
            row.name
        );
        if row.order == 1 {
            assert!(
                order < 1.5,
                "{} is better than it says: {order:.2}",
                row.name
            );
        }
    }
}

#[test]
fn the_adaptive_sampler_keeps_its_tolerance() {
    // Its relative tolerance is 0.05 a step, of latents of a spread of 0.7 at the end.
    const TOLERANCE: f64 = 0.1;
    let row = sampler::find("dpm_adaptive").unwrap();
    let plan = Plan::new(row, &config(), 20, Sigmas::Config).unwrap();
    let (end, calls) = run(&plan, &SamplerOptions::default(), 9, 64).unwrap();
    assert!((15..60).contains(&calls), "{calls}");
    let (from, to) = (plan.steps[0].from, plan.level_at(plan.schedule.sigma_min()));
    for (start, end) in plan.initial(&noise(9, 64)).iter().zip(&end) {
        assert!((f64::from(*end) - exact(*start, from, to)).abs() < TOLERANCE);
    }
}

#[test]
fn stochastic_samplers_keep_the_distribution() {
    const COUNT: usize = 20_000;
    let with_eta = ["ddim", "res_multistep"];
    let karras = SCHEDULES.iter().find(|s| s.name == "karras").unwrap();
    for row in SAMPLERS
        .iter()
        .filter(|row| row.stochastic || with_eta.contains(&row.name))
    {
        if matches!(row.name, "lcm" | "tcd") {
            continue; // They want a distilled network, which the posterior mean is not.
        }
        let plan = plan_on(row, karras, 100).unwrap();
        let eta = with_eta.contains(&row.name).then_some(1.0);
        let options = SamplerOptions {
            eta,
            ..SamplerOptions::default()
        };
        let (end, _) = run(&plan, &options, 21, COUNT).unwrap();
        let mean = end.iter().map(|&v| f64::from(v)).sum::<f64>() / COUNT as f64;
        let squares = end
            .iter()
            .map(|&v| (f64::from(v) - mean).powi(2))
            .sum::<f64>();
        let spread = (squares / COUNT as f64).sqrt();
        // Statistical error of the mean is 0.005, of the spread 0.0035; the rest is discretisation.
        assert!((mean - MEAN).abs() < 0.03, "{}: mean {mean}", row.name);
        assert!(
            (spread / SPREAD - 1.0).abs() < 0.05,
            "{}: spread {spread}",
            row.name
        );
    }
}

/// Counts the draws of a source.
struct Counted(TorchCpu, usize);

impl NoiseSource for Counted {
    fn normal(&mut self, out: &mut [f32]) {
        self.1 += 1;
        self.0.normal(out);
    }
}

#[test]
fn the_same_seed_gives_the_same_bits_and_another_seed_other_ones() {
    for row in SAMPLERS {
        let plan = Plan::new(row, &config(), 6, Sigmas::Config).unwrap();
        let go = |seed| {
            let mut source = Counted(TorchCpu::from_seed(seed), 0);
            let initial = plan.initial(&noise(1, 24));
            let mut gaussian = Gaussian { calls: 0 };
            let options = SamplerOptions::default();
            let end = sample(
                &plan,
                &options,
                initial,
                &mut gaussian,
                &mut source,
                &mut quiet,
            )
            .unwrap();
            (end, source.1)
        };
        let ((a, draws), (b, _), (c, _)) = (go(4), go(4), go(5));
        assert_eq!(a, b, "{}", row.name);
        assert_eq!(a != c, row.stochastic, "{}", row.name);
        assert_eq!(draws > 0, row.stochastic, "{}", row.name);
    }
}

#[test]
fn one_step_to_no_noise_gives_the_denoised_latent() {
    for row in SAMPLERS.iter().filter(|row| row.name != "dpm_adaptive") {
        let plan = Plan::new(row, &config(), 1, Sigmas::Given(&[5.0, 0.0])).unwrap();
        let initial = plan.noised(&[0.5, 0.1, -1.0], &[0.3, -0.4, 1.2]);
        let want = Gaussian { calls: 0 }
            .denoise(&initial, plan.steps[0].from)
            .unwrap()
            .denoised;
        let mut source = TorchCpu::from_seed(1);
        let mut gaussian = Gaussian { calls: 0 };
        let options = SamplerOptions::default();
        let end = sample(
            &plan,
            &options,
            initial,
            &mut gaussian,
            &mut source,
            &mut quiet,
        )
        .unwrap();
        for (e, w) in end.iter().zip(&want) {
            // LCM's boundary condition mixes in 1e-8 of the latent; Euler's rounding is that of sigma 5.
            assert!((e - w).abs() < 2e-6, "{}: {e} {w}", row.name);
        }
        assert_eq!(gaussian.calls, 1, "{}", row.name);
    }
}

#[test]
fn a_run_from_a_picture_starts_later_and_ends_alike() {
    for row in SAMPLERS.iter().filter(|row| row.name != "dpm_adaptive") {
        let plan = Plan::new(row, &config(), 20, Sigmas::Config).unwrap();
        let late = plan.clone().with_strength(0.3).unwrap();
        assert_eq!(late.len(), 6, "{}", row.name);
        assert_eq!(late.steps[..], plan.steps[14..], "{}", row.name);
        let initial = late.noised(&noise(1, 8), &noise(2, 8));
        let mut gaussian = Gaussian { calls: 0 };
        let mut source = TorchCpu::from_seed(3);
        let options = SamplerOptions::default();
        let end = sample(
            &late,
            &options,
            initial,
            &mut gaussian,
            &mut source,
            &mut quiet,
        )
        .unwrap();
        assert!(end.iter().all(|v| v.is_finite()));
        assert_eq!(gaussian.calls, late.network_calls(), "{}", row.name);
        assert!(plan.clone().with_strength(1.5).is_err());
        assert!(plan.clone().with_strength(0.01).is_err());
        assert!(plan.with_strength(f64::NAN).is_err());
    }
}

#[test]
fn the_observer_sees_every_step_and_can_stop_the_run() {
    for row in SAMPLERS {
        let plan = Plan::new(row, &config(), 8, Sigmas::Config).unwrap();
        let mut seen = Vec::new();
        let mut source = TorchCpu::from_seed(3);
        let initial = plan.initial(&noise(1, 8));
        let options = SamplerOptions::default();
        let mut gaussian = Gaussian { calls: 0 };
        let mut observe = |p: &aquatint_diffusion::Progress<'_>| {
            assert_eq!((p.x.len(), p.denoised.len()), (8, 8));
            seen.push((p.done, p.fraction, p.sigma));
            if p.done == 3 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        let end = sample(
            &plan,
            &options,
            initial,
            &mut gaussian,
            &mut source,
            &mut observe,
        );
        assert!(
            matches!(end, Err(Error::Cancelled { done: 3, .. })),
            "{}",
            row.name
        );
        assert_eq!(seen.iter().map(|s| s.0).collect::<Vec<_>>(), [1, 2, 3]);
        assert!(
            seen.windows(2)
                .all(|w| w[0].1 <= w[1].1 && w[0].2 >= w[1].2),
            "{}: {seen:?}",
            row.name
        );
    }
}

/// A network that fails at its second call, one way or another.
struct Failing {
    calls: usize,
    nan: bool,
}

impl Denoiser for Failing {
    fn denoise(&mut self, x: &[f32], level: Level) -> Result<Denoised, BoxError> {
        self.calls += 1;
        let mut found = Gaussian { calls: 0 }.denoise(x, level)?;
        if self.calls == 2 && !self.nan {
            return Err("the device is lost".into());
        }
        if self.calls == 2 {
            found.denoised[1] = f32::NAN;
        }
        Ok(found)
    }
}

#[test]
fn a_failing_network_ends_the_run_with_its_own_error() {
    for row in SAMPLERS {
        let plan = Plan::new(row, &config(), 8, Sigmas::Config).unwrap();
        for nan in [false, true] {
            let mut failing = Failing { calls: 0, nan };
            let mut source = TorchCpu::from_seed(3);
            let initial = plan.initial(&noise(1, 8));
            let options = SamplerOptions::default();
            let error = sample(
                &plan,
                &options,
                initial,
                &mut failing,
                &mut source,
                &mut quiet,
            )
            .unwrap_err();
            match error {
                Error::Network { source, .. } if !nan => {
                    assert_eq!(source.to_string(), "the device is lost")
                }
                Error::NotFinite { .. } if nan => {}
                other => panic!("{}: {other}", row.name),
            }
            assert_eq!(failing.calls, 2);
        }
    }
}

#[test]
fn what_cannot_be_done_is_refused_with_a_reason() {
    let euler = sampler::find("euler").unwrap();
    let refused = |name: &str, config: &SchedulerConfig, steps: usize| {
        Plan::new(sampler::find(name).unwrap(), config, steps, Sigmas::Config)
            .unwrap_err()
            .to_string()
    };
    assert!(refused("euler", &config(), 0).contains("1 to 1000"));
    assert!(refused("euler", &config(), 1001).contains("1 to 1000"));
    assert!(refused("lcm", &config(), 51).contains("1 to 50"));
    let thresholding = SchedulerConfig {
        thresholding: Some(true),
        ..config()
    };
    assert!(refused("ddim", &thresholding, 5).contains("thresholding"));
    assert!(
        Plan::new(euler, &thresholding, 5, Sigmas::Config).is_ok(),
        "Euler has no such option"
    );
    let json = |text: &str| SchedulerConfig::from_json(text).unwrap();
    let zero = json(r#"{"rescale_betas_zero_snr": true, "timestep_spacing": "trailing"}"#);
    assert!(refused("ddim", &zero, 5).contains("v_prediction"));
    assert!(refused("dpmpp_2m", &json(r#"{"solver_order": 4}"#), 5).contains("solver_order"));
    assert!(refused("ddpm", &json(r#"{"variance_type": "learned"}"#), 5).contains("variance_type"));
    assert!(
        refused(
            "ddim",
            &json(r#"{"clip_sample": true, "clip_sample_range": -1}"#),
            5
        )
        .contains("above 0")
    );
    assert!(
        refused("lcm", &json(r#"{"original_inference_steps": 0}"#), 5)
            .contains("original_inference_steps")
    );
    assert!(
        refused("euler", &json(r#"{"num_train_timesteps": 0}"#), 1).contains("num_train_timesteps")
    );
    assert!(refused("euler", &json(r#"{"trained_betas": [0.1, 2.0, 0.3]}"#), 2).contains("beta 2"));
    assert!(
        refused(
            "euler",
            &json(r#"{"use_karras_sigmas": true, "sigma_min": -3}"#),
            4
        )
        .contains("sigma_min")
    );
    for sigmas in [
        &[1.0, 2.0, 0.0][..],
        &[2.0, 1.0],
        &[2.0, f64::NAN, 0.0],
        &[2.0, 2.0, 0.0],
    ] {
        assert!(matches!(
            Plan::new(euler, &config(), 2, Sigmas::Given(sigmas)),
            Err(Error::Sigmas { .. })
        ));
    }
    let plan = Plan::new(euler, &config(), 2, Sigmas::Config).unwrap();
    for options in [
        SamplerOptions {
            eta: Some(1.5),
            ..Default::default()
        },
        SamplerOptions {
            eta: Some(f64::NAN),
            ..Default::default()
        },
        SamplerOptions {
            eta: None,
            s_noise: -1.0,
        },
    ] {
        assert!(matches!(
            run(&plan, &options, 1, 4),
            Err(Error::Option { .. })
        ));
    }
}

#[test]
fn a_folders_scheduler_class_names_its_sampler() {
    let of = |text: &str| {
        sampler::of_config(&SchedulerConfig::from_json(text).unwrap()).map(|row| row.name)
    };
    assert_eq!(of(r#"{"_class_name": "PNDMScheduler"}"#), Some("pndm"));
    assert_eq!(
        of(r#"{"_class_name": "EulerAncestralDiscreteScheduler"}"#),
        Some("euler_a")
    );
    assert_eq!(
        of(r#"{"_class_name": "DPMSolverMultistepScheduler"}"#),
        Some("dpmpp_2m")
    );
    let sde =
        r#"{"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"}"#;
    assert_eq!(of(sde), Some("dpmpp_2m_sde"));
    assert_eq!(
        of(r#"{"_class_name": "FlowMatchEulerDiscreteScheduler"}"#),
        Some("euler")
    );
    assert_eq!(of(r#"{"_class_name": "SASolverScheduler"}"#), None);
    assert_eq!(of("{}"), None);
}

/// Configurations that no trainer wrote: fields present or not, numbers at their extremes.
fn any_config() -> impl Strategy<Value = String> {
    let number = prop_oneof![
        12 => Just("null"),
        1 => Just("0"),
        1 => Just("1"),
        1 => Just("-1"),
        1 => Just("0.5"),
        1 => Just("1e300"),
        1 => Just("3")
    ];
    let whole = prop_oneof![
        12 => Just("null"),
        1 => Just("0"),
        1 => Just("1"),
        1 => Just("2"),
        1 => Just("37"),
        1 => Just("18446744073709551615")
    ];
    let flag = prop_oneof![Just("null"), Just("true"), Just("false")];
    let spacing = prop_oneof![
        Just("null"),
        Just("\"leading\""),
        Just("\"trailing\""),
        Just("\"linspace\"")
    ];
    let floats = [
        "beta_start",
        "beta_end",
        "sigma_min",
        "sigma_max",
        "clip_sample_range",
        "timestep_scaling",
        "lambda_min_clipped",
    ];
    let wholes = [
        "num_train_timesteps",
        "steps_offset",
        "original_inference_steps",
        "solver_order",
    ];
    let flags = [
        "rescale_betas_zero_snr",
        "use_karras_sigmas",
        "use_exponential_sigmas",
        "use_beta_sigmas",
        "set_alpha_to_one",
        "skip_prk_steps",
        "clip_sample",
        "lower_order_final",
        "euler_at_final",
        "predict_x0",
    ];
    (
        prop::collection::vec(number, floats.len()),
        prop::collection::vec(whole, wholes.len()),
        prop::collection::vec(flag, flags.len()),
        spacing,
    )
        .prop_map(move |(a, b, c, spacing)| {
            let fields = floats
                .iter()
                .zip(a)
                .chain(wholes.iter().zip(b))
                .chain(flags.iter().zip(c));
            let fields: Vec<String> = fields
                .map(|(name, value)| format!("\"{name}\": {value}"))
                .collect();
            format!(
                "{{{}, \"timestep_spacing\": {spacing}, \"prediction_type\": \"v_prediction\"}}",
                fields.join(", ")
            )
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn no_configuration_makes_a_sampler_panic(text in any_config(), row in 0..SAMPLERS.len(), steps in 0_usize..40) {
        let config = SchedulerConfig::from_json(&text).unwrap();
        if let Ok(plan) = Plan::new(&SAMPLERS[row], &config, steps, Sigmas::Config) {
            // An error is an answer too; NaN as a picture is none.
            if let Ok((end, _)) = run(&plan, &SamplerOptions::default(), 3, 4) {
                prop_assert!(end.iter().all(|v| v.is_finite()), "{} {steps} {text}: {end:?}", SAMPLERS[row].name);
            }
        }
    }
}
