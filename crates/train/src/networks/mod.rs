//! The networks that are trained to remove noise, behind one contract.

mod picture;
mod plane;
mod router;
mod text;

pub use picture::PictureNetwork;
pub(crate) use plane::PlaneConfig;
pub use plane::PlaneNetwork;
pub use router::Stored;
pub(crate) use router::{Router, Trained};
pub use text::TextNetwork;

use aquatint_ops::Tensor;
use burn::module::Module;

use crate::TrainError;

/// What a network is told of each example beside its noise level.
#[derive(Debug, Clone, Default)]
pub struct Told {
    /// Token ids of the captions, all of one length, for a text encoder that is a part of the network.
    pub tokens: Vec<Vec<u32>>,
    /// Captions that are encoded already, `[batch, tokens, channels]`.
    pub context: Option<Tensor<3>>,
    /// Classes; the last one of the network stands for none.
    pub classes: Vec<usize>,
}

/// A network that predicts what was done to a noised example.
pub trait Network: Module {
    /// The prediction.
    ///
    /// # Shapes
    /// - input: `[batch, height, width, channels]`; timesteps: one an example; output: as input
    ///
    /// # Errors
    /// When the inputs do not fit the network.
    fn predict(
        &self,
        input: Tensor<4>,
        timesteps: &[f64],
        told: &Told,
    ) -> Result<Tensor<4>, TrainError>;
}
