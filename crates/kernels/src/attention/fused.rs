//! Attention in tiles. Scores are kept turned, `[keys, queries]`: queries lie across the vector lanes, so that the
//! softmax needs no sums across lanes, and a block of probabilities is already the packed right-hand side of the
//! product with the values, which gives the output turned, `[head_dim, queries]`.

use std::ops::Range;

use super::Attention;
use super::tiles::{HeadRows, Hidden, MAX_WIDTH, TurnedRows, pack_turned};
use crate::Isa;
use crate::gemm::driver::{SharedOut, for_each};
use crate::gemm::params::{SERIAL_WORK, split};
use crate::gemm::tasks::for_each_in_turn;
use crate::gemm::tile::{ALayout, TileArgs};
use crate::scratch::Scratch;
use crate::simd::{Job, Simd, map, math};

/// Keys whose scores are held at once; a multiple of no tile in particular, 9 of AVX-512's.
const KEY_BLOCK: usize = 126;
/// Panels of queries that pass over a block of keys while it is in L1.
const QUERY_PANELS: usize = 2;
/// Floats of keys and values that are packed at once (16 MiB).
const PACKED: usize = 4 << 20;
/// Where running maxima start: below any score, and finite, so that `-inf` scores give no NaN.
const LOWEST: f32 = f32::MIN / 2.0;

/// Computes `attention`; writes the log-sum-exp of each query's scores to `lse`, `[batch, heads, queries]`.
pub(super) fn run(isa: Isa, mut attention: Attention<'_>, lse: Option<&mut [f32]>) {
    let lse = lse.map(SharedOut::new);
    let out = SharedOut::new(std::mem::take(&mut attention.out));
    let a = &attention;
    let sizes = Sizes::new(isa, a);
    let threads = rayon::current_num_threads();
    let pairs = a.batch * a.heads;
    let work = (pairs * a.queries).saturating_mul(a.keys * a.head_dim);
    let parallel = threads > 1 && work >= SERIAL_WORK;
    let group = (PACKED / sizes.pair()).clamp(1, pairs);
    let mut packed = Scratch::new(group * sizes.pair());
    let blocks = a.queries.div_ceil(sizes.nr * QUERY_PANELS);
    // Tasks of several blocks, about eight a thread.
    let chunks = blocks.min((threads * 8).div_ceil(group));
    for first in (0..pairs).step_by(group) {
        let count = group.min(pairs - first);
        let shared = SharedOut::new(packed.as_mut_slice());
        for_each(count, parallel, |i| {
            // SAFETY: each pair has its own part.
            let part = unsafe { shared.part(i * sizes.pair(), sizes.pair()) };
            sizes.pack(a, (first + i) / a.heads, (first + i) % a.heads, part);
        });
        let packed = packed.as_slice();
        for_each_in_turn(count * chunks, parallel, |task| {
            let i = task / chunks;
            let packed = &packed[i * sizes.pair()..][..sizes.pair()];
            let blocks = split(blocks, chunks, task % chunks);
            let (batch, head) = ((first + i) / a.heads, (first + i) % a.heads);
            isa.run(Queries {
                a,
                sizes: &sizes,
                packed,
                batch,
                head,
                blocks,
                out,
                lse,
            });
        });
    }
}

/// Sizes of the packed panels. Keys are panels of `mr` keys, `[head_dim, mr]`; values are panels of up to `mr`
/// channels, `[keys, mr]`.
struct Sizes {
    mr: usize,
    nr: usize,
    key_panel: usize,
    key_panels: usize,
    value_panel: usize,
    value_panels: usize,
}

impl Sizes {
    fn new(isa: Isa, a: &Attention<'_>) -> Self {
        let (mr, nr) = isa.tile_size();
        Self {
            mr,
            nr,
            key_panel: a.head_dim * mr,
            key_panels: a.keys.div_ceil(mr),
            value_panel: a.keys * mr,
            value_panels: a.head_dim.div_ceil(mr),
        }
    }

    fn keys(&self) -> usize {
        self.key_panel * self.key_panels
    }

    /// Floats for one head of one image; never 0.
    fn pair(&self) -> usize {
        (self.keys() + self.value_panel * self.value_panels).max(1)
    }

    fn pack(&self, a: &Attention<'_>, batch: usize, head: usize, dst: &mut [f32]) {
        let (keys, values) = dst.split_at_mut(self.keys());
        for token in 0..a.keys {
            let row = a.k.row(batch, token, head, a.head_dim);
            let panel = &mut keys[token / self.mr * self.key_panel + token % self.mr..];
            for (slot, &x) in panel.iter_mut().step_by(self.mr).zip(row) {
                *slot = x;
            }
            let row = a.v.row(batch, token, head, a.head_dim);
            for panel in 0..self.value_panels {
                let channels = split(a.head_dim, self.value_panels, panel);
                let at = panel * self.value_panel + token * self.mr;
                values[at..][..channels.len()].copy_from_slice(&row[channels]);
            }
        }
    }
}

/// Blocks of queries of one head of one image.
struct Queries<'a, 'b> {
    a: &'a Attention<'b>,
    sizes: &'a Sizes,
    packed: &'a [f32],
    batch: usize,
    head: usize,
    blocks: Range<usize>,
    out: SharedOut,
    lse: Option<SharedOut>,
}

impl Job for Queries<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let d = self.a.head_dim;
        let step = QUERY_PANELS * S::NR;
        let mut queries = Scratch::new(QUERY_PANELS * d * S::NR);
        let mut sums = Scratch::new(QUERY_PANELS * d.next_multiple_of(S::LANES) * S::NR);
        let mut scores = Scratch::new(KEY_BLOCK * S::NR);
        let mut mask = Scratch::new(if self.a.mask.is_some() {
            KEY_BLOCK * S::NR
        } else {
            0
        });
        for block in self.blocks.clone() {
            let all = block * step..self.a.queries.min((block + 1) * step);
            let parts = all
                .clone()
                .step_by(S::NR)
                .map(|q| q..all.end.min(q + S::NR));
            let mut panels: [Panel; QUERY_PANELS] = std::array::from_fn(|_| Panel::default());
            let mut used = 0;
            let query_parts = queries.as_mut_slice().chunks_exact_mut(d * S::NR);
            for ((panel, queries), part) in panels.iter_mut().zip(query_parts).zip(parts) {
                pack_turned(s, self.rows(), part.clone(), self.a.scale, queries);
                panel.queries = part;
                used += 1;
            }
            sums.as_mut_slice().fill(0.0);
            let seen = if self.a.causal {
                self.a.keys.min(all.end)
            } else {
                self.a.keys
            };
            for from in (0..seen).step_by(KEY_BLOCK) {
                let keys = from..seen.min(from + KEY_BLOCK);
                let query_parts = queries.as_slice().chunks_exact(d * S::NR);
                let sum_parts = sums
                    .as_mut_slice()
                    .chunks_exact_mut(d.next_multiple_of(S::LANES) * S::NR);
                for ((panel, q), o) in panels[..used].iter_mut().zip(query_parts).zip(sum_parts) {
                    let scores = &mut scores.as_mut_slice()[..keys.len() * S::NR];
                    self.scores(s, keys.clone(), q, scores);
                    self.hidden().apply(
                        s,
                        keys.clone(),
                        panel.queries.clone(),
                        scores,
                        mask.as_mut_slice(),
                    );
                    panel.softmax(s, scores, &mut o[..d * S::NR]);
                    self.add_values(s, keys.clone(), scores, o);
                }
            }
            let sum_parts = sums
                .as_slice()
                .chunks_exact(d.next_multiple_of(S::LANES) * S::NR);
            for (panel, o) in panels[..used].iter().zip(sum_parts) {
                self.write(s, panel, o);
            }
        }
    }
}

/// A panel of queries, one a lane, with the running maximum and sum of each.
struct Panel {
    queries: Range<usize>,
    max: [f32; MAX_WIDTH],
    sum: [f32; MAX_WIDTH],
}

impl Default for Panel {
    fn default() -> Self {
        Self {
            queries: 0..0,
            max: [LOWEST; MAX_WIDTH],
            sum: [0.0; MAX_WIDTH],
        }
    }
}

impl Panel {
    /// Turns a block of scores into unnormalised probabilities and rescales what was summed before.
    #[inline(always)]
    fn softmax<S: Simd>(&mut self, s: S, scores: &mut [f32], sums: &mut [f32]) {
        for lane in (0..S::NR).step_by(S::LANES) {
            let before = s.load_slice(&self.max[lane..]);
            // Four at a time, which need not wait for each other.
            let mut most = [before; 4];
            let mut fours = scores.chunks_exact(4 * S::NR);
            for rows in &mut fours {
                for (max, row) in most.iter_mut().zip(rows.chunks_exact(S::NR)) {
                    *max = s.max(*max, s.load_slice(&row[lane..]));
                }
            }
            for row in fours.remainder().chunks_exact(S::NR) {
                most[0] = s.max(most[0], s.load_slice(&row[lane..]));
            }
            let max = s.max(s.max(most[0], most[1]), s.max(most[2], most[3]));
            let shrink = math::exp(s, s.sub(before, max));
            let mut sum = s.mul(s.load_slice(&self.sum[lane..]), shrink);
            for row in scores.chunks_exact_mut(S::NR) {
                let p = math::exp(s, s.sub(s.load_slice(&row[lane..]), max));
                sum = s.add(sum, p);
                s.store_slice(&mut row[lane..], p);
            }
            for row in sums.chunks_exact_mut(S::NR) {
                let row = &mut row[lane..lane + S::LANES];
                map!(s, row, |v| s.mul(v, shrink));
            }
            s.store_slice(&mut self.max[lane..], max);
            s.store_slice(&mut self.sum[lane..], sum);
        }
    }
}

impl<'b> Queries<'_, 'b> {
    fn rows(&self) -> HeadRows<'b> {
        HeadRows::new(&self.a.q, self.batch, self.head, self.a.head_dim)
    }

    fn hidden(&self) -> Hidden<'b> {
        Hidden::new(self.a.mask, self.a.causal, self.batch, self.head)
    }

    /// `scores[keys, NR] = K * Q^T`; `keys` starts at a multiple of `KEY_BLOCK`.
    #[inline(always)]
    fn scores<S: Simd>(&self, s: S, keys: Range<usize>, queries: &[f32], scores: &mut [f32]) {
        let k = self.a.head_dim;
        // A block need not begin with a panel: go panel by panel of the keys' own numbering.
        let mut key = keys.start;
        while key < keys.end {
            let (panel, row) = (key / S::MR, key % S::MR);
            let rows = (S::MR - row).min(keys.end - key);
            let a = &self.packed[panel * self.sizes.key_panel..][..self.sizes.key_panel];
            assert!(queries.len() >= k * S::NR && a.len() >= k * S::MR);
            let c = &mut scores[(key - keys.start) * S::NR..][..rows * S::NR];
            // SAFETY: A is rows `row..row + rows` of an interleaved panel of k columns, B is k rows of NR, C is
            // `rows` rows of NR; all checked.
            unsafe {
                s.tile(TileArgs {
                    mr: rows,
                    nv: S::NV,
                    k,
                    a_layout: ALayout::Interleaved,
                    a_stride: 0,
                    a: a.as_ptr().add(row),
                    b: queries.as_ptr(),
                    c: c.as_mut_ptr(),
                    c_stride: S::NR,
                    accumulate: false,
                });
            }
            key += rows;
        }
    }

    /// `sums[head_dim, NR] += V^T * P`.
    #[inline(always)]
    fn add_values<S: Simd>(
        &self,
        s: S,
        keys: Range<usize>,
        probabilities: &[f32],
        sums: &mut [f32],
    ) {
        let panels = &self.packed[self.sizes.keys()..];
        for panel in 0..self.sizes.value_panels {
            let channels = split(self.a.head_dim, self.sizes.value_panels, panel);
            let a = &panels[panel * self.sizes.value_panel + keys.start * S::MR..]
                [..keys.len() * S::MR];
            let c = &mut sums[channels.start * S::NR..][..channels.len() * S::NR];
            assert!(probabilities.len() >= keys.len() * S::NR);
            // SAFETY: A is an interleaved panel of as many columns as there are keys, B has as many rows of NR, C is
            // one row of NR a channel; all checked.
            unsafe {
                s.tile(TileArgs {
                    mr: channels.len(),
                    nv: S::NV,
                    k: keys.len(),
                    a_layout: ALayout::Interleaved,
                    a_stride: 0,
                    a: a.as_ptr(),
                    b: probabilities.as_ptr(),
                    c: c.as_mut_ptr(),
                    c_stride: S::NR,
                    accumulate: true,
                });
            }
        }
    }

    /// Normalises and turns the sums, `[head_dim, NR]` with room up to whole vectors, into rows of the output.
    #[inline(always)]
    fn write<S: Simd>(&self, s: S, panel: &Panel, sums: &[f32]) {
        let (d, heads) = (self.a.head_dim, self.a.heads);
        let inverse = panel
            .sum
            .map(|sum| if sum == 0.0 { 0.0 } else { 1.0 / sum });
        let start = self.batch * self.a.queries + panel.queries.start;
        let rows = TurnedRows {
            channels: d,
            rows: panel.queries.len(),
            start: (start * heads + self.head) * d,
            stride: heads * d,
        };
        // SAFETY: these queries' rows of this head belong to this task alone.
        unsafe { rows.write(s, sums, &inverse, self.out) };
        if let Some(lse) = self.lse {
            let at = (self.batch * heads + self.head) * self.a.queries;
            // SAFETY: these queries' numbers belong to this task alone.
            let lse = unsafe { lse.part(at + panel.queries.start, panel.queries.len()) };
            for ((lse, max), sum) in lse.iter_mut().zip(&panel.max).zip(&panel.sum) {
                *lse = if *sum == 0.0 {
                    f32::NEG_INFINITY
                } else {
                    max + sum.ln()
                };
            }
        }
    }
}
