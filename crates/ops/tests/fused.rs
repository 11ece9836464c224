//! Every fused operation against its plain reference, on the device that takes the kernels.
//! Tolerance: both sides compute in f32 with sums in different orders, some 1e-6 relative a sum.

use aquatint_ops::burn::tensor::{DType, TensorData};
use aquatint_ops::fused::{
    self, Activation, AttentionMask, Conv2dShape, Epilogue, Modulation, RotaryPairs, RowNorm,
};
use aquatint_ops::{Device, Tensor, reference};

fn random<const D: usize>(shape: [usize; D], seed: u32) -> Tensor<D> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as f32 / u32::MAX as f32 * 2.0 - 1.0
        })
        .collect();
    Tensor::from_data(
        TensorData::new(values, shape),
        (&Device::flex(), DType::F32),
    )
}

fn close<const D: usize>(got: Tensor<D>, want: Tensor<D>) {
    assert_eq!(got.dims(), want.dims());
    let got = got.into_data().try_into_vec::<f32>().expect("f32");
    let want = want.into_data().try_into_vec::<f32>().expect("f32");
    let scale = want.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
    for (i, (g, w)) in got.iter().zip(&want).enumerate() {
        assert!((g - w).abs() <= 2e-5 * scale, "at {i}: {g} against {w}");
    }
}

fn half<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    x.cast(DType::F16)
}

#[test]
fn linear() {
    let (x, w, b) = (random([2, 7, 33], 1), random([19, 33], 2), random([19], 3));
    for activation in [
        Activation::None,
        Activation::Silu,
        Activation::Gelu,
        Activation::QuickGelu,
        Activation::Relu,
    ] {
        let epilogue = Epilogue {
            bias: Some(b.clone()),
            activation,
            residual: Some(random([2, 7, 19], 4)),
        };
        close(
            fused::linear(x.clone(), w.clone(), epilogue.clone()),
            reference::linear(x.clone(), w.clone(), epilogue.clone()),
        );
        close(
            fused::linear(x.clone(), half(w.clone()), epilogue.clone()),
            reference::linear(x.clone(), half(w.clone()), epilogue),
        );
    }
}

#[test]
fn linear_and_geglu_in_one_pass() {
    let (w, b) = (random([38, 33], 2), random([38], 3));
    for (x, bias) in [
        (random([2, 7, 33], 1), Some(b)),
        (random([1, 3, 33], 1), None),
    ] {
        let epilogue = Epilogue {
            bias: bias.clone(),
            ..Epilogue::default()
        };
        for w in [w.clone(), half(w.clone())] {
            close(
                fused::linear_geglu(x.clone(), w.clone(), bias.clone()),
                reference::geglu(reference::linear(x.clone(), w, epilogue.clone())),
            );
        }
    }
}

#[test]
fn linear_of_a_transposed_view() {
    let x = random([2, 33, 7], 1).swap_dims(1, 2);
    let w = random([33, 19], 2).transpose();
    close(
        fused::linear(x.clone(), w.clone(), Epilogue::default()),
        reference::linear(x, w, Epilogue::default()),
    );
}

#[test]
fn conv2d() {
    let x = random([2, 9, 6, 12], 5);
    let cases = [
        (3, Conv2dShape::same(3)),
        (1, Conv2dShape::same(1)),
        (
            3,
            Conv2dShape {
                stride: 2,
                ..Conv2dShape::same(3)
            },
        ),
        (
            3,
            Conv2dShape {
                stride: 2,
                padding: [0, 1, 0, 1],
                upsample: false,
            },
        ),
        (
            3,
            Conv2dShape {
                upsample: true,
                ..Conv2dShape::same(3)
            },
        ),
    ];
    for (kernel, shape) in cases {
        let w = random([10, 12, kernel, kernel], 6);
        let plain = Epilogue {
            bias: Some(random([10], 7)),
            ..Epilogue::default()
        };
        let y = reference::conv2d(x.clone(), w.clone(), shape, plain.clone());
        close(
            fused::conv2d(x.clone(), w.clone(), shape, plain.clone()),
            y.clone(),
        );
        let full = Epilogue {
            activation: Activation::Silu,
            residual: Some(random(y.dims(), 8)),
            ..plain
        };
        let images = Epilogue {
            bias: Some(random([2 * 10], 9)),
            ..full.clone()
        };
        close(
            fused::conv2d(x.clone(), w.clone(), shape, images.clone()),
            reference::conv2d(x.clone(), w.clone(), shape, images),
        );
        close(
            fused::conv2d(x.clone(), half(w.clone()), shape, full.clone()),
            reference::conv2d(x.clone(), half(w), shape, full),
        );
    }
}

#[test]
fn attention() {
    let (q, k, v) = (
        random([2, 11, 24], 9),
        random([2, 13, 24], 10),
        random([2, 13, 24], 11),
    );
    let mask = AttentionMask::Additive(random([11, 13], 12));
    for mask in [AttentionMask::None, mask] {
        close(
            fused::attention(q.clone(), k.clone(), v.clone(), 3, mask.clone()),
            reference::attention(q.clone(), k.clone(), v.clone(), 3, mask),
        );
    }
    let (k, v) = (random([2, 11, 24], 13), random([2, 11, 24], 14));
    close(
        fused::attention(q.clone(), k.clone(), v.clone(), 2, AttentionMask::Causal),
        reference::attention(q, k, v, 2, AttentionMask::Causal),
    );
}

#[test]
fn norms_and_elementwise() {
    let x = random([2, 5, 3, 16], 15);
    let (g, b) = (random([16], 16), random([16], 17));
    for silu in [false, true] {
        close(
            fused::group_norm(x.clone(), 4, 1e-5, g.clone(), b.clone(), silu),
            reference::group_norm(x.clone(), 4, 1e-5, g.clone(), b.clone(), silu),
        );
    }
    close(
        fused::layer_norm(x.clone(), 1e-5, g.clone(), b.clone()),
        reference::layer_norm(x.clone(), 1e-5, g, b),
    );
    close(fused::geglu(x.clone()), reference::geglu(x.clone()));
    for kind in [
        Activation::Silu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::QuickGelu,
        Activation::Relu,
    ] {
        close(
            fused::activate(x.clone(), kind),
            reference::activate(x.clone(), kind),
        );
    }
}

#[test]
fn norms_of_transformers() {
    let (x, gamma) = (random([2, 5, 3, 16], 18), random([16], 19));
    close(
        fused::rms_norm(x.clone(), 1e-6, gamma.clone()),
        reference::rms_norm(x, 1e-6, gamma.clone()),
    );
    let x = random([3, 7, 16], 20);
    for norm in [RowNorm::Layer, RowNorm::Rms] {
        for gamma in [None, Some(gamma.clone())] {
            for shift in [None, Some(random([3, 16], 21))] {
                let scale = random([3, 16], 22);
                let modulation = Modulation { scale, shift };
                close(
                    fused::modulated_norm(x.clone(), norm, 1e-6, gamma.clone(), modulation.clone()),
                    reference::modulated_norm(x.clone(), norm, 1e-6, gamma.clone(), modulation),
                );
            }
        }
    }
    let (y, gate) = (random([3, 7, 16], 23), random([3, 16], 24));
    let want = reference::add_gated(x.clone(), y.clone(), gate.clone());
    close(
        fused::add_gated(x.clone(), y.clone(), gate.clone()),
        want.clone(),
    );
    // In place, as nobody else holds it.
    close(fused::add_gated(x * 1.0, y, gate), want);
}

#[test]
fn rotary_embeddings() {
    let (cos, sin) = (random([5, 4], 25), random([5, 4], 26));
    for pairs in [RotaryPairs::Neighbours, RotaryPairs::Halves] {
        let x = random([2, 5, 3, 8], 27);
        let want = reference::rotary(x.clone(), cos.clone(), sin.clone(), pairs);
        close(
            fused::rotary(x.clone(), cos.clone(), sin.clone(), pairs),
            want.clone(),
        );
        close(
            fused::rotary(x * 1.0, cos.clone(), sin.clone(), pairs),
            want,
        );
    }
}

#[test]
fn embedding_widens_its_rows() {
    let table = half(random([7, 5], 18));
    let ids = vec![vec![0, 6, 3], vec![3, 3, 1]];
    close(
        fused::embedding(table.clone(), &ids),
        reference::embedding(table, &ids),
    );
}

#[test]
fn gradients_flow_through_the_kernels() {
    let device = Device::flex().autodiff();
    let x = Tensor::<2>::from_data([[1.0f32, 2.0], [3.0, 4.0]], &device).require_grad();
    let w = Tensor::<2>::from_data([[1.0f32, -1.0], [0.5, 2.0], [0.0, 1.0]], &device);
    let y = fused::linear(x.clone(), w, Epilogue::default());
    let grads = y.sum().backward();
    let grad = x
        .grad(&grads)
        .unwrap()
        .into_data()
        .try_into_vec::<f32>()
        .unwrap();
    assert_eq!(grad, vec![1.5, 2.0, 1.5, 2.0]);
}

#[test]
fn in_place_and_beside_give_the_same_bits() {
    let values = |x: Tensor<4>| x.into_data().try_into_vec::<f32>().expect("f32");
    let (gamma, beta) = (random([24], 2), random([24], 3));
    // Made by a kernel, so that its buffer is the pool's.
    let make = || fused::join_channels(random::<4>([2, 40, 30, 20], 1), random([2, 40, 30, 4], 9));
    let norm = |x| fused::group_norm(x, 4, 1e-5, gamma.clone(), beta.clone(), true);
    let shared = make();
    let before = values(shared.clone());
    let beside = values(norm(shared.clone()));
    assert_eq!(values(norm(make())), beside);
    assert_eq!(values(shared.clone()), before);
    let activated = values(fused::silu(shared.clone()));
    assert_eq!(values(fused::silu(make())), activated);
    assert_eq!(values(shared), before);
    // A view of a part is not worked on in place: the rest of its buffer is another's.
    let part = make().narrow(0, 1, 1);
    assert_eq!(values(fused::silu(part)), activated[activated.len() / 2..]);
}

#[test]
fn joined_channels() {
    let (a, b) = (random::<3>([2, 5, 3], 1), random::<3>([2, 5, 4], 2));
    let joined = fused::join_channels(a.clone(), b.clone());
    close(joined, Tensor::cat(vec![a, b], 2));
}
