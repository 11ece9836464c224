//! Convolution.

use aquatint_kernels as kernels;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;

use super::elementwise::activation_gradient;
use super::record::{Entry, Rule, Saved, primitive};
use super::values::{sum_rows, values, wrap};
use crate::flex::{self, Weight, done};
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
    fn data_gradient(&self, dz: &[f32], weight: &Weight) -> FlexTensor {
        let [batch, height, width, in_channels] = self.input;
        let [out_channels, _, kh, kw] = self.kernel;
        let mut dx = vec![0f32; self.input.iter().product()];
        done(kernels::conv2d_backward_data(kernels::Conv2dBackwardData {
            dy: dz,
            batch,
            height,
            width,
            in_channels,
            out_channels,
            kernel: (kh, kw),
            weight: weight.data(),
            stride: self.shape.stride,
            padding: padding(self.shape),
            upsample: self.shape.upsample,
            dx: &mut dx,
            algorithm: kernels::ConvAlgorithm::Auto,
        }));
        wrap(dx, &self.input)
    }

    fn weight_gradient(&self, dz: &[f32], x: &[f32]) -> FlexTensor {
        let [batch, height, width, in_channels] = self.input;
        let [out_channels, _, kh, kw] = self.kernel;
        let mut dw = vec![0f32; self.kernel.iter().product()];
        done(kernels::conv2d_backward_weight(
            kernels::Conv2dBackwardWeight {
                x,
                dy: dz,
                batch,
                height,
                width,
                in_channels,
                out_channels,
                kernel: (kh, kw),
                stride: self.shape.stride,
                padding: padding(self.shape),
                upsample: self.shape.upsample,
                dw: &mut dw,
                dbias: None,
            },
        ));
        wrap(dw, &self.kernel)
    }
}

fn padding(shape: Conv2dShape) -> kernels::Padding {
    let [top, bottom, left, right] = shape.padding;
    kernels::Padding {
        top,
        bottom,
        left,
        right,
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
        let dz = values(match self.before.take() {
            Some(before) => activation_gradient(before, dy, self.activation),
            None => dy,
        });
        let dx = self.weight.take().filter(|_| wants_x).map(|weight| {
            let weight = Weight::from_primitive(weight.take(saved));
            let weight = weight.expect("a storage type that the forward pass took");
            self.data_gradient(dz.values(), &weight)
        });
        let dweight = self.x.take().filter(|_| wants_weight).map(|x| {
            let x = values(x.take(saved));
            self.weight_gradient(dz.values(), x.values())
        });
        let n = self.kernel[0];
        let dbias = wants_bias.then(|| wrap(sum_rows(dz.values(), n), &[n]));
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
