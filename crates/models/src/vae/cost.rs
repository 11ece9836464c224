//! What an encode or a decode costs, by arithmetic on the configuration.

use super::config::VaeConfig;
use super::survey::KEYS;
use super::tiled::{Tiling, tiles};
use crate::unet::Cost;
use crate::unet::cost::Tally;

impl VaeConfig {
    /// The cost of decoding latents of `height` by `width`.
    pub fn decode_cost(&self, batch: usize, height: usize, width: usize) -> Cost {
        let size = [height, width];
        let lower = self.lower_cost(batch, size, 1);
        lower.then(self.upper_cost(batch, size))
    }

    /// The cost of [`super::TiledDecode`]: the lower part whole, a survey as large as a tile, the
    /// tiles one by one, and the picture.
    pub fn tiled_decode_cost(
        &self,
        batch: usize,
        height: usize,
        width: usize,
        tiling: Tiling,
    ) -> Cost {
        let ([rows, columns], tile) = tiles(height, width, tiling);
        let count = rows.saturating_mul(columns);
        let mut upper = self.upper_cost(1, tile).times(count);
        if count > 1 {
            upper = upper.then(self.upper_cost(1, [tiling.tile; 2]));
        }
        let bytes = |pixels: &[usize], channels: usize| {
            pixels
                .iter()
                .fold(4 * channels as u64, |p, &n| p.saturating_mul(n as u64))
        };
        // A tile's norms do not work in place: a quarter more is alive in its largest block.
        upper.activation_bytes = upper.activation_bytes / 4 * 5;
        // What the lower part gives stays while the tiles are done.
        let lowest = self.channels.last().copied().unwrap_or_default();
        let kept = bytes(&[height, width], lowest);
        upper.activation_bytes = upper.activation_bytes.saturating_add(kept);
        // Of every how many rows and columns the attention keeps one.
        let thinned = height.saturating_mul(width).div_ceil(KEYS);
        let stride = thinned.saturating_sub(1).isqrt() + 1;
        let lower = self.lower_cost(1, [height, width], stride);
        let mut cost = lower.then(upper).times(batch);
        let (factor, colours) = (self.factor(), self.out_channels);
        let picture = bytes(&[batch, height, width, factor, factor], colours);
        cost.activation_bytes = cost.activation_bytes.saturating_add(picture);
        cost
    }

    /// The decoder's part at the latent's size.
    fn lower_cost(&self, batch: usize, size: [usize; 2], stride: usize) -> Cost {
        let mut tally = Tally::default();
        let z = self.latent_channels;
        if self.post_quant_conv {
            tally.conv(size, z, z, 1);
        }
        let channels = self.channels.last().copied().unwrap_or_default();
        tally.conv(size, z, channels, 3);
        self.mid_cost(&mut tally, size, channels, stride);
        for _ in 0..=self.layers {
            tally.resnet(size, channels, channels, None);
        }
        tally.finish(batch)
    }

    /// The decoder's part that enlarges.
    fn upper_cost(&self, batch: usize, mut size: [usize; 2]) -> Cost {
        let mut tally = Tally::default();
        let mut before = self.channels.last().copied().unwrap_or_default();
        for (i, &output) in self.channels.iter().rev().enumerate() {
            if i > 0 {
                for j in 0..=self.layers {
                    let input = if j == 0 { before } else { output };
                    tally.resnet(size, input, output, None);
                }
            }
            before = output;
            if i + 1 < self.channels.len() {
                size = size.map(|n| n.saturating_mul(2));
                tally.conv(size, output, output, 3);
                // The output, and the input at a quarter of its size.
                tally.alive(size, output + output.div_ceil(4));
            }
        }
        tally.conv(size, before, self.out_channels, 3);
        tally.alive(size, before + self.out_channels);
        tally.finish(batch)
    }

    /// The cost of encoding pictures of `height` by `width` pixels.
    pub fn encode_cost(&self, batch: usize, height: usize, width: usize) -> Cost {
        let mut tally = Tally::default();
        let mut size = [height, width];
        let mut before = self.channels.first().copied().unwrap_or_default();
        tally.conv(size, self.in_channels, before, 3);
        for (i, &output) in self.channels.iter().enumerate() {
            for j in 0..self.layers {
                tally.resnet(size, if j == 0 { before } else { output }, output, None);
            }
            before = output;
            if i + 1 < self.channels.len() {
                size = size.map(|n| n / 2);
                tally.conv(size, output, output, 3);
            }
        }
        self.mid_cost(&mut tally, size, before, 1);
        let moments = 2 * self.latent_channels;
        tally.conv(size, before, moments, 3);
        if self.quant_conv {
            tally.conv(size, moments, moments, 1);
        }
        tally.finish(batch)
    }

    fn mid_cost(&self, tally: &mut Tally, size: [usize; 2], channels: usize, stride: usize) {
        tally.resnet(size, channels, channels, None);
        if self.mid_attention {
            let positions = size[0].saturating_mul(size[1]);
            tally.linear(positions, channels, 4 * channels);
            let keys = (size[0] / stride).saturating_mul(size[1] / stride);
            tally.attention(positions, keys, channels);
            tally.alive(size, 6 * channels);
        }
        tally.resnet(size, channels, channels, None);
    }
}
