//! One task of the backward pass: all queries against a range of the keys of one head.

use std::ops::Range;

use super::{AttentionBackward, KEY_BLOCK};
use crate::attention::HeadsRef;
use crate::attention::tiles::{HeadRows, Hidden, MAX_WIDTH, TurnedRows, pack_turned};
use crate::gemm::driver::SharedOut;
use crate::gemm::params::{LINE, split};
use crate::gemm::tile::{ALayout, TileArgs};
use crate::scratch::Scratch;
use crate::simd::{Job, Simd, math};

/// Panels of queries that pass over a block of keys together: the gradients of keys and values are loaded and
/// stored once for all of them.
const QUERY_PANELS: usize = 4;

/// From one key's row of probabilities to the next's; a line more than queries, so that rows fall into different sets
/// of the cache.
const fn row_stride<S: Simd>() -> usize {
    QUERY_PANELS * S::NR + LINE
}

/// All queries and a range of keys of one head of one image.
pub(super) struct Pass<'a, 'b> {
    pub a: &'a AttentionBackward<'b>,
    pub batch: usize,
    pub head: usize,
    pub keys: Range<usize>,
    /// Shape of the whole gradient; this head's rows are written.
    pub dq: SharedOut,
    pub dk: SharedOut,
    pub dv: SharedOut,
}

/// Packed keys and values; tokens count from the range's first.
struct Answers {
    /// Keys in panels of MR tokens, `[head_dim, MR]`.
    keys: Scratch,
    /// Values in panels of MR tokens, `[head_dim, MR]`.
    values: Scratch,
    /// Keys in panels of up to MR channels, `[tokens, MR]`.
    channels: Scratch,
    dk: Scratch,
    dv: Scratch,
}

/// A block of packed queries.
struct Asks {
    queries: Range<usize>,
    /// Scaled queries and output gradients, turned: panels of `[head_dim, NR]`.
    q_turned: Scratch,
    d_turned: Scratch,
    /// The same as rows: panels of `[queries, NR]` channels, the last perhaps narrower.
    q_rows: Scratch,
    d_rows: Scratch,
    /// Of each query; `+inf` where its probabilities are to be 0.
    lse: [f32; QUERY_PANELS * MAX_WIDTH],
    /// Sum over the channels of output times its gradient.
    delta: [f32; QUERY_PANELS * MAX_WIDTH],
    /// Gradients, turned: panels of `[head_dim up to whole vectors, NR]`.
    dq: Scratch,
}

/// Blocks of probabilities and of the scores' gradients.
struct Blocks {
    mask: Scratch,
    /// `[keys, NR]`
    scores: Scratch,
    /// `[keys, NR]`
    d_scores: Scratch,
    /// `[keys, row_stride]`, queries of all panels.
    p_rows: Scratch,
    d_rows: Scratch,
}

/// Channels of the accumulators: whole panels of NR, the last only one vector wide where that is enough.
fn padded<S: Simd>(channels: usize) -> usize {
    let rest = channels % S::NR;
    let last = match rest {
        0 => 0,
        _ if rest <= S::LANES => S::LANES,
        _ => S::NR,
    };
    channels - rest + last
}

impl Job for Pass<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (a, d) = (self.a, self.a.head_dim);
        let mut answers = self.pack_answers::<S>();
        let step = QUERY_PANELS * S::NR;
        let turned = QUERY_PANELS * d * S::NR;
        let rows = step * padded::<S>(d);
        let mut asks = Asks {
            queries: 0..0,
            q_turned: Scratch::new(turned),
            d_turned: Scratch::new(turned),
            q_rows: Scratch::new(rows),
            d_rows: Scratch::new(rows),
            lse: [f32::INFINITY; QUERY_PANELS * MAX_WIDTH],
            delta: [0.0; QUERY_PANELS * MAX_WIDTH],
            dq: Scratch::new(QUERY_PANELS * d.next_multiple_of(S::LANES) * S::NR),
        };
        let block = KEY_BLOCK * S::NR;
        let mut blocks = Blocks {
            mask: Scratch::new(if a.mask.is_some() { block } else { 0 }),
            scores: Scratch::new(block),
            d_scores: Scratch::new(block),
            p_rows: Scratch::new(KEY_BLOCK * row_stride::<S>()),
            d_rows: Scratch::new(KEY_BLOCK * row_stride::<S>()),
        };
        for first in (0..a.queries).step_by(step) {
            self.pack_asks(s, first..a.queries.min(first + step), &mut asks);
            let seen = if a.causal {
                self.keys.end.min(asks.queries.end)
            } else {
                self.keys.end
            };
            for from in (self.keys.start..seen).step_by(KEY_BLOCK) {
                let keys = from..seen.min(from + KEY_BLOCK);
                self.scores(s, keys.clone(), &answers, &mut asks, &mut blocks);
                self.answer_gradients(s, keys, &mut answers, &asks, &blocks);
            }
            self.write_asks(s, &asks);
        }
        self.write_answers::<S>(&answers);
    }
}

impl<'b> Pass<'_, 'b> {
    fn head_rows(&self, view: &HeadsRef<'b>) -> HeadRows<'b> {
        HeadRows::new(view, self.batch, self.head, self.a.head_dim)
    }

    /// A buffer without gaps of as many tokens as there are queries.
    fn query_rows(&self, data: &'b [f32]) -> HeadRows<'b> {
        let a = self.a;
        self.head_rows(&HeadsRef::new(data, a.queries, a.heads, a.head_dim))
    }

    #[inline(always)]
    fn pack_answers<S: Simd>(&self) -> Answers {
        let (d, n) = (self.a.head_dim, self.keys.len());
        let panels = n.div_ceil(S::MR) * d * S::MR;
        let channel_panels = d.div_ceil(S::MR);
        let sums = n * padded::<S>(d);
        let mut answers = Answers {
            keys: Scratch::new(panels),
            values: Scratch::new(panels),
            channels: Scratch::new(channel_panels * n * S::MR),
            dk: Scratch::new(sums),
            dv: Scratch::new(sums),
        };
        answers.dk.as_mut_slice().fill(0.0);
        answers.dv.as_mut_slice().fill(0.0);
        let (keys, values) = (self.head_rows(&self.a.k), self.head_rows(&self.a.v));
        for (i, token) in self.keys.clone().enumerate() {
            let at = i / S::MR * d * S::MR + i % S::MR;
            for (packed, row) in [
                (&mut answers.keys, keys.row(token)),
                (&mut answers.values, values.row(token)),
            ] {
                let slots = packed.as_mut_slice()[at..].iter_mut().step_by(S::MR);
                slots.zip(row).for_each(|(slot, &x)| *slot = x);
            }
            for panel in 0..channel_panels {
                let channels = split(d, channel_panels, panel);
                let at = (panel * n + i) * S::MR;
                answers.channels.as_mut_slice()[at..][..channels.len()]
                    .copy_from_slice(&keys.row(token)[channels]);
            }
        }
        answers
    }

    #[inline(always)]
    fn pack_asks<S: Simd>(&self, s: S, queries: Range<usize>, asks: &mut Asks) {
        let (a, d) = (self.a, self.a.head_dim);
        let (q, d_out) = (self.head_rows(&a.q), self.query_rows(a.d_out));
        asks.queries = queries.clone();
        for (panel, first) in queries.clone().step_by(S::NR).enumerate() {
            let part = first..queries.end.min(first + S::NR);
            let at = panel * d * S::NR..(panel + 1) * d * S::NR;
            let turned = &mut asks.q_turned.as_mut_slice()[at.clone()];
            pack_turned(s, q, part.clone(), a.scale, turned);
            pack_turned(s, d_out, part, 1.0, &mut asks.d_turned.as_mut_slice()[at]);
        }
        pack_rows::<S>(q, queries.clone(), a.scale, asks.q_rows.as_mut_slice());
        pack_rows::<S>(d_out, queries.clone(), 1.0, asks.d_rows.as_mut_slice());
        asks.lse.fill(f32::INFINITY);
        asks.delta.fill(0.0);
        let out = self.query_rows(a.out);
        let lse = &a.lse[(self.batch * a.heads + self.head) * a.queries..][queries.clone()];
        for (i, (token, &lse)) in queries.zip(lse).enumerate() {
            // A query that sees no key has no probabilities, rather than those of its own maximum.
            asks.lse[i] = if lse == f32::NEG_INFINITY {
                f32::INFINITY
            } else {
                lse
            };
            asks.delta[i] = dot(s, out.row(token), d_out.row(token));
        }
        asks.dq.as_mut_slice().fill(0.0);
    }

    /// Probabilities and score gradients of a block of keys; adds to the gradients of the queries.
    #[inline(always)]
    fn scores<S: Simd>(
        &self,
        s: S,
        keys: Range<usize>,
        answers: &Answers,
        asks: &mut Asks,
        blocks: &mut Blocks,
    ) {
        let (a, d) = (self.a, self.a.head_dim);
        let hidden = Hidden::new(a.mask, a.causal, self.batch, self.head);
        let own = keys.start - self.keys.start..keys.end - self.keys.start;
        let size = keys.len() * S::NR;
        let dq_panel = d.next_multiple_of(S::LANES) * S::NR;
        for (panel, first) in asks.queries.clone().step_by(S::NR).enumerate() {
            let queries = first..asks.queries.end.min(first + S::NR);
            let scores = &mut blocks.scores.as_mut_slice()[..size];
            let d_scores = &mut blocks.d_scores.as_mut_slice()[..size];
            let turned = panel * d * S::NR..(panel + 1) * d * S::NR;
            let q = &asks.q_turned.as_slice()[turned.clone()];
            let d_out = &asks.d_turned.as_slice()[turned];
            token_products(s, answers.keys.as_slice(), own.clone(), d, q, scores);
            token_products(
                s,
                answers.values.as_slice(),
                own.clone(),
                d,
                d_out,
                d_scores,
            );
            hidden.apply(s, keys.clone(), queries, scores, blocks.mask.as_mut_slice());
            for lane in (0..S::NR).step_by(S::LANES) {
                let at = panel * S::NR + lane;
                let lse = s.load_slice(&asks.lse[at..]);
                let delta = s.load_slice(&asks.delta[at..]);
                let p_rows = blocks
                    .p_rows
                    .as_mut_slice()
                    .chunks_exact_mut(row_stride::<S>());
                let d_rows = blocks
                    .d_rows
                    .as_mut_slice()
                    .chunks_exact_mut(row_stride::<S>());
                let rows = scores
                    .chunks_exact(S::NR)
                    .zip(d_scores.chunks_exact_mut(S::NR))
                    .zip(p_rows.zip(d_rows));
                for ((score, d_score), (p_row, d_row)) in rows {
                    let p = math::exp(s, s.sub(s.load_slice(&score[lane..]), lse));
                    let d = s.mul(p, s.sub(s.load_slice(&d_score[lane..]), delta));
                    s.store_slice(&mut p_row[at..], p);
                    s.store_slice(&mut d_row[at..], d);
                    s.store_slice(&mut d_score[lane..], d);
                }
            }
            let dq = &mut asks.dq.as_mut_slice()[panel * dq_panel..][..dq_panel];
            self.add_query_gradients(s, own.clone(), answers, d_scores, dq);
        }
    }

    /// `dq[head_dim, NR] += K^T * dS`.
    #[inline(always)]
    fn add_query_gradients<S: Simd>(
        &self,
        s: S,
        own: Range<usize>,
        answers: &Answers,
        d_scores: &[f32],
        dq: &mut [f32],
    ) {
        let (d, n) = (self.a.head_dim, self.keys.len());
        let panels = d.div_ceil(S::MR);
        for panel in 0..panels {
            let channels = split(d, panels, panel);
            let from = &answers.channels.as_slice()[(panel * n + own.start) * S::MR..];
            let from = &from[..own.len() * S::MR];
            let to = &mut dq[channels.start * S::NR..][..channels.len() * S::NR];
            assert!(d_scores.len() >= own.len() * S::NR);
            // SAFETY: A is an interleaved panel of as many columns as there are keys, B has as many rows of NR, C is
            // one row of NR a channel; all checked.
            unsafe {
                s.tile(TileArgs {
                    mr: channels.len(),
                    nv: S::NV,
                    k: own.len(),
                    a_layout: ALayout::Interleaved,
                    a_stride: 0,
                    a: from.as_ptr(),
                    b: d_scores.as_ptr(),
                    c: to.as_mut_ptr(),
                    c_stride: S::NR,
                    accumulate: true,
                });
            }
        }
    }

    /// `dv[keys, head_dim] += P * dO` and `dk[keys, head_dim] += dS * Q`.
    #[inline(always)]
    fn answer_gradients<S: Simd>(
        &self,
        s: S,
        keys: Range<usize>,
        answers: &mut Answers,
        asks: &Asks,
        blocks: &Blocks,
    ) {
        let (width, stride) = (padded::<S>(self.a.head_dim), row_stride::<S>());
        let first = (keys.start - self.keys.start) * width;
        let k = asks.queries.len();
        let step = QUERY_PANELS * S::NR;
        assert!(k <= step && keys.len() <= KEY_BLOCK);
        for (sums, rows, columns) in [
            (&mut answers.dv, &blocks.p_rows, &asks.d_rows),
            (&mut answers.dk, &blocks.d_rows, &asks.q_rows),
        ] {
            let sums = &mut sums.as_mut_slice()[first..][..keys.len() * width];
            let (rows, columns) = (rows.as_slice(), columns.as_slice());
            assert!(rows.len() >= keys.len() * stride && columns.len() >= step * width);
            for channel in (0..width).step_by(S::NR) {
                let panel = S::NR.min(width - channel);
                for row in (0..keys.len()).step_by(S::MR) {
                    // SAFETY: A is up to MR of the keys' rows `stride` apart, at least k long; B is k <= step rows of
                    // this panel's width, which is NR or LANES; C is as many rows, `width` apart, of which the
                    // panel's columns lie inside; all checked.
                    unsafe {
                        s.tile(TileArgs {
                            mr: S::MR.min(keys.len() - row),
                            nv: panel / S::LANES,
                            k,
                            a_layout: ALayout::Rows,
                            a_stride: stride,
                            a: rows.as_ptr().add(row * stride),
                            b: columns.as_ptr().add(channel * step),
                            c: sums.as_mut_ptr().add(row * width + channel),
                            c_stride: width,
                            accumulate: true,
                        });
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn write_asks<S: Simd>(&self, s: S, asks: &Asks) {
        let (heads, d) = (self.a.heads, self.a.head_dim);
        let panel = d.next_multiple_of(S::LANES) * S::NR;
        let panels = asks.dq.as_slice().chunks_exact(panel);
        for (first, sums) in asks.queries.clone().step_by(S::NR).zip(panels) {
            let rows = TurnedRows {
                channels: d,
                rows: S::NR.min(asks.queries.end - first),
                start: ((self.batch * self.a.queries + first) * heads + self.head) * d,
                stride: heads * d,
            };
            // SAFETY: this head's queries' rows (of this copy) belong to this task alone.
            unsafe { rows.write(s, sums, &[self.a.scale; MAX_WIDTH], self.dq) };
        }
    }

    #[inline(always)]
    fn write_answers<S: Simd>(&self, answers: &Answers) {
        let (a, d) = (self.a, self.a.head_dim);
        let width = padded::<S>(d);
        for (sums, out) in [(&answers.dk, self.dk), (&answers.dv, self.dv)] {
            for (token, row) in self.keys.clone().zip(sums.as_slice().chunks_exact(width)) {
                let at = ((self.batch * a.keys + token) * a.heads + self.head) * d;
                // SAFETY: this head's tokens of this range belong to this task alone.
                unsafe { out.part(at, d) }.copy_from_slice(&row[..d]);
            }
        }
    }
}

/// Packs `scale` times rows as panels of channels, each `[room for all queries of a block, NR]`, the last perhaps one
/// vector wide.
#[inline(always)]
fn pack_rows<S: Simd>(rows: HeadRows<'_>, tokens: Range<usize>, scale: f32, dst: &mut [f32]) {
    let step = QUERY_PANELS * S::NR;
    for (i, token) in tokens.enumerate() {
        let row = rows.row(token);
        let width = padded::<S>(row.len());
        for channel in (0..width).step_by(S::NR) {
            let panel = S::NR.min(width - channel);
            let to = &mut dst[channel * step + i * panel..][..panel];
            let from = &row[channel..row.len().min(channel + panel)];
            let (to, rest) = to.split_at_mut(from.len());
            to.iter_mut().zip(from).for_each(|(t, f)| *t = f * scale);
            rest.fill(0.0);
        }
    }
}

/// `out[tokens, NR] = panels * turned`, for tokens `own` of panels `[channels, MR]`.
#[inline(always)]
fn token_products<S: Simd>(
    s: S,
    panels: &[f32],
    own: Range<usize>,
    channels: usize,
    turned: &[f32],
    out: &mut [f32],
) {
    // A block need not begin with a panel: go panel by panel of the tokens' own numbering.
    let mut token = own.start;
    while token < own.end {
        let (panel, row) = (token / S::MR, token % S::MR);
        let rows = (S::MR - row).min(own.end - token);
        let a = &panels[panel * channels * S::MR..][..channels * S::MR];
        assert!(turned.len() >= channels * S::NR);
        let c = &mut out[(token - own.start) * S::NR..][..rows * S::NR];
        // SAFETY: A is rows `row..row + rows` of an interleaved panel, B is as many rows of NR as there are channels,
        // C is `rows` rows of NR; all checked.
        unsafe {
            s.tile(TileArgs {
                mr: rows,
                nv: S::NV,
                k: channels,
                a_layout: ALayout::Interleaved,
                a_stride: 0,
                a: a.as_ptr().add(row),
                b: turned.as_ptr(),
                c: c.as_mut_ptr(),
                c_stride: S::NR,
                accumulate: false,
            });
        }
        token += rows;
    }
}

#[inline(always)]
fn dot<S: Simd>(s: S, a: &[f32], b: &[f32]) -> f32 {
    let mut sum = s.zero();
    for (a, b) in a.chunks(S::LANES).zip(b.chunks(S::LANES)) {
        sum = s.fma(s.load_some(a), s.load_some(b), sum);
    }
    s.sum(sum)
}
