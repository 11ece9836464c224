//! The parameters of a model that is trained, by their names in the checkpoint.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{DType, Gradients, Tensor, TensorData};

/// Which parameters are trained, and the names of those that a model was built with.
///
/// A model that is built through [`crate::Params::training`] on an autodiff device holds its trained
/// parameters in f32, whatever the storage type of the source, and wants their gradients. All other
/// parameters are frozen: constants in their storage type.
///
/// ```
/// use aquatint_ops::nn::Linear;
/// use aquatint_ops::{Device, ParamSource, Params, RawTensor, Tensor, Trainable};
///
/// struct Ones;
/// impl ParamSource for Ones {
///     fn tensor(&self, _: &str, shape: &[usize])
///         -> Result<RawTensor, Box<dyn std::error::Error + Send + Sync>> {
///         Ok(RawTensor::from_f32(&vec![1.0; shape.iter().product()], shape))
///     }
///     fn has(&self, _: &str) -> bool { true }
/// }
///
/// # fn main() -> Result<(), aquatint_ops::OpsError> {
/// let device = Device::flex().autodiff();
/// let trainable = Trainable::new(|name| name.ends_with("weight"));
/// let params = Params::new(&Ones, &device).training(&trainable);
/// let mut model = Linear::load(&params.at("layer"), 3, 2, true)?;
/// assert_eq!(trainable.names(), ["layer.weight"]);
///
/// let x = Tensor::<2>::ones([4, 3], &device);
/// let loss = model.forward(x).powf_scalar(2.0).mean();
/// let gradients = trainable.gradients(&model, loss.backward());
/// model = trainable.update(model, |name, weights| {
///     for (w, g) in weights.iter_mut().zip(&gradients[name]) {
///         *w -= 0.01 * g;
///     }
/// });
/// # let _ = model; Ok(()) }
/// ```
pub struct Trainable {
    select: Box<dyn Fn(&str) -> bool + Send + Sync>,
    parameters: Mutex<HashMap<ParamId, Parameter>>,
}

/// A trained parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Parameter {
    name: String,
    /// As in the checkpoint.
    shape: Vec<usize>,
}

/// Gradients by the names of their parameters, in the checkpoint's element order.
pub type NamedGradients = BTreeMap<String, Vec<f32>>;

impl Trainable {
    /// Trains the parameters whose full names `select` accepts.
    pub fn new(select: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        Trainable {
            select: Box::new(select),
            parameters: Mutex::default(),
        }
    }

    /// Trains every parameter.
    pub fn all() -> Self {
        Trainable::new(|_| true)
    }

    /// The names of the trained parameters of the models built so far, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.locked().values().map(|p| p.name.clone()).collect();
        names.sort();
        names
    }

    /// Takes the gradients of the trained parameters out of those of a loss. A parameter that the
    /// loss does not depend on has no entry.
    pub fn gradients<M: Module>(&self, model: &M, gradients: Gradients) -> NamedGradients {
        let mut take = Take {
            parameters: &self.locked(),
            gradients,
            taken: NamedGradients::new(),
        };
        model.visit(&mut take);
        take.taken
    }

    /// Changes the values of the trained parameters, in place where nobody else holds them: drop
    /// the loss and what it was made from before.
    #[must_use = "the model is given back"]
    pub fn update<M: Module>(&self, model: M, change: impl FnMut(&str, &mut [f32])) -> M {
        model.map(&mut Change {
            parameters: &self.locked(),
            change,
        })
    }

    /// Shows the trained parameters: name, shape in the checkpoint, values.
    pub fn visit<M: Module>(&self, model: &M, show: impl FnMut(&str, &[usize], &[f32])) {
        model.visit(&mut Show {
            parameters: &self.locked(),
            show,
        });
    }

    /// Whether a parameter is trained.
    pub(crate) fn selects(&self, name: &str) -> bool {
        (self.select)(name)
    }

    /// Whether a parameter is trained; if so, it is entered.
    pub(crate) fn enter(&self, id: ParamId, name: &str, shape: &[usize]) -> bool {
        let trained = self.selects(name);
        if trained {
            let (name, shape) = (name.to_owned(), shape.to_vec());
            self.locked().insert(id, Parameter { name, shape });
        }
        trained
    }

    /// The map is whole after every change, so a panic elsewhere does not spoil it.
    fn locked(&self) -> MutexGuard<'_, HashMap<ParamId, Parameter>> {
        self.parameters
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Trainable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trainable")
            .field("parameters", &self.locked())
            .finish_non_exhaustive()
    }
}

fn into_values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data()
        .try_into_vec::<f32>()
        .expect("trained parameters and their gradients are f32")
}

struct Take<'a> {
    parameters: &'a HashMap<ParamId, Parameter>,
    gradients: Gradients,
    taken: NamedGradients,
}

impl ModuleVisitor for Take<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(parameter) = self.parameters.get(&param.id)
            && let Some(gradient) = param.grad_remove(&mut self.gradients)
        {
            self.taken
                .insert(parameter.name.clone(), into_values(gradient));
        }
    }
}

struct Change<'a, F> {
    parameters: &'a HashMap<ParamId, Parameter>,
    change: F,
}

impl<F: FnMut(&str, &mut [f32])> ModuleMapper for Change<'_, F> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(parameter) = self.parameters.get(&param.id) else {
            return param;
        };
        let (id, tensor, mapper) = param.consume();
        let (device, shape) = (tensor.device(), tensor.dims());
        let mut values = into_values(tensor.without_autodiff());
        (self.change)(&parameter.name, &mut values);
        let data = TensorData::new(values, shape);
        let tensor = Tensor::from_data(data, (&device, DType::F32));
        let wants = device.is_autodiff();
        Param::from_mapped_value(id, tensor.set_require_grad(wants), mapper)
    }
}

struct Show<'a, F> {
    parameters: &'a HashMap<ParamId, Parameter>,
    show: F,
}

impl<F: FnMut(&str, &[usize], &[f32])> ModuleVisitor for Show<'_, F> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(parameter) = self.parameters.get(&param.id) {
            let data = param.val().without_autodiff().into_data();
            if let Ok(values) = data.as_slice::<f32>() {
                (self.show)(&parameter.name, &parameter.shape, values);
            }
        }
    }
}
