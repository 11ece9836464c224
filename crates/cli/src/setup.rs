//! How the model is opened: the command line over what a picture was made with.

use std::path::{Path, PathBuf};

use aquatint_engine::diffusion::Prediction;
use aquatint_engine::metadata::{PARTS, Parameters};
use aquatint_engine::models::{Checkpoint, Location, OpenOptions, Storage, load_tiny};
use aquatint_engine::{Device, EngineError, RunOptions, picture};

use crate::args::{DtypeArg, GenerateArgs, PredictionArg};
use crate::failure::Failure;

const PREDICTIONS: &[(&str, Prediction)] = &[
    ("epsilon", Prediction::Epsilon),
    ("v", Prediction::V),
    ("sample", Prediction::Sample),
    ("flow", Prediction::Flow),
];
const STORAGES: &[(&str, Storage)] = &[
    ("f32", Storage::F32),
    ("f16", Storage::F16),
    ("bf16", Storage::Bf16),
];

/// The storage that the command line asks for.
pub fn storage(dtype: DtypeArg) -> Option<Storage> {
    match dtype {
        DtypeArg::Auto => None,
        DtypeArg::F32 => Some(Storage::F32),
        DtypeArg::F16 => Some(Storage::F16),
        DtypeArg::Bf16 => Some(Storage::Bf16),
    }
}

/// How the model is opened and run.
pub struct Setup {
    /// For opening.
    pub open: OpenOptions,
    /// For running.
    pub run: RunOptions,
}

/// Reads the parameters of `--from`.
pub fn read_from(path: &Path) -> Result<Parameters, Failure> {
    const HINT: &str = "give a PNG that Aquatint or AUTOMATIC1111 wrote, not edited since";
    let text = picture::read_parameters(path)?.ok_or_else(|| {
        Failure::new(
            format!("{}: the picture carries no parameters", path.display()),
            HINT,
        )
    })?;
    Parameters::from_text(&text)
        .map_err(|message| Failure::new(format!("{}: {message}", path.display()), HINT))
}

impl Setup {
    /// The command line, and where it is silent and names no other model, the picture of `--from`.
    pub fn new(args: &GenerateArgs, from: Option<&Parameters>) -> Result<Self, Failure> {
        let given = &args.model;
        let own = from.filter(|_| given.path.is_none());
        let stored = |key: usize| {
            let parts = own.into_iter().flat_map(|p| &p.parts);
            parts
                .filter(move |(k, _)| k == PARTS[key])
                .map(|(_, v)| v.as_str())
        };
        let path = |given: &Option<PathBuf>, key| {
            given
                .clone()
                .or_else(|| stored(key).next().map(PathBuf::from))
        };
        let paths = |given: &[PathBuf], key| match given {
            [] => stored(key).map(PathBuf::from).collect(),
            given => given.to_vec(),
        };
        let dtype = match given.dtype {
            DtypeArg::Auto => from.and_then(|p| p.dtype.as_deref()).unwrap_or_default(),
            DtypeArg::F32 => "f32",
            DtypeArg::F16 => "f16",
            DtypeArg::Bf16 => "bf16",
        };
        let prediction = match given.prediction {
            Some(PredictionArg::Epsilon) => "epsilon",
            Some(PredictionArg::V) => "v",
            Some(PredictionArg::Sample) => "sample",
            Some(PredictionArg::Flow) => "flow",
            None => stored(5).next().unwrap_or_default(),
        };
        let quick = match args.sampling.quick_decode {
            true => None,
            false => stored(6).next().map(PathBuf::from),
        };
        let setup = Setup {
            run: RunOptions {
                quick_decode: args.sampling.quick_decode || quick.is_some(),
                tiny: quick.or_else(|| given.taesd.clone()),
            },
            open: OpenOptions {
                storage: named(STORAGES, dtype),
                vae: path(&given.vae, 0),
                text_encoders: paths(&given.text_encoder, 1),
                t5: path(&given.t5, 7),
                tokenizers: paths(&given.tokenizer, 2),
                config: path(&given.config, 3),
                variant: given
                    .variant
                    .clone()
                    .or_else(|| stored(4).next().map(str::to_owned)),
                prediction: named(PREDICTIONS, prediction),
            },
        };
        setup.check_paths()?;
        Ok(setup)
    }

    /// A path that is not there is told before anything is loaded.
    fn check_paths(&self) -> Result<(), Failure> {
        let open = &self.open;
        let one =
            |flag, path: &Option<PathBuf>| path.iter().cloned().map(move |p| (flag, p)).collect();
        let many =
            |flag, paths: &[PathBuf]| paths.iter().cloned().map(move |p| (flag, p)).collect();
        let all: [Vec<(&str, PathBuf)>; 6] = [
            one("--vae", &open.vae),
            one("--t5", &open.t5),
            many("--text-encoder", &open.text_encoders),
            many("--tokenizer", &open.tokenizers),
            one("--config", &open.config),
            one("--taesd", &self.run.tiny),
        ];
        for (flag, path) in all.into_iter().flatten() {
            if !path.exists() {
                return Err(Failure::new(
                    format!("{}: no such file or folder", path.display()),
                    format!("check the path of {flag}"),
                ));
            }
            if matches!(flag, "--tokenizer" | "--config") && !path.is_dir() {
                return Err(Failure::new(
                    format!("{}: is a file, expected a folder", path.display()),
                    format!("give {flag} the folder that the file is in"),
                ));
            }
        }
        Ok(())
    }

    /// Refuses options that would have no effect on the model.
    pub fn check_model(&self, location: &Location, model: &Checkpoint) -> Result<(), Failure> {
        let open = &self.open;
        let folder = match location {
            Location::Path(path) => path.is_dir(),
            Location::Embedded { .. } => true,
        };
        if open.config.is_some() && folder {
            return Err(Failure::usage(
                "--config describes a single file, but the model is a folder, which has its own",
                "leave --config out",
            ));
        }
        let others = open.vae.iter().chain(&open.text_encoders).chain(&open.t5);
        let on_disk = matches!(location, Location::Path(_)) && folder;
        if open.variant.is_some() && !on_disk && !others.into_iter().any(|p| p.is_dir()) {
            return Err(Failure::usage(
                "--variant chooses among the files of a folder, but the model is none",
                "leave --variant out",
            ));
        }
        if open.t5.is_some() && model.family.t5.is_none() {
            return Err(Failure::usage(
                "--t5 is given, but this model reads no T5",
                "leave --t5 out",
            ));
        }
        let encoders = (model.family.text)().len();
        let tokenizers = encoders + usize::from(model.family.t5.is_some());
        for (flag, given, encoders) in [
            ("--text-encoder", open.text_encoders.len(), encoders),
            ("--tokenizer", open.tokenizers.len(), tokenizers),
        ] {
            if given > encoders {
                return Err(Failure::usage(
                    format!(
                        "{flag} is given {given} times, expected at most {encoders} for this model"
                    ),
                    "give it once for each text encoder, in order",
                ));
            }
        }
        Ok(())
    }

    /// Loads what else would fail only at the end of a long run, and lets go of it: a mapped file
    /// costs no copy.
    pub fn check_decoder(&self, model: &Checkpoint) -> Result<(), Failure> {
        let device = Device::flex();
        if let Some(tiny) = &self.run.tiny {
            let loaded = load_tiny(tiny, &device).map_err(EngineError::from)?;
            let found = loaded.config().latent_channels;
            let expected = model.vae.config.latent_channels;
            if found != expected {
                return Err(Failure::new(
                    format!(
                        "{}: reads latents of {found} channels, expected {expected} for this model",
                        tiny.display()
                    ),
                    "give --taesd the tiny autoencoder of this model's family",
                ));
            }
        }
        if !self.run.quick_decode {
            model.load_vae(&device).map_err(EngineError::from)?;
        }
        Ok(())
    }

    /// Name of the storage type, when it is not as stored.
    pub fn dtype(&self) -> Option<&'static str> {
        let wanted = self.open.storage?;
        STORAGES
            .iter()
            .find(|(_, s)| *s == wanted)
            .map(|(name, _)| *name)
    }

    /// What a picture tells of the setup, as [`Parameters::parts`].
    pub fn parts(&self) -> Vec<(String, String)> {
        let open = &self.open;
        let mut parts = Vec::new();
        let mut push = |key: usize, value: String| parts.push((PARTS[key].to_owned(), value));
        let one = |path: &PathBuf| {
            let absolute = path.canonicalize().unwrap_or_else(|_| path.clone());
            absolute.to_string_lossy().into_owned()
        };
        open.vae.iter().for_each(|p| push(0, one(p)));
        open.text_encoders.iter().for_each(|p| push(1, one(p)));
        open.tokenizers.iter().for_each(|p| push(2, one(p)));
        open.config.iter().for_each(|p| push(3, one(p)));
        open.variant.iter().for_each(|v| push(4, v.clone()));
        let prediction = PREDICTIONS
            .iter()
            .find(|(_, p)| Some(*p) == open.prediction);
        prediction
            .iter()
            .for_each(|(name, _)| push(5, (*name).to_owned()));
        let quick = self.run.tiny.iter().filter(|_| self.run.quick_decode);
        quick.for_each(|p| push(6, one(p)));
        open.t5.iter().for_each(|p| push(7, one(p)));
        parts
    }
}

fn named<T: Copy>(table: &[(&str, T)], name: &str) -> Option<T> {
    table
        .iter()
        .find(|(n, _)| *n == name)
        .map(|(_, value)| *value)
}
