//! A convolution as its loops see it, and the choice of the loops.

use super::{ConvAlgorithm, direct, winograd};
use crate::gemm::driver::SharedOut;
use crate::gemm::finish::Finish;
use crate::{Isa, RhsData};

/// Input channels from which Winograd's filters pay.
const MIN_CHANNELS: usize = 8;
/// Largest [`ConvAlgorithm::error_bound`] that is chosen without being asked for: a thousandth of a step of an image's
/// 8 bits.
const MAX_ERROR: f64 = 4e-6;

/// A checked convolution whose output is not empty. Unlike [`crate::Conv2d`] it may begin and end anywhere, inside
/// the input too.
#[derive(Clone, Copy)]
pub(super) struct Window<'a> {
    pub x: &'a [f32],
    pub batch: usize,
    /// Rows and columns of the input, before the upsample.
    pub size: (usize, usize),
    pub upsample: bool,
    pub in_channels: usize,
    pub out_channels: usize,
    pub kernel: (usize, usize),
    pub stride: usize,
    /// Row and column of the (upsampled) input under the first place of the first window.
    pub origin: (isize, isize),
    pub weight: RhsData<'a>,
    pub out_size: (usize, usize),
    /// Set when only every other row and column of the output is computed, see [`Phase`].
    pub phase: Option<Phase>,
    pub out: SharedOut,
    pub finish: Finish<'a>,
}

/// Which places of a line of 3 fall on one pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Join {
    First,
    Last,
}

/// Every other row and column of a doubled input's 3x3 convolution. There two of the 3 rows of the kernel fall on one
/// row of the small input, and of the columns likewise: it is a 2x2 convolution of that.
#[derive(Debug, Clone, Copy)]
pub(super) struct Phase {
    /// Rows and columns of the whole output.
    size: (usize, usize),
    /// First row and column.
    first: (usize, usize),
    /// Of the kernel's rows and columns.
    pub joins: (Join, Join),
}

impl<'a> Window<'a> {
    /// The four phases of a doubled input's 3x3 convolution with step 1.
    fn phases(&self) -> [Self; 4] {
        [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(py, px)| {
            let axis = |phase: usize, origin: isize, size: usize| {
                let from = phase as isize + origin;
                let join = if from.rem_euclid(2) == 0 {
                    Join::First
                } else {
                    Join::Last
                };
                (from.div_euclid(2), join, (size - phase).div_ceil(2))
            };
            let (top, rows, oh) = axis(py, self.origin.0, self.out_size.0);
            let (left, columns, ow) = axis(px, self.origin.1, self.out_size.1);
            Self {
                upsample: false,
                origin: (top, left),
                out_size: (oh, ow),
                phase: Some(Phase {
                    size: self.out_size,
                    first: (py, px),
                    joins: (rows, columns),
                }),
                ..*self
            }
        })
    }
}

impl Window<'_> {
    /// The output's pixel at `y`, `x` of what is computed, and how far it is to the next one down and to the right.
    #[inline(always)]
    pub(super) fn out_pixel(&self, image: usize, y: usize, x: usize) -> (usize, [usize; 2]) {
        match self.phase {
            None => {
                let (h, w) = self.out_size;
                ((image * h + y) * w + x, [w, 1])
            }
            Some(p) => {
                let (h, w) = p.size;
                let line = image * h + 2 * y + p.first.0;
                (line * w + 2 * x + p.first.1, [2 * w, 2])
            }
        }
    }

    /// Input size as the window sees it.
    pub(super) fn seen_size(&self) -> (usize, usize) {
        let shift = u32::from(self.upsample);
        (self.size.0 << shift, self.size.1 << shift)
    }

    /// First element of the input pixel that image `image` shows at `y`, `x` of the window's coordinates (before
    /// the origin); `None` outside the image.
    #[inline(always)]
    pub(super) fn pixel(&self, image: usize, y: usize, x: usize) -> Option<usize> {
        let (h, w) = self.seen_size();
        // Above or left of the image these wrap to huge numbers.
        let y = y.wrapping_add_signed(self.origin.0);
        let x = x.wrapping_add_signed(self.origin.1);
        let shift = u32::from(self.upsample);
        (y < h && x < w).then(|| {
            let line = image * self.size.0 + (y >> shift);
            (line * self.size.1 + (x >> shift)) * self.in_channels
        })
    }

    /// Computes the convolution on the current pool.
    pub(super) fn run(&self, isa: Isa, algorithm: ConvAlgorithm) {
        match self.resolve(algorithm) {
            ConvAlgorithm::Winograd2 => winograd::run::<2>(isa, self),
            ConvAlgorithm::Winograd4 => winograd::run::<4>(isa, self),
            ConvAlgorithm::Folded => {
                for phase in self.phases() {
                    if phase.out_size.0 > 0 && phase.out_size.1 > 0 {
                        winograd::run::<5>(isa, &phase);
                    }
                }
            }
            ConvAlgorithm::Auto | ConvAlgorithm::Direct => direct::run(isa, self),
        }
    }

    /// The algorithm that runs. It follows the sizes of one image, never the batch, so that an image's result does not
    /// depend on its neighbours.
    fn resolve(&self, algorithm: ConvAlgorithm) -> ConvAlgorithm {
        if self.kernel != (3, 3) || self.stride != 1 || self.in_channels == 0 {
            return ConvAlgorithm::Direct;
        }
        match algorithm {
            ConvAlgorithm::Auto => {}
            ConvAlgorithm::Folded if !self.upsample => return ConvAlgorithm::Winograd4,
            chosen => return chosen,
        }
        // Few channels are bound by the transforms (measured).
        if self.in_channels < MIN_CHANNELS {
            return ConvAlgorithm::Direct;
        }
        let (oh, ow) = self.out_size;
        let tiles = |side: usize| oh.div_ceil(side) * ow.div_ceil(side);
        // Products a channel, and what preparing the weights costs in units of that (measured).
        let phase = oh.div_ceil(10) * ow.div_ceil(10);
        let folded = if self.upsample {
            4 * (phase * 36 + 234)
        } else {
            usize::MAX
        };
        let costs = [
            (folded, ConvAlgorithm::Folded),
            (tiles(4) * 36 + 234, ConvAlgorithm::Winograd4),
            (tiles(2) * 16 + 122, ConvAlgorithm::Winograd2),
            (tiles(1) * 9 + 208, ConvAlgorithm::Direct),
        ];
        costs
            .into_iter()
            .filter(|c| c.1.error_bound() <= MAX_ERROR)
            .min_by_key(|c| c.0)
            .map_or(ConvAlgorithm::Direct, |c| c.1)
    }
}
