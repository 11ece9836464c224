//! Backward passes of norms, activations and GEGLU against f64, and those against finite differences.

use aquatint_kernels::reference::{self, Norm};
use aquatint_kernels::{
    ActivateBackward, Activation, GegluBackward, GroupNormBackward, Isa, LayerNormBackward,
    RmsNormBackward, activate_backward, group_norm_backward,
};
use proptest::prelude::*;

use crate::{ACTIVATIONS, noise};

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// Within `bound` of the largest value, at least of `size`: sums cancel, so an element's own size says nothing.
fn assert_near(what: &str, got: &[f32], want: &[f64], size: f64, bound: f64) {
    assert_eq!(got.len(), want.len());
    let size = want.iter().fold(size, |m, w| m.max(w.abs()));
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(g) - w).abs();
        assert!(error <= bound * size, "{what}: element {i} is {g}, not {w}");
    }
}

/// A few dozen roundings of f32 (6e-8 each) on the way to an element.
const BOUND: f64 = 4e-6;

proptest! {
    #![proptest_config(crate::cases(60))]

    #[test]
    fn group_norm_gradients_agree(
        (batch, pixels, groups, width) in (0usize..3, 1usize..60, 1usize..9, 1usize..21),
        activation in prop::sample::select(&ACTIVATIONS[..]),
        affine in any::<bool>(),
    ) {
        let channels = groups * width;
        let (x, dy) = (noise(batch * pixels * channels, 1), noise(batch * pixels * channels, 4));
        let (gamma, beta) = (noise(channels, 2), noise(channels, 3));
        let (ones, zeros) = (vec![1.0; channels], vec![0.0; channels]);
        let (wide_gamma, wide_beta) = if affine { (wide(&gamma), wide(&beta)) } else { (ones, zeros) };
        // A large eps: with few values a group's deviation may be tiny, and its rate amplify every rounding.
        let norm = Norm { gamma: &wide_gamma, beta: &wide_beta, pixels, groups, eps: f64::from(0.1f32), centre: true, activation };
        let want = norm.backward(&wide(&x), &wide(&dy));
        for isa in Isa::available() {
            let (mut dx, mut dgamma, mut dbeta) = (vec![777.0; x.len()], vec![777.0; channels], vec![777.0; channels]);
            GroupNormBackward {
                x: &x, dy: &dy, batch, pixels, channels, groups, eps: 0.1, activation,
                gamma: affine.then_some(&gamma[..]), beta: affine.then_some(&beta[..]),
                dx: &mut dx, dgamma: Some(&mut dgamma), dbeta: Some(&mut dbeta),
            }.run(isa).unwrap();
            for ((what, got), want) in [("dx", &dx), ("dgamma", &dgamma), ("dbeta", &dbeta)].into_iter().zip(&want) {
                assert_near(&format!("{} {what}", isa.name()), got, want, 1.0, BOUND);
            }
        }
    }

    #[test]
    fn row_norm_gradients_agree((rows, cols) in (0usize..40, 1usize..200), affine in any::<bool>()) {
        let (x, dy) = (noise(rows * cols, 1), noise(rows * cols, 4));
        let gamma = noise(cols, 2);
        let wide_gamma = if affine { wide(&gamma) } else { vec![1.0; cols] };
        let beta = vec![0.0; cols];
        let norm = |centre| Norm {
            gamma: &wide_gamma, beta: &beta, pixels: 1, groups: 1, eps: f64::from(0.1f32), centre,
            activation: Activation::None,
        }.backward(&wide(&x), &wide(&dy));
        let (layer, rms) = (norm(true), norm(false));
        let gamma = affine.then_some(&gamma[..]);
        for isa in Isa::available() {
            let name = isa.name();
            let (mut dx, mut dgamma, mut dbeta) = (vec![777.0; x.len()], vec![777.0; cols], vec![777.0; cols]);
            LayerNormBackward {
                x: &x, dy: &dy, cols, eps: 0.1, gamma, dx: &mut dx,
                dgamma: Some(&mut dgamma), dbeta: Some(&mut dbeta),
            }.run(isa).unwrap();
            assert_near(&format!("{name} layer dx"), &dx, &layer[0], 1.0, BOUND);
            assert_near(&format!("{name} layer dgamma"), &dgamma, &layer[1], 1.0, BOUND);
            assert_near(&format!("{name} layer dbeta"), &dbeta, &layer[2], 1.0, BOUND);
            RmsNormBackward { x: &x, dy: &dy, cols, eps: 0.1, gamma, dx: &mut dx, dgamma: Some(&mut dgamma) }
                .run(isa).unwrap();
            assert_near(&format!("{name} rms dx"), &dx, &rms[0], 1.0, BOUND);
            assert_near(&format!("{name} rms dgamma"), &dgamma, &rms[1], 1.0, BOUND);
        }
    }

    #[test]
    fn geglu_gradients_agree((rows, half) in (0usize..20, 1usize..150)) {
        let x: Vec<f32> = noise(rows * half * 2, 1).iter().map(|v| v * 6.0).collect();
        let dy = noise(rows * half, 2);
        let want: Vec<f64> = x.chunks(2 * half).zip(dy.chunks(half))
            .flat_map(|(x, dy)| reference::geglu_backward(&wide(x), &wide(dy))).collect();
        for isa in Isa::available() {
            let mut dx = vec![777.0; x.len()];
            GegluBackward { x: &x, half, dy: &dy, dx: &mut dx }.run(isa).unwrap();
            assert_near(isa.name(), &dx, &want, 1.0, 2e-6);
        }
    }
}

/// A small eps, and inputs whose mean is up to ten thousand times their deviation: rounding the mean to a float would
/// shift all of the normalised input by a thousandth. Inputs that do not vary at all have the rate of eps.
#[test]
fn narrow_inputs_keep_their_gradients() {
    const EPS: f32 = 1e-6;
    let (batch, pixels, channels, groups) = (2, 33, 24, 4);
    let len = batch * pixels * channels;
    let (dy, gamma, beta) = (noise(len, 1), noise(channels, 2), noise(channels, 3));
    let (wide_dy, wide_gamma, wide_beta) = (wide(&dy), wide(&gamma), wide(&beta));
    let inputs = [
        (0.0, 1.0),
        (0.0, 1e-3),
        (0.3, 1e-3),
        (100.1, 0.03),
        (-999.7, 0.1),
        (0.7, 0.0),
    ];
    for ((centre, spread), isa) in inputs
        .into_iter()
        .flat_map(|i| Isa::available().into_iter().map(move |isa| (i, isa)))
    {
        let x: Vec<f32> = noise(len, 4).iter().map(|v| centre + spread * v).collect();
        let wide_x = wide(&x);
        let name = format!("{} {centre} {spread}", isa.name());
        let exact = |rows: bool, centre, activation| {
            let (pixels, groups) = if rows { (1, 1) } else { (pixels, groups) };
            Norm {
                gamma: &wide_gamma,
                beta: &wide_beta,
                pixels,
                groups,
                eps: f64::from(EPS),
                centre,
                activation,
            }
            .backward(&wide_x, &wide_dy)
        };
        let mut dx = vec![777.0; len];
        let (mut dgamma, mut dbeta) = (vec![777.0; channels], vec![777.0; channels]);
        for activation in [Activation::None, Activation::Silu] {
            GroupNormBackward {
                x: &x,
                dy: &dy,
                batch,
                pixels,
                channels,
                groups,
                eps: EPS,
                activation,
                gamma: Some(&gamma),
                beta: Some(&beta),
                dx: &mut dx,
                dgamma: Some(&mut dgamma),
                dbeta: Some(&mut dbeta),
            }
            .run(isa)
            .unwrap();
            let want = exact(false, true, activation);
            assert_near(
                &format!("{name} group {activation:?} dx"),
                &dx,
                &want[0],
                0.0,
                BOUND,
            );
            assert_near(
                &format!("{name} group {activation:?} dgamma"),
                &dgamma,
                &want[1],
                1.0,
                BOUND,
            );
            assert_near(
                &format!("{name} group {activation:?} dbeta"),
                &dbeta,
                &want[2],
                1.0,
                BOUND,
            );
        }
        LayerNormBackward {
            x: &x,
            dy: &dy,
            cols: channels,
            eps: EPS,
            gamma: Some(&gamma),
            dx: &mut dx,
            dgamma: Some(&mut dgamma),
            dbeta: Some(&mut dbeta),
        }
        .run(isa)
        .unwrap();
        let want = exact(true, true, Activation::None);
        assert_near(&format!("{name} layer dx"), &dx, &want[0], 0.0, BOUND);
        assert_near(
            &format!("{name} layer dgamma"),
            &dgamma,
            &want[1],
            1.0,
            BOUND,
        );
        assert_near(&format!("{name} layer dbeta"), &dbeta, &want[2], 1.0, BOUND);
        RmsNormBackward {
            x: &x,
            dy: &dy,
            cols: channels,
            eps: EPS,
            gamma: Some(&gamma),
            dx: &mut dx,
            dgamma: Some(&mut dgamma),
        }
        .run(isa)
        .unwrap();
        let want = exact(true, false, Activation::None);
        assert_near(&format!("{name} rms dx"), &dx, &want[0], 0.0, BOUND);
        assert_near(&format!("{name} rms dgamma"), &dgamma, &want[1], 1.0, BOUND);
    }
}

/// Absolute, as derivatives are at most 1.2: a few roundings of gate, density and their product.
#[test]
#[cfg_attr(miri, ignore = "too large for an interpreter")]
fn derivatives_agree_everywhere_and_keep_nan() {
    let x: Vec<f32> = (-20_000..=20_000)
        .map(|i| i as f32 / 163.0)
        .chain([0.0, -0.0, 1e-40, f32::INFINITY, f32::NEG_INFINITY])
        .collect();
    let dy = vec![1.0; x.len()];
    for (isa, activation) in Isa::available()
        .into_iter()
        .flat_map(|isa| ACTIVATIONS.map(|a| (isa, a)))
    {
        let call = |x: &[f32], dx: &mut [f32]| {
            let dy = &dy[..x.len()];
            ActivateBackward {
                x,
                dy,
                activation,
                dx,
            }
            .run(isa)
            .unwrap();
        };
        let mut dx = vec![777.0; x.len()];
        call(&x, &mut dx);
        for (&x, &d) in x.iter().zip(&dx) {
            // Infinities have no derivative but a limit, reached long before 1000 (100 for powers of 3).
            let want = activation.derivative(f64::from(x.clamp(-125.0, 125.0)));
            let error = (f64::from(d) - want).abs();
            assert!(
                error <= 1e-6,
                "{} {activation:?} {x}: {d} {want}",
                isa.name()
            );
        }
        let mut nan = [0.0; 2];
        call(&[f32::NAN, 1.0], &mut nan);
        assert!(activation == Activation::None || nan[0].is_nan());
    }
}

#[test]
#[cfg_attr(miri, ignore = "too large for an interpreter")]
fn the_oracles_follow_finite_differences() {
    let slope = |f: &dyn Fn(f64) -> f64| (f(1e-5) - f(-1e-5)) / 2e-5;
    for activation in ACTIVATIONS {
        for i in -80..=80 {
            // Between the steps, away from the corner of ReLU.
            let x = (f64::from(i) + 0.5) / 9.0;
            let found = activation.derivative(x);
            let want = slope(&|e| activation.apply(x + e));
            assert!((found - want).abs() < 1e-8, "{activation:?} {x}");
        }
        for (pixels, groups, centre) in [(3, 2, true), (1, 1, true), (1, 1, false)] {
            let (x, dy) = (wide(&noise(36, 1)), wide(&noise(36, 2)));
            let parameters = [wide(&noise(6, 3)), wide(&noise(6, 4))];
            let loss = |x: &[f64], [gamma, beta]: &[Vec<f64>; 2]| -> f64 {
                let norm = Norm {
                    gamma,
                    beta,
                    pixels,
                    groups,
                    eps: 0.01,
                    centre,
                    activation,
                };
                norm.forward(x).iter().zip(&dy).map(|(y, d)| y * d).sum()
            };
            let [gamma, beta] = &parameters;
            let norm = Norm {
                gamma,
                beta,
                pixels,
                groups,
                eps: 0.01,
                centre,
                activation,
            };
            let [dx, dgamma, dbeta] = norm.backward(&x, &dy);
            for (i, found) in dx.iter().enumerate() {
                let want = slope(&|e| {
                    let mut x = x.clone();
                    x[i] += e;
                    loss(&x, &parameters)
                });
                assert!(
                    (found - want).abs() < 1e-7,
                    "{activation:?} dx[{i}] {found} {want}"
                );
            }
            for (which, found) in [dgamma, dbeta].iter().enumerate() {
                for (i, found) in found.iter().enumerate() {
                    let want = slope(&|e| {
                        let mut parameters = parameters.clone();
                        parameters[which][i] += e;
                        loss(&x, &parameters)
                    });
                    assert!((found - want).abs() < 1e-7, "{activation:?} {which} {i}");
                }
            }
        }
    }
    let (row, dy) = (wide(&noise(10, 5)), wide(&noise(5, 6)));
    for (i, found) in reference::geglu_backward(&row, &dy).iter().enumerate() {
        let want = slope(&|e| {
            let mut row = row.clone();
            row[i] += e;
            (0..5)
                .map(|j| dy[j] * row[j] * Activation::Gelu.apply(row[5 + j]))
                .sum()
        });
        assert!((found - want).abs() < 1e-8, "geglu {i}");
    }
}

/// Large enough for several tasks.
#[test]
fn threads_do_not_change_the_gradients() {
    let (pixels, channels) = (if cfg!(miri) { 520 } else { 700 }, 64);
    let (x, dy) = (noise(pixels * channels, 1), noise(pixels * channels, 2));
    let gamma = noise(channels, 3);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            let mut all = [(); 4].map(|()| vec![0.0; x.len()]);
            let mut sums = [(); 4].map(|()| vec![0.0; channels]);
            let [group, layer, rms, act] = &mut all;
            let [dgamma, dbeta, layer_gamma, rms_gamma] = &mut sums;
            group_norm_backward(GroupNormBackward {
                x: &x,
                dy: &dy,
                batch: 1,
                pixels,
                channels,
                groups: 8,
                eps: 1e-5,
                gamma: Some(&gamma),
                beta: None,
                activation: Activation::Silu,
                dx: group,
                dgamma: Some(dgamma),
                dbeta: Some(dbeta),
            })
            .unwrap();
            aquatint_kernels::layer_norm_backward(LayerNormBackward {
                x: &x,
                dy: &dy,
                cols: channels,
                eps: 1e-5,
                gamma: None,
                dx: layer,
                dgamma: Some(layer_gamma),
                dbeta: None,
            })
            .unwrap();
            aquatint_kernels::rms_norm_backward(RmsNormBackward {
                x: &x,
                dy: &dy,
                cols: channels,
                eps: 1e-5,
                gamma: None,
                dx: rms,
                dgamma: Some(rms_gamma),
            })
            .unwrap();
            activate_backward(ActivateBackward {
                x: &x,
                dy: &dy,
                activation: Activation::Gelu,
                dx: act,
            })
            .unwrap();
            (all, sums)
        })
    };
    assert_eq!(run(1), run(3));
}
