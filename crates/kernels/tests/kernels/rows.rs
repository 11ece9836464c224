use aquatint_kernels::{
    GroupNorm, GroupNormInPlace, Isa, LayerNorm, RmsNorm, TimestepEmbedding, add, geglu,
    group_norm_in_place, layer_norm, reference, rms_norm, softmax_rows, timestep_embedding,
    upsample_nearest,
};
use proptest::prelude::*;

use crate::{ACTIVATIONS, noise};

/// Compares with room for the rounding of a few operations on values of about `size`.
fn assert_near(what: &str, got: &[f32], want: &[f32], size: f32) {
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let allowed = 1e-6 * (w.abs() + size);
        assert!(
            (g - w).abs() <= allowed,
            "{what}: element {i} is {g}, not {w}"
        );
    }
}

proptest! {
    #![proptest_config(crate::cases(150))]

    #[test]
    fn group_norm_agrees(
        (batch, pixels, groups, width) in (0usize..3, 0usize..60, 1usize..9, 1usize..21),
        activation in prop::sample::select(&ACTIVATIONS[..]),
        affine in any::<bool>(),
        mean in prop::sample::select(vec![0.0f32, 5.0]),
    ) {
        let channels = groups * width;
        let x: Vec<f32> = noise(batch * pixels * channels, 1).iter().map(|v| v * 2.0 + mean).collect();
        let (gamma, beta) = (noise(channels, 2), noise(channels, 3));
        macro_rules! call { ($out:expr) => { GroupNorm {
            x: &x, batch, pixels, channels, groups, eps: 1e-5, activation, out: $out,
            gamma: affine.then_some(&gamma[..]),
            beta: affine.then_some(&beta[..]),
        } } }
        let mut want = vec![0.0; x.len()];
        reference::group_norm(call!(&mut want));
        for isa in Isa::available() {
            let mut got = vec![777.0; x.len()];
            call!(&mut got).run(isa).unwrap();
            // x * scale + shift cancels when the mean is large beside the deviation.
            let largest = if pixels * width == 1 { 400.0 * (1.0 + mean) } else { 4.0 + 4.0 * mean };
            if pixels * width > 4 || mean == 0.0 { assert_near(isa.name(), &got, &want, largest); }
        }
        let (mut got, mut same) = (x.clone(), vec![0.0; x.len()]);
        call!(&mut same).run(Isa::best()).unwrap();
        group_norm_in_place(GroupNormInPlace {
            x: &mut got, batch, pixels, channels, groups, eps: 1e-5, activation,
            gamma: affine.then_some(&gamma[..]),
            beta: affine.then_some(&beta[..]),
        }).unwrap();
        prop_assert_eq!(got, same);
    }

    #[test]
    fn row_norms_agree((rows, cols) in (0usize..20, 1usize..200), affine in any::<bool>()) {
        let x = noise(rows * cols, 1);
        let (gamma, beta) = (noise(cols, 2), noise(cols, 3));
        macro_rules! layer { ($out:expr) => { LayerNorm {
            x: &x, cols, eps: 1e-5, out: $out,
            gamma: affine.then_some(&gamma[..]),
            beta: affine.then_some(&beta[..]),
        } } }
        macro_rules! rms { ($out:expr) => { RmsNorm { x: &x, cols, eps: 1e-6, gamma: affine.then_some(&gamma[..]), out: $out } } }
        let (mut want_layer, mut want_rms) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        reference::layer_norm(layer!(&mut want_layer));
        reference::rms_norm(rms!(&mut want_rms));
        for isa in Isa::available() {
            let mut got = vec![777.0; x.len()];
            layer!(&mut got).run(isa).unwrap();
            assert_near(isa.name(), &got, &want_layer, 3.0);
            rms!(&mut got).run(isa).unwrap();
            assert_near(isa.name(), &got, &want_rms, 3.0);
        }
    }

    #[test]
    fn softmax_and_geglu_agree((rows, cols) in (0usize..20, 1usize..150)) {
        let x: Vec<f32> = noise(rows * cols * 2, 1).iter().map(|v| v * 9.0).collect();
        let mut got = x.clone();
        softmax_rows(&mut got, cols).unwrap();
        for (got, row) in got.chunks(cols).zip(x.chunks(cols)) {
            let want = reference::softmax(&row.iter().map(|&v| f64::from(v)).collect::<Vec<_>>());
            assert_near("softmax", got, &want.iter().map(|&v| v as f32).collect::<Vec<_>>(), 0.01);
        }
        let mut got = vec![0.0; rows * cols];
        geglu(&x, cols, &mut got).unwrap();
        for (got, row) in got.chunks(cols).zip(x.chunks(2 * cols)) {
            let want = reference::geglu(row);
            assert_near("geglu", got, &want, 30.0);
        }
    }
}

#[test]
fn norms_of_one_value_and_of_constant_rows_are_finite() {
    let x = vec![3.0f32; 12];
    let mut out = vec![0.0; 12];
    layer_norm(LayerNorm {
        x: &x,
        cols: 4,
        eps: 1e-5,
        gamma: None,
        beta: None,
        out: &mut out,
    })
    .unwrap();
    assert_eq!(out, vec![0.0; 12]);
    rms_norm(RmsNorm {
        x: &x,
        cols: 1,
        eps: 0.0,
        gamma: None,
        out: &mut out,
    })
    .unwrap();
    assert_eq!(out, vec![1.0; 12]);
}

#[test]
fn hidden_rows_softmax_to_zero() {
    let mut x = vec![f32::NEG_INFINITY; 5];
    x.extend([
        1.0,
        f32::NEG_INFINITY,
        1.0,
        f32::NEG_INFINITY,
        f32::NEG_INFINITY,
    ]);
    softmax_rows(&mut x, 5).unwrap();
    assert_eq!(x, [0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 0.0, 0.5, 0.0, 0.0]);
}

#[test]
fn add_is_exact_and_checks_lengths() {
    let (a, b) = (noise(1001, 1), noise(1001, 2));
    let mut out = vec![0.0; 1001];
    add(&a, &b, &mut out).unwrap();
    assert!(
        out.iter()
            .zip(a.iter().zip(&b))
            .all(|(o, (a, b))| *o == a + b)
    );
    assert!(add(&a, &b[1..], &mut out).is_err());
}

#[test]
fn upsample_repeats_pixels() {
    let x: Vec<f32> = (0..12).map(|i| i as f32).collect();
    let mut out = vec![0.0; 48];
    upsample_nearest(&x, 1, (2, 3), (4, 6), 2, &mut out).unwrap();
    for (i, v) in out.iter().enumerate() {
        let (y, x, c) = (i / 12, i / 2 % 6, i % 2);
        assert_eq!(*v, ((y / 2 * 3 + x / 2) * 2 + c) as f32);
    }
    // To an odd size, as a UNet's skip connection may ask: torch gives rows 0 0 1, columns 0 0 1 1 2.
    let mut odd = vec![0.0; 30];
    upsample_nearest(&x, 1, (2, 3), (3, 5), 2, &mut odd).unwrap();
    let first: Vec<f32> = odd.iter().step_by(2).copied().collect();
    assert_eq!(
        first,
        [0., 0., 2., 2., 4., 0., 0., 2., 2., 4., 6., 6., 8., 8., 10.]
    );
}

/// Values of diffusers 0.42 `get_timestep_embedding([999., 0.5], 6, flip_sin_to_cos=True)`.
#[test]
fn timestep_embedding_follows_diffusers() {
    let mut out = vec![0.0; 12];
    timestep_embedding(&[999.0, 0.5], TimestepEmbedding::new(6), &mut out).unwrap();
    let want = [
        0.9996498,
        -0.72867334,
        -0.54926467,
        -0.026460752,
        0.6848614,
        0.8356485, //
        0.87758255,
        0.9997307,
        0.9999994,
        0.47942555,
        0.023205863,
        0.0010772172,
    ];
    assert_near("timestep embedding", &out, &want, 0.0);
}
