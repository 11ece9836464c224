//! 2-D convolution, channels last, with fused upsample, bias, activation and residual.

use crate::error::{KernelError, exactly};
use crate::gemm::driver::SharedOut;
use crate::gemm::finish::Finish;
use crate::{Activation, Isa, RhsData};

mod backward_data;
mod backward_weight;
mod direct;
mod fold;
mod shape;
mod window;
mod winograd;

pub use backward_data::{Conv2dBackwardData, conv2d_backward_data};
pub use backward_weight::{Conv2dBackwardWeight, conv2d_backward_weight};
pub(crate) use shape::ConvShape;
use window::Window;

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
    /// The fastest for the shape of one image among those whose [`error_bound`](Self::error_bound) is at most 4e-6.
    #[default]
    Auto,
    /// A matrix product over patches.
    Direct,
    /// Winograd F(2x2, 3x3): 16 products for 4 outputs, where `Direct` has 36; falls back to `Direct` where it does
    /// not apply (it needs 3x3, stride 1).
    Winograd2,
    /// Winograd F(4x4, 3x3): 36 products for 16 outputs, where `Direct` has 144; falls back likewise.
    Winograd4,
    /// A 3x3 kernel that becomes 2x2, by Winograd F(5x5, 2x2). For a doubled input: every output sees at most 2x2 pixels
    /// of the small one, so that four 2x2 convolutions give every other row and column each; 36 products for 25
    /// outputs, where `Direct` has 225. With step 2: rows and columns are taken apart by parity, and four 2x2
    /// convolutions are summed; 144 products for 25 outputs. Falls back to `Winograd4` or `Direct`.
    Folded,
}

impl ConvAlgorithm {
    /// Root mean square error against `f64`, relative to the output's root mean square, on inputs and weights without
    /// pattern, from 16 to 1280 channels (asserted by the tests). No single output is wrong by more than 10 times that: corners of
    /// tiles are the worst.
    pub fn error_bound(self) -> f64 {
        match self {
            Self::Auto | Self::Winograd4 | Self::Folded => 2e-6,
            Self::Winograd2 | Self::Direct => 6e-7,
        }
    }
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
    pub(crate) fn shape(&self) -> ConvShape {
        ConvShape {
            batch: self.batch,
            size: (self.height, self.width),
            in_channels: self.in_channels,
            out_channels: self.out_channels,
            kernel: self.kernel,
            stride: self.stride,
            padding: self.padding,
            upsample: self.upsample,
        }
    }

    /// Rows and columns of the output; 0 when the kernel is larger than the padded input.
    pub fn out_size(&self) -> (usize, usize) {
        self.shape().out_size()
    }

    pub(crate) fn check(&self) -> Result<(), KernelError> {
        let shape = self.shape();
        shape.check()?;
        exactly("x", self.x.len(), shape.x_len())?;
        exactly("weight", self.weight.len(), shape.weight_len())?;
        exactly("out", self.out.len(), shape.out_len())?;
        if let Some(bias) = self.bias
            && bias.len() != self.out_channels
        {
            let expected = self.batch.saturating_mul(self.out_channels);
            exactly("bias", bias.len(), expected)?;
        }
        if let Some(residual) = self.residual {
            exactly("residual", residual.len(), shape.out_len())?;
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

    /// [`conv2d`] with the instructions of `isa`.
    ///
    /// # Errors
    /// As [`conv2d`].
    pub fn run(self, isa: Isa) -> Result<(), KernelError> {
        self.check()?;
        if self.out.is_empty() {
            return Ok(());
        }
        let out_size = self.out_size();
        let n = self.out_channels;
        let per_image = self.bias.is_some_and(|b| b.len() != n);
        let window = Window {
            x: self.x,
            batch: self.batch,
            size: (self.height, self.width),
            upsample: self.upsample,
            in_channels: self.in_channels,
            out_channels: n,
            kernel: self.kernel,
            stride: self.stride,
            origin: (-(self.padding.top as isize), -(self.padding.left as isize)),
            weight: self.weight,
            out_size,
            phase: None,
            out: SharedOut::new(self.out),
            finish: Finish {
                bias: self.bias,
                rows_per_bias: if per_image {
                    out_size.0 * out_size.1
                } else {
                    usize::MAX
                },
                n,
                activation: self.activation,
                residual: self.residual.map(|r| (r, n)),
            },
        };
        window.run(isa, self.algorithm);
        Ok(())
    }
}

/// Computes a convolution, see [`Conv2d`].
///
/// # Errors
/// [`KernelError`] when a slice does not have the length of its shape, or a size is 0 that must not be.
pub fn conv2d(conv: Conv2d<'_>) -> Result<(), KernelError> {
    conv.run(Isa::best())
}
