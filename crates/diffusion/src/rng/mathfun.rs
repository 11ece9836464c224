//! `log`, `sin` and `cos` in single precision, rounded as PyTorch's vectorised normal transform
//! rounds them.
//!
//! PyTorch fills normals on x86 with the Cephes approximations (S. Moshier, *Methods and Programs
//! for Mathematical Functions*, 1989) in the SIMD arrangement of J. Pommier's `sse_mathfun`. A
//! seed's picture hangs on the last bit of them, so neither the coefficients nor the order of the
//! operations below may change. PyTorch is built by GCC with FMA on, which contracts a product
//! that is only added to something into one fused operation: [`fma`] stands where it did, and
//! a plain `*` and `+` where it did not. `golden/rng.py` is the evidence.

/// `a * b + c`, rounded once.
///
/// Equals [`f32::mul_add`]; without the target feature that is a library call, and this is
/// inlined. The product of two `f32` is exact in `f64`, so only a sum that falls on a tie between
/// two `f32` (or below the normal range) can be rounded wrongly by way of `f64`; those go the slow
/// way.
#[inline(always)]
pub(super) fn fma(a: f32, b: f32, c: f32) -> f32 {
    const BELOW_F32: u64 = (1 << 29) - 1;
    const TIE: u64 = 1 << 28;
    let sum = f64::from(a) * f64::from(b) + f64::from(c);
    if sum.to_bits() & BELOW_F32 == TIE || sum.abs() < f64::from(f32::MIN_POSITIVE) {
        return a.mul_add(b, c);
    }
    sum as f32
}

/// The natural logarithm of a normal, positive `x`.
#[inline(always)]
pub(super) fn log(x: f32) -> f32 {
    const SQRT_HALF: f32 = 0.707_106_77;
    const P: [f32; 9] = [
        0.070_376_836,
        -0.115_146_1,
        0.116_769_984,
        -0.124_201_41,
        0.142_493_23,
        -0.166_680_57,
        0.200_007_14,
        -0.249_999_94,
        0.333_333_3,
    ];
    // ln 2 in two parts, the big one exact in few bits.
    const LN2_LOW: f32 = -0.000_212_194_44;
    const LN2_HIGH: f32 = 0.693_359_4;

    // x = m * 2^e with m in [0.5, 1), then m in [sqrt(1/2), sqrt(2)), less one.
    let bits = x.to_bits();
    let mut e = (bits >> 23) as i32 as f32 - 126.0;
    let mut m = f32::from_bits((bits & 0x007f_ffff) | 0x3f00_0000);
    if m < SQRT_HALF {
        e -= 1.0;
        m = (m - 1.0) + m;
    } else {
        m -= 1.0;
    }

    let z = m * m;
    let mut y = P[0];
    for p in &P[1..] {
        y = fma(y, m, *p);
    }
    y *= m;
    y = fma(y, z, e * LN2_LOW);
    y -= z * 0.5;
    fma(e, LN2_HIGH, m + y)
}

/// The sine and cosine of `x` in `0 ..= 2 pi`.
#[inline(always)]
pub(super) fn sin_cos(x: f32) -> (f32, f32) {
    const FOUR_OVER_PI: f32 = 1.273_239_5;
    // -pi/4 in three parts, so that the reduction keeps its low bits.
    const DP: [f32; 3] = [-0.785_156_25, -0.000_241_875_65, -3.774_895e-8];
    const SIN: [f32; 3] = [-0.000_195_152_96, 0.008_332_161, -0.166_666_55];
    const COS: [f32; 3] = [2.443_315_7e-5, -0.001_388_731_6, 0.041_666_646];

    // The octant, rounded up to an even one.
    let octant = ((x * FOUR_OVER_PI) as i32 + 1) & !1;
    let y = octant as f32;
    let x = fma(y, DP[2], fma(y, DP[1], fma(y, DP[0], x)));

    let z = x * x;
    let c = fma(fma(COS[0], z, COS[1]), z, COS[2]);
    let c = fma(c * z, z, -(z * 0.5)) + 1.0;
    let s = fma(fma(SIN[0], z, SIN[1]), z, SIN[2]);
    let s = fma(s * z, x, x);

    let (sin, cos) = if octant & 2 == 0 { (s, c) } else { (c, s) };
    let sin_sign = ((octant & 4) as u32) << 29;
    let cos_sign = ((!(octant - 2) & 4) as u32) << 29;
    (
        f32::from_bits(sin.to_bits() ^ sin_sign),
        f32::from_bits(cos.to_bits() ^ cos_sign),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn assert_fused(a: f32, b: f32, c: f32) -> Result<(), TestCaseError> {
        let (got, want) = (fma(a, b, c), a.mul_add(b, c));
        prop_assert!(
            got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(),
            "{} * {} + {}: {} for {}",
            a,
            b,
            c,
            got,
            want
        );
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn fma_rounds_once(a in any::<f32>(), b in any::<f32>(), c in any::<f32>()) {
            assert_fused(a, b, c)?;
        }

        /// Sums near a tie: a product half a unit in the last place of `c`, give or take very little.
        #[test]
        fn fma_rounds_ties_once(c in 1.0_f32..2.0, a in 1_u32..1 << 23, exact in any::<bool>()) {
            let half = f32::EPSILON / 2.0;
            let a = if exact { 1.0 } else { f32::from_bits(0x3f80_0000 + (a & 3)) };
            for sign in [-1.0, 1.0] {
                assert_fused(a, sign * half, c)?;
                assert_fused(a * 2.0_f32.powi(-126), sign * half, c * 2.0_f32.powi(-126))?;
            }
        }
    }
}
