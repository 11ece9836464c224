//! 2-D convolution, channels last, with fused upsample, bias, activation and residual.

use crate::error::{KernelError, exactly, product};
use crate::{Activation, Isa, RhsData};

mod direct;
mod transform;
mod winograd;

/// Zeros around the image, in pixels of the (upsampled) input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Padding {
    /// Rows above.
    pub top: usize,
    /// Rows below.
    pub bottom: usize,
    /// Columns to the left.
    pub left: usize,
    /// Columns to the right.
    pub right: usize,
}

impl Padding {
    /// The same on all four sides.
    pub fn all(pixels: usize) -> Self {
        Self {
            top: pixels,
            bottom: pixels,
            left: pixels,
            right: pixels,
        }
    }
}

/// How a convolution is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ConvAlgorithm {
    /// Chosen by shape.
    #[default]
    Auto,
    /// A matrix product over patches.
    Direct,
    /// Winograd F(2x2, 3x3); falls back to `Direct` where it does not apply (it needs 3x3, stride 1).
    Winograd2,
    /// Winograd F(4x4, 3x3); falls back likewise. A quarter of the multiplications; root mean square error against
    /// `f64` about 2e-6 of the output's root mean square, 5 times that of `Direct`.
    Winograd4,
}

/// A cross-correlation as PyTorch's `conv2d` (dilation 1, one group), on channels-last activations.
#[derive(Debug)]
pub struct Conv2d<'a> {
    /// Input, `[batch, height, width, in_channels]`.
    pub x: &'a [f32],
    /// Images.
    pub batch: usize,
    /// Rows of the input, before the upsample.
    pub height: usize,
    /// Columns of the input, before the upsample.
    pub width: usize,
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Kernel size, (rows, columns).
    pub kernel: (usize, usize),
    /// Kernel in PyTorch's layout `[out_channels, in_channels, rows, columns]`, in its storage type.
    pub weight: RhsData<'a>,
    /// `[out_channels]`, or `[batch, out_channels]` for one bias an image (a time embedding added to it).
    pub bias: Option<&'a [f32]>,
    /// Step of the window, same in both directions; at least 1.
    pub stride: usize,
    /// Zeros around the input.
    pub padding: Padding,
    /// Doubles the input (nearest neighbour) before the convolution, without storing the result.
    pub upsample: bool,
    /// Applied after the bias.
    pub activation: Activation,
    /// Added last; shape of the output.
    pub residual: Option<&'a [f32]>,
    /// Output, `[batch, out_height, out_width, out_channels]`; every element is overwritten.
    pub out: &'a mut [f32],
    /// How to compute it; [`ConvAlgorithm::Auto`] unless a test or a measurement wants one.
    pub algorithm: ConvAlgorithm,
}

impl Conv2d<'_> {
    /// Input size as the window sees it: doubled when `upsample` is set.
    pub(crate) fn seen_size(&self) -> (usize, usize) {
        let scale = if self.upsample { 2 } else { 1 };
        (
            self.height.saturating_mul(scale),
            self.width.saturating_mul(scale),
        )
    }

    /// Rows and columns of the output; 0 when the kernel is larger than the padded input.
    pub fn out_size(&self) -> (usize, usize) {
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

    pub(crate) fn check(&self) -> Result<(), KernelError> {
        if self.stride == 0 {
            return Err(KernelError::Size {
                what: "stride",
                expected: "be at least 1",
                found: 0,
            });
        }
        if self.kernel.0 == 0 || self.kernel.1 == 0 {
            return Err(KernelError::Size {
                what: "kernel",
                expected: "be at least 1x1",
                found: 0,
            });
        }
        let (oh, ow) = self.out_size();
        let out = product(&[self.batch, oh, ow, self.out_channels]);
        exactly(
            "x",
            self.x.len(),
            product(&[self.batch, self.height, self.width, self.in_channels]),
        )?;
        let weight = product(&[
            self.out_channels,
            self.in_channels,
            self.kernel.0,
            self.kernel.1,
        ]);
        exactly("weight", self.weight.len(), weight)?;
        exactly("out", self.out.len(), out)?;
        if let Some(bias) = self.bias
            && bias.len() != self.out_channels
        {
            exactly(
                "bias",
                bias.len(),
                product(&[self.batch, self.out_channels]),
            )?;
        }
        if let Some(residual) = self.residual {
            exactly("residual", residual.len(), out)?;
        }
        Ok(())
    }

    /// The bias of image `b`.
    pub(crate) fn bias_of(&self, b: usize) -> Option<&[f32]> {
        let n = self.out_channels;
        self.bias.map(|bias| {
            if bias.len() == n {
                bias
            } else {
                &bias[b * n..][..n]
            }
        })
    }
}

impl Conv2d<'_> {
    /// [`conv2d`] with the instructions of `isa`.
    ///
    /// # Errors
    /// As [`conv2d`].
    pub fn run(self, isa: Isa) -> Result<(), KernelError> {
        self.check()?;
        if !self.out.is_empty() {
            match self.resolve() {
                ConvAlgorithm::Winograd2 => winograd::run::<2>(isa, self),
                ConvAlgorithm::Winograd4 => winograd::run::<4>(isa, self),
                ConvAlgorithm::Auto | ConvAlgorithm::Direct => direct::run(isa, self),
            }
        }
        Ok(())
    }
}

impl Conv2d<'_> {
    /// The algorithm that runs.
    fn resolve(&self) -> ConvAlgorithm {
        let (oh, ow) = self.out_size();
        if self.kernel != (3, 3) || self.stride != 1 || self.in_channels == 0 {
            return ConvAlgorithm::Direct;
        }
        if self.algorithm != ConvAlgorithm::Auto {
            return self.algorithm;
        }
        // Thin layers are bound by the transforms.
        if self.in_channels < 32 || self.out_channels < 32 {
            return ConvAlgorithm::Direct;
        }
        // Products a channel, and what preparing the weights costs, in units of that (measured: about 12 tiles).
        let tiles = |side: usize| self.batch * oh.div_ceil(side) * ow.div_ceil(side) + 12;
        let costs = [
            (tiles(4) * 36, ConvAlgorithm::Winograd4),
            (tiles(2) * 16, ConvAlgorithm::Winograd2),
            (tiles(1) * 9, ConvAlgorithm::Direct),
        ];
        costs
            .into_iter()
            .min_by_key(|c| c.0)
            .map_or(ConvAlgorithm::Direct, |c| c.1)
    }
}

/// Computes a convolution, see [`Conv2d`].
///
/// # Errors
/// [`KernelError`] when a slice does not have the length of its shape, or a size is 0 that must not be.
pub fn conv2d(conv: Conv2d<'_>) -> Result<(), KernelError> {
    conv.run(Isa::best())
}
