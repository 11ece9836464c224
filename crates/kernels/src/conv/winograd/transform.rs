//! The transforms of Winograd's minimal filtering F(M x M, K x K), by vectors: F(2, 3), F(4, 3) and, for kernels that
//! were folded into 2 x 2, F(5, 2).
//!
//! F(2, 3) uses the points 0, 1, -1; F(4, 3) and F(5, 2) the points 0, ±1/√2, ±√2 and infinity, whose error is half that of the
//! usual 0, ±1, ±2 (measured: root mean square 1.7e-6 against 3.5e-6, largest 2.9e-6 against 1.4e-5, relative to
//! the output, 320 channels of normal noise). With p = 1/√2 and q = √2, pq = 1, the rows for a point x are those of
//! M(x) = x (x² - p²) (x² - q²) divided by (x - point).

use std::f32::consts::{FRAC_1_SQRT_2 as P, SQRT_2 as Q};

use crate::simd::Simd;

/// Longest side of a transformed tile.
pub(super) const SIDE: usize = 6;

/// Side of a transformed tile of M x M outputs.
pub(super) const fn side(m: usize) -> usize {
    if m == 2 { 4 } else { SIDE }
}

/// `B^T d`: a line of `side(M)` inputs to as many transformed ones.
#[inline(always)]
pub(super) fn input_line<S: Simd, const M: usize>(s: S, d: [S::V; SIDE]) -> [S::V; SIDE] {
    if M == 2 {
        let [d0, d1, d2, d3, ..] = d;
        let zero = s.zero();
        return [
            s.sub(d0, d2),
            s.add(d1, d2),
            s.sub(d2, d1),
            s.sub(d1, d3),
            zero,
            zero,
        ];
    }
    let [d0, d1, d2, d3, d4, d5] = d;
    let five_halves = s.splat(-2.5);
    // Even and odd parts at p: d4 - q² d2 and p (d3 - q² d1); at q likewise with p².
    let even_p = s.fma(d2, s.splat(-2.0), d4);
    let odd_p = s.mul(s.fma(d1, s.splat(-2.0), d3), s.splat(P));
    let even_q = s.fma(d2, s.splat(-0.5), d4);
    let odd_q = s.mul(s.fma(d1, s.splat(-0.5), d3), s.splat(Q));
    [
        s.add(s.fma(d2, five_halves, d0), d4),
        s.add(even_p, odd_p),
        s.sub(even_p, odd_p),
        s.add(even_q, odd_q),
        s.sub(even_q, odd_q),
        s.add(s.fma(d3, five_halves, d1), d5),
    ]
}

/// `G g`: a line of 3 weights (2 and anything, for F(5, 2)) to `side(M)` transformed ones.
#[inline(always)]
pub(super) fn weight_line<S: Simd, const M: usize>(s: S, g: [S::V; 3]) -> [S::V; SIDE] {
    let [g0, g1, g2] = g;
    if M == 2 {
        let half = s.splat(0.5);
        let (even, odd) = (s.mul(s.add(g0, g2), half), s.mul(g1, half));
        return [
            g0,
            s.add(even, odd),
            s.sub(even, odd),
            g2,
            s.zero(),
            s.zero(),
        ];
    }
    // Derivatives of M: 1 at 0, -3/2 at ±p, 6 at ±q.
    let (even_p, even_q) = if M == 5 {
        (g0, g0)
    } else {
        (s.fma(g2, s.splat(0.5), g0), s.fma(g2, s.splat(2.0), g0))
    };
    let (even_p, odd_p) = (
        s.mul(even_p, s.splat(-1.0 / 1.5)),
        s.mul(g1, s.splat(-P / 1.5)),
    );
    let (even_q, odd_q) = (
        s.mul(even_q, s.splat(1.0 / 6.0)),
        s.mul(g1, s.splat(Q / 6.0)),
    );
    [
        g0,
        s.add(even_p, odd_p),
        s.sub(even_p, odd_p),
        s.add(even_q, odd_q),
        s.sub(even_q, odd_q),
        if M == 5 { g1 } else { g2 },
    ]
}

/// `A^T m`: a line of `side(M)` products to `M` outputs.
#[inline(always)]
pub(super) fn output_line<S: Simd, const M: usize>(s: S, m: [S::V; SIDE]) -> [S::V; 5] {
    let [m0, m1, m2, m3, m4, m5] = m;
    let zero = s.zero();
    let (even_p, odd_p) = (s.add(m1, m2), s.sub(m1, m2));
    if M == 2 {
        return [s.add(m0, even_p), s.sub(odd_p, m3), zero, zero, zero];
    }
    let (even_q, odd_q) = (s.add(m3, m4), s.sub(m3, m4));
    let third = s.fma(odd_q, s.splat(2.0 * Q), s.mul(odd_p, s.splat(0.5 * P)));
    let (third, fourth) = if M == 5 {
        let fourth = s.fma(even_q, s.splat(4.0), s.mul(even_p, s.splat(0.25)));
        (third, s.add(fourth, m5))
    } else {
        (s.add(third, m5), zero)
    };
    [
        s.add(s.add(m0, even_p), even_q),
        s.fma(odd_q, s.splat(Q), s.mul(odd_p, s.splat(P))),
        s.fma(even_q, s.splat(2.0), s.mul(even_p, s.splat(0.5))),
        third,
        fourth,
    ]
}

/// `A m`: a line of `M` gradients of outputs to `side(M)` of products.
#[inline(always)]
pub(super) fn gradient_line<S: Simd, const M: usize>(s: S, y: [S::V; 4]) -> [S::V; SIDE] {
    let [y0, y1, y2, y3] = y;
    if M == 2 {
        let zero = s.zero();
        return [
            y0,
            s.add(y0, y1),
            s.sub(y0, y1),
            s.sub(zero, y1),
            zero,
            zero,
        ];
    }
    let even_p = s.fma(y2, s.splat(0.5), y0);
    let odd_p = s.fma(y3, s.splat(0.5 * P), s.mul(y1, s.splat(P)));
    let even_q = s.fma(y2, s.splat(2.0), y0);
    let odd_q = s.fma(y3, s.splat(2.0 * Q), s.mul(y1, s.splat(Q)));
    [
        y0,
        s.add(even_p, odd_p),
        s.sub(even_p, odd_p),
        s.add(even_q, odd_q),
        s.sub(even_q, odd_q),
        y3,
    ]
}

/// `G^T u`: a line of `side(M)` gradients of transformed weights to 3 of weights.
#[inline(always)]
pub(super) fn weight_gradient_line<S: Simd, const M: usize>(s: S, u: [S::V; SIDE]) -> [S::V; 3] {
    let [u0, u1, u2, u3, u4, u5] = u;
    let (even_p, odd_p) = (s.add(u1, u2), s.sub(u1, u2));
    if M == 2 {
        let half = s.splat(0.5);
        return [
            s.fma(even_p, half, u0),
            s.mul(odd_p, half),
            s.fma(even_p, half, u3),
        ];
    }
    let (even_q, odd_q) = (s.add(u3, u4), s.sub(u3, u4));
    let sixth = s.splat(1.0 / 6.0);
    let third = s.splat(1.0 / 3.0);
    [
        s.fma(even_q, sixth, s.fma(even_p, s.splat(-1.0 / 1.5), u0)),
        s.fma(odd_q, s.splat(Q / 6.0), s.mul(odd_p, s.splat(-P / 1.5))),
        s.fma(s.sub(even_q, even_p), third, u5),
    ]
}

/// A line across transformed columns.
#[inline(always)]
pub(super) fn row<V: Copy, const N: usize>(columns: &[[V; N]; SIDE], r: usize) -> [V; SIDE] {
    let [a, b, c, d, e, f] = columns;
    [a[r], b[r], c[r], d[r], e[r], f[r]]
}

// Macros, not loops: arrays that loops fill begin as zeros in memory, which costs as much as the transform.

/// The square of `SIDE` lines of `SIDE` that an expression of the line and the column gives.
macro_rules! square {
    (|$r:ident, $c:ident| $f:expr) => {
        $crate::conv::winograd::transform::square!(@lines $r $c $f; 0 1 2 3 4 5)
    };
    (@lines $r:ident $c:ident $f:expr; $($line:literal)*) => {
        [$({
            let $r: usize = $line;
            $crate::conv::winograd::transform::square!(@line $c $f; 0 1 2 3 4 5)
        }),*]
    };
    (@line $c:ident $f:expr; $($column:literal)*) => {
        [$({
            let $c: usize = $column;
            $f
        }),*]
    };
}
pub(super) use square;

/// A transform along the columns of a square, whose lines become columns.
macro_rules! columns {
    ($s:expr, $line:path, $x:expr, $rows:tt) => {{
        let (s, x) = ($s, $x);
        $crate::conv::winograd::transform::columns!(@all s $line, x $rows 0 1 2 3 4 5)
    }};
    (@all $s:ident $line:path, $x:ident $rows:tt $($column:literal)*) => {
        [$($crate::conv::winograd::transform::columns!(@one $s $line, $x $rows $column)),*]
    };
    (@one $s:ident $line:path, $x:ident [$($row:literal)*] $column:literal) => {
        $line($s, [$($x[$row][$column]),*])
    };
}
pub(super) use columns;
