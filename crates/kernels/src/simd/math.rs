//! Vectorised elementary functions. Error bounds are against `f64` and asserted in the tests below.

use super::{Simd, map};
use crate::Activation;

/// `exp(x)` within 2 ulp for x in [-87.3, 88.3]; 0 below, saturated above; NaN stays NaN.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    // x = n ln 2 + r with |r| <= ln 2 / 2; ln 2 in two parts, the first exact in 12 bits.
    let clamped = s.max(s.splat(-87.3), s.min(s.splat(88.3), x));
    let n = s.round(s.mul(clamped, s.splat(std::f32::consts::LOG2_E)));
    let r = s.fma(n, s.splat(-0.693_359_4), clamped);
    let r = s.fma(n, s.splat(2.121_944_4e-4), r);
    // Fitted to the smallest largest relative error on |r| <= ln 2 / 2; 3e-9 before rounding.
    let mut p = s.splat(1.381_453_4e-3);
    for c in [
        8.368_746e-3,
        4.166_839_3e-2,
        1.666_652_1e-1,
        0.499_999_94,
        1.0,
        1.0,
    ] {
        p = s.fma(p, r, s.splat(c));
    }
    let y = s.mul_exp2(p, n);
    s.select_lt(x, s.splat(-87.3), s.zero(), y)
}

/// `1 / (1 + exp(-x))`, relative error below 5e-7 for x in [-87, inf).
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
    let one = s.splat(1.0);
    s.div(one, s.add(one, exp(s, s.sub(s.zero(), x))))
}

/// The error function, relative error below 5e-7: `x P(x^2) / Q(x^2)` up to 4, where it rounds to 1.
#[inline(always)]
pub(crate) fn erf<S: Simd>(s: S, x: S::V) -> S::V {
    // Fitted by weighted least squares on [0, 4], then rounded; 2e-8 before rounding.
    const P: [f32; 7] = [
        -9.427_833e-9,
        3.951_064e-6,
        3.513_652_6e-4,
        3.748_273e-3,
        5.362_101e-2,
        1.847_929e-1,
        std::f32::consts::FRAC_2_SQRT_PI,
    ];
    const Q: [f32; 6] = [
        5.610_583e-5,
        1.248_701e-3,
        1.516_191_4e-2,
        1.132_208e-1,
        4.971_018e-1,
        1.0,
    ];
    let c = s.max(s.splat(-4.0), s.min(s.splat(4.0), x));
    let t = s.mul(c, c);
    let y = s.div(s.mul(c, polynomial(s, &P, t)), polynomial(s, &Q, t));
    let y = s.select_lt(x, s.splat(-4.0), s.splat(-1.0), y);
    s.select_lt(s.splat(4.0), x, s.splat(1.0), y)
}

/// A polynomial from its highest coefficient down.
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(s: S, coefficients: &[f32; N], x: S::V) -> S::V {
    let mut sum = s.splat(coefficients[0]);
    for &c in &coefficients[1..] {
        sum = s.fma(sum, x, s.splat(c));
    }
    sum
}

/// One vector through an activation.
#[inline(always)]
pub(crate) fn activate<S: Simd>(s: S, activation: Activation, x: S::V) -> S::V {
    match activation {
        Activation::None => x,
        Activation::Relu => s.max(x, s.zero()),
        Activation::Silu => s.mul(x, sigmoid(s, x)),
        Activation::Gelu => gelu(s, x),
        Activation::GeluTanh => {
            // (1 + tanh u) / 2 = sigmoid(2 u)
            // 2 sqrt(2 / pi)
            let factor = 2.0 * std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::FRAC_1_SQRT_2;
            let u = s.mul(
                x,
                s.fma(s.mul(x, x), s.splat(factor * 0.044_715), s.splat(factor)),
            );
            s.mul(x, sigmoid(s, u))
        }
        Activation::QuickGelu => s.mul(x, sigmoid(s, s.mul(x, s.splat(1.702)))),
    }
}

/// GELU with erf; absolute error below 4e-7 times |x|.
#[inline(always)]
pub(crate) fn gelu<S: Simd>(s: S, x: S::V) -> S::V {
    let half = s.mul(x, s.splat(0.5));
    s.fma(
        half,
        erf(s, s.mul(x, s.splat(std::f32::consts::FRAC_1_SQRT_2))),
        half,
    )
}

/// The derivative of an activation. Where it decays, beyond 30 deviations, it is that of 30.
#[inline(always)]
pub(crate) fn derivative<S: Simd>(s: S, activation: Activation, x: S::V) -> S::V {
    // NaN stays: `min` and `max` give their second argument then.
    let x = s.max(s.splat(-100.0), s.min(s.splat(100.0), x));
    match activation {
        Activation::None => s.splat(1.0),
        // x is finite or NaN here, and NaN stays.
        Activation::Relu => s.select_lt(s.zero(), x, s.splat(1.0), s.mul(x, s.zero())),
        Activation::Silu => gate_derivative(s, x, x, s.splat(1.0)),
        Activation::Gelu => {
            let x = s.max(s.splat(-30.0), s.min(s.splat(30.0), x));
            let half = s.splat(0.5);
            let gate = s.fma(
                half,
                erf(s, s.mul(x, s.splat(std::f32::consts::FRAC_1_SQRT_2))),
                half,
            );
            let density = exp(s, s.mul(s.mul(x, x), s.splat(-0.5)));
            // 1 / sqrt(2 pi)
            let factor = 0.5 * std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::FRAC_1_SQRT_2;
            s.fma(s.mul(x, s.splat(factor)), density, gate)
        }
        Activation::GeluTanh => {
            let x = s.max(s.splat(-30.0), s.min(s.splat(30.0), x));
            let factor = 2.0 * std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::FRAC_1_SQRT_2;
            let square = s.mul(x, x);
            let u = s.mul(
                x,
                s.fma(square, s.splat(factor * 0.044_715), s.splat(factor)),
            );
            let slope = s.fma(square, s.splat(3.0 * factor * 0.044_715), s.splat(factor));
            gate_derivative(s, x, u, slope)
        }
        Activation::QuickGelu => gate_derivative(s, x, s.mul(x, s.splat(1.702)), s.splat(1.702)),
    }
}

/// The derivative of `x * sigmoid(u)`, given that of `u`.
#[inline(always)]
fn gate_derivative<S: Simd>(s: S, x: S::V, u: S::V, slope: S::V) -> S::V {
    let one = s.splat(1.0);
    let e = exp(s, s.sub(s.zero(), u));
    let gate = s.div(one, s.add(one, e));
    // 1 - gate, without cancellation
    let rest = s.mul(e, gate);
    s.mul(gate, s.fma(s.mul(x, slope), rest, one))
}

/// A slice through an activation. The match stands outside the loop.
#[inline(always)]
pub(crate) fn activate_slice<S: Simd>(s: S, activation: Activation, x: &mut [f32]) {
    match activation {
        Activation::None => {}
        Activation::Relu => map!(s, x, |v| s.max(v, s.zero())),
        Activation::Silu => map!(s, x, |v| activate(s, Activation::Silu, v)),
        Activation::Gelu => map!(s, x, |v| gelu(s, v)),
        Activation::GeluTanh => map!(s, x, |v| activate(s, Activation::GeluTanh, v)),
        Activation::QuickGelu => map!(s, x, |v| activate(s, Activation::QuickGelu, v)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::simd::Job;

    struct Apply<'a>(&'a mut [f32], u8);

    impl Job for Apply<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            match self.1 {
                0 => map!(s, self.0, |v| exp(s, v)),
                1 => map!(s, self.0, |v| sigmoid(s, v)),
                _ => map!(s, self.0, |v| erf(s, v)),
            }
        }
    }

    fn sweep(function: u8, low: f32, high: f32, exact: impl Fn(f64) -> f64, bound: f64) {
        let last = if cfg!(miri) { 202 } else { 200_002 };
        let inputs: Vec<f32> = (0..=last)
            .map(|i| low + (high - low) * (i as f32 / last as f32))
            .collect();
        for isa in Isa::available() {
            let mut out = inputs.clone();
            isa.run(Apply(&mut out, function));
            for (&x, &y) in inputs.iter().zip(&out) {
                let want = exact(f64::from(x));
                let error = (f64::from(y) - want).abs() / want.abs().max(1e-37);
                assert!(
                    error <= bound,
                    "{}: f{function}({x}) = {y}, not {want}: {error:e}",
                    isa.name()
                );
            }
        }
    }

    #[test]
    fn exp_is_within_two_ulp() {
        sweep(0, -87.2, 88.2, f64::exp, 2.0 * f64::from(f32::EPSILON));
    }

    #[test]
    fn sigmoid_and_erf_hold_their_bounds() {
        sweep(1, -87.0, 100.0, |x| 1.0 / (1.0 + (-x).exp()), 5e-7);
        sweep(2, -6.0, 6.0, crate::reference::erf, 5e-7);
    }

    #[test]
    fn activations_stay_close_and_keep_nan() {
        let all = [
            Activation::Silu,
            Activation::Gelu,
            Activation::GeluTanh,
            Activation::QuickGelu,
        ];
        let inputs: Vec<f32> = (-4000..=4000)
            .step_by(if cfg!(miri) { 97 } else { 1 })
            .map(|i| i as f32 / 77.0)
            .collect();
        for (isa, activation) in Isa::available()
            .into_iter()
            .flat_map(|i| all.map(|a| (i, a)))
        {
            struct Slice<'a>(&'a mut [f32], Activation);
            impl Job for Slice<'_> {
                type Output = ();
                #[inline(always)]
                fn run<S: Simd>(self, s: S) {
                    activate_slice(s, self.1, self.0);
                }
            }
            let mut out = inputs.clone();
            isa.run(Slice(&mut out, activation));
            for (&x, &y) in inputs.iter().zip(&out) {
                let want = activation.apply(f64::from(x));
                let error = (f64::from(y) - want).abs();
                assert!(
                    error <= 4e-7 * f64::from(x.abs()),
                    "{} {activation:?} {x}: {y} {want}",
                    isa.name()
                );
            }
            let mut nan = [f32::NAN, 1.0];
            isa.run(Slice(&mut nan, activation));
            assert!(
                nan[0].is_nan(),
                "{} {activation:?} swallows NaN",
                isa.name()
            );
        }
    }

    #[test]
    fn exp_of_infinities() {
        for isa in Isa::available() {
            let mut x = [f32::NEG_INFINITY, f32::NAN, -1e30, 0.0];
            isa.run(Apply(&mut x, 0));
            assert_eq!([x[0], x[2], x[3]], [0.0, 0.0, 1.0], "{}", isa.name());
            assert!(x[1].is_nan());
        }
    }
}
