//! 3x3 convolutions that become 2x2 ones: of a doubled input, and with step 2.

use super::window::Window;

/// How a line of 3 places becomes one of 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Join {
    /// The first two fall on one pixel.
    First,
    /// The last two do.
    Last,
    /// The first and the last stay.
    Ends,
    /// The one in the middle stays, as the first.
    MiddleFirst,
    /// The one in the middle stays, as the second.
    MiddleLast,
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
    joins: (Join, Join),
}

impl<'a> Window<'a> {
    /// The four phases of a doubled input's 3x3 convolution with step 1.
    pub(super) fn phases(&self) -> [Self; 4] {
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

    /// Where the input pixel at `y`, `x` begins, counted from the first window's own. With step 2 rows and columns are
    /// taken apart by their parity: the convolution is the sum of four, one for each `parity` of rows and columns, with
    /// step 1 and 2x2 kernels.
    #[inline(always)]
    pub(super) fn tile_pixel(
        &self,
        parity: usize,
        image: usize,
        y: usize,
        x: usize,
    ) -> Option<usize> {
        if self.stride == 1 {
            return self.pixel(image, y, x);
        }
        let axis = |at: usize, origin: isize, odd: usize| {
            (2 * at).wrapping_add_signed(2 * origin.div_euclid(2) + odd as isize)
        };
        let y = axis(y, self.origin.0, parity / 2);
        let x = axis(x, self.origin.1, parity % 2);
        self.seen_pixel(image, y, x)
    }

    /// How the kernel's rows and columns fold, if they do.
    pub(super) fn joins(&self, parity: usize) -> Option<(Join, Join)> {
        let axis = |origin: isize, odd: usize| {
            let first = origin.rem_euclid(2) as usize;
            match (first == odd, first) {
                (true, _) => Join::Ends,
                (false, 0) => Join::MiddleFirst,
                (false, _) => Join::MiddleLast,
            }
        };
        let halves = (self.stride == 2).then(|| {
            (
                axis(self.origin.0, parity / 2),
                axis(self.origin.1, parity % 2),
            )
        });
        self.phase.map(|p| p.joins).or(halves)
    }
}
