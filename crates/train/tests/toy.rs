//! The whole of training on points in the plane: runs, resumes, errors, and whether what is drawn is distributed as
//! what was learned.

use std::ops::ControlFlow;
use std::path::Path;

use aquatint_train::config::DiffusionConfig;
use aquatint_train::run::{Event, Outcome, RunOptions};
use aquatint_train::{TrainError, train_diffusion};

fn example(name: &str) -> DiffusionConfig {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../examples")
        .join(name);
    DiffusionConfig::read(&path).expect("an example is valid")
}

fn options(out: &Path) -> RunOptions {
    RunOptions {
        out: out.into(),
        resume: false,
        max_steps: None,
    }
}

fn quiet(config: &DiffusionConfig, options: &RunOptions) -> Result<Outcome, TrainError> {
    train_diffusion(config, options, &mut |_| ControlFlow::Continue(()))
}

fn read_points(path: &Path) -> Vec<[f64; 2]> {
    let text = std::fs::read_to_string(path).expect("samples");
    text.lines()
        .skip(1)
        .map(|line| {
            let (x, y) = line.split_once(',').expect("two columns");
            [x.parse().expect("a number"), y.parse().expect("a number")]
        })
        .collect()
}

/// The p-value of the two-sample energy test (Székely and Rizzo 2004) by permutation.
fn energy_test(a: &[[f64; 2]], b: &[[f64; 2]], permutations: usize) -> f64 {
    let all: Vec<[f64; 2]> = a.iter().chain(b).copied().collect();
    let n = all.len();
    let mut distances = vec![0f32; n * n];
    for i in 0..n {
        for j in 0..n {
            distances[i * n + j] = (all[i][0] - all[j][0]).hypot(all[i][1] - all[j][1]) as f32;
        }
    }
    let statistic = |first: &[bool]| {
        let (mut within_a, mut within_b, mut between) = (0f64, 0f64, 0f64);
        for i in 0..n {
            let (mut same, mut other) = (0f64, 0f64);
            for (j, &d) in distances[i * n..][..n].iter().enumerate() {
                if first[i] == first[j] {
                    same += f64::from(d)
                } else {
                    other += f64::from(d)
                }
            }
            if first[i] {
                within_a += same
            } else {
                within_b += same
            }
            between += other;
        }
        let (na, nb) = (a.len() as f64, b.len() as f64);
        between / (na * nb) - within_a / (na * na) - within_b / (nb * nb)
    };
    let mut labels: Vec<bool> = (0..n).map(|i| i < a.len()).collect();
    let observed = statistic(&labels);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut larger = 0;
    for _ in 0..permutations {
        for i in (1..n).rev() {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            labels.swap(i, (state % (i as u64 + 1)) as usize);
        }
        larger += usize::from(statistic(&labels) >= observed);
    }
    (larger + 1) as f64 / (permutations + 1) as f64
}

/// The points that are learned, by their formula.
fn swiss_roll(count: usize) -> Vec<[f64; 2]> {
    (0..count)
        .map(|i| {
            // SplitMix64 of the index.
            let mut z = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let u = ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64;
            let t = 1.5 * std::f64::consts::PI * (1.0 + 2.0 * u);
            [t * t.cos() / 6.9, t * t.sin() / 6.9]
        })
        .collect()
}

#[test]
fn the_energy_test_tells_distributions_apart() {
    let (a, b) = (swiss_roll(500), swiss_roll(1000).split_off(500));
    assert!(energy_test(&a, &b, 99) > 0.05);
    let moved: Vec<[f64; 2]> = b.iter().map(|p| [p[0] + 0.3, p[1]]).collect();
    assert!(energy_test(&a, &moved, 99) < 0.05);
}

#[test]
fn points_are_drawn_as_they_were_learned() {
    let dir = tempfile::tempdir().expect("tempdir");
    let config = example("swiss_roll.toml");
    assert_eq!(
        quiet(&config, &options(dir.path())).expect("run"),
        Outcome::Finished
    );
    let drawn = read_points(&dir.path().join("model/samples.csv"));
    assert_eq!(drawn.len(), 2000);
    let p = energy_test(&drawn[..500], &swiss_roll(500), 199);
    assert!(p > 0.05, "energy test: p = {p}");
    for file in [
        "metrics.csv",
        "samples/step-00004000.png",
        "samples/loss_by_timestep.png",
        "model/README.md",
    ] {
        assert!(dir.path().join(file).exists(), "{file}");
    }
}

fn short() -> DiffusionConfig {
    let mut config = example("swiss_roll.toml");
    config.steps = 12;
    config.batch_size = 16;
    config.samples.every = 0;
    config.samples.count = 1;
    config.samples.steps = 2;
    config.checkpoint.minutes = 0.0;
    config.checkpoint.steps = 4;
    config
}

fn file(out: &Path, name: &str) -> Vec<u8> {
    std::fs::read(out.join(name)).expect("file")
}

#[test]
fn an_interrupted_run_ends_with_the_same_bits() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
    let config = short();
    quiet(&config, &options(&whole)).expect("run");
    let mut steps = 0;
    let stopped = train_diffusion(&config, &options(&parts), &mut |event| {
        steps += usize::from(matches!(event, Event::Step(_)));
        match steps {
            7.. => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    });
    assert_eq!(stopped.expect("stopped"), Outcome::Stopped);
    let resume = RunOptions {
        resume: true,
        ..options(&parts)
    };
    assert_eq!(quiet(&config, &resume).expect("resumed"), Outcome::Finished);
    for name in [
        "checkpoints/step-00000012/weights.safetensors",
        "checkpoints/step-00000012/ema.safetensors",
        "checkpoints/step-00000012/optimizer.safetensors",
        "model/model.safetensors",
        "model/samples.csv",
    ] {
        assert!(file(&whole, name) == file(&parts, name), "{name}");
    }
    // Every step stands once in the table, though step 8 and later were logged twice.
    let text = String::from_utf8(file(&parts, "metrics.csv")).expect("text");
    let logged: Vec<&str> = text
        .lines()
        .skip(1)
        .filter_map(|l| l.split(',').next())
        .collect();
    assert_eq!(logged, (1..=12).map(|s| s.to_string()).collect::<Vec<_>>());
}

#[test]
fn runs_do_not_overwrite_each_other_or_change_under_way() {
    let dir = tempfile::tempdir().expect("tempdir");
    let config = short();
    quiet(&config, &options(dir.path())).expect("run");
    let said = |config: &DiffusionConfig, resume| {
        let options = RunOptions {
            resume,
            ..options(dir.path())
        };
        quiet(config, &options).expect_err("refused").to_string()
    };
    assert!(said(&config, false).contains("a run of 12 steps is here already; add --resume"));
    let mut changed = config.clone();
    changed.batch_size = 17;
    assert!(said(&changed, true).contains("batch_size was 16 when this run began and is 17 now"));
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut config = short();
    config.learning_rate.peak = 10.0;
    config.learning_rate.warmup = 0;
    config.clip_norm = 0.0;
    config.optimizer.eps = 1e-30;
    config.steps = 400;
    // Weights that explode overflow at some step.
    config.optimizer.beta1 = 0.0;
    config.optimizer.beta2 = 0.0;
    match quiet(&config, &options(dir.path())) {
        Err(error @ TrainError::NotFinite { .. }) => {
            let text = error.to_string();
            assert!(
                text.contains("is not finite") && text.contains("checkpoint"),
                "{text}"
            );
        }
        other => panic!("{other:?}"),
    }
}
