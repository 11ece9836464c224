//! Activations, GEGLU, rotary embeddings and the embedding table.

use aquatint_kernels::{
    ActivateBackward, Buffer, GegluBackward, activate_backward, geglu_backward,
};
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;

use super::record::{Entry, Recompute, Rule, Saved, plain, primitive};
use super::values::{values, wrap};
use crate::flex::{self, done};
use crate::fused::{Activation, RotaryPairs};

#[derive(Debug, Clone)]
struct Activate {
    x: Saved,
    kind: Activation,
}

/// `dy * activation'(z)`.
pub(super) fn activation_gradient(z: FlexTensor, dy: FlexTensor, kind: Activation) -> FlexTensor {
    let shape = z.layout().shape().to_vec();
    let (z, dy) = (values(z), values(dy));
    let mut dx = Buffer::new(z.values().len());
    done(activate_backward(ActivateBackward {
        x: z.values(),
        dy: dy.values(),
        activation: kind,
        dx: &mut dx,
    }));
    wrap(dx, &shape)
}

impl Rule<1> for Activate {
    fn gradients(
        self,
        dy: FlexTensor,
        _: [bool; 1],
        saved: &mut Checkpointer,
    ) -> [Option<FlexTensor>; 1] {
        [Some(activation_gradient(self.x.take(saved), dy, self.kind))]
    }
}

pub(crate) fn activate<const D: usize>(x: &Tensor<D>, kind: Activation) -> Option<Tensor<D>> {
    let mut entry = Entry::default();
    let input = entry.operand(x)?;
    entry.belongs()?;
    let forward = move |x: Tensor<D>| flex::activate(x, kind).ok();
    let y = forward(input.value())?;
    let recompute = Recompute::new(vec![input.saved()], move |inputs| {
        primitive(forward(plain(inputs[0].clone())).expect("as in the forward pass"))
    });
    Some(
        entry.record([input.node()], y, Some(recompute), |keeper| Activate {
            x: keeper.keep(&input),
            kind,
        }),
    )
}

#[derive(Debug, Clone)]
struct Geglu {
    x: Saved,
}

impl Rule<1> for Geglu {
    fn gradients(
        self,
        dy: FlexTensor,
        _: [bool; 1],
        saved: &mut Checkpointer,
    ) -> [Option<FlexTensor>; 1] {
        let x = self.x.take(saved);
        let shape = x.layout().shape().to_vec();
        let (x, dy) = (values(x), values(dy));
        let mut out = Buffer::new(x.values().len());
        let columns = shape.last().map_or(0, |c| c / 2);
        done(geglu_backward(GegluBackward {
            x: x.values(),
            half: columns,
            dy: dy.values(),
            dx: &mut out,
        }));
        [Some(wrap(out, &shape))]
    }
}

pub(crate) fn geglu<const D: usize>(x: &Tensor<D>) -> Option<Tensor<D>> {
    let mut entry = Entry::default();
    let input = entry.operand(x)?;
    entry.belongs()?;
    let y = flex::geglu(&input.value())?;
    let recompute = Recompute::new(vec![input.saved()], |inputs| {
        let x = plain::<D>(inputs[0].clone());
        primitive(flex::geglu(&x).expect("as in the forward pass"))
    });
    Some(
        entry.record([input.node()], y, Some(recompute), |keeper| Geglu {
            x: keeper.keep(&input),
        }),
    )
}

#[derive(Debug, Clone)]
struct JoinChannels {
    /// Channels of either.
    channels: [usize; 2],
}

impl Rule<2> for JoinChannels {
    fn gradients(
        self,
        dy: FlexTensor,
        wanted: [bool; 2],
        _: &mut Checkpointer,
    ) -> [Option<FlexTensor>; 2] {
        let axis = dy.layout().shape().len() - 1;
        let [a, b] = self.channels;
        let part = |start, len| dy.narrow(axis, start, len).to_contiguous();
        [wanted[0].then(|| part(0, a)), wanted[1].then(|| part(a, b))]
    }
}

pub(crate) fn join_channels<const D: usize>(a: &Tensor<D>, b: &Tensor<D>) -> Option<Tensor<D>> {
    let mut entry = Entry::default();
    let (first, second) = (entry.operand(a)?, entry.operand(b)?);
    entry.belongs()?;
    let y = flex::join_channels(&first.value(), &second.value())?;
    let nodes = [first.node(), second.node()];
    Some(entry.record(nodes, y, None, |_| JoinChannels {
        channels: [a, b].map(|x| x.dims()[D - 1]),
    }))
}

#[derive(Debug, Clone)]
struct Embedding {
    ids: Vec<u32>,
    shape: [usize; 2],
}

impl Rule<1> for Embedding {
    fn gradients(
        self,
        dy: FlexTensor,
        _: [bool; 1],
        _: &mut Checkpointer,
    ) -> [Option<FlexTensor>; 1] {
        let [rows, channels] = self.shape;
        let dy = values(dy);
        let mut out = Buffer::zeroed(rows * channels);
        for (&id, dy) in self
            .ids
            .iter()
            .zip(dy.values().chunks_exact(channels.max(1)))
        {
            let row = &mut out[id as usize * channels..][..channels];
            row.iter_mut().zip(dy).for_each(|(sum, v)| *sum += v);
        }
        [Some(wrap(out, &self.shape))]
    }
}

pub(crate) fn embedding(table: &Tensor<2>, ids: &[Vec<u32>]) -> Option<Tensor<3>> {
    let mut entry = Entry::default();
    let weight = entry.operand(table)?;
    entry.belongs()?;
    let y = flex::embedding(&weight.value(), ids)?;
    Some(entry.record([weight.node()], y, None, |_| Embedding {
        ids: ids.concat(),
        shape: table.dims(),
    }))
}

/// A rotation's gradient is turned back.
#[derive(Debug, Clone)]
struct Rotary {
    cos: Tensor<2>,
    sin: Tensor<2>,
    pairs: RotaryPairs,
}

impl Rule<1> for Rotary {
    fn gradients(
        self,
        dy: FlexTensor,
        _: [bool; 1],
        _: &mut Checkpointer,
    ) -> [Option<FlexTensor>; 1] {
        let dx = flex::rotary(plain(dy), &self.cos, &self.sin.neg(), self.pairs);
        [Some(primitive(dx.expect("as in the forward pass")))]
    }
}

pub(crate) fn rotary(
    x: &Tensor<4>,
    cos: &Tensor<2>,
    sin: &Tensor<2>,
    pairs: RotaryPairs,
) -> Option<Tensor<4>> {
    let mut entry = Entry::default();
    let input = entry.operand(x)?;
    let (cos, sin) = (entry.operand(cos)?, entry.operand(sin)?);
    // No kernel gives the gradient of an angle.
    if cos.is_tracked() || sin.is_tracked() {
        return None;
    }
    entry.belongs()?;
    let (cos, sin) = (cos.value(), sin.value());
    let y = flex::rotary(input.value(), &cos, &sin, pairs).ok()?;
    Some(entry.record([input.node()], y, None, |_| Rotary { cos, sin, pairs }))
}
