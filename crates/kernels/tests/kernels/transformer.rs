//! What transformers need beside products and attention: rotary embeddings, modulated norms.

use aquatint_kernels::{AddGated, Isa, ModulatedNorm, Rotary, RotaryPairs, rotary};
use proptest::prelude::*;

use crate::noise;

proptest! {
    #![proptest_config(crate::cases(100))]

    #[test]
    fn rotary_turns_pairs(
        (batch, tokens, heads, half) in (0usize..3, 1usize..20, 1usize..5, 1usize..40),
        halves in any::<bool>(),
    ) {
        let head_dim = 2 * half;
        let x = noise(batch * tokens * heads * head_dim, 1);
        let angles: Vec<f32> = noise(tokens * half, 2).iter().map(|a| a * 50.0).collect();
        let cos: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
        let sin: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
        let pairs = if halves { RotaryPairs::Halves } else { RotaryPairs::Neighbours };
        let mut want: Vec<f64> = x.iter().map(|&v| f64::from(v)).collect();
        for (row, head) in want.chunks_exact_mut(head_dim).enumerate() {
            let token = row / heads % tokens;
            for i in 0..half {
                let (p, q) = if halves { (i, i + half) } else { (2 * i, 2 * i + 1) };
                let (c, s) = (f64::from(cos[token * half + i]), f64::from(sin[token * half + i]));
                (head[p], head[q]) = (head[p] * c - head[q] * s, head[p] * s + head[q] * c);
            }
        }
        for isa in Isa::available() {
            let mut got = x.clone();
            Rotary { x: &mut got, tokens, heads, head_dim, cos: &cos, sin: &sin, pairs }.run(isa).unwrap();
            for (g, w) in got.iter().zip(&want) {
                // Two products below 1 and a sum: three roundings.
                prop_assert!((f64::from(*g) - w).abs() <= 2.0 * f64::from(f32::EPSILON), "{} {g} {w}", isa.name());
            }
        }
    }

    #[test]
    fn modulated_norms_agree(
        (batch, tokens, cols) in (0usize..4, 1usize..9, 1usize..150),
        centre in any::<bool>(),
        affine in any::<bool>(),
        shifted in any::<bool>(),
    ) {
        let x = noise(batch * tokens * cols, 1);
        let (scale, shift, gamma) = (noise(batch * cols, 2), noise(batch * cols, 3), noise(cols, 4));
        let eps = 1e-2;
        let mut want = Vec::new();
        for (row, x) in x.chunks_exact(cols).enumerate() {
            let b = row / tokens;
            let values: Vec<f64> = x.iter().map(|&v| f64::from(v)).collect();
            let mean = if centre { values.iter().sum::<f64>() / cols as f64 } else { 0.0 };
            let square = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / cols as f64;
            for (i, v) in values.iter().enumerate() {
                let y = (v - mean) / (square + f64::from(eps)).sqrt() * if affine { f64::from(gamma[i]) } else { 1.0 };
                let y = y * (1.0 + f64::from(scale[b * cols + i]));
                want.push(y + if shifted { f64::from(shift[b * cols + i]) } else { 0.0 });
            }
        }
        for isa in Isa::available() {
            let mut got = vec![777.0; x.len()];
            ModulatedNorm {
                x: &x, tokens, cols, eps, centre,
                gamma: affine.then_some(&gamma[..]),
                scale: &scale,
                shift: shifted.then_some(&shift[..]),
                out: &mut got,
            }.run(isa).unwrap();
            for (g, w) in got.iter().zip(&want) {
                // Values up to about 10; sums of 150 terms.
                prop_assert!((f64::from(*g) - w).abs() <= 2e-6 * (w.abs() + 4.0), "{} {g} {w}", isa.name());
            }
        }
    }

    #[test]
    fn gated_sums_agree((batch, tokens, cols) in (0usize..4, 1usize..90, 1usize..1000)) {
        let (x, y) = (noise(batch * tokens * cols, 1), noise(batch * tokens * cols, 2));
        let gate = noise(batch * cols, 3);
        for isa in Isa::available() {
            let mut got = x.clone();
            AddGated { x: &mut got, y: &y, tokens, cols, gate: &gate }.run(isa).unwrap();
            for (i, got) in got.iter().enumerate() {
                // A product and a sum, each rounded.
                prop_assert_eq!(*got, x[i] + gate[i / cols / tokens * cols + i % cols] * y[i]);
            }
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let (mut x, angles) = (vec![0.0; 12], vec![0.0; 3]);
    let odd = rotary(Rotary {
        x: &mut x,
        tokens: 2,
        heads: 2,
        head_dim: 3,
        cos: &angles,
        sin: &angles,
        pairs: RotaryPairs::Halves,
    });
    assert!(odd.is_err_and(|e| e.to_string().contains("head_dim")));
    let short = rotary(Rotary {
        x: &mut x,
        tokens: 3,
        heads: 1,
        head_dim: 4,
        cos: &angles,
        sin: &angles,
        pairs: RotaryPairs::Neighbours,
    });
    assert!(short.is_err());
}
