//! Gradient of a convolution with respect to its input: convolutions of the output's gradient with the kernel
//! turned round.

use std::ops::Range;

use super::window::Window;
use super::{ConvAlgorithm, ConvShape, Padding};
use crate::error::{KernelError, exactly};
use crate::gemm::driver::{SharedOut, for_each};
use crate::gemm::finish::Finish;
use crate::scratch::Scratch;
use crate::{Activation, Isa, RhsData};

/// Gradient of [`crate::Conv2d`] with respect to `x`, for the same sizes.
#[derive(Debug)]
pub struct Conv2dBackwardData<'a> {
    /// Gradient of the output, `[batch, out_height, out_width, out_channels]`.
    pub dy: &'a [f32],
    /// Images.
    pub batch: usize,
    /// Rows of the forward input, before the upsample.
    pub height: usize,
    /// Columns of the forward input, before the upsample.
    pub width: usize,
    /// Channels of the forward input.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Kernel size, (rows, columns).
    pub kernel: (usize, usize),
    /// Kernel in PyTorch's layout `[out_channels, in_channels, rows, columns]`, in its storage type.
    pub weight: RhsData<'a>,
    /// Step of the window, same in both directions; at least 1.
    pub stride: usize,
    /// Zeros around the forward input.
    pub padding: Padding,
    /// Whether the forward pass doubled its input.
    pub upsample: bool,
    /// Gradient of the input, `[batch, height, width, in_channels]`; every element is overwritten.
    pub dx: &'a mut [f32],
    /// How to compute it, where the pass is a 3x3 convolution itself.
    pub algorithm: ConvAlgorithm,
}

impl Conv2dBackwardData<'_> {
    pub(crate) fn check(&self) -> Result<ConvShape, KernelError> {
        let shape = ConvShape {
            batch: self.batch,
            size: (self.height, self.width),
            in_channels: self.in_channels,
            out_channels: self.out_channels,
            kernel: self.kernel,
            stride: self.stride,
            padding: self.padding,
            upsample: self.upsample,
        };
        shape.check()?;
        exactly("dy", self.dy.len(), shape.out_len())?;
        exactly("weight", self.weight.len(), shape.weight_len())?;
        exactly("dx", self.dx.len(), shape.x_len())?;
        Ok(shape)
    }

    /// [`conv2d_backward_data`] with the instructions of `isa`.
    ///
    /// # Errors
    /// As [`conv2d_backward_data`].
    pub fn run(self, isa: Isa) -> Result<(), KernelError> {
        let shape = self.check()?;
        if self.dx.is_empty() {
            return Ok(());
        }
        if self.dy.is_empty() {
            self.dx.fill(0.0);
            return Ok(());
        }
        let pass = Pass {
            isa,
            shape,
            dy: self.dy,
            weight: self.weight,
            algorithm: self.algorithm,
        };
        if shape.upsample && shape.stride == 1 {
            pass.convolve(pass.doubled(0), pass.doubled(1), SharedOut::new(self.dx));
        } else if shape.upsample {
            let (h, w) = shape.seen_size();
            let mut seen = Scratch::new(shape.batch * h * w * shape.in_channels);
            pass.seen(seen.as_mut_slice());
            shrink(seen.as_slice(), &shape, self.dx);
        } else {
            pass.seen(self.dx);
        }
        Ok(())
    }
}

/// One axis of a convolution that gives gradients: where it begins, its step, how many it gives, and which places of
/// the forward kernel each of its own is the sum of.
#[derive(Debug, Clone)]
struct Axis {
    origin: isize,
    stride: usize,
    len: usize,
    taps: Vec<Range<usize>>,
}

struct Pass<'a> {
    isa: Isa,
    shape: ConvShape,
    dy: &'a [f32],
    weight: RhsData<'a>,
    algorithm: ConvAlgorithm,
}

impl Pass<'_> {
    /// Padding before, kernel and upsampled input along an axis.
    fn side(&self, axis: usize) -> (usize, usize, usize) {
        let s = &self.shape;
        match axis {
            0 => (s.padding.top, s.kernel.0, s.seen_size().0),
            _ => (s.padding.left, s.kernel.1, s.seen_size().1),
        }
    }

    /// The gradient of a doubled input, summed over the 2 x 2 copies of each pixel: with step 1,
    /// `dx[y] = sum over e of dy[2 y + 1 + before - e] (w[e - 1] + w[e])`, a convolution with step 2 and one place more.
    fn doubled(&self, axis: usize) -> Axis {
        let (before, kernel, len) = self.side(axis);
        Axis {
            origin: 1 + before as isize - kernel as isize,
            stride: 2,
            len: len / 2,
            taps: (0..=kernel)
                .rev()
                .map(|e| e.saturating_sub(1)..kernel.min(e + 1))
                .collect(),
        }
    }

    /// The gradients at `phase`, `phase + stride`, and so on: a convolution with every `stride`-th place of the kernel.
    fn phase(&self, axis: usize, phase: usize) -> Axis {
        let stride = self.shape.stride;
        let (before, kernel, len) = self.side(axis);
        let first = (phase + before) % stride;
        let taps: Vec<_> = (first..kernel)
            .step_by(stride)
            .map(|r| r..r + 1)
            .rev()
            .collect();
        Axis {
            origin: ((phase + before) / stride) as isize + 1 - taps.len() as isize,
            stride: 1,
            len: len.saturating_sub(phase).div_ceil(stride),
            taps,
        }
    }

    /// The gradient of the input as the window saw it.
    fn seen(&self, dx: &mut [f32]) {
        let stride = self.shape.stride;
        if stride == 1 {
            return self.convolve(self.phase(0, 0), self.phase(1, 0), SharedOut::new(dx));
        }
        let (h, w) = self.shape.seen_size();
        let channels = self.shape.in_channels;
        for (py, px) in (0..stride).flat_map(|y| (0..stride).map(move |x| (y, x))) {
            let (rows, columns) = (self.phase(0, py), self.phase(1, px));
            let (sh, sw) = (rows.len, columns.len);
            let len = self.shape.batch * sh * sw * channels;
            if len == 0 {
                continue;
            }
            let mut part = Scratch::new(len);
            let part = part.as_mut_slice();
            if rows.taps.is_empty() || columns.taps.is_empty() {
                part.fill(0.0);
            } else {
                self.convolve(rows, columns, SharedOut::new(part));
            }
            let (part, out) = (&*part, SharedOut::new(dx));
            for_each(self.shape.batch * sh, len > 1 << 16, |line| {
                let values = &part[line * sw * channels..][..sw * channels];
                let first = (line / sh * h + line % sh * stride + py) * w + px;
                for (x, pixel) in values.chunks_exact(channels).enumerate() {
                    // SAFETY: each line has its own pixels of `dx`.
                    let out = unsafe { out.part((first + x * stride) * channels, channels) };
                    out.copy_from_slice(pixel);
                }
            });
        }
    }

    fn convolve(&self, rows: Axis, columns: Axis, out: SharedOut) {
        let s = &self.shape;
        let kernel = (rows.taps.len(), columns.taps.len());
        let turned = self.turn(&rows.taps, &columns.taps);
        Window {
            x: self.dy,
            batch: s.batch,
            size: s.out_size(),
            upsample: false,
            in_channels: s.out_channels,
            out_channels: s.in_channels,
            kernel,
            stride: rows.stride,
            origin: (rows.origin, columns.origin),
            weight: RhsData::F32(turned.as_slice()),
            out_size: (rows.len, columns.len),
            phase: None,
            out,
            finish: Finish {
                bias: None,
                rows_per_bias: usize::MAX,
                n: s.in_channels,
                activation: Activation::None,
                residual: None,
            },
        }
        .run(self.isa, self.algorithm);
    }

    /// The kernel as `[in_channels, out_channels, rows, columns]`, each place the sum of some of the forward kernel's.
    fn turn(&self, rows: &[Range<usize>], columns: &[Range<usize>]) -> Scratch {
        let s = &self.shape;
        let (cin, cout) = (s.in_channels, s.out_channels);
        let (old, new) = (s.kernel.0 * s.kernel.1, rows.len() * columns.len());
        let places: Vec<Vec<usize>> = rows
            .iter()
            .flat_map(|r| columns.iter().map(move |c| (r, c)))
            .map(|(r, c)| {
                let row = |r| c.clone().map(move |c| r * s.kernel.1 + c);
                r.clone().flat_map(row).collect()
            })
            .collect();
        let mut turned = Scratch::new(cin * cout * new);
        let out = SharedOut::new(turned.as_mut_slice());
        for_each(cin, cin * cout * new > 1 << 16, |c| {
            // SAFETY: each input channel has its own part.
            let part = unsafe { out.part(c * cout * new, cout * new) };
            for (o, taps) in part.chunks_exact_mut(new).enumerate() {
                let from = (o * cin + c) * old;
                for (value, places) in taps.iter_mut().zip(&places) {
                    *value = places.iter().map(|p| self.weight.get(from + p)).sum();
                }
            }
        });
        turned
    }
}

/// Sums the 2 x 2 copies of each pixel.
fn shrink(seen: &[f32], shape: &ConvShape, dx: &mut [f32]) {
    let (width, channels) = (shape.size.1, shape.in_channels);
    let line = 2 * width * channels;
    for (lines, out) in seen
        .chunks_exact(2 * line)
        .zip(dx.chunks_exact_mut(width * channels))
    {
        let (upper, lower) = lines.split_at(line);
        for (x, out) in out.chunks_exact_mut(channels).enumerate() {
            for (c, value) in out.iter_mut().enumerate() {
                let (left, right) = (2 * x * channels + c, (2 * x + 1) * channels + c);
                *value = upper[left] + upper[right] + lower[left] + lower[right];
            }
        }
    }
}

/// Computes a convolution's gradient with respect to its input, see [`Conv2dBackwardData`].
///
/// # Errors
/// [`KernelError`] when a slice does not have the length of its shape, or a size is 0 that must not be.
pub fn conv2d_backward_data(conv: Conv2dBackwardData<'_>) -> Result<(), KernelError> {
    conv.run(Isa::best())
}
