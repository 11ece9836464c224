//! Sizes of the blocks of a Winograd convolution.

use std::ops::Range;

use super::tile::ROW;
use super::weights::weight_len;
use crate::Isa;
use crate::conv::Window;
use crate::gemm::params::even_part;

/// Most channels of a chunk: a panel of weights (20 KiB) and the rows of a tile (9 KiB) stay in L1.
const CHUNK: usize = ROW;
/// Floats of transformed weights that may be held (12 MiB).
const WEIGHTS_HELD: usize = 3 << 20;
/// Floats of transformed inputs of a task that uses held weights (half of L2).
const TASK_INPUTS: usize = 128 << 10;
/// Floats of transformed inputs that are shared (12 MiB).
const INPUTS_HELD: usize = 3 << 20;

/// A line of floats more, so that the places of a tile do not meet in the same cache sets.
pub(super) const PAD: usize = 16;

/// Transformed inputs of a group of tiles lie as `[chunk, place, tile, ROW channels]`.
pub(super) struct Plan<const M: usize> {
    pub out_size: (usize, usize),
    /// Tiles down and across an image.
    pub grid: (usize, usize),
    pub tiles: usize,
    /// Whether all weights are transformed at first.
    pub hold_weights: bool,
    /// Most tiles of a group.
    pub group: usize,
    /// Channels of a chunk but the last, and chunks.
    pub chunk: usize,
    pub chunks: usize,
    /// Panels of output channels.
    pub columns: usize,
    pub mr: usize,
    pub nr: usize,
    in_channels: usize,
    out_channels: usize,
}

impl<const M: usize> Plan<M> {
    pub(super) fn new(isa: Isa, conv: &Window<'_>) -> Self {
        let (mr, nr) = isa.tile_size();
        let out_size = conv.out_size;
        let grid = (out_size.0.div_ceil(M), out_size.1.div_ceil(M));
        let tiles = conv.batch * grid.0 * grid.1;
        let chunk = even_part(conv.in_channels, CHUNK, 16);
        let chunks = conv.in_channels.div_ceil(chunk);
        let columns = conv.out_channels.div_ceil(nr);
        let tile = chunks * (M + 2) * (M + 2) * ROW;
        let all_weights = columns * chunks * weight_len::<M>(chunk, nr);
        let own = (TASK_INPUTS / tile / mr).max(1) * mr;
        let hold_weights = all_weights <= WEIGHTS_HELD && tiles >= 8 * own;
        let most = if hold_weights {
            own
        } else {
            (INPUTS_HELD / tile).max(mr)
        };
        Self {
            out_size,
            grid,
            tiles,
            hold_weights,
            group: even_part(tiles, most, 1),
            chunk,
            chunks,
            columns,
            mr,
            nr,
            in_channels: conv.in_channels,
            out_channels: conv.out_channels,
        }
    }

    pub(super) fn places(&self) -> usize {
        (M + 2) * (M + 2)
    }

    /// Floats from one place's inputs to the next's.
    pub(super) fn place_len(&self) -> usize {
        self.group * ROW + PAD
    }

    /// Floats of a group's transformed inputs.
    pub(super) fn inputs_len(&self) -> usize {
        self.chunks * self.places() * self.place_len()
    }

    /// Image, first output row and first output column of a tile.
    #[inline(always)]
    pub(super) fn position(&self, tile: usize) -> (usize, usize, usize) {
        let (line, across) = (tile / self.grid.1, tile % self.grid.1);
        (line / self.grid.0, line % self.grid.0 * M, across * M)
    }

    pub(super) fn channels(&self, chunk: usize) -> Range<usize> {
        chunk * self.chunk..self.in_channels.min((chunk + 1) * self.chunk)
    }

    /// Output channels of a panel.
    pub(super) fn cols(&self, column: usize) -> Range<usize> {
        column * self.nr..self.out_channels.min((column + 1) * self.nr)
    }
}
