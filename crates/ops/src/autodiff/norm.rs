//! Group and layer normalisation; statistics are computed again in the backward pass.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;

use super::elementwise::activation_gradient;
use super::record::{Entry, Operand, Recompute, Rule, Saved, plain, primitive};
use crate::flex;
use crate::fused::Activation;

/// A group norm over `[batch, positions, channels]`; a layer norm has one position and one group.
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
        let (batch, positions) = match self.shape.layer {
            true => (dims.iter().product::<usize>() / channels, 1),
            false => (dims[0], dims[1..dims.len() - 1].iter().product()),
        };
        let groups = self.shape.groups;
        let size = channels / groups;
        let split = [batch, positions, groups, size];
        let mean = |x: Tensor<4>| x.mean_dim(1).mean_dim(3);
        let x = plain::<4>(x).reshape(split);
        let x = x.clone() - mean(x);
        let rstd = (mean(x.clone() * x.clone()) + self.shape.eps)
            .sqrt()
            .recip();
        let normal = x * rstd.clone();
        let gamma = plain::<1>(self.gamma.take(saved)).reshape([1, 1, groups, size]);
        let mut dz = plain::<4>(dy).reshape(split);
        if let Some(beta) = self.beta {
            let beta = plain::<1>(beta.take(saved)).reshape([1, 1, groups, size]);
            let z = normal.clone() * gamma.clone() + beta;
            let dz_silu = activation_gradient(primitive(z), primitive(dz), Activation::Silu);
            dz = plain(dz_silu);
        }
        let vector = |x: Tensor<4>| primitive(x.sum_dim(0).sum_dim(1).reshape([channels]));
        let dgamma = wants_gamma.then(|| vector(dz.clone() * normal.clone()));
        let dbeta = wants_beta.then(|| vector(dz.clone()));
        let dx = wants_x.then(|| {
            let d = dz * gamma;
            let dx = (d.clone() - mean(d.clone()) - normal.clone() * mean(d * normal)) * rstd;
            primitive(dx).reshape(dims.into())
        });
        [dx, dgamma, dbeta]
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
    let x: Operand<D> = entry.operand(x)?;
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
