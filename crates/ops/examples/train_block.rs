//! Forward and backward of one UNet block, as a training step sees it: a residual block with a time
//! embedding a picture, self-attention and a gated feed-forward, all weights trained.
//!
//! ```text
//! cargo run --release -p aquatint-ops --example train_block -- [fused|recompute|reference] [batch side channels]
//! ```
//!
//! `train_block.py` is the same block in PyTorch. Prints the median of the runs, the memory that the
//! forward pass keeps for the backward, and the highest of the process.
#![allow(clippy::print_stdout)]

use std::time::Instant;

use aquatint_ops::burn::tensor::{DType, TensorData};
use aquatint_ops::fused::{self, Activation, AttentionMask, Conv2dShape, Epilogue};
use aquatint_ops::{Device, Tensor, reference};

const HEADS: usize = 8;
const RUNS: usize = 9;

struct Block {
    reference: bool,
    /// In the order of their use.
    weights: Vec<Tensor<1>>,
}

/// One walk through a block's weights.
struct Walk<'a> {
    block: &'a Block,
    next: usize,
}

/// The function of the block's path.
macro_rules! call {
    ($walk:expr, $op:ident ( $($arg:expr),* $(,)? )) => {
        match $walk.block.reference {
            true => reference::$op($($arg),*),
            false => fused::$op($($arg),*),
        }
    };
}

impl Walk<'_> {
    fn weight<const D: usize>(&mut self, shape: [usize; D]) -> Tensor<D> {
        self.next += 1;
        self.block.weights[self.next - 1].clone().reshape(shape)
    }

    fn linear<const D: usize>(
        &mut self,
        x: Tensor<D>,
        n: usize,
        biased: bool,
        residual: Option<Tensor<D>>,
    ) -> Tensor<D> {
        let k = x.dims()[D - 1];
        let weight = self.weight([n, k]);
        let epilogue = Epilogue {
            bias: biased.then(|| self.weight([n])),
            activation: Activation::None,
            residual,
        };
        call!(self, linear(x, weight, epilogue))
    }

    fn conv(&mut self, x: Tensor<4>, residual: Option<Tensor<4>>) -> Tensor<4> {
        let c = x.dims()[3];
        let weight = self.weight([c, c, 3, 3]);
        let epilogue = Epilogue {
            bias: Some(self.weight([c])),
            activation: Activation::None,
            residual,
        };
        call!(self, conv2d(x, weight, Conv2dShape::same(3), epilogue))
    }

    fn group_norm(&mut self, x: Tensor<4>, silu: bool) -> Tensor<4> {
        let c = x.dims()[3];
        let (gamma, beta) = (self.weight([c]), self.weight([c]));
        call!(self, group_norm(x, 32, 1e-5, gamma, beta, silu))
    }

    fn layer_norm(&mut self, x: Tensor<3>) -> Tensor<3> {
        let c = x.dims()[2];
        let (gamma, beta) = (self.weight([c]), self.weight([c]));
        call!(self, layer_norm(x, 1e-5, gamma, beta))
    }

    fn forward(&mut self, x: Tensor<4>, time: Tensor<2>) -> Tensor<3> {
        let [b, h, w, c] = x.dims();
        let y = self.group_norm(x.clone(), true);
        let y = self.conv(y, None);
        let time = self.linear(time, c, true, None);
        let y = self.group_norm(y + time.reshape([b, 1, 1, c]), true);
        let y = self.conv(y, Some(x));
        let x = y.clone().reshape([b, h * w, c]);
        let y = self.group_norm(y, false).reshape([b, h * w, c]);
        let x2 = self.linear(y, c, true, None);
        let y = self.layer_norm(x2.clone());
        let [q, k, v] = [(); 3].map(|()| self.linear(y.clone(), c, false, None));
        let y = call!(self, attention(q, k, v, HEADS, AttentionMask::None));
        let x2 = self.linear(y, c, true, Some(x2));
        let y = self.layer_norm(x2.clone());
        let y = self.linear(y, 8 * c, true, None);
        let y = call!(self, geglu(y));
        let x2 = self.linear(y, c, true, Some(x2));
        self.linear(x2, c, true, Some(x))
    }
}

/// Sizes of the weights, in the order of their use.
fn sizes(c: usize, time: usize) -> Vec<usize> {
    let conv = [9 * c * c, c];
    let biased = |k: usize, n: usize| [k * n, n];
    let mut sizes = vec![c, c];
    sizes.extend(conv);
    sizes.extend(biased(time, c));
    sizes.extend([c, c]);
    sizes.extend(conv);
    sizes.extend([c, c]);
    sizes.extend(biased(c, c));
    sizes.extend([c, c, c * c, c * c, c * c]);
    sizes.extend(biased(c, c));
    sizes.extend([c, c]);
    sizes.extend(biased(c, 8 * c));
    sizes.extend(biased(4 * c, c));
    sizes.extend(biased(c, c));
    sizes
}

fn random(len: usize, scale: f32, device: &Device) -> Tensor<1> {
    let mut state = 0x9e37_79b9u32 ^ len as u32;
    let draw = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state as f32 / u32::MAX as f32 * 2.0 - 1.0) * scale
    };
    let values: Vec<f32> = (0..len).map(draw).collect();
    Tensor::from_data(TensorData::new(values, [len]), (device, DType::F32))
}

/// Resident bytes now and at most, of `/proc/self/status`.
fn resident() -> [f64; 2] {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    ["VmRSS:", "VmHWM:"].map(|key| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<f64>().ok());
        kib.unwrap_or(f64::NAN) / 1024.0
    })
}

/// MiB that buffers hold: of the kernels' pool, or of the whole process where burn's own operations run,
/// which do not use the pool.
fn kept_now(reference: bool) -> f64 {
    match reference {
        true => resident()[0],
        false => aquatint_kernels::buffer::stats().in_use as f64 / f64::from(1 << 20),
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let mode = args.first().map_or("fused", String::as_str);
    let size = |i: usize, default| args.get(i).and_then(|s| s.parse().ok()).unwrap_or(default);
    let (batch, side, c) = (size(1, 8), size(2, 16), size(3, 256));
    let time = 4 * c;
    let device = match mode {
        "recompute" => Device::flex().autodiff().gradient_checkpointing(),
        _ => Device::flex().autodiff(),
    };
    let weights = sizes(c, time)
        .into_iter()
        .map(|len| random(len, 0.05, &device).require_grad());
    let block = Block {
        reference: mode == "reference",
        weights: weights.collect(),
    };
    let x = random(batch * side * side * c, 1.0, &device).reshape([batch, side, side, c]);
    let time = random(batch * time, 1.0, &device).reshape([batch, time]);
    // A block in a network passes a gradient on.
    let x = x.detach().require_grad();
    let (mut forward, mut backward, mut kept) = (vec![], vec![], 0.0f64);
    for _ in 0..RUNS {
        let before = kept_now(block.reference);
        let start = Instant::now();
        let mut walk = Walk {
            block: &block,
            next: 0,
        };
        let y = walk.forward(x.clone(), time.clone());
        assert_eq!(walk.next, block.weights.len());
        let loss = y.powi_scalar(2).mean();
        forward.push(start.elapsed().as_secs_f64() * 1e3);
        // The heap, once grown, hides what it holds: the first run shows most.
        kept = f64::max(kept, kept_now(block.reference) - before);
        let start = Instant::now();
        let gradients = loss.backward();
        backward.push(start.elapsed().as_secs_f64() * 1e3);
        drop(gradients);
    }
    let median = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let (forward, backward) = (median(&mut forward), median(&mut backward));
    println!(
        "{mode:9} {batch}x{side}x{side}x{c}: forward {forward:.1} ms, backward {backward:.1} ms, together \
         {:.1} ms; kept {kept:.0} MiB, highest {:.0} MiB",
        forward + backward,
        resident()[1]
    );
}
