//! How an operation is entered into burn's graph: its operands, what it keeps, and its rule.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::retro_forward::RetroForward;
use burn::backend::autodiff::checkpoint::state::BackwardStates;
use burn::backend::autodiff::checkpoint::strategy::{
    BalancedCheckpointing, CheckpointStrategy, NoCheckpointing,
};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, DispatchKindConversion, DispatchTensor, Flex};
use burn::tensor::{DType, Tensor};

/// A tensor with its place in the graph. The type is the same for both strategies.
pub(super) type Node = FloatTensor<Autodiff<Flex>>;

/// What burn does with values that are cheap to compute again.
#[derive(Debug, Clone, Copy)]
enum Strategy {
    /// Keep them (`device.autodiff()`).
    Keep,
    /// Compute them again (`device.autodiff().gradient_checkpointing()`).
    Recompute,
}

/// An operand on `Flex`: a constant, or a tracked tensor.
pub(super) struct Operand<const D: usize> {
    value: FlexTensor,
    node: Option<Node>,
}

impl<const D: usize> Operand<D> {
    /// The value alone, outside the graph.
    pub fn value(&self) -> Tensor<D> {
        plain(self.value.clone())
    }

    /// Its place in the graph, when it is tracked.
    pub fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    pub fn is_tracked(&self) -> bool {
        self.node.is_some()
    }

    /// For a [`Recompute`]: by its place when it is tracked, else by value.
    pub fn saved(&self) -> Saved {
        match &self.node {
            Some(node) => Saved::Node(node.id()),
            None => Saved::Value(self.value.clone()),
        }
    }
}

/// A plain `Flex` tensor.
pub(super) fn plain<const D: usize>(value: FlexTensor) -> Tensor<D> {
    Tensor::from_primitive::<Flex>(value)
}

/// The primitive of a plain `Flex` tensor.
pub(super) fn primitive<const D: usize>(x: Tensor<D>) -> FlexTensor {
    x.try_into_primitive::<Flex>()
        .expect("the tensor was made on Flex")
}

/// A value that a rule will ask for.
#[derive(Debug, Clone)]
pub(super) enum Saved {
    /// Held, or computed again, by burn.
    Node(NodeId),
    /// A constant.
    Value(FlexTensor),
}

impl Saved {
    /// The value, in the backward pass. To be called once for each time that it was kept.
    pub fn take(self, saved: &mut Checkpointer) -> FlexTensor {
        match self {
            Saved::Node(id) => saved.retrieve_node_output(id),
            Saved::Value(value) => value,
        }
    }

    fn again(&self, states: &mut BackwardStates) -> FlexTensor {
        match self {
            Saved::Node(id) => states.get_state(id),
            Saved::Value(value) => value.clone(),
        }
    }
}

type Forward = dyn Fn(&[FlexTensor]) -> FlexTensor + Send + Sync;

/// Computes an operation's output again from its operands. Every tracked operand must be among the
/// inputs, once.
#[derive(Clone)]
pub(super) struct Recompute {
    inputs: Vec<Saved>,
    forward: Arc<Forward>,
}

impl Recompute {
    pub fn new(
        inputs: Vec<Saved>,
        forward: impl Fn(&[FlexTensor]) -> FlexTensor + Send + Sync + 'static,
    ) -> Self {
        let forward = Arc::new(forward);
        Recompute { inputs, forward }
    }
}

impl fmt::Debug for Recompute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recompute")
            .field("inputs", &self.inputs)
            .finish_non_exhaustive()
    }
}

impl RetroForward for Recompute {
    fn forward(&self, states: &mut BackwardStates, out_node: NodeId) {
        let inputs: Vec<FlexTensor> = self.inputs.iter().map(|i| i.again(states)).collect();
        states.save(out_node, (self.forward)(&inputs));
    }
}

/// The backward of an operation with `N` operands: what it kept, and what it makes of it.
pub(super) trait Rule<const N: usize>: fmt::Debug + Clone + Send + 'static {
    /// The gradients of the operands that are `wanted`, from that of the output.
    fn gradients(
        self,
        dy: FlexTensor,
        wanted: [bool; N],
        saved: &mut Checkpointer,
    ) -> [Option<FlexTensor>; N];
}

#[derive(Debug)]
struct Step<R>(PhantomData<R>);

impl<R: Rule<N>, const N: usize> Backward<Flex, N> for Step<R> {
    type State = R;

    fn backward(self, ops: Ops<R, N>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let dy = grads.consume::<Flex>(&ops.node);
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let gradients = ops.state.gradients(dy, wanted, checkpointer);
        for (parent, gradient) in ops.parents.into_iter().zip(gradients) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                grads.register::<Flex>(parent.id, gradient);
            }
        }
    }
}

/// Keeps operands for a rule.
pub(super) struct Keeper<'a>(&'a mut dyn FnMut(&Node) -> NodeId);

impl Keeper<'_> {
    pub fn keep<const D: usize>(&mut self, operand: &Operand<D>) -> Saved {
        match &operand.node {
            Some(node) => Saved::Node((self.0)(node)),
            None => Saved::Value(operand.value.clone()),
        }
    }
}

/// One operation while it is entered: finds its operands' strategy.
#[derive(Debug, Default)]
pub(super) struct Entry {
    strategy: Option<Strategy>,
}

impl Entry {
    /// Nothing when the tensor is not on `Flex`, or is tracked in another type than f32.
    pub fn operand<const D: usize>(&mut self, x: &Tensor<D>) -> Option<Operand<D>> {
        if let Ok(value) = x.clone().try_into_primitive::<Flex>() {
            return Some(Operand { value, node: None });
        }
        let (node, strategy) = in_graph::<D, NoCheckpointing>(x)
            .map(|node| (node, Strategy::Keep))
            .or_else(|| {
                Some((
                    in_graph::<D, BalancedCheckpointing>(x)?,
                    Strategy::Recompute,
                ))
            })?;
        self.strategy = Some(strategy);
        let value = node.primitive().clone();
        let node = node.is_tracked().then_some(node);
        (node.is_none() || value.dtype() == DType::F32).then_some(Operand { value, node })
    }

    pub fn optional<const D: usize>(
        &mut self,
        x: &Option<Tensor<D>>,
    ) -> Option<Option<Operand<D>>> {
        match x {
            None => Some(None),
            Some(x) => self.operand(x).map(Some),
        }
    }

    /// Whether any operand belongs to autodiff. If none does, the caller has no business here.
    pub fn belongs(&self) -> Option<()> {
        self.strategy.map(|_| ())
    }

    /// Enters an operation with the given output. `rule` keeps what it will need; it is not called
    /// when no operand is tracked. With `recompute` burn may drop the output and compute it again.
    pub fn record<R: Rule<N>, const N: usize, const D: usize>(
        self,
        operands: [Option<&Node>; N],
        output: Tensor<D>,
        recompute: Option<Recompute>,
        rule: impl FnOnce(&mut Keeper<'_>) -> R,
    ) -> Tensor<D> {
        let output = primitive(output);
        match self.strategy {
            Some(Strategy::Recompute) => {
                record::<R, BalancedCheckpointing, N, D>(operands, output, recompute, rule)
            }
            _ => record::<R, NoCheckpointing, N, D>(operands, output, recompute, rule),
        }
    }
}

fn in_graph<const D: usize, C: CheckpointStrategy>(x: &Tensor<D>) -> Option<Node>
where
    DispatchTensor: DispatchKindConversion<Autodiff<Flex, C>>,
{
    x.clone().try_into_primitive::<Autodiff<Flex, C>>().ok()
}

fn record<R: Rule<N>, C: CheckpointStrategy, const N: usize, const D: usize>(
    operands: [Option<&Node>; N],
    output: FlexTensor,
    recompute: Option<Recompute>,
    rule: impl FnOnce(&mut Keeper<'_>) -> R,
) -> Tensor<D>
where
    DispatchTensor: DispatchKindConversion<Autodiff<Flex, C>>,
{
    if operands.iter().all(Option::is_none) {
        return Tensor::from_primitive::<Autodiff<Flex, C>>(Node::new(output));
    }
    // An operand that is absent or constant stands in the graph as a leaf that wants nothing.
    let guards = operands.map(|node| match node {
        Some(node) => node.node(),
        None => Node::new(output.clone()).node(),
    });
    let prep = Backward::<Flex, N>::prepare::<C>(Step(PhantomData::<R>), guards);
    let prep = match recompute {
        Some(recompute) => prep
            .memory_bound()
            .retro_forward(recompute)
            .parents::<Flex, _>(operands.into_iter().flatten()),
        None => prep.compute_bound(),
    };
    let node = match prep.stateful() {
        OpsKind::Tracked(mut prep) => {
            let rule = rule(&mut Keeper(&mut |node| prep.checkpoint(node)));
            prep.finish(rule, output)
        }
        OpsKind::UnTracked(prep) => prep.finish(output),
    };
    Tensor::from_primitive::<Autodiff<Flex, C>>(node)
}
