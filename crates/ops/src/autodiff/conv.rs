//! Convolution.

use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::flex::FlexTensor;
use burn::backend::ops::ModuleOps;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{DType, FloatDType, Tensor};

use super::elementwise::activation_gradient;
use super::record::{Entry, Rule, Saved, plain, primitive};
use super::values::{sum_rows, values, wrap};
use crate::flex;
use crate::fused::{Activation, Conv2dShape, Epilogue};

#[derive(Debug, Clone)]
struct Conv2d {
    /// For `dW`.
    x: Option<Saved>,
    /// For `dx`.
    weight: Option<Saved>,
    /// The sum before the activation, when one follows.
    before: Option<FlexTensor>,
    activation: Activation,
    shape: Conv2dShape,
    input: [usize; 4],
    kernel: [usize; 4],
}

impl Conv2d {
    fn both(
        &self,
        dz: Tensor<4>,
        x: Option<Tensor<4>>,
        weight: Option<Tensor<4>>,
    ) -> [Option<FlexTensor>; 2] {
        let (up, [top, bottom, left, right]) = (self.shape.upsample, self.shape.padding);
        let [b, h, w, c] = self.input;
        let scale = if up { 2 } else { 1 };
        let (ph, pw) = (h * scale + top + bottom, w * scale + left + right);
        let options = ConvOptions::new([self.shape.stride; 2], [0, 0], [1, 1], 1);
        let device = dz.device();
        let dz = primitive(dz.permute([0, 3, 1, 2]));
        let padded = Tensor::<4>::zeros([b, c, ph, pw], (&device, DType::F32));
        let inside = [0..b, 0..c, top..ph - bottom, left..pw - right];
        let dx = weight.map(|weight| {
            let weight = primitive(weight.cast(FloatDType::F32));
            let dx = Flex::conv2d_x_backward(
                primitive(padded.clone()),
                weight,
                dz.clone(),
                options.clone(),
            );
            let dx = plain::<4>(dx).slice(inside.clone()).permute([0, 2, 3, 1]);
            let dx = match up {
                true => dx
                    .reshape([b, h, 2, w, 2 * c])
                    .sum_dim(2)
                    .reshape([b, h, w, 2, c])
                    .sum_dim(3)
                    .reshape([b, h, w, c]),
                false => dx,
            };
            primitive(dx)
        });
        let dweight = x.map(|x| {
            let x = match up {
                true => x
                    .reshape([b, h, 1, w, 1, c])
                    .expand([b, h, 2, w, 2, c])
                    .reshape([b, 2 * h, 2 * w, c]),
                false => x,
            };
            let x = padded
                .clone()
                .slice_assign(inside.clone(), x.permute([0, 3, 1, 2]));
            let weight = Tensor::<4>::zeros(self.kernel, (&device, DType::F32));
            Flex::conv2d_weight_backward(primitive(x), primitive(weight), dz.clone(), options)
        });
        [dx, dweight]
    }
}

impl Rule<4> for Conv2d {
    fn gradients(
        mut self,
        dy: FlexTensor,
        [wants_x, wants_weight, wants_bias, wants_residual]: [bool; 4],
        saved: &mut Checkpointer,
    ) -> [Option<FlexTensor>; 4] {
        let residual = wants_residual.then(|| dy.clone());
        let dz = match self.before.take() {
            Some(before) => activation_gradient(before, dy, self.activation),
            None => dy,
        };
        let weight = self.weight.take().filter(|_| wants_x);
        let x = self.x.take().filter(|_| wants_weight);
        let weight = weight.map(|w| plain(w.take(saved)));
        let x = x.map(|x| plain(x.take(saved)));
        let [dx, dweight] = self.both(plain(dz.clone()), x, weight);
        let n = self.kernel[0];
        let dbias = wants_bias.then(|| wrap(sum_rows(values(dz).values(), n), &[n]));
        [dx, dweight, dbias, residual]
    }
}

pub(crate) fn conv2d(
    x: &Tensor<4>,
    weight: &Tensor<4>,
    shape: Conv2dShape,
    epilogue: &Epilogue<4>,
) -> Option<Tensor<4>> {
    let mut entry = Entry::default();
    let (input, kernel) = (entry.operand(x)?, entry.operand(weight)?);
    let bias = entry.optional(&epilogue.bias)?;
    let residual = entry.optional(&epilogue.residual)?;
    entry.belongs()?;
    let tracked =
        input.is_tracked() || kernel.is_tracked() || bias.as_ref().is_some_and(|b| b.is_tracked());
    let split = tracked && epilogue.activation != Activation::None;
    let inner = Epilogue {
        bias: bias.as_ref().map(|b| b.value()),
        activation: match split {
            true => Activation::None,
            false => epilogue.activation,
        },
        residual: match split {
            true => None,
            false => residual.as_ref().map(|r| r.value()),
        },
    };
    let z = flex::conv2d(&input.value(), &kernel.value(), shape, &inner)?;
    let before = split.then(|| primitive(z.clone()));
    let mut y = z;
    if split {
        y = flex::activate(&y, epilogue.activation)?;
        if let Some(residual) = &residual {
            y = y + residual.value();
        }
    }
    let nodes = [
        input.node(),
        kernel.node(),
        bias.as_ref().and_then(|b| b.node()),
        residual.as_ref().and_then(|r| r.node()),
    ];
    Some(entry.record(nodes, y, None, |keeper| Conv2d {
        x: kernel.is_tracked().then(|| keeper.keep(&input)),
        weight: input.is_tracked().then(|| keeper.keep(&kernel)),
        before,
        activation: epilogue.activation,
        shape,
        input: x.dims(),
        kernel: weight.dims(),
    }))
}
