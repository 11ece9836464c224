//! The searches for the scales of K-quants: GGML's, step by step in the same order of sums, so that the bits are the
//! same. All groups of a block go side by side, as lanes of a vector.

#![allow(
    clippy::needless_range_loop,
    reason = "the same lane of several arrays"
)]

/// A block as `N` numbers of each of `G` groups side by side.
pub(super) type Lanes<const N: usize, const G: usize> = [[f32; G]; N];

/// Groups whose largest magnitude is smaller are zero.
pub(super) const TINY: f32 = 1e-15;

/// To the nearest whole number, halves to even, of anything below 2^22.
#[inline(always)]
pub(super) fn nearest(x: f32) -> f32 {
    const BIG: f32 = 12_582_912.0;
    (x + BIG) - BIG
}

#[inline(always)]
pub(super) fn clamp(x: f32, low: f32, high: f32) -> f32 {
    if x < low {
        low
    } else if x > high {
        high
    } else {
        x
    }
}

/// How a scale and a minimum are looked for.
pub(super) struct Search {
    /// The largest number.
    pub top: f32,
    /// The first of the scales that are tried, as an addition to `top`; each next is 0.1 more.
    pub start: f32,
    /// How many more are tried.
    pub steps: usize,
    /// Absolute errors are weighed, not squares.
    pub absolute: bool,
}

/// What a search for scales and minima has found so far.
struct Found<const N: usize, const G: usize> {
    scale: [f32; G],
    low: [f32; G],
    error: [f32; G],
    q: Lanes<N, G>,
}

/// Numbers and weights of the groups, and their sums.
struct Groups<'a, const N: usize, const G: usize> {
    x: &'a Lanes<N, G>,
    weights: &'a Lanes<N, G>,
    sum_w: [f32; G],
    sum_x: [f32; G],
    /// The least number, or zero.
    low: [f32; G],
    high: [f32; G],
}

impl<'a, const N: usize, const G: usize> Groups<'a, N, G> {
    #[inline(always)]
    fn new(x: &'a Lanes<N, G>, weights: &'a Lanes<N, G>) -> Self {
        let mut groups = Groups {
            x,
            weights,
            sum_w: weights[0],
            sum_x: [0.0; G],
            low: x[0],
            high: x[0],
        };
        for g in 0..G {
            groups.sum_x[g] = weights[0][g] * x[0][g];
        }
        for i in 1..N {
            for g in 0..G {
                let (x, w) = (x[i][g], weights[i][g]);
                groups.low[g] = if x < groups.low[g] { x } else { groups.low[g] };
                groups.high[g] = if x > groups.high[g] {
                    x
                } else {
                    groups.high[g]
                };
                groups.sum_w[g] += w;
                groups.sum_x[g] += w * x;
            }
        }
        for low in groups.low.iter_mut() {
            *low = if *low > 0.0 { 0.0 } else { *low };
        }
        groups
    }

    /// The plain scale, from the least number to the greatest.
    #[inline(always)]
    fn plain(&self, search: &Search) -> Found<N, G> {
        let mut found = Found {
            scale: [0.0; G],
            low: self.low,
            error: [0.0; G],
            q: [[0.0; G]; N],
        };
        let mut inverse = [0.0; G];
        for g in 0..G {
            inverse[g] = search.top / (self.high[g] - self.low[g]);
            found.scale[g] = 1.0 / inverse[g];
        }
        for i in 0..N {
            for g in 0..G {
                let x = self.x[i][g];
                let q = clamp(nearest(inverse[g] * (x - self.low[g])), 0.0, search.top);
                found.q[i][g] = q;
                let e = error(found.scale[g], q, found.low[g], x, search.absolute);
                found.error[g] += self.weights[i][g] * e;
            }
        }
        found
    }

    /// The numbers for a scale that is a little off, then the scale and minimum that are best for these numbers: taken
    /// where they are better than what was found.
    #[inline(always)]
    fn attempt(&self, step: usize, search: &Search, found: &mut Found<N, G>) {
        let mut inverse = [0.0; G];
        for g in 0..G {
            // From the best minimum so far, as the numbers below.
            let width = self.high[g] - found.low[g];
            inverse[g] = (search.start + 0.1 * step as f32 + search.top) / width;
        }
        let mut q = [[0.0; G]; N];
        let (mut sum_q, mut sum_qq, mut sum_xq) = ([0.0; G], [0.0; G], [0.0; G]);
        for i in 0..N {
            for g in 0..G {
                let (x, w) = (self.x[i][g], self.weights[i][g]);
                let new = clamp(nearest(inverse[g] * (x - found.low[g])), 0.0, search.top);
                q[i][g] = new;
                sum_q[g] += w * new;
                sum_qq[g] += w * new * new;
                sum_xq[g] += w * new * x;
            }
        }
        let (mut scale, mut low, mut solvable) = ([0.0; G], [0.0; G], [false; G]);
        for g in 0..G {
            let d = self.sum_w[g] * sum_qq[g] - sum_q[g] * sum_q[g];
            solvable[g] = d > 0.0;
            let free_low = (sum_qq[g] * self.sum_x[g] - sum_q[g] * sum_xq[g]) / d;
            let free_scale = (self.sum_w[g] * sum_xq[g] - self.sum_x[g] * sum_q[g]) / d;
            let through_zero = sum_xq[g] / sum_qq[g];
            scale[g] = if free_low > 0.0 {
                through_zero
            } else {
                free_scale
            };
            low[g] = if free_low > 0.0 { 0.0 } else { free_low };
        }
        let mut errors = [0.0; G];
        for i in 0..N {
            for g in 0..G {
                let e = error(scale[g], q[i][g], low[g], self.x[i][g], search.absolute);
                errors[g] += self.weights[i][g] * e;
            }
        }
        let mut better = [false; G];
        for g in 0..G {
            better[g] = solvable[g] & (errors[g] < found.error[g]);
            found.error[g] = if better[g] { errors[g] } else { found.error[g] };
            found.scale[g] = if better[g] { scale[g] } else { found.scale[g] };
            found.low[g] = if better[g] { low[g] } else { found.low[g] };
        }
        for i in 0..N {
            for g in 0..G {
                found.q[i][g] = if better[g] { q[i][g] } else { found.q[i][g] };
            }
        }
    }
}

/// Scales and minima of the groups, with `q * scale - minimum` close to `x`; `q` is what was best in the search.
#[inline(always)]
pub(super) fn affine<const N: usize, const G: usize>(
    x: &Lanes<N, G>,
    weights: &Lanes<N, G>,
    search: &Search,
    q: &mut Lanes<N, G>,
) -> ([f32; G], [f32; G]) {
    let groups = Groups::new(x, weights);
    let mut found = groups.plain(search);
    for step in 0..=search.steps {
        groups.attempt(step, search, &mut found);
    }
    let (mut scale, mut minimum) = (found.scale, [0.0; G]);
    *q = found.q;
    for g in 0..G {
        let flat = groups.high[g] == groups.low[g];
        minimum[g] = -if flat { groups.low[g] } else { found.low[g] };
        scale[g] = if flat { 0.0 } else { scale[g] };
        for q in q.iter_mut() {
            q[g] = if flat { 0.0 } else { q[g] };
        }
    }
    (scale, minimum)
}

#[inline(always)]
fn error(scale: f32, q: f32, low: f32, x: f32, absolute: bool) -> f32 {
    let off = scale * q + low - x;
    if absolute { off.abs() } else { off * off }
}

/// Scales of sixteen groups of 16 with `(q - top) * scale` close to `x`, by squares of errors weighed by squares
/// of numbers.
#[inline(always)]
pub(super) fn symmetric(x: &Lanes<16, 16>, top: f32, q: &mut Lanes<16, 16>) -> [f32; 16] {
    let mut largest = [0.0f32; 16];
    for x in x {
        for g in 0..16 {
            let more = x[g].abs() > largest[g].abs();
            largest[g] = if more { x[g] } else { largest[g] };
        }
    }
    let mut scale = [0.0; 16];
    let mut best = [0.0; 16];
    // The middle first, then from the left to the right of it.
    for step in [
        0, -9, -8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9,
    ] {
        let mut inverse = [0.0; 16];
        for g in 0..16 {
            inverse[g] = -(top + 0.1 * step as f32) / largest[g];
        }
        let mut tried = [[0.0; 16]; 16];
        let (mut sum_xq, mut sum_qq) = ([0.0; 16], [0.0; 16]);
        for i in 0..16 {
            for g in 0..16 {
                let x = x[i][g];
                let q = clamp(nearest(inverse[g] * x), -top, top - 1.0);
                let w = x * x;
                tried[i][g] = q + top;
                sum_xq[g] += w * x * q;
                sum_qq[g] += w * q * q;
            }
        }
        let mut better = [false; 16];
        for g in 0..16 {
            let first = step == 0;
            better[g] = first | ((sum_qq[g] > 0.0) & (sum_xq[g] * sum_xq[g] > best[g] * sum_qq[g]));
            let new = if sum_qq[g] == 0.0 {
                0.0
            } else {
                sum_xq[g] / sum_qq[g]
            };
            scale[g] = if better[g] { new } else { scale[g] };
            best[g] = if better[g] { new * sum_xq[g] } else { best[g] };
        }
        for i in 0..16 {
            for g in 0..16 {
                q[i][g] = if better[g] { tried[i][g] } else { q[i][g] };
            }
        }
    }
    for g in 0..16 {
        let tiny = largest[g].abs() < TINY;
        scale[g] = if tiny { 0.0 } else { scale[g] };
        for q in q.iter_mut() {
            q[g] = if tiny { 0.0 } else { q[g] };
        }
    }
    scale
}

/// Scales of sixteen groups of 16 with `(q - 4) * scale` close to `x`: from the plain scale, number after number is
/// moved where that helps.
#[inline(always)]
pub(super) fn refined(x: &Lanes<16, 16>, q: &mut Lanes<16, 16>) -> [f32; 16] {
    const TOP: f32 = 4.0;
    let mut largest = [0.0f32; 16];
    for x in x {
        for g in 0..16 {
            let more = x[g].abs() > largest[g].abs();
            largest[g] = if more { x[g] } else { largest[g] };
        }
    }
    let (mut sum_xq, mut sum_qq) = ([0.0; 16], [0.0; 16]);
    for i in 0..16 {
        for g in 0..16 {
            let (x, w) = (x[i][g], x[i][g] * x[i][g]);
            let new = clamp(nearest(-TOP / largest[g] * x), -TOP, TOP - 1.0);
            q[i][g] = new;
            sum_xq[g] += w * x * new;
            sum_qq[g] += w * new * new;
        }
    }
    for _ in 0..5 {
        for i in 0..16 {
            for g in 0..16 {
                let (x, w, old) = (x[i][g], x[i][g] * x[i][g], q[i][g]);
                let others_xq = sum_xq[g] - w * x * old;
                let others_qq = sum_qq[g] - w * old * old;
                let new = clamp(nearest(x * others_qq / others_xq), -TOP, TOP - 1.0);
                let new_xq = others_xq + w * x * new;
                let new_qq = others_qq + w * new * new;
                let helps = (others_xq > 0.0)
                    & (new != old)
                    & (new_qq > 0.0)
                    & (new_xq * new_xq * sum_qq[g] > sum_xq[g] * sum_xq[g] * new_qq);
                q[i][g] = if helps { new } else { old };
                sum_xq[g] = if helps { new_xq } else { sum_xq[g] };
                sum_qq[g] = if helps { new_qq } else { sum_qq[g] };
            }
        }
    }
    let mut scale = [0.0; 16];
    for g in 0..16 {
        let tiny = largest[g].abs() < TINY;
        let found = sum_qq[g] > 0.0 && !tiny;
        scale[g] = if found { sum_xq[g] / sum_qq[g] } else { 0.0 };
        for q in q.iter_mut() {
            q[g] = if tiny { 0.0 } else { q[g] + TOP };
        }
    }
    scale
}
