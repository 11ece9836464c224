//! Transforming weights.

use std::ops::Range;

use super::plan::PAD;
use super::transform::{SIDE, columns, row, side, square, weight_line};
use crate::conv::fold::Join;
use crate::conv::window::Window;
use crate::simd::{Job, MAX_LANES, Simd, address};

/// Channels that are turned together: with 9 places each, a whole number of squares of every LANES.
const TURN: usize = 16;
/// Distance of widened rows: 16 channels, and a line more against meeting in the same cache sets.
const WIDE: usize = TURN * 9 + 16;

/// Floats of a place's weights.
pub(super) const fn place_len(chunk: usize, nr: usize) -> usize {
    chunk * nr + PAD
}

/// Floats of a panel's transformed weights.
pub(super) const fn weight_len<const M: usize>(chunk: usize, nr: usize) -> usize {
    side(M) * side(M) * place_len(chunk, nr)
}

/// Weights of a chunk of input channels and a panel of output channels, as `[place, channel, NR]`.
pub(super) struct TransformWeights<'a, 'b, const M: usize> {
    pub conv: &'a Window<'b>,
    pub cols: Range<usize>,
    pub channels: Range<usize>,
    /// Of the inputs that they meet.
    pub parity: usize,
    /// Channels of a whole chunk.
    pub chunk: usize,
    pub part: &'a mut [f32],
}

impl<const M: usize> Job for TransformWeights<'_, '_, M> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.transform(s);
    }
}

impl<const M: usize> TransformWeights<'_, '_, M> {
    #[inline(always)]
    fn transform<S: Simd>(self, s: S) {
        let joins = self.conv.joins(self.parity);
        let mut wide = [0.0f32; MAX_LANES * WIDE];
        let mut taps = [0.0f32; TURN * 9 * MAX_LANES];
        for lane in (0..S::NR).step_by(S::LANES) {
            for c in (0..self.channels.len()).step_by(TURN) {
                let count = TURN.min(self.channels.len() - c);
                for (i, row) in wide.chunks_exact_mut(WIDE).take(S::LANES).enumerate() {
                    let col = self.cols.start + lane + i;
                    let row = &mut row[..count * 9];
                    if col < self.cols.end {
                        let at = (col * self.conv.in_channels + self.channels.start + c) * 9;
                        s.widen(self.conv.weight, at, row);
                    } else {
                        row.fill(0.0);
                    }
                }
                for f in (0..count * 9).step_by(S::LANES) {
                    // SAFETY: rows are WIDE >= f + LANES long; `taps` holds TURN * 9 rows of LANES.
                    unsafe {
                        let turned = taps.as_mut_ptr().add(f * S::LANES);
                        s.transpose(wide.as_ptr().add(f), WIDE, turned);
                    }
                }
                for (i, taps) in taps.chunks_exact(9 * S::LANES).take(count).enumerate() {
                    let at = (c + i) * S::NR + lane;
                    transform_channel::<S, M>(s, taps, joins, &mut self.part[at..], self.chunk);
                }
            }
        }
    }
}

/// Stored weights that will be needed, fetched into cache little by little, as rows far apart begin too often for the
/// CPU to see it coming.
pub(super) struct Ahead {
    start: *const u8,
    /// Bytes from a row to the next.
    pitch: usize,
    rows: usize,
    /// Cache lines of a row.
    lines: usize,
}

impl Ahead {
    pub(super) fn new(conv: &Window<'_>, cols: Range<usize>, channels: Range<usize>) -> Self {
        let first = (cols.start * conv.in_channels + channels.start) * 9;
        // A row's bytes, and those of the channels: numbers may be fractions of a byte.
        let at = |i| address(conv.weight, i);
        let bytes = |len| at(len).addr() - at(0).addr();
        Self {
            start: at(first),
            pitch: bytes(conv.in_channels * 9),
            rows: cols.len(),
            lines: bytes(channels.len() * 9).div_ceil(64) + 1,
        }
    }

    /// Part `step` of `steps`.
    #[inline(always)]
    pub(super) fn fetch<S: Simd>(&self, s: S, step: usize, steps: usize) {
        let total = self.rows * self.lines;
        let (from, to) = (total * step / steps, total * (step + 1) / steps);
        let (mut row, mut line) = (from / self.lines, from % self.lines);
        for _ in from..to {
            s.prefetch(self.start.wrapping_add(row * self.pitch + line * 64).cast());
            line += 1;
            if line == self.lines {
                (row, line) = (row + 1, 0);
            }
        }
    }
}

/// The two that three become.
macro_rules! joined {
    ($join:expr, $g:expr, $zero:expr, |$a:ident, $b:ident| $add:expr) => {{
        let [first, middle, last, ..] = $g;
        match $join {
            Join::First => {
                let ($a, $b) = (first, middle);
                ($add, last)
            }
            Join::Last => {
                let ($a, $b) = (middle, last);
                (first, $add)
            }
            Join::Ends => (first, last),
            Join::MiddleFirst => (middle, $zero),
            Join::MiddleLast => ($zero, middle),
        }
    }};
}

/// One channel's weights of `LANES` outputs.
#[inline(always)]
fn transform_channel<S: Simd, const M: usize>(
    s: S,
    taps: &[f32],
    joins: Option<(Join, Join)>,
    out: &mut [f32],
    chunk: usize,
) {
    let g = square!(|r, q| if r < 3 && q < 3 {
        s.load_slice(&taps[(r * 3 + q) * S::LANES..])
    } else {
        s.zero()
    });
    let g = match joins {
        Some((rows, across)) if M == 5 => {
            let (a, b) = joined!(rows, g, [s.zero(); SIDE], |a, b| add_lines(s, a, b));
            let rest = [s.zero(); SIDE];
            [
                join_places(s, a, across),
                join_places(s, b, across),
                rest,
                rest,
                rest,
                rest,
            ]
        }
        _ => g,
    };
    let len = place_len(chunk, S::NR);
    let last = (side(M) * side(M) - 1) * len;
    assert!(out.len() >= last + S::LANES);
    let half = columns!(s, weight_line::<S, M>, g, [0 1 2]);
    for r in 0..side(M) {
        let [a, b, c, ..] = row(&half, r);
        let line = weight_line::<S, M>(s, [a, b, c]);
        for (q, &v) in line.iter().enumerate().take(side(M)) {
            // SAFETY: (r, q) is at most the last place, whose LANES were checked to be there.
            unsafe { s.store(out.as_mut_ptr().add((r * side(M) + q) * len), v) };
        }
    }
}

#[inline(always)]
fn add_lines<S: Simd>(s: S, a: [S::V; SIDE], b: [S::V; SIDE]) -> [S::V; SIDE] {
    let zero = s.zero();
    [
        s.add(a[0], b[0]),
        s.add(a[1], b[1]),
        s.add(a[2], b[2]),
        zero,
        zero,
        zero,
    ]
}

/// A line of 3 weights that becomes one of 2.
#[inline(always)]
fn join_places<S: Simd>(s: S, g: [S::V; SIDE], join: Join) -> [S::V; SIDE] {
    let zero = s.zero();
    let (a, b) = joined!(join, g, zero, |a, b| s.add(a, b));
    [a, b, zero, zero, zero, zero]
}
