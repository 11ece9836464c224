//! One request, one picture: the same bits whenever, in whatever batch, on however many threads.

use aquatint_engine::models::OpenOptions;
use aquatint_engine::{PromptSyntax, Request};
use aquatint_testkit::{golden, pixels_within, relative_error};

use crate::support::{Traced, open, run};

/// A deterministic sampler and two stochastic ones that draw in every step.
const SAMPLERS: [&str; 3] = ["dpmpp_2m", "euler_a", "dpmpp_2m_sde"];

/// Two orders of the same f32 sums, each within 1.5e-5 of diffusers' on these models.
const BATCH: f64 = 3e-5;

fn request(sampler: &str, guidance: f64) -> Request {
    Request {
        prompt: "a red apple on a wooden table, (soft light:1.2)".into(),
        negative: Some("blurry".into()),
        width: 64,
        height: 96,
        steps: 4,
        guidance,
        sampler: sampler.into(),
        seed: 1234,
        prompt_syntax: PromptSyntax::Weighted,
        ..Request::default()
    }
}

fn bits(traced: &Traced) -> Vec<Vec<u32>> {
    let of = |step: &Vec<f32>| step.iter().map(|v| v.to_bits()).collect();
    traced.latents.iter().map(of).collect()
}

#[track_caller]
pub fn assert_same(what: &str, a: &Traced, b: &Traced) {
    for (step, (a, b)) in bits(a).iter().zip(bits(b)).enumerate() {
        let differ = a.iter().zip(&b).filter(|(a, b)| a != b).count();
        assert_eq!(
            differ, 0,
            "{what}: {differ} latents differ after step {step}"
        );
    }
    assert_eq!(a.latents.len(), b.latents.len(), "{what}");
    assert!(a.pictures == b.pictures, "{what}: the pictures differ");
}

#[test]
fn two_runs_are_equal() {
    for family in ["sd1", "sd2", "sdxl"] {
        let model = open(golden(family), &OpenOptions::default());
        for sampler in SAMPLERS {
            let request = request(sampler, 6.0);
            let [a, b] = [(); 2].map(|()| run(&model, &request).unwrap());
            assert_same(&format!("{family} {sampler}"), &a, &b);
            let other = Request {
                seed: 1235,
                ..request
            };
            let c = run(&model, &other).unwrap();
            assert!(bits(&a) != bits(&c), "the seed changes nothing");
        }
    }
}

/// A picture of a batch is that of its own seed, up to rounding. Not to the bit: the kernels choose by
/// the number of rows how they sum (few rows by dot products, many by tiles; which convolution pays).
#[test]
fn a_batch_is_its_single_runs_up_to_rounding() {
    let mut worst = 0.0f64;
    for family in ["sd1", "sd2", "sdxl"] {
        let model = open(golden(family), &OpenOptions::default());
        let runs = SAMPLERS
            .map(|s| (s, 6.0))
            .into_iter()
            .chain([("euler_a", 1.0)]);
        for (sampler, guidance) in runs {
            let one = request(sampler, guidance);
            let three = Request {
                batch: 3,
                ..one.clone()
            };
            let batch = run(&model, &three).unwrap();
            assert_eq!(batch.seeds, [1234, 1235, 1236]);
            assert_eq!(batch.pictures.len(), 3);
            for (i, seed) in batch.seeds.iter().enumerate() {
                let single = run(
                    &model,
                    &Request {
                        seed: *seed,
                        ..one.clone()
                    },
                )
                .unwrap();
                for (step, (all, alone)) in batch.latents.iter().zip(&single.latents).enumerate() {
                    let each = all.len() / 3;
                    let error = relative_error(&all[i * each..][..each], alone);
                    worst = worst.max(error);
                    assert!(
                        error < BATCH,
                        "{family} {sampler} g{guidance} picture {i} step {step}: {error:.2e}"
                    );
                }
                let [a, b] = [&batch.pictures[i], &single.pictures[0]];
                let near = pixels_within(&a.rgb, &b.rgb, 1);
                assert!(
                    near >= 0.999,
                    "{family} {sampler} g{guidance} picture {i}: {near}"
                );
            }
        }
    }
    eprintln!("batch against single runs: {worst:.2e}");
}

#[test]
fn one_thread_and_more_give_the_same_bits() {
    let pools = [1, 2, 3].map(|n| {
        rayon::ThreadPoolBuilder::new()
            .num_threads(n)
            .build()
            .unwrap()
    });
    for family in ["sd1", "sd2", "sdxl"] {
        for batch in [1, 2] {
            let request = Request {
                batch,
                ..request("euler_a", 6.0)
            };
            let runs = pools.each_ref().map(|pool| {
                pool.install(|| {
                    let model = open(golden(family), &OpenOptions::default());
                    run(&model, &request).unwrap()
                })
            });
            for (threads, other) in runs.iter().enumerate().skip(1) {
                let what = format!("{family} batch {batch}, {} threads", threads + 1);
                assert_same(&what, &runs[0], other);
            }
        }
    }
}

/// Tiles are a choice of the request, not of chance.
#[test]
fn tiled_decodes_are_equal() {
    let model = open(golden("sd1"), &OpenOptions::default());
    let tiled = Request {
        vae_tiling: aquatint_engine::Tiling::On,
        width: 256,
        steps: 1,
        ..request("euler", 1.0)
    };
    let [a, b] = [(); 2].map(|()| run(&model, &tiled).unwrap());
    assert_same("tiled", &a, &b);
}
