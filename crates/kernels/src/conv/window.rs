//! A convolution as its loops see it, and the choice of the loops.

use super::fold::Phase;
use super::{ConvAlgorithm, direct, winograd};
use crate::gemm::driver::SharedOut;
use crate::gemm::finish::Finish;
use crate::{Isa, RhsData};

/// Input channels from which Winograd's filters pay.
const MIN_CHANNELS: usize = 8;
/// Output channels from which it pays to take apart the rows and columns of a convolution with step 2.
const MIN_HALVED: usize = 128;
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

impl Window<'_> {
    /// Input size as the window sees it.
    pub(super) fn seen_size(&self) -> (usize, usize) {
        let shift = u32::from(self.upsample);
        (self.size.0 << shift, self.size.1 << shift)
    }

    /// First element of the input pixel that image `image` shows at `y`, `x` of the window's coordinates (before
    /// the origin); `None` outside the image.
    #[inline(always)]
    pub(super) fn pixel(&self, image: usize, y: usize, x: usize) -> Option<usize> {
        let y = y.wrapping_add_signed(self.origin.0);
        let x = x.wrapping_add_signed(self.origin.1);
        self.seen_pixel(image, y, x)
    }

    /// The same at `y`, `x` of the input as it is seen. Above or left of the image these wrap to huge numbers.
    #[inline(always)]
    pub(super) fn seen_pixel(&self, image: usize, y: usize, x: usize) -> Option<usize> {
        let (h, w) = self.seen_size();
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
            ConvAlgorithm::Folded if self.upsample => {
                for phase in self.phases() {
                    if phase.out_size.0 > 0 && phase.out_size.1 > 0 {
                        winograd::run::<5>(isa, &phase);
                    }
                }
            }
            ConvAlgorithm::Folded => winograd::run::<5>(isa, self),
            ConvAlgorithm::Auto | ConvAlgorithm::Direct => direct::run(isa, self),
        }
    }

    /// The algorithm that runs. It follows the sizes of one image, never the batch, so that an image's result does not
    /// depend on its neighbours.
    fn resolve(&self, algorithm: ConvAlgorithm) -> ConvAlgorithm {
        let folds = self.upsample != (self.stride == 2) && self.stride <= 2;
        if self.kernel != (3, 3) || self.in_channels == 0 || !(folds || self.stride == 1) {
            return ConvAlgorithm::Direct;
        }
        match algorithm {
            ConvAlgorithm::Auto => {}
            ConvAlgorithm::Folded if folds => return ConvAlgorithm::Folded,
            _ if self.stride == 2 => return ConvAlgorithm::Direct,
            ConvAlgorithm::Folded => return ConvAlgorithm::Winograd4,
            chosen => return chosen,
        }
        // Few channels are bound by the transforms (measured).
        if self.in_channels < MIN_CHANNELS {
            return ConvAlgorithm::Direct;
        }
        let (oh, ow) = self.out_size;
        let tiles = |side: usize| oh.div_ceil(side) * ow.div_ceil(side);
        let folded = if self.upsample { tiles(10) } else { tiles(5) };
        // Products a channel, and what preparing the weights costs in units of that (measured).
        let costs = [
            (
                4 * (folded * 36 + 234),
                ConvAlgorithm::Folded,
                folds && (self.upsample || self.out_channels >= MIN_HALVED),
            ),
            (
                tiles(4) * 36 + 234,
                ConvAlgorithm::Winograd4,
                self.stride == 1,
            ),
            (
                tiles(2) * 16 + 122,
                ConvAlgorithm::Winograd2,
                self.stride == 1,
            ),
            (tiles(1) * 9 + 208, ConvAlgorithm::Direct, true),
        ];
        costs
            .into_iter()
            .filter(|c| c.2 && c.1.error_bound() <= MAX_ERROR)
            .min_by_key(|c| c.0)
            .map_or(ConvAlgorithm::Direct, |c| c.1)
    }
}
