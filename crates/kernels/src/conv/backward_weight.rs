//! Gradient of a convolution with respect to its kernel and bias: products of the output's gradient, turned, with
//! patches of the input, which are gathered some pixels at a time.
//!
//! A task owns some output channels and some columns (a column is an input channel at a place of the kernel) and goes
//! through the pixels in blocks, its sums in cache. Few columns leave too few tasks, so pixels are split too; how
//! far depends on the shape alone, and parts are added in order, so that the result is the same on any number of
//! threads.

use std::ops::Range;

use super::window::Window;
use super::winograd::WeightGradient;
use super::{ConvAlgorithm, ConvShape, Padding};
use crate::error::{KernelError, exactly};
use crate::gemm::driver::{SharedOut, for_each};
use crate::gemm::finish::Finish;
use crate::gemm::params::{SERIAL_WORK, even_part, split};
use crate::gemm::tile::{ALayout, TileArgs};
use crate::scratch::Scratch;
use crate::simd::{Job, Simd};
use crate::{Activation, Isa, RhsData};

/// Pixels of a block: a panel of patches (32 columns, 16 KiB) stays in L1.
const PIXELS: usize = 128;
/// Panels of output channels of a task: their gradients (8 x 14 channels, 56 KiB) stay in L2.
const ROW_PANELS: usize = 8;
/// Panels of columns of a task: its sums (126 KiB) stay in L2.
const COLUMN_PANELS: usize = 9;
/// Tasks that are enough for any number of threads likely to be there.
const TASKS: usize = 32;

/// Channels, in and out, from which Winograd's filters pay.
const MIN_CHANNELS: usize = 16;
/// Floats of transformed sums that may be held (64 MiB).
const MOST_SUMS: usize = 16 << 20;

/// Gradient of [`crate::Conv2d`] with respect to `weight` and `bias`, for the same sizes.
#[derive(Debug)]
pub struct Conv2dBackwardWeight<'a> {
    /// The forward input, `[batch, height, width, in_channels]`.
    pub x: &'a [f32],
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
    /// Step of the window, same in both directions; at least 1.
    pub stride: usize,
    /// Zeros around the forward input.
    pub padding: Padding,
    /// Whether the forward pass doubled its input.
    pub upsample: bool,
    /// Gradient of the kernel, `[out_channels, in_channels, rows, columns]`; every element is overwritten.
    pub dw: &'a mut [f32],
    /// Gradient of the bias, `[out_channels]`, or `[batch, out_channels]` for one bias an image; overwritten.
    pub dbias: Option<&'a mut [f32]>,
}

impl Conv2dBackwardWeight<'_> {
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
        exactly("x", self.x.len(), shape.x_len())?;
        exactly("dy", self.dy.len(), shape.out_len())?;
        exactly("dw", self.dw.len(), shape.weight_len())?;
        if let Some(dbias) = &self.dbias
            && dbias.len() != self.out_channels
        {
            let expected = self.batch.saturating_mul(self.out_channels);
            exactly("dbias", dbias.len(), expected)?;
        }
        Ok(shape)
    }

    /// [`conv2d_backward_weight`] with the instructions of `isa`.
    ///
    /// # Errors
    /// As [`conv2d_backward_weight`].
    pub fn run(self, isa: Isa) -> Result<(), KernelError> {
        self.run_as(isa, ConvAlgorithm::Auto)
    }

    /// The same by one algorithm, where it applies.
    ///
    /// # Errors
    /// As [`conv2d_backward_weight`].
    pub fn run_as(mut self, isa: Isa, algorithm: ConvAlgorithm) -> Result<(), KernelError> {
        let shape = self.check()?;
        if let Some(dbias) = self.dbias.take() {
            sum_pixels(self.dy, shape.out_channels, dbias);
        }
        if self.dw.is_empty() {
            return Ok(());
        }
        if self.dy.is_empty() {
            self.dw.fill(0.0);
            return Ok(());
        }
        // The convolution whose kernel this is about; only its sizes and its input are looked at.
        let window = Window {
            x: self.x,
            batch: shape.batch,
            size: shape.size,
            upsample: shape.upsample,
            in_channels: shape.in_channels,
            out_channels: shape.out_channels,
            kernel: shape.kernel,
            stride: shape.stride,
            origin: (
                -(shape.padding.top as isize),
                -(shape.padding.left as isize),
            ),
            weight: RhsData::F32(&[]),
            out_size: shape.out_size(),
            phase: None,
            out: SharedOut::new(&mut []),
            finish: Finish {
                bias: None,
                rows_per_bias: usize::MAX,
                n: shape.out_channels,
                activation: Activation::None,
                residual: None,
            },
        };
        let gradient = WeightGradient {
            conv: &window,
            dy: self.dy,
            dw: self.dw,
        };
        match resolve(isa, &window, algorithm) {
            ConvAlgorithm::Winograd2 => gradient.run::<2>(isa),
            ConvAlgorithm::Winograd4 => gradient.run::<4>(isa),
            _ => Plan::new(isa, shape, self.x, self.dy).run(isa, gradient.dw),
        }
        Ok(())
    }
}

/// The algorithm that runs.
fn resolve(isa: Isa, conv: &Window<'_>, algorithm: ConvAlgorithm) -> ConvAlgorithm {
    if conv.kernel != (3, 3) || conv.stride != 1 {
        return ConvAlgorithm::Direct;
    }
    match algorithm {
        ConvAlgorithm::Auto => {}
        ConvAlgorithm::Folded => return ConvAlgorithm::Winograd4,
        chosen => return chosen,
    }
    let thin = conv.in_channels.min(conv.out_channels) < MIN_CHANNELS;
    if thin || WeightGradient::sums_len::<4>(isa, conv) > MOST_SUMS {
        return ConvAlgorithm::Direct;
    }
    let (oh, ow) = conv.out_size;
    let tiles = |side: usize| conv.batch * oh.div_ceil(side) * ow.div_ceil(side);
    // Products a weight, and what the sums' way back costs in units of that.
    let costs = [
        (tiles(4) * 36 + 360, ConvAlgorithm::Winograd4),
        (tiles(2) * 16 + 160, ConvAlgorithm::Winograd2),
        (tiles(1) * 9, ConvAlgorithm::Direct),
    ];
    let least = costs.into_iter().min_by_key(|c| c.0);
    least.map_or(ConvAlgorithm::Direct, |c| c.1)
}

/// Sums of rows of `channels` into each of the biases: all rows, or those of one image each.
fn sum_pixels(dy: &[f32], channels: usize, dbias: &mut [f32]) {
    if dbias.is_empty() {
        return;
    }
    let rows = dy.len() / (dbias.len() / channels);
    let out = SharedOut::new(dbias);
    let parts = channels.div_ceil(64);
    let images = dy.len().checked_div(rows).unwrap_or(0);
    if images == 0 {
        // SAFETY: the whole of `dbias`, which this call borrows.
        unsafe { out.part(0, dbias.len()) }.fill(0.0);
    }
    for_each(images * parts, dy.len() > SERIAL_WORK, |i| {
        let (image, part) = (i / parts, i % parts);
        let columns = part * 64..channels.min((part + 1) * 64);
        let mut sums = [0f64; 64];
        // Some rows in f32, then these sums in f64.
        for rows in dy[image * rows..][..rows].chunks(32 * channels) {
            let mut few = [0f32; 64];
            for row in rows.chunks_exact(channels) {
                for (sum, v) in few.iter_mut().zip(&row[columns.clone()]) {
                    *sum += v;
                }
            }
            for (sum, v) in sums.iter_mut().zip(few) {
                *sum += f64::from(v);
            }
        }
        // SAFETY: each task has its own image and channels.
        let own = unsafe { out.part(image * channels + columns.start, columns.len()) };
        for (value, sum) in own.iter_mut().zip(sums) {
            *value = sum as f32;
        }
    });
}

/// A run of a panel's columns: input channels at one place of the kernel.
#[derive(Debug, Clone, Copy)]
struct Segment {
    tap: (usize, usize),
    channel: usize,
    /// First column of the panel, and how many.
    at: usize,
    len: usize,
}

struct Plan<'a> {
    shape: ConvShape,
    x: &'a [f32],
    dy: &'a [f32],
    out_size: (usize, usize),
    seen: (usize, usize),
    pixels: usize,
    columns: usize,
    row_panels: usize,
    /// Panels of rows and of columns of a task.
    task_rows: usize,
    task_columns: usize,
    splits: usize,
}

impl<'a> Plan<'a> {
    fn new(isa: Isa, shape: ConvShape, x: &'a [f32], dy: &'a [f32]) -> Self {
        let (mr, nr) = isa.tile_size();
        let out_size = shape.out_size();
        let pixels = shape.batch * out_size.0 * out_size.1;
        let columns = shape.kernel.0 * shape.kernel.1 * shape.in_channels;
        let row_panels = shape.out_channels.div_ceil(mr);
        let task_rows = even_part(row_panels, ROW_PANELS, 1);
        let task_columns = even_part(columns.div_ceil(nr), COLUMN_PANELS, 1);
        let tasks = row_panels.div_ceil(task_rows) * columns.div_ceil(nr).div_ceil(task_columns);
        let splits = TASKS.div_ceil(tasks).min(pixels / (4 * PIXELS)).max(1);
        Self {
            shape,
            x,
            dy,
            out_size,
            seen: shape.seen_size(),
            pixels,
            columns,
            row_panels,
            task_rows,
            task_columns,
            splits,
        }
    }

    fn run(&self, isa: Isa, dw: &mut [f32]) {
        let (_, nr) = isa.tile_size();
        let len = dw.len();
        let mut others = Scratch::new((self.splits - 1) * len);
        let (first, rest) = (SharedOut::new(dw), SharedOut::new(others.as_mut_slice()));
        let down = self.row_panels.div_ceil(self.task_rows);
        let panels = self.columns.div_ceil(nr);
        let across = panels.div_ceil(self.task_columns);
        let work = self.pixels.saturating_mul(len);
        let parallel = rayon::current_num_threads() > 1 && work >= SERIAL_WORK;
        for_each(self.splits * down * across, parallel, |i| {
            let (part, task) = (i / (down * across), i % (down * across));
            let (row, column) = (
                task / across * self.task_rows,
                task % across * self.task_columns,
            );
            let out = match part.checked_sub(1) {
                None => first,
                // SAFETY: `others` holds splits - 1 kernels.
                Some(other) => unsafe { rest.from(other * len) },
            };
            isa.run(Task {
                plan: self,
                pixels: split(self.pixels, self.splits, part),
                rows: row..self.row_panels.min(row + self.task_rows),
                panels: column..panels.min(column + self.task_columns),
                out,
            });
        });
        for other in others.as_slice().chunks_exact(len) {
            for (sum, v) in dw.iter_mut().zip(other) {
                *sum += v;
            }
        }
    }

    /// The runs of columns `columns`.
    fn segments(&self, columns: Range<usize>) -> Vec<Segment> {
        let channels = self.shape.in_channels;
        let mut segments = Vec::new();
        let mut column = columns.start;
        while column < columns.end {
            let (tap, channel) = (column / channels, column % channels);
            let len = (channels - channel).min(columns.end - column);
            segments.push(Segment {
                tap: (tap / self.shape.kernel.1, tap % self.shape.kernel.1),
                channel,
                at: column - columns.start,
                len,
            });
            column += len;
        }
        segments
    }
}

struct Task<'a, 'b> {
    plan: &'a Plan<'b>,
    pixels: Range<usize>,
    /// Panels of output channels.
    rows: Range<usize>,
    /// Panels of columns.
    panels: Range<usize>,
    out: SharedOut,
}

impl Job for Task<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let tile = S::MR * S::NR;
        let mut sums = Scratch::new(self.rows.len() * self.panels.len() * tile);
        let mut a = Scratch::new(self.rows.len() * PIXELS * S::MR);
        let mut b = Scratch::new(PIXELS * S::NR);
        let segments: Vec<Vec<Segment>> = self
            .panels
            .clone()
            .map(|p| {
                let end = self.plan.columns.min((p + 1) * S::NR);
                self.plan.segments(p * S::NR..end)
            })
            .collect();
        for from in self.pixels.clone().step_by(PIXELS) {
            let pixels = from..self.pixels.end.min(from + PIXELS);
            for (row, a) in self
                .rows
                .clone()
                .zip(a.as_mut_slice().chunks_exact_mut(PIXELS * S::MR))
            {
                self.pack_gradients::<S>(row, pixels.clone(), a);
            }
            let parts = sums.as_mut_slice().chunks_exact_mut(self.rows.len() * tile);
            for (segments, sums) in segments.iter().zip(parts) {
                self.gather(s, segments, pixels.clone(), b.as_mut_slice());
                for (i, c) in sums.chunks_exact_mut(tile).enumerate() {
                    let rows = self.channels::<S>(self.rows.start + i).len();
                    let a = &a.as_slice()[i * PIXELS * S::MR..][..PIXELS * S::MR];
                    // SAFETY: A holds PIXELS >= k columns of MR, B as many rows of NR, C the whole tile.
                    unsafe {
                        s.tile(TileArgs {
                            mr: rows,
                            nv: S::NV,
                            k: pixels.len(),
                            a_layout: ALayout::Interleaved,
                            a_stride: 0,
                            a: a.as_ptr(),
                            b: b.as_slice().as_ptr(),
                            c: c.as_mut_ptr(),
                            c_stride: S::NR,
                            accumulate: from > self.pixels.start,
                        });
                    }
                }
            }
        }
        for (i, segments) in segments.iter().enumerate() {
            let len = self.rows.len() * tile;
            self.write::<S>(segments, &sums.as_slice()[i * len..][..len]);
        }
    }
}

impl Task<'_, '_> {
    /// Output channels of a panel.
    #[inline(always)]
    fn channels<S: Simd>(&self, panel: usize) -> Range<usize> {
        panel * S::MR..self.plan.shape.out_channels.min((panel + 1) * S::MR)
    }

    /// Gradients of a panel's channels as `[pixel, MR]`.
    #[inline(always)]
    fn pack_gradients<S: Simd>(&self, panel: usize, pixels: Range<usize>, a: &mut [f32]) {
        let channels = self.channels::<S>(panel);
        let n = self.plan.shape.out_channels;
        for (pixel, a) in pixels.zip(a.chunks_exact_mut(S::MR)) {
            let row = &self.plan.dy[pixel * n..][channels.clone()];
            if row.len() == S::MR {
                a.copy_from_slice(&row[..S::MR]);
            } else {
                a[..row.len()].copy_from_slice(row);
            }
        }
    }

    /// Patches of some pixels as `[pixel, NR]`.
    #[inline(always)]
    fn gather<S: Simd>(&self, s: S, segments: &[Segment], pixels: Range<usize>, b: &mut [f32]) {
        let plan = self.plan;
        let shape = &plan.shape;
        let (oh, ow) = plan.out_size;
        let (line, mut ox) = (pixels.start / ow, pixels.start % ow);
        let (mut image, mut oy) = (line / oh, line % oh);
        let shift = u32::from(shape.upsample);
        for b in b.chunks_exact_mut(S::NR).take(pixels.len()) {
            for segment in segments {
                let y = (oy * shape.stride + segment.tap.0).wrapping_sub(shape.padding.top);
                let x = (ox * shape.stride + segment.tap.1).wrapping_sub(shape.padding.left);
                let dst = &mut b[segment.at..][..segment.len];
                if y >= plan.seen.0 || x >= plan.seen.1 {
                    dst.fill(0.0);
                    continue;
                }
                let line = image * shape.size.0 + (y >> shift);
                let pixel = line * shape.size.1 + (x >> shift);
                let src = &plan.x[pixel * shape.in_channels + segment.channel..][..segment.len];
                if segment.len == S::NR {
                    for v in (0..S::NR).step_by(S::LANES) {
                        s.store_slice(&mut dst[v..], s.load_slice(&src[v..]));
                    }
                } else {
                    dst.copy_from_slice(src);
                }
            }
            // What is behind the last column meets no gradient that is written, but must be a number.
            if let Some(last) = segments.last() {
                b[last.at + last.len..].fill(0.0);
            }
            ox += 1;
            if ox == ow {
                (ox, oy) = (0, oy + 1);
                if oy == oh {
                    (oy, image) = (0, image + 1);
                }
            }
        }
    }

    /// Writes the sums of a panel of columns to their places of the kernel.
    #[inline(always)]
    fn write<S: Simd>(&self, segments: &[Segment], sums: &[f32]) {
        let shape = &self.plan.shape;
        let taps = shape.kernel.0 * shape.kernel.1;
        let first = self.rows.start * S::MR;
        let last = shape.out_channels.min(self.rows.end * S::MR);
        for (o, sums) in (first..last).zip(sums.chunks_exact(S::NR)) {
            for segment in segments {
                let tap = segment.tap.0 * shape.kernel.1 + segment.tap.1;
                let channels = segment.channel..segment.channel + segment.len;
                for (c, &sum) in channels.zip(&sums[segment.at..]) {
                    // SAFETY: (o, c, tap) is a place of the kernel, and of this task alone.
                    unsafe { *self.out.at((o * shape.in_channels + c) * taps + tap) = sum };
                }
            }
        }
    }
}

/// Computes a convolution's gradient with respect to its kernel and bias, see [`Conv2dBackwardWeight`].
///
/// # Errors
/// [`KernelError`] when a slice does not have the length of its shape, or a size is 0 that must not be.
pub fn conv2d_backward_weight(conv: Conv2dBackwardWeight<'_>) -> Result<(), KernelError> {
    conv.run(Isa::best())
}
