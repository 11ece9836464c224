//! Residual blocks and the layers that change the size, shared with the autoencoder.

use aquatint_ops::fused::{self, Activation, Conv2dShape};
use aquatint_ops::nn::{Conv2d, GroupNorm, Linear};
use aquatint_ops::{OpsError, Params, Tensor};
use burn::module::Module;
use burn::tensor::{DType, Int, TensorData};

/// A group normalisation followed by SiLU; the autoencoder's tiled decode brings its own.
pub(crate) type NormSilu<'a> = dyn FnMut(&GroupNorm, Tensor<4>) -> Tensor<4> + 'a;

/// `conv(silu(norm(conv(silu(norm(x))) + time))) + shortcut(x)` (diffusers' `ResnetBlock2D`); or, with
/// a scale and a shift made of the time, `norm(conv(..)) * (1 + scale) + shift` inside.
#[derive(Module, Debug)]
pub struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
    output_scale: f64,
    scale_shift: bool,
}

/// The shape of a [`ResnetBlock`].
#[derive(Debug, Clone, Copy)]
pub struct ResnetShape {
    /// Channels of the input.
    pub input: usize,
    /// Channels of the output.
    pub output: usize,
    /// Channels of the time embedding, in a UNet.
    pub time: Option<usize>,
    /// Groups of the normalisations.
    pub groups: usize,
    /// Their epsilon.
    pub eps: f64,
    /// The output is divided by this.
    pub output_scale: f64,
    /// Whether the time scales and shifts the second norm's output, and is not added before it.
    pub scale_shift: bool,
}

impl ResnetBlock {
    /// Reads the block at `p`.
    pub fn load(p: &Params<'_>, shape: ResnetShape) -> Result<Self, OpsError> {
        let ResnetShape {
            input,
            output,
            time,
            groups,
            eps,
            output_scale,
            scale_shift,
        } = shape;
        let same = Conv2dShape::same;
        let told = if scale_shift { 2 * output } else { output };
        Ok(ResnetBlock {
            norm1: GroupNorm::load(&p.at("norm1"), groups, input, eps)?,
            conv1: Conv2d::load(&p.at("conv1"), input, output, 3, same(3))?,
            time_emb_proj: match time {
                Some(time) => Some(Linear::load(&p.at("time_emb_proj"), time, told, true)?),
                None => None,
            },
            norm2: GroupNorm::load(&p.at("norm2"), groups, output, eps)?,
            conv2: Conv2d::load(&p.at("conv2"), output, output, 3, same(3))?,
            conv_shortcut: match input == output {
                true => None,
                false => Some(Conv2d::load(
                    &p.at("conv_shortcut"),
                    input,
                    output,
                    1,
                    same(1),
                )?),
            },
            output_scale,
            scale_shift,
        })
    }

    /// `[batch, height, width, in]` to `[batch, height, width, out]`. `time` is the activated
    /// embedding, `[1 or batch, channels]`.
    pub fn forward(&self, x: Tensor<4>, time: Option<&Tensor<2>>) -> Tensor<4> {
        self.forward_with_norm(x, time, &mut |norm, x| norm.forward_silu(x))
    }

    /// As [`ResnetBlock::forward`], with each norm and SiLU done by `norm_silu`.
    pub(crate) fn forward_with_norm(
        &self,
        x: Tensor<4>,
        time: Option<&Tensor<2>>,
        norm_silu: &mut NormSilu<'_>,
    ) -> Tensor<4> {
        // The shortcut first: after it, the norm may work in the input's place.
        let (shortcut, x) = match &self.conv_shortcut {
            Some(conv) => (conv.forward(x.clone()), x),
            None => (x.clone(), x),
        };
        let h = norm_silu(&self.norm1, x);
        let h = match (self.scale_shift, &self.time_emb_proj, time) {
            (true, Some(proj), Some(time)) => {
                let told = proj.forward(time.clone());
                scaled_silu(self.norm2.forward(self.conv1.forward(h)), told)
            }
            _ => norm_silu(&self.norm2, self.first_conv(h, time)),
        };
        let y = self.conv2.forward_with(h, Activation::None, Some(shortcut));
        match self.output_scale == 1.0 {
            true => y,
            false => y / self.output_scale,
        }
    }

    /// `conv1(h) + time`: the time embedding goes into the bias, of all images or of each.
    fn first_conv(&self, h: Tensor<4>, time: Option<&Tensor<2>>) -> Tensor<4> {
        let (Some(proj), Some(time)) = (&self.time_emb_proj, time) else {
            return self.conv1.forward(h);
        };
        self.conv1.forward_shifted(h, proj.forward(time.clone()))
    }
}

/// `silu(x * (1 + scale) + shift)`; `told` is scale and shift side by side, `[1 or batch, 2 channels]`.
fn scaled_silu(x: Tensor<4>, told: Tensor<2>) -> Tensor<4> {
    let [rows, both] = told.dims();
    let told = told.reshape([rows, 1, 1, both]);
    let (scale, shift) = (
        told.clone().narrow(3, 0, both / 2),
        told.narrow(3, both / 2, both / 2),
    );
    fused::silu(x * (scale + 1.0) + shift)
}

/// Halves the size by a convolution of stride 2.
#[derive(Module, Debug)]
pub struct Downsample {
    conv: Conv2d,
}

impl Downsample {
    /// Reads `conv` at `p`; `padding` is 1 on all sides, or 0 for one row and column at the bottom
    /// and right.
    pub fn load(p: &Params<'_>, channels: usize, padding: usize) -> Result<Self, OpsError> {
        let shape = Conv2dShape {
            stride: 2,
            padding: if padding == 0 { [0, 1, 0, 1] } else { [1; 4] },
            upsample: false,
        };
        Ok(Downsample {
            conv: Conv2d::load(&p.at("conv"), channels, channels, 3, shape)?,
        })
    }

    /// `[batch, height, width, channels]` to half the height and width, rounded up (down without
    /// padding).
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.conv.forward(x)
    }
}

/// Enlarges by nearest neighbours, then a convolution.
#[derive(Module, Debug)]
pub struct Upsample {
    conv: Conv2d,
}

impl Upsample {
    /// Reads `conv` at `p`.
    pub fn load(p: &Params<'_>, channels: usize) -> Result<Self, OpsError> {
        let shape = Conv2dShape {
            upsample: true,
            ..Conv2dShape::same(3)
        };
        Ok(Upsample {
            conv: Conv2d::load(&p.at("conv"), channels, channels, 3, shape)?,
        })
    }

    /// To twice the height and width.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.conv.forward(x)
    }

    /// To `size` (height, width), which is not twice the input's when an odd size was halved on
    /// the way down.
    pub fn forward_to(&self, x: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
        let [_, height, width, _] = x.dims();
        if size == [2 * height, 2 * width] {
            return self.forward(x);
        }
        let x = nearest(nearest(x, 1, size[0]), 2, size[1]);
        self.conv.forward_as(x, Conv2dShape::same(3))
    }
}

/// Nearest-neighbour resize of one axis, as PyTorch's `interpolate(mode="nearest")` rounds.
fn nearest(x: Tensor<4>, axis: usize, size: usize) -> Tensor<4> {
    let from = x.dims()[axis];
    if from == size {
        return x;
    }
    let scale = from as f32 / size as f32;
    let indices: Vec<i32> = (0..size)
        .map(|i| ((i as f32 * scale) as usize).min(from - 1) as i32)
        .collect();
    let data = TensorData::new(indices, [size]);
    let indices = Tensor::<1, Int>::from_data(data, (&x.device(), DType::I32));
    x.select(axis, indices)
}
