//! Sizes of a convolution and of its tensors, shared by the forward and the backward passes.

use super::Padding;
use crate::error::{KernelError, product};

/// The sizes that [`crate::Conv2d`] and its backward passes have in common.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConvShape {
    pub batch: usize,
    /// Rows and columns of the input, before the upsample.
    pub size: (usize, usize),
    pub in_channels: usize,
    pub out_channels: usize,
    pub kernel: (usize, usize),
    pub stride: usize,
    pub padding: Padding,
    pub upsample: bool,
}

impl ConvShape {
    /// Input size as the window sees it: doubled when `upsample` is set.
    pub(crate) fn seen_size(&self) -> (usize, usize) {
        let scale = if self.upsample { 2 } else { 1 };
        (
            self.size.0.saturating_mul(scale),
            self.size.1.saturating_mul(scale),
        )
    }

    /// Rows and columns of the output; 0 when the kernel is larger than the padded input.
    pub(crate) fn out_size(&self) -> (usize, usize) {
        let (h, w) = self.seen_size();
        let p = &self.padding;
        let size = |n: usize, before: usize, after: usize, kernel: usize| {
            let padded = n.saturating_add(before).saturating_add(after);
            if kernel == 0 || padded < kernel {
                0
            } else {
                (padded - kernel) / self.stride.max(1) + 1
            }
        };
        (
            size(h, p.top, p.bottom, self.kernel.0),
            size(w, p.left, p.right, self.kernel.1),
        )
    }

    pub(crate) fn x_len(&self) -> usize {
        product(&[self.batch, self.size.0, self.size.1, self.in_channels])
    }

    pub(crate) fn weight_len(&self) -> usize {
        let (rows, columns) = self.kernel;
        product(&[self.out_channels, self.in_channels, rows, columns])
    }

    pub(crate) fn out_len(&self) -> usize {
        let (rows, columns) = self.out_size();
        product(&[self.batch, rows, columns, self.out_channels])
    }

    /// Checks what no length shows.
    pub(crate) fn check(&self) -> Result<(), KernelError> {
        let sizes = [
            ("stride", "be at least 1", self.stride),
            (
                "kernel",
                "be at least 1x1",
                self.kernel.0.min(self.kernel.1),
            ),
        ];
        for (what, expected, found) in sizes {
            if found == 0 {
                return Err(KernelError::Size {
                    what,
                    expected,
                    found,
                });
            }
        }
        Ok(())
    }
}
