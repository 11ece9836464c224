//! A low-rank addition to a frozen half-precision weight: equal to the merged weight, forward and
//! backward.

use std::error::Error;

use aquatint_ops::burn::tensor::DType;
use aquatint_ops::nn::Linear;
use aquatint_ops::{
    Activation, Device, Epilogue, LowRank, ParamSource, Params, RawTensor, Storage, Tensor,
    Trainable, reference,
};
use half::f16;

use super::support::{close, flat, host, random};

const SCALE: f64 = 0.75;

/// A layer `to_q` with an addition, and `to_k` without.
struct Source;

impl Source {
    fn values(name: &str, shape: &[usize]) -> Vec<f32> {
        let seed = name.bytes().map(u32::from).sum();
        let values = random(shape.iter().product(), seed);
        values.iter().map(|v| f16::from_f32(*v).to_f32()).collect()
    }
}

impl ParamSource for Source {
    fn tensor(
        &self,
        name: &str,
        shape: &[usize],
    ) -> Result<RawTensor, Box<dyn Error + Send + Sync>> {
        let values = Source::values(name, shape).into_iter();
        let bytes: Vec<u8> = values
            .flat_map(|v| f16::from_f32(v).to_le_bytes())
            .collect();
        Ok(RawTensor {
            bytes: bytes.into(),
            storage: Storage::F16,
            shape: shape.to_vec(),
        })
    }

    fn has(&self, _: &str) -> bool {
        true
    }

    fn low_rank(&self, layer: &str) -> Option<LowRank> {
        (layer == "to_q").then_some(LowRank {
            rank: 3,
            scale: SCALE,
        })
    }
}

#[test]
fn a_low_rank_addition_equals_the_merged_weight() {
    let device = Device::flex().autodiff();
    let trainable = Trainable::new(|name| name.contains("lora_"));
    let params = Params::new(&Source, &device).training(&trainable);
    let layer = Linear::load(&params.at("to_q"), 10, 6, true).expect("the source has all");
    assert_eq!(
        trainable.names(),
        ["to_q.lora_A.weight", "to_q.lora_B.weight"]
    );
    assert_eq!(layer.weight.val().dtype(), DType::F16);

    let leaf = |name: &str, shape: [usize; 2]| {
        let values = Source::values(name, &shape);
        flat(&values, &device)
            .reshape(shape)
            .detach()
            .require_grad()
    };
    for activation in [Activation::None, Activation::Silu] {
        let x = leaf("x", [4, 10]);
        let residual = Some(leaf("residual", [4, 6]).detach());
        let y = layer.forward_with(x.clone(), activation, residual.clone());
        let found_y = host(y.clone());
        let mut grads = (y.clone() * y).sum().backward();
        let dx = host(x.grad_remove(&mut grads).expect("wanted"));
        let found = trainable.gradients(&layer, grads);

        let down = leaf("to_q.lora_A.weight", [3, 10]);
        let up = leaf("to_q.lora_B.weight", [6, 3]);
        let frozen = leaf("to_q.weight", [6, 10]).detach();
        let epilogue = Epilogue {
            bias: Some(flat(&Source::values("to_q.bias", &[6]), &device)),
            activation,
            residual,
        };
        let x = leaf("x", [4, 10]);
        let merged: Tensor<2> = frozen + up.clone().matmul(down.clone()) * SCALE;
        let y = reference::linear(x.clone(), merged, epilogue);
        close("y", &found_y, &host(y.clone()), 1e-5);
        let grads = (y.clone() * y).sum().backward();
        for (what, found, leaf) in [
            ("x", &dx, &x),
            ("down", &found["to_q.lora_A.weight"], &down),
            ("up", &found["to_q.lora_B.weight"], &up),
        ] {
            close(what, found, &host(leaf.grad(&grads).expect("wanted")), 1e-5);
        }
    }
    let plain = Linear::load(&params.at("to_k"), 10, 6, true).expect("the source has all");
    assert!(plain.low_rank.is_none());
}
