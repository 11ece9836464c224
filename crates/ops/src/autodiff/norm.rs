//! Group, layer and root mean square normalisation.

use aquatint_kernels::{
    Buffer, GroupNormBackward, LayerNormBackward, RmsNormBackward, group_norm_backward,
    layer_norm_backward, rms_norm_backward,
};
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;

use super::record::{Entry, Recompute, Rule, Saved, plain, primitive};
use super::values::{values, wrap};
use crate::flex::{self, done};
use crate::fused::Activation;

#[derive(Debug, Clone, Copy)]
enum Kind {
    Group { groups: usize, silu: bool },
    Layer,
    Rms,
}

#[derive(Debug, Clone)]
struct Norm {
    x: Saved,
    gamma: Saved,
    /// For SiLU's derivative.
    beta: Option<Saved>,
    kind: Kind,
    eps: f64,
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
        let eps = self.eps as f32;
        done(match self.kind {
            Kind::Rms => rms_norm_backward(RmsNormBackward {
                x: x.values(),
                dy: dy.values(),
                cols: channels,
                eps,
                gamma: Some(gamma.values()),
                dx: &mut dx,
                dgamma: dgamma.as_deref_mut(),
            }),
            Kind::Layer => layer_norm_backward(LayerNormBackward {
                x: x.values(),
                dy: dy.values(),
                cols: channels,
                eps,
                gamma: Some(gamma.values()),
                dx: &mut dx,
                dgamma: dgamma.as_deref_mut(),
                dbeta: dbeta.as_deref_mut(),
            }),
            Kind::Group { groups, silu } => group_norm_backward(GroupNormBackward {
                x: x.values(),
                dy: dy.values(),
                batch: dims[0],
                pixels: dims[1..dims.len() - 1].iter().product(),
                channels,
                groups,
                eps,
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
    beta: Option<&Tensor<1>>,
    (kind, eps): (Kind, f64),
) -> Option<Tensor<D>> {
    let mut entry = Entry::default();
    let x = entry.operand(x)?;
    let gamma = entry.operand(gamma)?;
    let beta = match beta {
        Some(beta) => Some(entry.operand(beta)?),
        None => None,
    };
    entry.belongs()?;
    let forward = move |x: &Tensor<D>, gamma: &Tensor<1>, beta: Option<&Tensor<1>>| match kind {
        Kind::Group { groups, silu } => flex::group_norm(x, groups, eps, gamma, beta?, silu),
        Kind::Layer => flex::layer_norm(x, eps, gamma, beta?),
        Kind::Rms => flex::rms_norm(x, eps, gamma),
    };
    let shift = beta.as_ref().map(|beta| beta.value());
    let y = forward(&x.value(), &gamma.value(), shift.as_ref())?;
    let mut inputs = vec![x.saved(), gamma.saved()];
    inputs.extend(beta.as_ref().map(|beta| beta.saved()));
    let recompute = Recompute::new(inputs, move |inputs| {
        let (x, gamma) = (plain(inputs[0].clone()), plain(inputs[1].clone()));
        let beta = inputs.get(2).map(|beta| plain(beta.clone()));
        primitive(forward(&x, &gamma, beta.as_ref()).expect("as in the forward pass"))
    });
    let silu = matches!(kind, Kind::Group { silu: true, .. });
    let nodes = [
        x.node(),
        gamma.node(),
        beta.as_ref().and_then(|beta| beta.node()),
    ];
    Some(entry.record(nodes, y, Some(recompute), |keeper| Norm {
        x: keeper.keep(&x),
        gamma: keeper.keep(&gamma),
        beta: beta.as_ref().filter(|_| silu).map(|beta| keeper.keep(beta)),
        kind,
        eps,
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
    norm(x, gamma, Some(beta), (Kind::Group { groups, silu }, eps))
}

pub(crate) fn layer_norm<const D: usize>(
    x: &Tensor<D>,
    eps: f64,
    gamma: &Tensor<1>,
    beta: &Tensor<1>,
) -> Option<Tensor<D>> {
    norm(x, gamma, Some(beta), (Kind::Layer, eps))
}

pub(crate) fn rms_norm<const D: usize>(
    x: &Tensor<D>,
    eps: f64,
    gamma: &Tensor<1>,
) -> Option<Tensor<D>> {
    norm(x, gamma, None, (Kind::Rms, eps))
}
