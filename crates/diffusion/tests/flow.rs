//! Every sampler on straight flows, against a network whose paths are known exactly.
//!
//! Data of independent normal values of mean `MEAN` and deviation `SPREAD`: the expected clean latent is linear in
//! the noisy one, and a path of the probability-flow ODE keeps `(x - alpha · MEAN) / sqrt(alpha² SPREAD² + sigma²)`.

// In helpers too: a run that must succeed fails the test.
#![allow(clippy::unwrap_used)]

use std::ops::ControlFlow;

use aquatint_diffusion::sampler::OnFlows;
use aquatint_diffusion::schedule::{ScheduleOptions, SearchedLevels, find};
use aquatint_diffusion::*;
use rng::TorchCpu;

const MEAN: f64 = 0.7;
const SPREAD: f64 = 0.4;

/// A network that predicts the velocity, behind [`GuidedDenoiser`] as a real one is.
struct Normal;

impl Network for Normal {
    fn run(&mut self, input: &[f32], timestep: f64, _: Branches) -> Result<Outputs, BoxError> {
        let sigma = timestep / 1000.0;
        let alpha = 1.0 - sigma;
        let gain = alpha * SPREAD * SPREAD / (alpha * alpha * SPREAD * SPREAD + sigma * sigma);
        let velocity = |&x: &f32| {
            let x = f64::from(x);
            let clean = MEAN + gain * (x - alpha * MEAN);
            match sigma > 0.0 {
                true => ((x - clean) / sigma) as f32,
                false => 0.0,
            }
        };
        let cond: Vec<f32> = input.iter().map(velocity).collect();
        Ok(Outputs {
            uncond: Some(cond.clone()),
            cond,
        })
    }
}

fn config() -> SchedulerConfig {
    let text = r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}"#;
    SchedulerConfig::from_json(text).unwrap()
}

fn run(plan: &Plan, noise: &[f32], options: &SamplerOptions) -> Vec<f32> {
    let mut denoiser = GuidedDenoiser {
        network: Normal,
        prediction: plan.prediction,
        guidance: Guidance::none(),
        images: 1,
        keep_uncond: plan.info.needs_uncond,
    };
    let mut source = TorchCpu::from_seed(7);
    let observe = &mut |_: &Progress<'_>| ControlFlow::Continue(());
    let initial = plan.initial(noise);
    sample(plan, options, initial, &mut denoiser, &mut source, observe).unwrap()
}

fn noise(len: usize) -> Vec<f32> {
    let mut out = vec![0.0; len];
    TorchCpu::from_seed(3).normal(&mut out);
    out
}

fn fitting() -> impl Iterator<Item = &'static SamplerInfo> {
    SAMPLERS
        .iter()
        .filter(|row| !matches!(row.flows, OnFlows::Unfit(_)))
}

#[test]
fn deterministic_samplers_follow_the_exact_path() {
    let noise = noise(64);
    for row in fitting().filter(|row| !row.stochastic) {
        let plan = Plan::new(row, &config(), 200, Sigmas::Config).unwrap();
        let found = run(&plan, &noise, &SamplerOptions::default());
        let worst = found
            .iter()
            .zip(&noise)
            .map(|(x, z)| (f64::from(*x) - (MEAN + SPREAD * f64::from(*z))).abs())
            .fold(0.0, f64::max);
        // The adaptive one keeps its own tolerance; first order over 200 steps of a path of length 1 leaves 2e-2,
        // second order half of that at the last steps, which are the longest in ln(sigma).
        let tolerance = if row.order == 1 { 2e-2 } else { 1e-2 };
        let tolerance = if row.name == "dpm_adaptive" {
            3e-2
        } else {
            tolerance
        };
        assert!(worst < tolerance, "{}: {worst}", row.name);
    }
}

/// Mean and deviation of a sampler's pictures.
fn moments(
    row: &'static SamplerInfo,
    options: &SamplerOptions,
    steps: usize,
    noise: &[f32],
) -> (f64, f64) {
    let plan = Plan::new(row, &config(), steps, Sigmas::Config).unwrap();
    let found = run(&plan, noise, options);
    let n = found.len() as f64;
    let mean = found.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let square = |&x: &f32| (f64::from(x) - mean).powi(2);
    (mean, (found.iter().map(square).sum::<f64>() / n).sqrt())
}

#[test]
fn stochastic_samplers_come_to_keep_the_distribution() {
    let noise = noise(10_000);
    let always = SamplerOptions::default();
    let added = SamplerOptions {
        eta: Some(0.7),
        ..always
    };
    let rows = fitting().flat_map(|row| [(row, always), (row, added)]);
    for (row, options) in rows {
        let draws = row.stochastic || (row.default_eta.is_some() && options.eta.is_some());
        if !draws {
            continue;
        }
        let name = row.name;
        let (mean, few) = moments(row, &options, 100, &noise);
        let (_, many) = moments(row, &options, 400, &noise);
        // Standard errors are 0.004 and 0.003.
        assert!((mean - MEAN).abs() < 0.02, "{name}: mean {mean}");
        // Each step of lcm starts from a clean guess alone: it narrows whatever it samples.
        if name == "lcm" {
            assert!(many < SPREAD, "{name}: {many}");
            continue;
        }
        // Steps of first order lose some of the spread, in proportion to their length.
        let [few, many] = [few, many].map(|spread| (spread - SPREAD).abs());
        assert!(few < 0.08, "{name}: {few}");
        assert!(many < 0.01f64.max(0.5 * few), "{name}: {few}, then {many}");
    }
}

#[test]
fn every_fitting_sampler_runs_on_every_schedule_from_one_step_up() {
    let noise = noise(8);
    let options = ScheduleOptions::default();
    for row in fitting() {
        for name in [
            "normal",
            "karras",
            "exponential",
            "simple",
            "sgm_uniform",
            "beta",
            "kl_optimal",
            "linear_quadratic",
        ] {
            for steps in [1, 2, 5, 20] {
                let schedule = find(name).unwrap();
                let searched = SearchedLevels::default();
                let plan =
                    Plan::on_schedule(row, &config(), steps, schedule, searched, &options).unwrap();
                let found = run(&plan, &noise, &SamplerOptions::default());
                assert!(
                    found.iter().all(|x| x.abs() < 10.0),
                    "{} {name} {steps}",
                    row.name
                );
            }
        }
    }
}

#[test]
fn samplers_of_discrete_chains_are_refused_with_those_that_fit() {
    let unfit: Vec<&SamplerInfo> = SAMPLERS
        .iter()
        .filter(|row| matches!(row.flows, OnFlows::Unfit(_)))
        .collect();
    let names: Vec<&str> = unfit.iter().map(|row| row.name).collect();
    assert_eq!(names, ["ddpm", "pndm", "tcd"]);
    for row in unfit {
        let error = Plan::new(row, &config(), 10, Sigmas::Config).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(row.name) && text.contains("euler, euler_a, heun"),
            "{text}"
        );
    }
}

#[test]
fn levels_searched_for_other_networks_are_refused() {
    let searched = SearchedLevels::default();
    let row = sampler::find("euler").unwrap();
    let schedule = find("align_your_steps").unwrap();
    let options = ScheduleOptions::default();
    let plan = Plan::on_schedule(row, &config(), 10, schedule, searched, &options);
    assert!(plan.unwrap_err().to_string().contains("align_your_steps"));
}

/// ComfyUI's `simple_scheduler` and `normal_scheduler` on `ModelSamplingDiscreteFlow` of shift 3.
#[test]
fn comfyuis_schedules_have_its_levels() {
    let shifted = |t: f64| 3.0 * t / (1.0 + 2.0 * t);
    let row = sampler::find("ipndm").unwrap();
    let of = |name: &str, steps: usize| {
        let searched = SearchedLevels::default();
        let options = ScheduleOptions::default();
        let schedule = find(name).unwrap();
        let plan = Plan::on_schedule(row, &config(), steps, schedule, searched, &options).unwrap();
        plan.steps
            .iter()
            .map(|step| step.from.sigma)
            .collect::<Vec<f64>>()
    };
    let simple: Vec<f64> = (0..4)
        .map(|i| shifted((1000 - 250 * i) as f64 / 1000.0))
        .collect();
    let least = shifted(1.0 / 1000.0);
    let sgm: Vec<f64> = (0..4)
        .map(|i| shifted(1.0 + (least - 1.0) * i as f64 / 4.0))
        .collect();
    for (name, wanted) in [("simple", simple), ("sgm_uniform", sgm)] {
        for (found, wanted) in of(name, 4).iter().zip(wanted) {
            assert!((found - wanted).abs() < 1e-9, "{name}: {found} {wanted}");
        }
    }
}

/// Noise of ones, so that a step can be worked out by hand.
struct Ones;

impl NoiseSource for Ones {
    fn normal(&mut self, out: &mut [f32]) {
        out.fill(1.0);
    }
}

/// ComfyUI's `sample_euler_ancestral_RF` from 0.8 to 0.5 and to nothing: down to 0.3125, where the signal is 0.6875, and
/// noise of `sqrt(0.5² - (0.3125 · 0.5 / 0.6875)²)` back up.
#[test]
fn euler_ancestral_is_comfyuis_for_flows() {
    let row = sampler::find("euler_a").unwrap();
    let plan = Plan::new(row, &config(), 2, Sigmas::Given(&[0.8, 0.5, 0.0])).unwrap();
    let mut denoiser = GuidedDenoiser {
        network: Normal,
        prediction: plan.prediction,
        guidance: Guidance::none(),
        images: 1,
        keep_uncond: false,
    };
    let mut steps = Vec::new();
    let observe = &mut |progress: &Progress<'_>| {
        steps.push((progress.x[0], progress.denoised[0]));
        ControlFlow::Continue(())
    };
    let options = SamplerOptions::default();
    let (x, start) = (1.3f64, vec![1.3f32]);
    sample(&plan, &options, start, &mut denoiser, &mut Ones, observe).unwrap();
    let clean = f64::from(steps[0].1);
    let ratio = 0.3125 / 0.8;
    let keep = 0.5 / 0.6875;
    let fresh = (0.25 - (0.3125f64 * keep).powi(2)).sqrt();
    let want = keep * (ratio * x + (1.0 - ratio) * clean) + fresh;
    assert!(
        (f64::from(steps[0].0) - want).abs() < 1e-6,
        "{steps:?} {want}"
    );
    assert_eq!(
        steps[1].0, steps[1].1,
        "the last step is to the clean latent"
    );
}
