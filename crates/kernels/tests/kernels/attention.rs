use aquatint_kernels::{Attention, HeadsRef, Isa, KernelError, Mask, attention, reference};
use proptest::prelude::*;

use crate::noise;

#[derive(Debug, Clone)]
struct Case {
    batch: usize,
    heads: usize,
    queries: usize,
    keys: usize,
    head_dim: usize,
    /// q, k and v interleaved as a fused projection leaves them (needs queries == keys).
    fused: bool,
    causal: bool,
    /// 0: none, 1: by key, 2: by query and key, 3: by everything, with hidden keys.
    mask: usize,
    scale: f32,
}

impl Case {
    fn check(&self) {
        let Self {
            batch,
            heads,
            queries,
            keys,
            head_dim: d,
            ..
        } = *self;
        let width = heads * d;
        let (q, k, v) = (
            noise(batch * queries * width * 3, 1),
            noise(batch * keys * width * 3, 2),
            noise(batch * keys * width * 3, 3),
        );
        let mask: Vec<f32> = noise(batch * heads * queries * keys, 4)
            .into_iter()
            .map(|m| {
                if self.mask == 3 && m > 0.4 {
                    f32::NEG_INFINITY
                } else {
                    m * 3.0
                }
            })
            .collect();
        let view = |data, tokens: usize| {
            if self.fused {
                HeadsRef {
                    token_stride: 3 * width,
                    batch_stride: tokens * 3 * width,
                    ..HeadsRef::new(data, tokens, heads, d)
                }
            } else {
                HeadsRef::new(data, tokens, heads, d)
            }
        };
        macro_rules! call {
            ($out:expr) => {
                Attention {
                    batch,
                    heads,
                    queries,
                    keys,
                    head_dim: d,
                    q: view(&q, queries),
                    k: view(&k, keys),
                    v: view(&v, keys),
                    scale: self.scale,
                    causal: self.causal,
                    mask: match self.mask {
                        0 => None,
                        1 => Some(Mask::keys(&mask)),
                        2 => Some(Mask::queries_keys(&mask, keys)),
                        _ => Some(Mask {
                            data: &mask,
                            batch_stride: heads * queries * keys,
                            head_stride: queries * keys,
                            query_stride: keys,
                        }),
                    },
                    out: $out,
                }
            };
        }
        let mut want = vec![0.0; batch * queries * width];
        reference::attention(call!(&mut want)).unwrap();
        // Values are at most 1 and weights sum to 1; a score's error (d products of size up to 1, times the scale,
        // plus the mask) enters through the exponential.
        let score = (8.0 + (d as f32).sqrt()) * d as f32 * self.scale.abs() + 12.0;
        let bound = 6e-8 * (4.0 * score + 8.0 + (keys as f32).sqrt());
        for isa in Isa::available() {
            let mut got = vec![777.0; want.len()];
            call!(&mut got).run(isa).unwrap();
            for (i, (g, w)) in got.iter().zip(&want).enumerate() {
                assert!(
                    (g - w).abs() <= bound,
                    "{} {self:?} at {i}: {g} not {w}, bound {bound:e}",
                    isa.name()
                );
            }
        }
    }
}

fn case() -> impl Strategy<Value = Case> {
    let tokens = || prop_oneof![1 => Just(1usize), 4 => 1usize..40, 1 => 60usize..140];
    (
        1usize..3,
        1usize..4,
        tokens(),
        prop_oneof![1 => Just(0usize), 9 => tokens()],
        1usize..50,
        any::<bool>(),
        any::<bool>(),
        0usize..4,
    )
        .prop_map(
            |(batch, heads, queries, keys, head_dim, fused, causal, mask)| Case {
                batch,
                heads,
                queries,
                keys,
                head_dim,
                fused,
                causal,
                mask,
                scale: 1.0 / (head_dim as f32).sqrt(),
            },
        )
}

proptest! {
    #![proptest_config(crate::cases(150))]
    #[test]
    #[cfg_attr(miri, ignore = "too large for an interpreter")]
    fn any_shape_agrees_with_the_reference(case in case()) {
        case.check();
    }
}

/// Every mask at its smallest, and more keys than are looked at together: what Miri can follow.
#[test]
fn small_shapes_agree_with_the_reference() {
    let case = Case {
        batch: 2,
        heads: 2,
        queries: 5,
        keys: 5,
        head_dim: 3,
        fused: true,
        causal: false,
        mask: 0,
        scale: 0.6,
    };
    for (mask, causal) in [(0, true), (1, false), (2, false), (3, true)] {
        Case {
            mask,
            causal,
            ..case.clone()
        }
        .check();
    }
    Case {
        heads: 1,
        keys: 130,
        fused: false,
        ..case
    }
    .check();
}

#[test]
#[cfg_attr(miri, ignore = "too large for an interpreter")]
fn long_and_wide_shapes_agree_with_the_reference() {
    let case = Case {
        batch: 1,
        heads: 2,
        queries: 70,
        keys: 1030,
        head_dim: 160,
        fused: false,
        causal: false,
        mask: 3,
        scale: 0.3,
    };
    case.check();
    Case {
        queries: 333,
        keys: 333,
        head_dim: 40,
        causal: true,
        mask: 0,
        ..case.clone()
    }
    .check();
    Case {
        heads: 1,
        queries: 33,
        keys: 77,
        head_dim: 512,
        mask: 1,
        ..case
    }
    .check();
}

/// Scores far apart, as a sharp softmax has them.
#[test]
fn large_scores_do_not_overflow() {
    let (queries, keys) = if cfg!(miri) { (3, 140) } else { (40, 300) };
    for scale in [30.0, -30.0] {
        Case {
            batch: 1,
            heads: 1,
            queries,
            keys,
            head_dim: 16,
            fused: false,
            causal: false,
            mask: 0,
            scale,
        }
        .check();
    }
}

#[test]
fn short_slices_are_errors() {
    let (x, mut out) = (noise(24, 1), vec![0.0; 24]);
    let mut call = |k: &[f32]| {
        attention(Attention {
            batch: 1,
            heads: 2,
            queries: 3,
            keys: 3,
            head_dim: 4,
            q: HeadsRef::new(&x, 3, 2, 4),
            k: HeadsRef::new(k, 3, 2, 4),
            v: HeadsRef::new(&x, 3, 2, 4),
            scale: 0.5,
            causal: false,
            mask: None,
            out: &mut out,
        })
    };
    assert_eq!(call(&x), Ok(()));
    assert_eq!(
        call(&x[..23]),
        Err(KernelError::Length {
            what: "k",
            expected: 24,
            found: 23
        })
    );
}
