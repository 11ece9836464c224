//! Every sampler against its reference, call by call.
//!
//! `golden/samplers.py` records what diffusers (k-diffusion, ComfyUI's formulas) passes to a network
//! that is a formula: here the same formula stands behind the same sampler, and each input, each
//! timestep, the number of noises drawn and the final latent are compared, so that a difference says
//! at which network call it began.

// In helpers too: a run that must succeed fails the test.
#![allow(clippy::unwrap_used)]

use std::ops::ControlFlow;

use aquatint_diffusion::{
    BoxError, Denoised, Denoiser, Level, NoiseSchedule, NoiseSource, Plan, Prediction,
    SamplerOptions, SchedulerConfig, Sigmas, sample, sampler,
};
use aquatint_testkit::{Tensors, golden};
use serde::Deserialize;

/// The reference computes its coefficients in f32. The largest cancellation is in lambda, a difference
/// of logarithms of which 1e-7 of some 2 is lost, over steps of some 0.2 in 20: 1e-6 a step, and the
/// network's slope carries it on. Relative to the largest value of the latent.
const TOLERANCE: f64 = 1e-5;

/// In a run of two steps KDPM2Ancestral takes the sigma to step down to, to² / from with from = 500 to,
/// as a root of a difference of squares in f32. That leaves it 1e-2 of error, and the midpoint's sigma,
/// 2e-3 of the unit-variance input, half of it: 1e-5 where the derivative is multiplied by the step.
const SHORT_ANCESTRAL_TOLERANCE: f64 = 5e-5;

impl Case {
    fn tolerance(&self) -> f64 {
        if self.sampler == "dpm2_a" && self.steps == 2 {
            SHORT_ANCESTRAL_TOLERANCE
        } else {
            TOLERANCE
        }
    }
}

/// In training steps. Midpoint times come from sigmas that ancestral schedulers subtract in f32, which
/// leaves 1e-5 of ln(sigma), and a training step is 1e-3 to 1e-1 of it; grids of k-diffusion's kind
/// interpolate times in ln(sigma), Euler's in sigma.
const TIME_TOLERANCE: f64 = 1e-2;

#[derive(Deserialize)]
struct Case {
    name: String,
    sampler: String,
    config: SchedulerConfig,
    steps: usize,
    options: Options,
    drawn: usize,
}

#[derive(Deserialize)]
struct Options {
    eta: Option<f64>,
}

#[derive(Deserialize)]
struct Cases {
    cases: Vec<Case>,
}

/// The formula of `golden/samplers.py`, recording what it is given.
struct Formula {
    prediction: Prediction,
    cfg_pp: bool,
    inputs: Vec<Vec<f32>>,
    times: Vec<f64>,
}

impl Denoiser for Formula {
    fn denoise(&mut self, x: &[f32], level: Level) -> Result<Denoised, BoxError> {
        let input = self.prediction.network_input(x, level);
        let scale = match self.prediction {
            Prediction::Epsilon => 0.9,
            Prediction::V => -0.8,
            _ => 0.6,
        };
        let shift = 0.1 * (level.timestep / 100.0).sin();
        let output: Vec<f32> = input
            .iter()
            .map(|&x| (scale * (0.7 * f64::from(x) + shift).tanh()) as f32)
            .collect();
        self.inputs.push(input);
        self.times.push(level.timestep);
        let denoised = self.prediction.denoised(&output, x, level);
        if !self.cfg_pp {
            return Ok(Denoised {
                denoised,
                uncond_denoised: None,
            });
        }
        let guided = denoised
            .iter()
            .map(|&d| (f64::from(d) + 0.3 * f64::from(d).tanh()) as f32)
            .collect();
        Ok(Denoised {
            denoised: guided,
            uncond_denoised: Some(denoised),
        })
    }
}

struct Bank<'a> {
    noises: &'a [f32],
    drawn: usize,
}

impl NoiseSource for Bank<'_> {
    fn normal(&mut self, out: &mut [f32]) {
        let start = self.drawn * out.len();
        out.copy_from_slice(&self.noises[start..start + out.len()]);
        self.drawn += 1;
    }
}

/// The first way in which a case differs from its reference.
fn difference(case: &Case, tensors: &Tensors) -> Option<String> {
    let get = |part: &str| tensors.get(&format!("{}/{part}", case.name));
    let info = sampler::find(&case.sampler).unwrap();
    let plan = match Plan::new(info, &case.config, case.steps, Sigmas::Config) {
        Ok(plan) => plan,
        Err(error) => return Some(error.to_string()),
    };
    let mut formula = Formula {
        prediction: plan.prediction,
        cfg_pp: info.needs_uncond,
        inputs: Vec::new(),
        times: Vec::new(),
    };
    let mut bank = Bank {
        noises: tensors.get("bank").f32(),
        drawn: 0,
    };
    let options = SamplerOptions {
        eta: case.options.eta,
        ..SamplerOptions::default()
    };
    let initial = plan.initial(tensors.get("initial").f32());
    let run = sample(
        &plan,
        &options,
        initial,
        &mut formula,
        &mut bank,
        &mut |_| ControlFlow::Continue(()),
    );
    let found = match run {
        Ok(found) => found,
        Err(error) => return Some(error.to_string()),
    };
    let (inputs, times) = (get("inputs"), get("times").f64());
    let size = found.len();
    for (call, want) in inputs.f32().chunks(size).enumerate() {
        let (Some(got), Some(&time)) = (formula.inputs.get(call), formula.times.get(call)) else {
            break;
        };
        if (time - times[call]).abs() > TIME_TOLERANCE {
            return Some(format!(
                "call {call} is told time {time}, not {}",
                times[call]
            ));
        }
        let error = relative(got, want);
        if error > case.tolerance() {
            return Some(format!(
                "the input of call {call} (time {time}) is off by {error:.2e}"
            ));
        }
    }
    let calls = inputs.shape()[0];
    // A step that changes nothing is made without its call, whose result the reference discards.
    let spared = plan.steps.iter().filter(|step| step.is_still()).count();
    if formula.inputs.len() != calls && formula.inputs.len() + spared != calls {
        return Some(format!(
            "{} network calls, not {calls}",
            formula.inputs.len()
        ));
    }
    if info.name != "dpm_adaptive" && formula.inputs.len() != plan.network_calls() {
        return Some(format!(
            "{} calls were planned, {} made",
            plan.network_calls(),
            formula.inputs.len()
        ));
    }
    if bank.drawn != case.drawn {
        return Some(format!("{} noises drawn, not {}", bank.drawn, case.drawn));
    }
    let error = relative(&found, get("final").f32());
    (error > case.tolerance()).then(|| format!("the final latent is off by {error:.2e}"))
}

fn relative(got: &[f32], want: &[f32]) -> f64 {
    let largest = want.iter().fold(0.0_f64, |m, v| m.max(f64::from(v.abs())));
    let worst = got
        .iter()
        .zip(want)
        .map(|(g, w)| (f64::from(*g) - f64::from(*w)).abs())
        .fold(0.0, f64::max);
    worst / largest
}

#[test]
fn trajectories_are_those_of_the_references() {
    let text = std::fs::read_to_string(golden("samplers.json")).unwrap();
    let cases: Cases = serde_json::from_str(&text).unwrap();
    let tensors = Tensors::read(golden("samplers.safetensors")).unwrap();
    assert!(cases.cases.len() > 600);
    let mut differing = Vec::new();
    for case in &cases.cases {
        if let Some(what) = difference(case, &tensors) {
            differing.push(format!(
                "{} of {} steps, {:?}: {what}",
                case.name, case.steps, case.options.eta
            ));
        }
    }
    assert!(
        differing.is_empty(),
        "{} of {}:\n{}",
        differing.len(),
        cases.cases.len(),
        differing.join("\n")
    );
}

#[test]
fn every_sampler_has_reference_trajectories() {
    let text = std::fs::read_to_string(golden("samplers.json")).unwrap();
    let cases: Cases = serde_json::from_str(&text).unwrap();
    for row in sampler::SAMPLERS {
        assert!(
            cases.cases.iter().any(|case| case.sampler == row.name),
            "{}",
            row.name
        );
    }
}

#[test]
fn cumulative_products_are_those_of_torch() {
    let tensors = Tensors::read(golden("samplers.safetensors")).unwrap();
    for kind in ["linear", "scaled_linear", "squaredcos_cap_v2"] {
        for (zero, name) in [(false, "plain"), (true, "zero_snr")] {
            let json = format!(
                r#"{{"beta_schedule": "{kind}", "beta_start": 0.00085, "beta_end": 0.012,
                    "rescale_betas_zero_snr": {zero}}}"#
            );
            let schedule =
                NoiseSchedule::from_config(&SchedulerConfig::from_json(&json).unwrap()).unwrap();
            let want = tensors.get(&format!("alphas_cumprod/{kind}/{name}"));
            let got: Vec<f32> = schedule
                .alphas_cumprod()
                .iter()
                .map(|&a| a as f32)
                .collect();
            let differing = got
                .iter()
                .zip(want.f32())
                .filter(|(a, b)| a.to_bits() != b.to_bits())
                .count();
            if !zero {
                assert_eq!(differing, 0, "{kind}");
                continue;
            }
            // The rescaling takes square roots, which torch may leave to a vector library whose last
            // bit is its own: alpha, the root of the product, is within a few of them.
            for (t, (a, b)) in got.iter().zip(want.f32()).enumerate() {
                let error = (f64::from(*a).sqrt() - f64::from(*b).sqrt()).abs();
                assert!(error < 3e-7, "{kind} {name} at {t}: {a} {b}");
            }
        }
    }
}
