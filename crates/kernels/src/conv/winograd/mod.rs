//! Winograd convolution: 3x3 with stride 1, or folded to 2x2 (see [`fold`](super::fold)). Tiles of M x M outputs
//! are products over channels at each of the `side(M)`² places of the transformed tile.
//!
//! There are two ways to go, by what is used again more often (see [`Plan`]):
//! - *Weights held*: few channels, many tiles. All weights are transformed at first; then each task takes some tiles
//!   through everything, its transformed inputs and products in its own L2.
//! - *Inputs held*: many channels. The inputs of some tiles are transformed and shared; then each task takes a panel
//!   of output channels and goes through the input channels in chunks, transforming the weights of a chunk just
//!   before they are used, so that transformed weights are never stored whole.
//!
//! Either way a sum runs over the channels in the same order, whatever the batch and the number of threads.

use std::ops::Range;

use super::Window;
use crate::Isa;
use crate::gemm::driver::{SharedOut, for_each};
use crate::gemm::params::{SERIAL_WORK, split};
use crate::scratch::Scratch;
use crate::simd::{Job, Simd};

mod gradient;
mod inputs;
mod plan;
mod products;
mod tile;
mod transform;
mod weights;

pub(super) use gradient::WeightGradient;
use inputs::TransformInputs;
use plan::Plan;
use products::{Products, WeightSource};
use weights::{TransformWeights, weight_len};

pub(super) fn run<const M: usize>(isa: Isa, conv: &Window<'_>) {
    let plan = Plan::<M>::new(isa, conv);
    let work = plan
        .inputs
        .tiles
        .saturating_mul(conv.in_channels * conv.out_channels);
    let threads = rayon::current_num_threads();
    let parallel = threads > 1 && work.saturating_mul(plan.inputs.places()) >= SERIAL_WORK;
    if plan.hold_weights {
        weights_held(isa, conv, &plan, parallel);
    } else {
        inputs_held(isa, conv, &plan, parallel);
    }
}

fn weights_held<const M: usize>(isa: Isa, conv: &Window<'_>, plan: &Plan<M>, parallel: bool) {
    let len = weight_len::<M>(plan.inputs.chunk, plan.nr);
    let mut weights = Scratch::new(plan.columns * plan.inputs.chunks * len);
    let shared = SharedOut::new(weights.as_mut_slice());
    for_each(plan.columns * plan.inputs.chunks, parallel, |i| {
        // SAFETY: each (column, chunk) has its own part.
        let part = unsafe { shared.part(i * len, len) };
        let cols = plan.cols(i / plan.inputs.chunks);
        isa.run(TransformWeights::<M> {
            conv,
            cols,
            channels: plan.inputs.channels(i % plan.inputs.chunks),
            parity: plan.inputs.parity(i % plan.inputs.chunks),
            chunk: plan.inputs.chunk,
            part,
        });
    });
    for_each(plan.inputs.groups(), parallel, |group| {
        isa.run(Whole {
            conv,
            plan,
            tiles: plan.inputs.group_tiles(group),
            weights: weights.as_slice(),
        });
    });
}

/// Some tiles through everything.
struct Whole<'a, 'b, const M: usize> {
    conv: &'a Window<'b>,
    plan: &'a Plan<M>,
    tiles: Range<usize>,
    weights: &'a [f32],
}

impl<const M: usize> Job for Whole<'_, '_, M> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (conv, plan) = (self.conv, self.plan);
        let mut inputs = Scratch::new(plan.inputs.len());
        let out = SharedOut::new(inputs.as_mut_slice());
        for chunk in 0..plan.inputs.chunks {
            TransformInputs {
                conv,
                tiling: &plan.inputs,
                tiles: self.tiles.clone(),
                first: self.tiles.start,
                chunk,
                out,
            }
            .run(s);
        }
        for column in 0..plan.columns {
            Products {
                conv,
                plan,
                inputs: inputs.as_slice(),
                group: self.tiles.clone(),
                tiles: self.tiles.clone(),
                column,
                weights: WeightSource::Held(self.weights),
            }
            .run(s);
        }
    }
}

fn inputs_held<const M: usize>(isa: Isa, conv: &Window<'_>, plan: &Plan<M>, parallel: bool) {
    let mut inputs = Scratch::new(plan.inputs.len());
    for group in 0..plan.inputs.groups() {
        let tiles = plan.inputs.group_tiles(group);
        let out = SharedOut::new(inputs.as_mut_slice());
        let runs = tiles.len().div_ceil(plan.mr);
        for_each(runs * plan.inputs.chunks, parallel, |i| {
            let run = split(tiles.len(), runs, i / plan.inputs.chunks);
            isa.run(TransformInputs {
                conv,
                tiling: &plan.inputs,
                tiles: tiles.start + run.start..tiles.start + run.end,
                first: tiles.start,
                chunk: i % plan.inputs.chunks,
                out,
            });
        });
        // Several tasks a panel when there are too few panels to go round.
        let wanted = if parallel {
            (rayon::current_num_threads() * 3).div_ceil(plan.columns)
        } else {
            1
        };
        let parts = wanted.min(tiles.len().div_ceil(4 * plan.mr));
        for_each(plan.columns * parts, parallel, |i| {
            let part = split(tiles.len(), parts, i % parts);
            isa.run(Products {
                conv,
                plan,
                inputs: inputs.as_slice(),
                group: tiles.clone(),
                tiles: tiles.start + part.start..tiles.start + part.end,
                column: i / parts,
                weights: WeightSource::Stored,
            });
        });
    }
}
