//! Frozen weights: a constant of any storage type, on either device; gradients pass through it.

use aquatint_ops::burn::tensor::DType;
use aquatint_ops::fused::{self, AttentionMask, Conv2dShape, Epilogue};
use aquatint_ops::{Device, Tensor, reference};

use super::support::{close, flat, host, random};

fn weight<const D: usize>(shape: [usize; D], device: &Device, dtype: DType) -> Tensor<D> {
    let values = random(shape.iter().product(), 2);
    flat(&values, device).reshape(shape).cast(dtype)
}

fn input<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    let device = Device::flex().autodiff();
    let values = random(shape.iter().product(), 1);
    flat(&values, &device)
        .reshape(shape)
        .detach()
        .require_grad()
}

/// The gradient of x through an operation with a weight.
fn gradient<const D: usize>(x: Tensor<D>, y: Tensor<D>) -> Vec<f32> {
    let grads = (y.clone() * y).sum().backward();
    host(x.grad(&grads).expect("x is a leaf that wants one"))
}

#[test]
fn gradients_pass_through_frozen_half_weights() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for device in [Device::flex(), Device::flex().autodiff()] {
            let x = input([2, 3, 16]);
            let w = weight([8, 16], &device, dtype);
            let by = |reference: bool| {
                let (x2, w, e) = (x.clone(), w.clone(), Epilogue::default());
                let y = match reference {
                    true => reference::linear(x2, w, e),
                    false => fused::linear(x2, w, e),
                };
                gradient(x.clone(), y)
            };
            close(&format!("linear {dtype:?}"), &by(false), &by(true), 1e-5);

            let x = input([1, 5, 4, 6]);
            let w = weight([7, 6, 3, 3], &device, dtype);
            let by = |reference: bool| {
                let (x2, w, e) = (x.clone(), w.clone(), Epilogue::default());
                let y = match reference {
                    true => reference::conv2d(x2, w, Conv2dShape::same(3), e),
                    false => fused::conv2d(x2, w, Conv2dShape::same(3), e),
                };
                gradient(x.clone(), y)
            };
            close(&format!("conv2d {dtype:?}"), &by(false), &by(true), 1e-5);
        }
    }
}

#[test]
fn nothing_is_tracked_when_nothing_wants_a_gradient() {
    let device = Device::flex().autodiff();
    let x = flat(&random(24, 1), &device).reshape([2, 3, 4]);
    let w = weight([5, 4], &device, DType::F32);
    let y = fused::linear(x.clone(), w, Epilogue::default());
    assert!(y.is_autodiff() && !y.is_tracked());
    let y = fused::attention(x.clone(), x.clone(), x, 2, AttentionMask::None);
    assert!(y.is_autodiff() && !y.is_tracked());
}

#[test]
fn a_tensor_may_be_several_operands() {
    let by = |reference: bool, device: &Device| {
        let x = flat(&random(48, 1), device)
            .reshape([2, 3, 8])
            .detach()
            .require_grad();
        let w = weight([8, 8], device, DType::F32);
        let e = Epilogue {
            residual: Some(x.clone()),
            ..Epilogue::default()
        };
        let (x2, mask) = (x.clone(), AttentionMask::None);
        let y = match reference {
            true => {
                let y = reference::linear(x2, w, e);
                reference::attention(y.clone(), y.clone(), y, 2, mask)
            }
            false => {
                let y = fused::linear(x2, w, e);
                fused::attention(y.clone(), y.clone(), y, 2, mask)
            }
        };
        gradient(x, y)
    };
    let want = by(true, &Device::flex().autodiff());
    for device in [
        Device::flex().autodiff(),
        Device::flex().autodiff().gradient_checkpointing(),
    ] {
        close("shared operand", &by(false, &device), &want, 1e-5);
    }
}

#[test]
fn a_tracked_half_weight_takes_the_reference() {
    let device = Device::flex().autodiff();
    let w = weight([8, 16], &device, DType::F16).detach().require_grad();
    let y = fused::linear(input([2, 3, 16]), w.clone(), Epilogue::default());
    let grads = y.sum().backward();
    let grad = w.grad(&grads).expect("through the reference");
    assert_eq!(grad.dtype(), DType::F16);
}
