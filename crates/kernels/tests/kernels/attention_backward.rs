//! The backward pass of attention against gradients in f64, and those against finite differences.

use aquatint_kernels::{Attention, AttentionBackward, HeadsRef, Isa, Mask, attention_backward};
use proptest::prelude::*;

use crate::noise;

#[derive(Debug, Clone, Copy)]
struct Case {
    batch: usize,
    heads: usize,
    queries: usize,
    keys: usize,
    d: usize,
    causal: bool,
    mask: bool,
    scale: f64,
}

/// Inputs of one case, with no gaps, in f64 and f32.
struct Inputs {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    d_out: Vec<f32>,
    mask: Vec<f32>,
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

impl Case {
    fn inputs(&self) -> Inputs {
        let asked = self.batch * self.heads * self.queries * self.d;
        let answered = self.batch * self.heads * self.keys * self.d;
        let mask = noise(self.queries * self.keys, 5);
        Inputs {
            q: noise(asked, 1),
            k: noise(answered, 2),
            v: noise(answered, 3),
            d_out: noise(asked, 4),
            // A query in five sees nothing.
            mask: mask
                .iter()
                .enumerate()
                .map(|(i, &m)| {
                    if i / self.keys.max(1) % 5 == 3 || m > 0.5 {
                        f32::NEG_INFINITY
                    } else {
                        m
                    }
                })
                .collect(),
        }
    }

    /// Output, then dq, dk, dv, all in f64.
    fn exact(&self, q: &[f64], k: &[f64], v: &[f64], d_out: &[f64], mask: &[f32]) -> [Vec<f64>; 4] {
        let Self {
            heads,
            queries,
            keys,
            d,
            ..
        } = *self;
        let mut all = [
            vec![0.0; q.len()],
            vec![0.0; q.len()],
            vec![0.0; k.len()],
            vec![0.0; v.len()],
        ];
        let [out, dq, dk, dv] = &mut all;
        for (b, h) in (0..self.batch).flat_map(|b| (0..heads).map(move |h| (b, h))) {
            for i in 0..queries {
                let qi = ((b * queries + i) * heads + h) * d;
                let kj = |j: usize| ((b * keys + j) * heads + h) * d;
                let scores: Vec<f64> = (0..keys)
                    .map(|j| {
                        if self.causal && j > i {
                            return f64::NEG_INFINITY;
                        }
                        let dot: f64 = (0..d).map(|c| q[qi + c] * k[kj(j) + c]).sum();
                        let m = if self.mask {
                            f64::from(mask[i * keys + j])
                        } else {
                            0.0
                        };
                        dot * self.scale + m
                    })
                    .collect();
                let p = aquatint_kernels::reference::softmax(&scores);
                for j in 0..keys {
                    for c in 0..d {
                        out[qi + c] += p[j] * v[kj(j) + c];
                        dv[kj(j) + c] += p[j] * d_out[qi + c];
                    }
                }
                let delta: f64 = (0..d).map(|c| out[qi + c] * d_out[qi + c]).sum();
                for j in 0..keys {
                    let dp: f64 = (0..d).map(|c| d_out[qi + c] * v[kj(j) + c]).sum();
                    let ds = p[j] * (dp - delta) * self.scale;
                    for c in 0..d {
                        dq[qi + c] += ds * k[kj(j) + c];
                        dk[kj(j) + c] += ds * q[qi + c];
                    }
                }
            }
        }
        all
    }

    fn check(&self) {
        let Self {
            batch,
            heads,
            queries,
            keys,
            d,
            causal,
            ..
        } = *self;
        let x = self.inputs();
        let want = self.exact(
            &wide(&x.q),
            &wide(&x.k),
            &wide(&x.v),
            &wide(&x.d_out),
            &x.mask,
        );
        let mask = self.mask.then(|| Mask::queries_keys(&x.mask, keys));
        let view = |data, tokens| HeadsRef::new(data, tokens, heads, d);
        for isa in Isa::available() {
            let mut out = vec![777.0; x.q.len()];
            let mut lse = vec![777.0; batch * heads * queries];
            Attention {
                batch,
                heads,
                queries,
                keys,
                head_dim: d,
                q: view(&x.q, queries),
                k: view(&x.k, keys),
                v: view(&x.v, keys),
                scale: self.scale as f32,
                causal,
                mask,
                out: &mut out,
            }
            .run_with_lse(isa, &mut lse)
            .unwrap();
            let (mut dq, mut dk, mut dv) = (
                vec![777.0; x.q.len()],
                vec![777.0; x.k.len()],
                vec![777.0; x.v.len()],
            );
            AttentionBackward {
                batch,
                heads,
                queries,
                keys,
                head_dim: d,
                q: view(&x.q, queries),
                k: view(&x.k, keys),
                v: view(&x.v, keys),
                scale: self.scale as f32,
                causal,
                mask,
                out: &out,
                lse: &lse,
                d_out: &x.d_out,
                dq: &mut dq,
                dk: &mut dk,
                dv: &mut dv,
            }
            .run(isa)
            .unwrap();
            // Sums of at most max(queries, keys) products of probabilities (they sum to 1 a query) and numbers of up
            // to sqrt(d); a score's rounding (d products) enters through the exponential.
            let terms = (queries.max(keys) as f64).sqrt() + d as f64 + 16.0;
            let bound = 4.0 * f64::from(f32::EPSILON) * terms;
            for (what, got, want) in [
                ("out", &out, &want[0]),
                ("dq", &dq, &want[1]),
                ("dk", &dk, &want[2]),
                ("dv", &dv, &want[3]),
            ] {
                let size = want.iter().fold(1.0f64, |m, w| m.max(w.abs()));
                for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
                    let error = (f64::from(g) - w).abs();
                    assert!(
                        error <= bound * size,
                        "{} {self:?} {what}[{i}] = {g}, not {w}",
                        isa.name()
                    );
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(crate::cases(60))]
    #[test]
    #[cfg_attr(miri, ignore = "too large for an interpreter")]
    fn gradients_agree(
        (batch, heads) in (1usize..3, 1usize..4),
        (queries, keys) in (prop_oneof![Just(1usize), 2usize..40, 100usize..300], prop_oneof![Just(0usize), Just(1), 2usize..40, 120usize..300]),
        d in prop_oneof![Just(1usize), 2usize..50, Just(64usize)],
        (causal, mask) in (any::<bool>(), any::<bool>()),
    ) {
        Case { batch, heads, queries, keys, d, causal, mask, scale: f64::from(1.0 / (d as f32).sqrt()) }.check();
    }
}

/// With and without masks at the smallest, and more keys than are looked at together: what Miri can follow.
#[test]
fn small_gradients_agree() {
    let case = Case {
        batch: 2,
        heads: 2,
        queries: 5,
        keys: 6,
        d: 3,
        causal: false,
        mask: false,
        scale: 0.6,
    };
    for (mask, causal) in [(false, false), (true, false), (false, true)] {
        Case {
            mask,
            causal,
            ..case
        }
        .check();
    }
    Case {
        batch: 1,
        heads: 1,
        keys: 260,
        ..case
    }
    .check();
}

/// The oracle itself, so that both cannot share a mistake.
#[test]
#[cfg_attr(miri, ignore = "too large for an interpreter")]
fn the_oracle_follows_finite_differences() {
    let case = Case {
        batch: 2,
        heads: 2,
        queries: 7,
        keys: 7,
        d: 3,
        causal: true,
        mask: true,
        scale: 0.7,
    };
    let x = case.inputs();
    let base = [wide(&x.q), wide(&x.k), wide(&x.v)];
    let d_out = wide(&x.d_out);
    let gradients = case.exact(&base[0], &base[1], &base[2], &d_out, &x.mask);
    let loss = |x0: &[Vec<f64>; 3]| -> f64 {
        let [out, ..] = case.exact(&x0[0], &x0[1], &x0[2], &d_out, &x.mask);
        out.iter().zip(&d_out).map(|(o, d)| o * d).sum()
    };
    for which in 0..3 {
        for i in 0..base[which].len() {
            let step = 1e-5;
            let moved = [step, -step].map(|e| {
                let mut x0 = base.clone();
                x0[which][i] += e;
                loss(&x0)
            });
            let slope = (moved[0] - moved[1]) / (2.0 * step);
            let found = gradients[which + 1][i];
            assert!(
                (slope - found).abs() <= 1e-8,
                "input {which} element {i}: {found}, not {slope}"
            );
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "too large for an interpreter")]
fn threads_do_not_change_the_gradients() {
    let case = Case {
        batch: 1,
        heads: 1,
        queries: 300,
        keys: 700,
        d: 40,
        causal: false,
        mask: false,
        scale: 0.2,
    };
    let x = case.inputs();
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        let view = |data, tokens| HeadsRef::new(data, tokens, 1, 40);
        let (mut dq, mut dk, mut dv) = (
            vec![0.0; x.q.len()],
            vec![0.0; x.k.len()],
            vec![0.0; x.v.len()],
        );
        let (out, lse) = (vec![0.1; x.q.len()], vec![6.0; 300]);
        pool.install(|| {
            attention_backward(AttentionBackward {
                batch: 1,
                heads: 1,
                queries: 300,
                keys: 700,
                head_dim: 40,
                q: view(&x.q, 300),
                k: view(&x.k, 700),
                v: view(&x.v, 700),
                scale: 0.2,
                causal: false,
                mask: None,
                out: &out,
                lse: &lse,
                d_out: &x.d_out,
                dq: &mut dq,
                dk: &mut dk,
                dv: &mut dv,
            })
        })
        .unwrap();
        (dq, dk, dv)
    };
    assert_eq!(run(1), run(3));
}
