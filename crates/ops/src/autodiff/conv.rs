//! Convolution.

use aquatint_kernels as kernels;
use aquatint_kernels::Buffer;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;

use super::epilogue::{Backward, Operands};
use super::record::{Entry, Rule, Saved};
use super::values::{values, weight, wrap};
use crate::flex::{self, Weight, done};
use crate::fused::{Conv2dShape, Epilogue};

#[derive(Debug, Clone)]
struct Conv2d {
    /// For `dW`.
    x: Option<Saved>,
    /// For `dx`.
    weight: Option<Saved>,
    epilogue: Backward,
    shape: Conv2dShape,
    input: [usize; 4],
    kernel: [usize; 4],
}

impl Conv2d {
    fn data_gradient(&self, dz: &[f32], weight: &Weight) -> FlexTensor {
        let [batch, height, width, in_channels] = self.input;
        let [out_channels, _, kh, kw] = self.kernel;
        let mut dx = Buffer::new(self.input.iter().product());
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
        let mut dw = Buffer::new(self.kernel.iter().product());
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
        let (kept_x, kept_weight) = (self.x.take(), self.weight.take());
        let epilogue = self.epilogue.clone();
        let dz = epilogue.gradients(dy, self.kernel[0], [wants_bias, wants_residual]);
        let product = dz.product.values();
        let dx = kept_weight.filter(|_| wants_x).map(|w| {
            let w = weight(w.take(saved));
            self.data_gradient(product, &w)
        });
        let dweight = kept_x.filter(|_| wants_weight).map(|x| {
            let x = values(x.take(saved));
            self.weight_gradient(product, x.values())
        });
        [dx, dweight, dz.bias, dz.residual]
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
    let rest = Operands::new(&mut entry, epilogue)?;
    entry.belongs()?;
    let tracked = input.is_tracked() || kernel.is_tracked();
    let (y, backward) = rest.apply(tracked, |epilogue| {
        flex::conv2d(&input.value(), &kernel.value(), shape, epilogue)
    })?;
    let [bias, residual] = rest.nodes();
    let nodes = [input.node(), kernel.node(), bias, residual];
    Some(entry.record(nodes, y, None, |keeper| Conv2d {
        x: kernel.is_tracked().then(|| keeper.keep(&input)),
        weight: input.is_tracked().then(|| keeper.keep(&kernel)),
        epilogue: backward,
        shape,
        input: x.dims(),
        kernel: weight.dims(),
    }))
}
