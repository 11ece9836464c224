//! `activation(product + bias) + residual` after a product, forward and backward.

use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;

use super::elementwise::activation_gradient;
use super::record::{Entry, Node, Operand, primitive};
use super::values::{sum_rows, values};
use crate::flex::{self, Operand as Values};
use crate::fused::{Activation, Epilogue};

/// The operands of an epilogue.
pub(super) struct Operands<const D: usize> {
    bias: Option<Operand<1>>,
    residual: Option<Operand<D>>,
    activation: Activation,
}

/// What the backward of an epilogue needs.
#[derive(Debug, Clone)]
pub(super) struct Backward {
    /// The sum before the activation, when one follows.
    before: Option<FlexTensor>,
    /// Length of the bias.
    biases: usize,
    activation: Activation,
}

/// The gradients of an epilogue's operands.
pub(super) struct Gradients {
    /// Of the product.
    pub product: Values,
    pub bias: Option<FlexTensor>,
    pub residual: Option<FlexTensor>,
}

impl<const D: usize> Operands<D> {
    pub fn new(entry: &mut Entry, epilogue: &Epilogue<D>) -> Option<Self> {
        Some(Operands {
            bias: entry.optional(&epilogue.bias)?,
            residual: entry.optional(&epilogue.residual)?,
            activation: epilogue.activation,
        })
    }

    pub fn nodes(&self) -> [Option<&Node>; 2] {
        [
            self.bias.as_ref().and_then(Operand::node),
            self.residual.as_ref().and_then(Operand::node),
        ]
    }

    /// The output of `product`, an operation that takes an epilogue. The sum before an activation
    /// is kept when `tracked` says that an operand of the product is tracked, or the bias is.
    pub fn apply(
        &self,
        tracked: bool,
        product: impl FnOnce(&Epilogue<D>) -> Option<Tensor<D>>,
    ) -> Option<(Tensor<D>, Backward)> {
        let tracked = tracked || self.bias.as_ref().is_some_and(Operand::is_tracked);
        let apart = tracked && self.activation != Activation::None;
        let residual = self.residual.as_ref().map(Operand::value);
        let whole = Epilogue {
            bias: self.bias.as_ref().map(Operand::value),
            activation: match apart {
                true => Activation::None,
                false => self.activation,
            },
            residual: residual.clone().filter(|_| !apart),
        };
        let mut y = product(&whole)?;
        let before = apart.then(|| primitive(y.clone()));
        if apart {
            y = flex::activate(y, self.activation).ok()?;
            if let Some(residual) = residual {
                y = y + residual;
            }
        }
        let backward = Backward {
            before,
            biases: whole.bias.map_or(0, |bias| bias.dims()[0]),
            activation: self.activation,
        };
        Some((y, backward))
    }
}

impl Backward {
    /// From the output's gradient, which has `channels`.
    pub fn gradients(
        self,
        dy: FlexTensor,
        channels: usize,
        [wants_bias, wants_residual]: [bool; 2],
    ) -> Gradients {
        let residual = wants_residual.then(|| dy.clone());
        let product = values(match self.before {
            Some(before) => activation_gradient(before, dy, self.activation),
            None => dy,
        });
        let bias = wants_bias.then(|| sum_rows(product.values(), channels, self.biases));
        Gradients {
            product,
            bias,
            residual,
        }
    }
}
