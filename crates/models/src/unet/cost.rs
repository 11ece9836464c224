//! What a forward pass costs, by arithmetic on the configuration: so that time and memory can be
//! foretold before a run.

use super::blocks::up_inputs;
use super::config::{MidKind, UNetConfig, UNetLevel};

/// Work and memory of a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// Multiply-adds of convolutions over 3x3 and larger neighbourhoods.
    pub convolution: u64,
    /// Multiply-adds of fully connected layers and 1x1 convolutions.
    pub linear: u64,
    /// Multiply-adds of attention: scores, and their product with the values.
    pub attention: u64,
    /// Bytes of f32 activations alive at once, at most: an estimate, without what kernels need for
    /// themselves.
    pub activation_bytes: u64,
}

impl Cost {
    /// All multiply-adds. A floating-point operation count is twice that.
    pub fn multiply_adds(&self) -> u64 {
        self.convolution
            .saturating_add(self.linear)
            .saturating_add(self.attention)
    }

    /// The cost of doing this and then `other`.
    pub fn then(self, other: Cost) -> Cost {
        Cost {
            convolution: self.convolution.saturating_add(other.convolution),
            linear: self.linear.saturating_add(other.linear),
            attention: self.attention.saturating_add(other.attention),
            activation_bytes: self.activation_bytes.max(other.activation_bytes),
        }
    }

    /// The cost of doing this `n` times, one after another.
    pub fn times(self, n: usize) -> Cost {
        let n = n as u64;
        Cost {
            convolution: self.convolution.saturating_mul(n),
            linear: self.linear.saturating_mul(n),
            attention: self.attention.saturating_mul(n),
            activation_bytes: self.activation_bytes,
        }
    }
}

/// Adds up the layers of a pass over one batch entry.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    cost: Cost,
    /// Elements that are held for later.
    held: u64,
    /// The most elements alive at once.
    peak: u64,
}

fn product(factors: &[usize]) -> u64 {
    factors
        .iter()
        .fold(1u64, |p, &f| p.saturating_mul(f as u64))
}

impl Tally {
    /// A convolution with an output of `size`.
    pub fn conv(&mut self, size: [usize; 2], input: usize, output: usize, kernel: usize) {
        let work = product(&[size[0], size[1], input, output, kernel, kernel]);
        let kind = match kernel {
            1 => &mut self.cost.linear,
            _ => &mut self.cost.convolution,
        };
        *kind = kind.saturating_add(work);
    }

    /// A fully connected layer.
    pub fn linear(&mut self, rows: usize, input: usize, output: usize) {
        let work = product(&[rows, input, output]);
        self.cost.linear = self.cost.linear.saturating_add(work);
    }

    /// An attention.
    pub fn attention(&mut self, queries: usize, keys: usize, channels: usize) {
        let work = product(&[2, queries, keys, channels]);
        self.cost.attention = self.cost.attention.saturating_add(work);
    }

    /// `channels` of `size` are alive at once, besides what is held.
    pub fn alive(&mut self, size: [usize; 2], channels: usize) {
        let elements = product(&[size[0], size[1], channels]);
        self.peak = self.peak.max(self.held.saturating_add(elements));
    }

    /// `channels` of `size` are held until their elements, which this gives, are released.
    pub fn hold(&mut self, size: [usize; 2], channels: usize) -> u64 {
        let elements = product(&[size[0], size[1], channels]);
        self.held = self.held.saturating_add(elements);
        elements
    }

    /// `elements` are held no longer.
    pub fn release(&mut self, elements: u64) {
        self.held = self.held.saturating_sub(elements);
    }

    /// A residual block.
    pub fn resnet(&mut self, size: [usize; 2], input: usize, output: usize, time: Option<usize>) {
        self.conv(size, input, output, 3);
        self.conv(size, output, output, 3);
        if let Some(time) = time {
            self.linear(1, time, output);
        }
        if input != output {
            self.conv(size, input, output, 1);
        }
        // The input, normalised in place when it has a shortcut, the shortcut (or the input kept and its norm), and
        // the first convolution; then the norm of that in place, the shortcut and the second.
        self.alive(size, input.max(output) + 2 * output);
    }

    /// The whole, for a batch.
    pub fn finish(self, batch: usize) -> Cost {
        let mut cost = self.cost.times(batch);
        cost.activation_bytes = product(&[batch, 4]).saturating_mul(self.peak);
        cost
    }
}

impl UNetConfig {
    /// The cost of a pass over latents of `height` by `width` and a text of `tokens`.
    ///
    /// Text projections are counted, though a prepared conditioning saves all but the first, and
    /// the time embedding once a batch entry, though it may be shared.
    pub fn cost(&self, batch: usize, height: usize, width: usize, tokens: usize) -> Cost {
        let mut tally = Tally::default();
        let Some(first) = self.levels.first().map(|l| l.channels) else {
            return Cost::default();
        };
        let time = self.time_embed_dim;
        tally.linear(1, first, time);
        tally.linear(1, time, time);
        if let Some(added) = &self.added {
            tally.linear(1, added.input_dim, time);
            tally.linear(1, time, time);
        }
        let mut size = [height, width];
        tally.conv(size, self.in_channels, first, self.conv_in_kernel);
        tally.alive(size, self.in_channels + first);
        let mut skips = vec![(tally.hold(size, first), size)];
        for i in 0..self.levels.len() {
            size = self.down_cost(&mut tally, &mut skips, i, size, tokens);
        }
        self.mid_cost(&mut tally, size, tokens);
        for i in (0..self.levels.len()).rev() {
            size = self.up_cost(&mut tally, &mut skips, i, size, tokens);
        }
        tally.conv(size, first, self.out_channels, self.conv_out_kernel);
        tally.alive(size, 2 * first + self.out_channels);
        tally.finish(batch)
    }

    fn down_cost(
        &self,
        tally: &mut Tally,
        skips: &mut Vec<(u64, [usize; 2])>,
        i: usize,
        mut size: [usize; 2],
        tokens: usize,
    ) -> [usize; 2] {
        let level = &self.levels[i];
        let before = self.levels[i.saturating_sub(1)].channels;
        for j in 0..level.layers {
            let input = if j == 0 { before } else { level.channels };
            tally.resnet(size, input, level.channels, Some(self.time_embed_dim));
            if level.down_attention {
                transformer(tally, size, level, level.only_cross_attention, tokens);
            }
            skips.push((tally.hold(size, level.channels), size));
        }
        if i + 1 < self.levels.len() {
            size = size.map(|n| n.saturating_add(self.downsample_padding) / 2);
            tally.conv(size, level.channels, level.channels, 3);
            skips.push((tally.hold(size, level.channels), size));
        }
        size
    }

    fn mid_cost(&self, tally: &mut Tally, size: [usize; 2], tokens: usize) {
        let Some(level) = self.levels.last() else {
            return;
        };
        let resnets = match self.mid {
            MidKind::Absent => 0,
            MidKind::Resnet => 1,
            MidKind::Attention => 2,
        };
        for _ in 0..resnets {
            let (channels, time) = (level.channels, Some(self.time_embed_dim));
            tally.resnet(size, channels, channels, time);
        }
        if self.mid == MidKind::Attention {
            transformer(tally, size, level, false, tokens);
        }
    }

    fn up_cost(
        &self,
        tally: &mut Tally,
        skips: &mut Vec<(u64, [usize; 2])>,
        i: usize,
        size: [usize; 2],
        tokens: usize,
    ) -> [usize; 2] {
        let level = &self.levels[i];
        for input in up_inputs(self, i) {
            // The skip is alive while it is joined with what comes from below.
            tally.alive(size, 2 * input);
            let (held, _) = skips.pop().unwrap_or_default();
            tally.release(held);
            tally.resnet(size, input, level.channels, Some(self.time_embed_dim));
            if level.up_attention {
                transformer(tally, size, level, level.only_cross_attention, tokens);
            }
        }
        match skips.last() {
            Some(&(_, larger)) if i > 0 => {
                tally.conv(larger, level.channels, level.channels, 3);
                tally.alive(larger, 2 * level.channels);
                larger
            }
            _ => size,
        }
    }
}

/// A spatial transformer.
fn transformer(
    tally: &mut Tally,
    size: [usize; 2],
    level: &UNetLevel,
    only_cross: bool,
    tokens: usize,
) {
    let (n, c) = (size[0].saturating_mul(size[1]), level.channels);
    for _ in 0..level.transformer_layers {
        for cross in [only_cross, true] {
            let (keys, source) = match cross {
                true => (tokens, level.context_dim),
                false => (n, c),
            };
            tally.linear(n, c, 2 * c); // queries and output
            tally.linear(keys, source, 2 * c); // keys and values
            tally.attention(n, keys, c);
        }
        tally.linear(n, c, 8 * c);
        tally.linear(n, 4 * c, c);
    }
    tally.linear(n, c, 2 * c); // in and out
    // The picture, the stream, the feed-forward before and after its gate.
    tally.alive(size, (2 + 8 + 4) * c);
}
