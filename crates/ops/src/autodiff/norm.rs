//! Group and layer normalisation.

use aquatint_kernels::{
    Buffer, GroupNormBackward, LayerNormBackward, group_norm_backward, layer_norm_backward,
};
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;

use super::record::{Entry, Recompute, Rule, Saved, plain, primitive};
use super::values::{values, wrap};
use crate::flex::{self, done};
use crate::fused::Activation;

/// What a layer norm shares with a group norm: it is one of a single position and a single group.
#[derive(Debug, Clone, Copy)]
struct Shape {
    groups: usize,
    eps: f64,
    silu: bool,
    layer: bool,
}

#[derive(Debug, Clone)]
struct Norm {
    x: Saved,
    gamma: Saved,
    /// For SiLU's derivative.
    beta: Option<Saved>,
    shape: Shape,
}

impl Rule<3> for Norm {
    fn gradients(
        self,
        dy: FlexTensor,
        [wants_x, wants_gamma, wants_beta]: [bool; 3],
        saved: &mut Checkpointer,
    ) -> [Option<FlexTensor>; 3] {
        let x = self.x.take(saved);
        let dims = x.layout().shape().to_vec();
        let channels = dims[dims.len() - 1];
        let (x, gamma) = (values(x), values(self.gamma.take(saved)));
        let beta = self.beta.map(|beta| values(beta.take(saved)));
        let dy = values(dy);
        let mut dx = Buffer::new(x.values().len());
        let vector = |wanted: bool| wanted.then(|| Buffer::new(channels));
        let (mut dgamma, mut dbeta) = (vector(wants_gamma), vector(wants_beta));
        let Shape {
            groups, eps, silu, ..
        } = self.shape;
        done(match self.shape.layer {
            true => layer_norm_backward(LayerNormBackward {
                x: x.values(),
                dy: dy.values(),
                cols: channels,
                eps: eps as f32,
                gamma: Some(gamma.values()),
                dx: &mut dx,
                dgamma: dgamma.as_deref_mut(),
                dbeta: dbeta.as_deref_mut(),
            }),
            false => group_norm_backward(GroupNormBackward {
                x: x.values(),
                dy: dy.values(),
                batch: dims[0],
                pixels: dims[1..dims.len() - 1].iter().product(),
                channels,
                groups,
                eps: eps as f32,
                gamma: Some(gamma.values()),
                beta: beta.as_ref().map(|beta| beta.values()),
                activation: match silu {
                    true => Activation::Silu,
                    false => Activation::None,
                },
                dx: &mut dx,
                dgamma: dgamma.as_deref_mut(),
                dbeta: dbeta.as_deref_mut(),
            }),
        });
        let vector = |sums: Option<Buffer>| sums.map(|sums| wrap(sums, &[channels]));
        [
            wants_x.then(|| wrap(dx, &dims)),
            vector(dgamma),
            vector(dbeta),
        ]
    }
}

fn norm<const D: usize>(
    x: &Tensor<D>,
    gamma: &Tensor<1>,
    beta: &Tensor<1>,
    shape: Shape,
    forward: impl Fn(&Tensor<D>, &Tensor<1>, &Tensor<1>) -> Option<Tensor<D>> + Send + Sync + 'static,
) -> Option<Tensor<D>> {
    let mut entry = Entry::default();
    let x = entry.operand(x)?;
    let (gamma, beta) = (entry.operand(gamma)?, entry.operand(beta)?);
    entry.belongs()?;
    let y = forward(&x.value(), &gamma.value(), &beta.value())?;
    let inputs = vec![x.saved(), gamma.saved(), beta.saved()];
    let recompute = Recompute::new(inputs, move |inputs| {
        let [gamma, beta] = [1, 2].map(|i: usize| plain(inputs[i].clone()));
        let y = forward(&plain(inputs[0].clone()), &gamma, &beta);
        primitive(y.expect("as in the forward pass"))
    });
    let nodes = [x.node(), gamma.node(), beta.node()];
    Some(entry.record(nodes, y, Some(recompute), |keeper| Norm {
        x: keeper.keep(&x),
        gamma: keeper.keep(&gamma),
        beta: shape.silu.then(|| keeper.keep(&beta)),
        shape,
    }))
}

pub(crate) fn group_norm<const D: usize>(
    x: &Tensor<D>,
    groups: usize,
    eps: f64,
    gamma: &Tensor<1>,
    beta: &Tensor<1>,
    silu: bool,
) -> Option<Tensor<D>> {
    let shape = Shape {
        groups,
        eps,
        silu,
        layer: false,
    };
    norm(x, gamma, beta, shape, move |x, gamma, beta| {
        flex::group_norm(x, groups, eps, gamma, beta, silu)
    })
}

pub(crate) fn layer_norm<const D: usize>(
    x: &Tensor<D>,
    eps: f64,
    gamma: &Tensor<1>,
    beta: &Tensor<1>,
) -> Option<Tensor<D>> {
    let shape = Shape {
        groups: 1,
        eps,
        silu: false,
        layer: true,
    };
    norm(x, gamma, beta, shape, move |x, gamma, beta| {
        flex::layer_norm(x, eps, gamma, beta)
    })
}
