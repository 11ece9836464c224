use super::*;
use crate::beta::BetaSchedule;

fn scheduler(prediction: Prediction, zero_snr: bool) -> SchedulerConfig {
    SchedulerConfig {
        rescale_betas_zero_snr: Some(zero_snr),
        ..SchedulerConfig::stable_diffusion(prediction)
    }
}

fn objective(prediction: Prediction, weight: LossWeight) -> Objective {
    Objective::new(
        &scheduler(prediction, false),
        TimestepSampling::Uniform,
        weight,
        0.0,
    )
    .unwrap_or_else(|e| panic!("{e}"))
}

const ALL: [Prediction; 4] = [
    Prediction::Epsilon,
    Prediction::V,
    Prediction::Sample,
    Prediction::Flow,
];

#[test]
fn a_target_is_what_recovers_the_clean_latent() {
    let (clean, noise) = ([0.3_f32, -1.2, 0.8], [1.1_f32, 0.4, -0.6]);
    for level in [
        Level::preserving(0.3, 500.0),
        Level::exploding(2.0, 500.0),
        Level::straight(0.4, 400.0),
    ] {
        let x = level.add_noise(&clean, &noise);
        for prediction in ALL {
            let target = prediction.target(&clean, &noise, level);
            let found = prediction.denoised(&target, &x, level);
            for (a, b) in found.iter().zip(&clean) {
                // A few roundings of f32.
                assert!((a - b).abs() < 2e-6, "{prediction:?}: {a} {b}");
            }
        }
    }
}

#[test]
fn weights_are_the_published_ones() {
    let level = |snr: f64| Level::preserving(snr / (snr + 1.0), 0.0);
    let near = |a: f64, b: f64| assert!((a - b).abs() <= 1e-9 * b.abs(), "{a} {b}");
    for snr in [0.01, 1.0, 4.9, 5.1, 300.0] {
        let min_snr = LossWeight::MinSnr { gamma: 5.0 };
        let cut = f64::min(snr, 5.0);
        near(min_snr.of(Prediction::Epsilon, level(snr)), cut / snr);
        near(min_snr.of(Prediction::V, level(snr)), cut / (snr + 1.0));
        near(min_snr.of(Prediction::Sample, level(snr)), cut);
        near(
            LossWeight::Debiased.of(Prediction::Epsilon, level(snr)),
            1.0 / snr.sqrt(),
        );
        let (s2, d2) = (1.0 / snr, 0.25);
        let edm = LossWeight::Edm { sigma_data: 0.5 };
        near(
            edm.of(Prediction::Sample, level(snr)),
            (s2 + d2) / (s2 * d2),
        );
        near(LossWeight::Uniform.of(Prediction::V, level(snr)), 1.0);
    }
    // diffusers' compute_loss_weighting_for_sd3, of the velocity of a flow.
    for sigma in [0.001, 0.3, 0.5, 0.9, 1.0] {
        let level = Level::straight(sigma, 0.0);
        let bottom = 1.0 - 2.0 * sigma + 2.0 * sigma * sigma;
        for (weight, expected) in [
            (LossWeight::SigmaSqrt, sigma.powi(-2)),
            (LossWeight::CosMap, 2.0 / (std::f64::consts::PI * bottom)),
        ] {
            // The level without signal is taken a hair beside it.
            let found = weight.of(Prediction::Flow, level);
            assert!(
                (found - expected).abs() < 1e-5 * expected,
                "{found} {expected}"
            );
        }
        near(LossWeight::Uniform.of(Prediction::Flow, level), 1.0);
    }
    // Without any signal the weights are still numbers.
    let silent = Level::preserving(0.0, 999.0);
    for weight in [
        LossWeight::MinSnr { gamma: 5.0 },
        LossWeight::Edm { sigma_data: 1.0 },
    ] {
        let w = weight.of(Prediction::V, silent);
        assert!(w.is_finite() && w >= 0.0, "{weight:?}: {w}");
    }
}

#[test]
fn a_restated_weight_is_the_same_loss() {
    // The same error of the clean latent, seen through each prediction.
    let level = Level::preserving(0.7, 100.0);
    let (clean, wrong, noise) = ([0.5_f32], [0.75_f32], [-0.4_f32]);
    let x = level.add_noise(&clean, &noise);
    for weight in [
        LossWeight::MinSnr { gamma: 1.0 },
        LossWeight::Debiased,
        LossWeight::CosMap,
    ] {
        let losses = ALL.map(|p| {
            let (a, b) = (
                p.output(&wrong, &x, level)[0],
                p.target(&clean, &noise, level)[0],
            );
            weight.of(p, level) * f64::from(a - b).powi(2)
        });
        for loss in losses {
            assert!((loss - losses[0]).abs() < 1e-5 * losses[0], "{losses:?}");
        }
    }
}

#[test]
fn times_follow_their_distribution() {
    let mean_and_deviation = |sampling: TimestepSampling| {
        let times: Vec<f64> = (0..500)
            .flat_map(|step| sampling.times(&Draw::new(7, step), 16))
            .collect();
        assert!(times.iter().all(|t| (0.0..1.0).contains(t)));
        let mean = times.iter().sum::<f64>() / times.len() as f64;
        let logit = |t: f64| (t / (1.0 - t)).ln();
        let logits: Vec<f64> = times.iter().map(|&t| logit(t.max(1e-12))).collect();
        let center = logits.iter().sum::<f64>() / logits.len() as f64;
        let spread = logits.iter().map(|l| (l - center).powi(2)).sum::<f64>() / logits.len() as f64;
        (mean, center, spread.sqrt())
    };
    // 8,000 draws: the mean of a uniform is known to 0.0032, four times that is the bound.
    assert!((mean_and_deviation(TimestepSampling::Uniform).0 - 0.5).abs() < 0.013);
    let (_, center, spread) = mean_and_deviation(TimestepSampling::LogitNormal {
        mean: -0.5,
        std: 0.8,
    });
    assert!(
        (center + 0.5).abs() < 0.036 && (spread - 0.8).abs() < 0.026,
        "{center} {spread}"
    );
    // The density of Esser et al.'s mode sampling is the inverse of the slope of their map.
    let scale = 1.29;
    let map = |u: f64| {
        let cos = (std::f64::consts::FRAC_PI_2 * u).cos();
        1.0 - u - scale * (cos * cos - 1.0 + u)
    };
    let found = TimestepSampling::Mode { scale }.times(&Draw::new(7, 0), 64);
    let plain = TimestepSampling::Uniform.times(&Draw::new(7, 0), 64);
    for (t, u) in found.iter().zip(plain) {
        assert!((t - map(u)).abs() < 1e-12 && (0.0..1.0).contains(t));
    }
    // Each sixteenth of the range is visited once in every batch of sixteen.
    for step in 0..50 {
        let mut bins = [0; 16];
        for time in TimestepSampling::LowDiscrepancy.times(&Draw::new(1, step), 16) {
            bins[(time * 16.0) as usize] += 1;
        }
        assert_eq!(bins, [1; 16], "step {step}");
    }
}

#[test]
fn numbers_depend_on_seed_step_and_index_alone() {
    let objective = objective(Prediction::V, LossWeight::Uniform);
    let (few, many) = (
        objective.levels(&Draw::new(3, 9), 2),
        objective.levels(&Draw::new(3, 9), 8),
    );
    assert_eq!(few.levels[..], many.levels[..2]);
    assert_ne!(few.levels, objective.levels(&Draw::new(3, 10), 2).levels);
    assert_ne!(few.levels, objective.levels(&Draw::new(4, 9), 2).levels);
    let mut noise = [[0.0_f32; 4096]; 2];
    for (example, noise) in noise.iter_mut().enumerate() {
        Draw::new(3, 9).normal(example, noise);
        let mean = noise.iter().sum::<f32>() / 4096.0;
        let square = noise.iter().map(|v| v * v).sum::<f32>() / 4096.0;
        // Four standard errors: 1 / 64 of the mean, sqrt(2) / 64 of the square.
        assert!(
            mean.abs() < 0.0625 && (square - 1.0).abs() < 0.0884,
            "{mean} {square}"
        );
    }
    assert_ne!(noise[0], noise[1]);
}

#[test]
fn offset_noise_moves_whole_channels() {
    let objective = Objective::new(
        &scheduler(Prediction::Epsilon, false),
        TimestepSampling::Uniform,
        LossWeight::Uniform,
        1.0,
    )
    .unwrap_or_else(|e| panic!("{e}"));
    let draw = Draw::new(1, 0);
    let clean = vec![0.0; 2 * 5000];
    let level = objective.level(999);
    let noised = objective.noised(&draw, 0, &clean, 2, |i| i / 5000, level);
    let mut offsets = [0.0; 2];
    draw.offsets(0, &mut offsets);
    for (half, offset) in noised.target.chunks(5000).zip(offsets) {
        let mean = half.iter().sum::<f32>() / 5000.0;
        assert!((mean - offset).abs() < 0.057, "{mean} {offset}");
    }
}

#[test]
fn a_flow_goes_straight_from_the_clean_latent_to_noise() {
    let scheduler = SchedulerConfig {
        prediction_type: Some(Prediction::Flow),
        num_train_timesteps: Some(1000),
        shift: Some(3.0),
        ..SchedulerConfig::default()
    };
    let uniform = TimestepSampling::Uniform;
    let objective = Objective::new(&scheduler, uniform, LossWeight::Uniform, 0.0)
        .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(objective.steps(), 1000);
    // diffusers: sigmas = linspace(1, 1000) / 1000, shifted; timesteps = sigmas * 1000.
    for (step, plain) in [(0, 0.001), (499, 0.5), (999, 1.0)] {
        let level = objective.level(step);
        let sigma = 3.0 * plain / (1.0 + 2.0 * plain);
        assert!((level.sigma - sigma).abs() < 1e-12 && (level.alpha + sigma - 1.0).abs() < 1e-12);
        assert!((level.timestep - 1000.0 * sigma).abs() < 1e-9);
    }
    let draw = Draw::new(1, 0);
    let clean = [0.5_f32, -2.0];
    let mut noise = [0.0; 2];
    draw.normal(0, &mut noise);
    let level = objective.level(499);
    let noised = objective.noised(&draw, 0, &clean, 1, |_| 0, level);
    for i in 0..2 {
        assert!((noised.target[i] - (noise[i] - clean[i])).abs() < 1e-6);
        assert!((noised.input[i] - (0.25 * clean[i] + 0.75 * noise[i])).abs() < 1e-6);
    }
}

#[test]
fn settings_that_cannot_train_are_refused() {
    let build = |scheduler: &SchedulerConfig, timesteps, weight, offset| {
        Objective::new(scheduler, timesteps, weight, offset).map(|_| ())
    };
    let v = scheduler(Prediction::V, true);
    let uniform = TimestepSampling::Uniform;
    assert!(build(&v, uniform, LossWeight::Uniform, 0.0).is_ok());
    let silent = scheduler(Prediction::Epsilon, true);
    let error = build(&silent, uniform, LossWeight::Uniform, 0.0).unwrap_err();
    assert!(error.to_string().contains("zero terminal SNR"), "{error}");
    for offset in [-0.1, 1.5, f64::NAN] {
        assert!(build(&v, uniform, LossWeight::Uniform, offset).is_err());
    }
    for gamma in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(build(&v, uniform, LossWeight::MinSnr { gamma }, 0.0).is_err());
    }
    let flat = TimestepSampling::LogitNormal {
        mean: 0.0,
        std: 0.0,
    };
    assert!(build(&v, flat, LossWeight::Uniform, 0.0).is_err());
    let none = SchedulerConfig {
        num_train_timesteps: Some(0),
        beta_schedule: Some(BetaSchedule::Linear),
        ..v
    };
    assert!(build(&none, uniform, LossWeight::Uniform, 0.0).is_err());
}
