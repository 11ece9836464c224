//! What a model is told of a class.

use aquatint_ops::fused::{Activation, timestep_embedding};
use aquatint_ops::nn::Linear;
use aquatint_ops::{OpsError, Params, Tensor};
use burn::module::{Module, Param};
use burn::tensor::{DType, Int, TensorData};

use super::config::{ClassKind, UNet2DConfig};

/// The classes of a batch, as the model's [`ClassKind`] wants them.
#[derive(Debug, Clone)]
// There is one a pass.
#[allow(clippy::large_enum_variant)]
pub enum Classes {
    /// Rows of [`ClassKind::Table`], one a batch entry.
    Rows(Vec<usize>),
    /// Numbers for [`ClassKind::Timestep`], one a batch entry.
    Numbers(Vec<f64>),
    /// Vectors for [`ClassKind::Identity`], `[batch, channels of the time embedding]`.
    Vectors(Tensor<2>),
}

/// Classes to vectors. Which of the fields are there depends on the kind.
#[derive(Module, Debug)]
pub struct ClassEmbedding {
    /// `[classes, channels]`, of a table.
    weight: Option<Param<Tensor<2>>>,
    /// Of a number that is embedded as a timestep is.
    linear_1: Option<Linear>,
    linear_2: Option<Linear>,
}

impl ClassEmbedding {
    /// Reads the embedding at `p`; nothing where the vectors come from outside, or no class is told.
    pub fn load(p: &Params<'_>, config: &UNet2DConfig) -> Result<Option<Self>, OpsError> {
        let (first, time) = (config.channels(0), config.time_embed_dim);
        Ok(match config.classes {
            None | Some(ClassKind::Identity) => None,
            Some(ClassKind::Table(n)) => Some(ClassEmbedding {
                // Widened: it is small, and rows are taken of it, not products.
                weight: Some(p.vector("weight", [n, time])?),
                linear_1: None,
                linear_2: None,
            }),
            Some(ClassKind::Timestep) => Some(ClassEmbedding {
                weight: None,
                linear_1: Some(Linear::load(&p.at("linear_1"), first, time, true)?),
                linear_2: Some(Linear::load(&p.at("linear_2"), time, time, true)?),
            }),
        })
    }

    /// The vectors of classes that [`check`] found to fit, `[batch, channels]`.
    pub(crate) fn forward(&self, classes: &Classes, config: &UNet2DConfig) -> Option<Tensor<2>> {
        match (classes, &self.weight, &self.linear_1, &self.linear_2) {
            (Classes::Rows(rows), Some(table), ..) => {
                let table = table.val();
                let rows: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
                let data = TensorData::new(rows.clone(), [rows.len()]);
                let rows = Tensor::<1, Int>::from_data(data, (&table.device(), DType::I32));
                Some(table.select(0, rows))
            }
            (Classes::Numbers(numbers), _, Some(first), Some(second)) => {
                let x = timestep_embedding(
                    numbers,
                    config.channels(0),
                    config.flip_sin_to_cos,
                    config.freq_shift,
                    &first.weight.device(),
                );
                Some(second.forward(first.forward_with(x, Activation::Silu, None)))
            }
            _ => None,
        }
    }
}

/// Whether classes fit the model and a batch: else what was found, and what was expected.
pub(crate) fn check(
    classes: Option<&Classes>,
    config: &UNet2DConfig,
    batch: usize,
) -> Result<(), (String, String)> {
    let (found, count, fits) = match classes {
        None => ("none".to_owned(), batch, config.classes.is_none()),
        Some(Classes::Rows(rows)) => {
            let fits = |n| rows.iter().all(|&row| row < n);
            let fits = matches!(config.classes, Some(ClassKind::Table(n)) if fits(n));
            (format!("the rows {rows:?}"), rows.len(), fits)
        }
        Some(Classes::Numbers(numbers)) => {
            let fits = config.classes == Some(ClassKind::Timestep);
            (format!("the numbers {numbers:?}"), numbers.len(), fits)
        }
        Some(Classes::Vectors(vectors)) => {
            let [rows, channels] = vectors.dims();
            let fits =
                config.classes == Some(ClassKind::Identity) && channels == config.time_embed_dim;
            (format!("vectors {:?}", vectors.dims()), rows, fits)
        }
    };
    if fits && count == batch {
        return Ok(());
    }
    let expected = match config.classes {
        None => "none: the model is told no class".to_owned(),
        Some(ClassKind::Table(n)) => format!("{batch} rows below {n}"),
        Some(ClassKind::Timestep) => format!("{batch} numbers"),
        Some(ClassKind::Identity) => format!("vectors [{batch}, {}]", config.time_embed_dim),
    };
    Err((found, expected))
}
