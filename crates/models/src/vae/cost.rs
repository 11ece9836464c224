//! What an encode or a decode costs, by arithmetic on the configuration.

use super::config::VaeConfig;
use super::tiled::{Tiling, tiles};
use crate::unet::Cost;
use crate::unet::cost::Tally;

impl VaeConfig {
    /// The cost of decoding latents of `height` by `width`.
    pub fn decode_cost(&self, batch: usize, height: usize, width: usize) -> Cost {
        let mut tally = Tally::default();
        let mut size = [height, width];
        let z = self.latent_channels;
        if self.post_quant_conv {
            tally.conv(size, z, z, 1);
        }
        let mut channels = self.channels.iter().rev().copied();
        let mut before = channels.next().unwrap_or_default();
        tally.conv(size, z, before, 3);
        self.mid_cost(&mut tally, size, before);
        for (i, &output) in self.channels.iter().rev().enumerate() {
            for j in 0..=self.layers {
                tally.resnet(size, if j == 0 { before } else { output }, output, None);
            }
            before = output;
            if i + 1 < self.channels.len() {
                size = size.map(|n| n.saturating_mul(2));
                tally.conv(size, output, output, 3);
                tally.alive(size, output + output.div_ceil(4));
            }
        }
        tally.conv(size, before, self.out_channels, 3);
        tally.alive(size, 2 * before + self.out_channels);
        tally.finish(batch)
    }

    /// The cost of [`super::TiledDecode`]: its tiles one by one, a survey as large as a tile, and
    /// the picture.
    pub fn tiled_decode_cost(
        &self,
        batch: usize,
        height: usize,
        width: usize,
        tiling: Tiling,
    ) -> Cost {
        let ([rows, columns], tile) = tiles(height, width, tiling);
        if rows * columns == 1 {
            return self.decode_cost(batch, height, width);
        }
        let one = self.decode_cost(1, tile[0], tile[1]);
        let survey = self.decode_cost(1, tiling.tile, tiling.tile);
        let mut cost = one.times(rows * columns).then(survey).times(batch);
        let picture = [batch, height, width, self.factor(), self.factor()]
            .iter()
            .fold(4 * self.out_channels as u64, |p, &n| {
                p.saturating_mul(n as u64)
            });
        cost.activation_bytes = cost.activation_bytes.saturating_add(picture);
        cost
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
        self.mid_cost(&mut tally, size, before);
        let moments = 2 * self.latent_channels;
        tally.conv(size, before, moments, 3);
        if self.quant_conv {
            tally.conv(size, moments, moments, 1);
        }
        tally.finish(batch)
    }

    fn mid_cost(&self, tally: &mut Tally, size: [usize; 2], channels: usize) {
        tally.resnet(size, channels, channels, None);
        if self.mid_attention {
            let positions = size[0].saturating_mul(size[1]);
            tally.linear(positions, channels, 4 * channels);
            tally.attention(positions, positions, channels);
            tally.alive(size, 6 * channels);
        }
        tally.resnet(size, channels, channels, None);
    }
}
