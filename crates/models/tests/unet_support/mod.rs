//! A checkpoint and the references of its stages, read by the testkit.
#![allow(dead_code)] // each test file uses its part

use std::collections::BTreeSet;
use std::error::Error;
use std::path::Path;

use aquatint_models::unet::UNet2DCondition;
use aquatint_ops::{Device, ParamSource, Params, RawTensor, Tensor};
use aquatint_testkit::{Tensors, relative_error};
use burn::tensor::{DType, TensorData};

/// A checkpoint's tensors, under an optional prefix.
pub struct Checkpoint {
    tensors: Tensors,
    prefix: String,
}

impl Checkpoint {
    pub fn read(path: impl AsRef<Path>, prefix: &str) -> Self {
        Checkpoint {
            tensors: Tensors::read(path).unwrap(),
            prefix: prefix.to_owned(),
        }
    }
}

impl ParamSource for Checkpoint {
    fn tensor(
        &self,
        name: &str,
        _shape: &[usize],
    ) -> Result<RawTensor, Box<dyn Error + Send + Sync>> {
        let full = format!("{}{name}", self.prefix);
        if !self.tensors.contains(&full) {
            return Err(format!("no tensor `{full}`").into());
        }
        let tensor = self.tensors.get(&full);
        Ok(RawTensor::from_f32(tensor.f32(), tensor.shape()))
    }

    fn has(&self, name: &str) -> bool {
        self.tensors.contains(&format!("{}{name}", self.prefix))
    }
}

/// The tensors of a checkpoint that a rule picks.
pub struct Only(pub Checkpoint, pub fn(&str) -> bool);

impl ParamSource for Only {
    fn tensor(
        &self,
        name: &str,
        shape: &[usize],
    ) -> Result<RawTensor, Box<dyn Error + Send + Sync>> {
        match (self.1)(name) {
            true => self.0.tensor(name, shape),
            false => Err(format!("no tensor `{name}`").into()),
        }
    }

    fn has(&self, name: &str) -> bool {
        (self.1)(name) && self.0.has(name)
    }
}

/// A checkpoint whose names are given to it changed.
pub struct Renamed(pub Checkpoint, pub fn(&str) -> String);

impl ParamSource for Renamed {
    fn tensor(
        &self,
        name: &str,
        shape: &[usize],
    ) -> Result<RawTensor, Box<dyn Error + Send + Sync>> {
        self.0.tensor(&(self.1)(name), shape)
    }

    fn has(&self, name: &str) -> bool {
        self.0.has(&(self.1)(name))
    }
}

pub fn device() -> Device {
    Device::flex()
}

pub fn to_device<const D: usize>(tensor: &aquatint_testkit::Tensor) -> Tensor<D> {
    let data = TensorData::new(tensor.f32().to_vec(), tensor.shape().to_vec());
    Tensor::from_data(data, (&device(), DType::F32))
}

/// PyTorch's NCHW to our channels last.
pub fn image(tensor: &aquatint_testkit::Tensor) -> Tensor<4> {
    to_device(&tensor.channels_last())
}

pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec::<f32>().unwrap()
}

pub fn floats(tensor: &aquatint_testkit::Tensor) -> Vec<f64> {
    tensor.f32().iter().map(|&v| f64::from(v)).collect()
}

/// Compares stages with their references as they come.
pub struct Stages<'a> {
    references: &'a Tensors,
    prefix: &'a str,
    tolerance: f64,
    seen: BTreeSet<String>,
    worst: (f64, String),
}

impl<'a> Stages<'a> {
    pub fn new(references: &'a Tensors, prefix: &'a str, tolerance: f64) -> Self {
        Stages {
            references,
            prefix,
            tolerance,
            seen: BTreeSet::new(),
            worst: (0.0, String::new()),
        }
    }

    /// Holds that `got`, channels last, is the reference of its stage, when there is one.
    pub fn check(&mut self, stage: &str, got: &Tensor<4>) {
        let name = format!("{}{stage}", self.prefix);
        if !self.references.contains(&name) {
            return;
        }
        let want = self.references.get(&name);
        let want = match want.shape().len() {
            4 => want.channels_last(),
            _ => want.clone(),
        };
        let got = got.clone();
        if want.shape().len() == 4 {
            assert_eq!(got.dims().as_slice(), want.shape(), "{name}");
        }
        let mut got = values(got);
        if want.shape().len() == 2 {
            // A batch with one timestep shares one row.
            got = got.repeat(want.f32().len() / got.len());
        }
        let error = relative_error(&got, want.f32());
        assert!(
            error <= self.tolerance,
            "{name}: relative error {error:.2e}"
        );
        if error > self.worst.0 {
            self.worst = (error, name.clone());
        }
        self.seen.insert(name);
    }

    /// Holds that every reference that `wanted` picks was compared.
    pub fn finish(self, wanted: impl Fn(&str) -> bool) {
        let missed: Vec<&str> = self
            .references
            .names()
            .filter(|n| n.strip_prefix(self.prefix).is_some_and(&wanted) && !self.seen.contains(*n))
            .collect();
        assert!(missed.is_empty(), "not compared: {missed:?}");
        assert!(!self.seen.is_empty());
        println!(
            "{}: {} stages, worst relative error {:.2e} at {}",
            self.prefix,
            self.seen.len(),
            self.worst.0,
            self.worst.1
        );
    }
}

pub fn load_unet(folder: &Path) -> UNet2DCondition {
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let config = aquatint_models::unet::UNetConfig::from_json(&config).unwrap();
    let weights = folder.join("diffusion_pytorch_model.safetensors");
    let checkpoint = Checkpoint::read(weights, "");
    UNet2DCondition::load(&Params::new(&checkpoint, &device()), &config).unwrap()
}
