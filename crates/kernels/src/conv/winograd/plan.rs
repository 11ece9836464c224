//! Sizes of the blocks of a Winograd convolution.

use std::ops::Range;

use super::tile::ROW;
use super::transform::side;
use super::weights::weight_len;
use crate::Isa;
use crate::conv::Window;
use crate::gemm::params::{even_part, split};

/// Floats of transformed weights that may be held (12 MiB).
const WEIGHTS_HELD: usize = 3 << 20;
/// Floats of transformed inputs of a task that uses held weights (half of L2).
const TASK_INPUTS: usize = 128 << 10;
/// Floats of transformed inputs that are shared (12 MiB).
const INPUTS_HELD: usize = 3 << 20;

/// A line of floats more, so that the places of a tile do not meet in the same cache sets.
pub(super) const PAD: usize = 16;

/// An output cut into tiles of M x M, and how transformed channels of a group of tiles lie:
/// `[chunk, place, tile, ROW channels]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tiling<const M: usize> {
    pub out_size: (usize, usize),
    /// Tiles down and across an image.
    grid: (usize, usize),
    /// Tiles of all images.
    pub tiles: usize,
    /// Most tiles of a group.
    pub group: usize,
    channels: usize,
    /// Channels of a chunk but the last.
    pub chunk: usize,
    /// Chunks, of all parities.
    pub chunks: usize,
    /// Chunks of all channels.
    whole: usize,
}

impl<const M: usize> Tiling<M> {
    /// Groups are still of one tile; chunks are of at most `ROW` channels, in multiples of `unit` (but the last).
    pub(super) fn new(
        batch: usize,
        out_size: (usize, usize),
        channels: usize,
        unit: usize,
    ) -> Self {
        let grid = (out_size.0.div_ceil(M), out_size.1.div_ceil(M));
        let chunk = even_part(channels, ROW / unit * unit, unit);
        Self {
            out_size,
            grid,
            tiles: batch * grid.0 * grid.1,
            group: 1,
            channels,
            chunk,
            chunks: channels.div_ceil(chunk),
            whole: channels.div_ceil(chunk),
        }
    }

    /// The same with so many inputs of the same channels after each other.
    fn with_parities(self, parities: usize) -> Self {
        Self {
            chunks: self.whole * parities,
            ..self
        }
    }

    /// Which of the inputs a chunk belongs to.
    pub(super) fn parity(&self, chunk: usize) -> usize {
        chunk / self.whole
    }

    /// The same in groups of at most `most` tiles.
    pub(super) fn in_groups(self, most: usize) -> Self {
        Self {
            group: even_part(self.tiles, most, 1),
            ..self
        }
    }

    pub(super) fn groups(&self) -> usize {
        self.tiles.div_ceil(self.group)
    }

    /// Tiles of a group.
    pub(super) fn group_tiles(&self, group: usize) -> Range<usize> {
        split(self.tiles, self.groups(), group)
    }

    pub(super) fn places(&self) -> usize {
        side(M) * side(M)
    }

    /// Floats from one place to the next.
    pub(super) fn place_len(&self) -> usize {
        self.group * ROW + PAD
    }

    /// Floats of a group.
    pub(super) fn len(&self) -> usize {
        self.chunks * self.places() * self.place_len()
    }

    /// Floats of a tile.
    pub(super) fn tile_len(&self) -> usize {
        self.chunks * self.places() * ROW
    }

    /// Image, first output row and first output column of a tile.
    #[inline(always)]
    pub(super) fn position(&self, tile: usize) -> (usize, usize, usize) {
        let (line, across) = (tile / self.grid.1, tile % self.grid.1);
        (line / self.grid.0, line % self.grid.0 * M, across * M)
    }

    pub(super) fn all_channels(&self) -> usize {
        self.channels
    }

    pub(super) fn channels(&self, chunk: usize) -> Range<usize> {
        let chunk = chunk % self.whole;
        chunk * self.chunk..self.channels.min((chunk + 1) * self.chunk)
    }
}

/// The blocks of a forward convolution.
pub(super) struct Plan<const M: usize> {
    /// Of the input's channels.
    pub inputs: Tiling<M>,
    /// Whether all weights are transformed at first.
    pub hold_weights: bool,
    /// Panels of output channels.
    pub columns: usize,
    pub mr: usize,
    pub nr: usize,
    out_channels: usize,
}

impl<const M: usize> Plan<M> {
    pub(super) fn new(isa: Isa, conv: &Window<'_>) -> Self {
        let (mr, nr) = isa.tile_size();
        let inputs = Tiling::<M>::new(conv.batch, conv.out_size, conv.in_channels, 16)
            .with_parities(if conv.stride == 2 { 4 } else { 1 });
        let columns = conv.out_channels.div_ceil(nr);
        let all_weights = columns * inputs.chunks * weight_len::<M>(inputs.chunk, nr);
        let own = (TASK_INPUTS / inputs.tile_len() / mr).max(1) * mr;
        let hold_weights = all_weights <= WEIGHTS_HELD && inputs.tiles >= 8 * own;
        let shared = (INPUTS_HELD / inputs.tile_len()).max(mr);
        Self {
            inputs: inputs.in_groups(if hold_weights { own } else { shared }),
            hold_weights,
            columns,
            mr,
            nr,
            out_channels: conv.out_channels,
        }
    }

    /// Output channels of a panel.
    pub(super) fn cols(&self, column: usize) -> Range<usize> {
        column * self.nr..self.out_channels.min((column + 1) * self.nr)
    }
}
