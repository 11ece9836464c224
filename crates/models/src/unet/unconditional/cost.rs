//! What a forward pass costs, by arithmetic on the configuration.

use super::blocks::{down_inputs, up_inputs};
use super::config::{ClassKind, UNet2DConfig};
use crate::unet::cost::{Cost, Tally};

/// The skips of the way down: elements held, and the size.
type Skips = Vec<(u64, [usize; 2])>;

impl UNet2DConfig {
    /// The cost of a pass over `height` by `width` positions. The time embedding is counted once a
    /// batch entry, though it may be shared.
    pub fn cost(&self, batch: usize, height: usize, width: usize) -> Cost {
        let mut tally = Tally::default();
        if self.levels.is_empty() || self.layers == 0 {
            return Cost::default();
        }
        let (first, time) = (self.channels(0), self.time_embed_dim);
        let embedded = match self.classes {
            Some(ClassKind::Timestep) => 2,
            _ => 1,
        };
        for _ in 0..embedded {
            tally.linear(1, first, time);
            tally.linear(1, time, time);
        }
        let mut size = [height, width];
        tally.conv(size, self.in_channels, first, 3);
        tally.alive(size, self.in_channels + first);
        let mut skips = vec![(tally.hold(size, first), size)];
        for i in 0..self.levels.len() {
            size = self.down_cost(&mut tally, &mut skips, i, size);
        }
        if self.mid {
            let channels = self.channels(self.levels.len());
            self.resnet_cost(&mut tally, size, channels, channels);
            if self.mid_attention {
                attention(&mut tally, size, channels);
            }
            self.resnet_cost(&mut tally, size, channels, channels);
        }
        for i in (0..self.levels.len()).rev() {
            size = self.up_cost(&mut tally, &mut skips, i, size);
        }
        tally.conv(size, first, self.out_channels, 3);
        tally.alive(size, 2 * first + self.out_channels);
        tally.finish(batch)
    }

    fn resnet_cost(&self, tally: &mut Tally, size: [usize; 2], input: usize, output: usize) {
        tally.resnet(size, input, output, Some(self.time_embed_dim));
        if self.scale_shift {
            tally.linear(1, self.time_embed_dim, output);
        }
    }

    fn down_cost(
        &self,
        tally: &mut Tally,
        skips: &mut Skips,
        i: usize,
        mut size: [usize; 2],
    ) -> [usize; 2] {
        let level = self.levels[i];
        for input in down_inputs(self, i) {
            self.resnet_cost(tally, size, input, level.channels);
            if level.down_attention {
                attention(tally, size, level.channels);
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

    fn up_cost(
        &self,
        tally: &mut Tally,
        skips: &mut Skips,
        i: usize,
        size: [usize; 2],
    ) -> [usize; 2] {
        let level = self.levels[i];
        for input in up_inputs(self, i) {
            // The skip is alive while it is joined with what comes from below.
            tally.alive(size, 2 * input);
            let (held, _) = skips.pop().unwrap_or_default();
            tally.release(held);
            self.resnet_cost(tally, size, input, level.channels);
            if level.up_attention {
                attention(tally, size, level.channels);
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

/// A self-attention.
fn attention(tally: &mut Tally, size: [usize; 2], channels: usize) {
    let positions = size[0].saturating_mul(size[1]);
    tally.linear(positions, channels, 4 * channels);
    tally.attention(positions, positions, channels);
    // The picture, its norm, queries, keys, values and what they give.
    tally.alive(size, 6 * channels);
}
