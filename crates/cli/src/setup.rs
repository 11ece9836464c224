//! How the model is opened: the command line over what a picture was made with.

use std::path::{Path, PathBuf};

use aquatint_engine::diffusion::Prediction;
use aquatint_engine::metadata::{PARTS, Parameters};
use aquatint_engine::models::lora::Lora;
use aquatint_engine::models::{Location, OpenOptions, Storage, load_tiny};
use aquatint_engine::{Device, EngineError, Model, PromptSyntax, RunOptions, picture};

use crate::args::{DtypeArg, GenerateArgs, PredictionArg, SyntaxArg};
use crate::failure::Failure;
use crate::loras;

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
    /// The prompt, without what asks for LoRAs.
    pub prompt: Option<String>,
    /// The LoRAs' hashes, as pictures tell them.
    lora_hashes: Option<String>,
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
        let (prompt, loras) = prompt_and_loras(args, from, own)?;
        let setup = Setup {
            prompt,
            lora_hashes: None,
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
                loras,
            },
        };
        setup.check_paths()?;
        Ok(setup)
    }

    /// Computes what pictures tell of the LoRAs of an opened model.
    pub fn identify_loras(&mut self, model: &Model) -> Result<(), Failure> {
        let added = model.loras().iter();
        let files: Vec<_> = added.map(|l| (l.name.clone(), l.path.clone())).collect();
        if !files.is_empty() {
            self.lora_hashes = Some(crate::loras::hashes(&files)?);
        }
        Ok(())
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
    pub fn check_model(&self, location: &Location, model: &Model) -> Result<(), Failure> {
        let open = &self.open;
        let Model::Text(model) = model else {
            return self.check_pixel_model();
        };
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

    /// Refuses what a model without text has no use for.
    fn check_pixel_model(&self) -> Result<(), Failure> {
        let open = &self.open;
        let given = [
            ("--vae", open.vae.is_some()),
            ("--text-encoder", !open.text_encoders.is_empty()),
            ("--tokenizer", !open.tokenizers.is_empty()),
            ("--config", open.config.is_some()),
            ("--lora", !open.loras.is_empty()),
            ("--taesd", self.run.tiny.is_some()),
        ];
        match given.iter().find(|(_, given)| *given) {
            Some((flag, _)) => Err(Failure::usage(
                format!("{flag} is given, but the model is one without text, which takes none"),
                format!("leave {flag} out"),
            )),
            None => Ok(()),
        }
    }

    /// Loads what else would fail only at the end of a long run, and lets go of it: a mapped file
    /// costs no copy.
    pub fn check_decoder(&self, model: &Model) -> Result<(), Failure> {
        let device = Device::flex();
        let Model::Text(model) = model else {
            return Ok(());
        };
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
        for lora in &open.loras {
            push(8, format!("{}:{}", one(&lora.path), lora.weight));
        }
        self.lora_hashes.iter().for_each(|h| push(9, h.clone()));
        parts
    }
}

/// The prompt without its tags, and the LoRAs: those of the command line and of its prompt, else those that the picture
/// was made with (`own`, of the same model).
fn prompt_and_loras(
    args: &GenerateArgs,
    from: Option<&Parameters>,
    own: Option<&Parameters>,
) -> Result<(Option<String>, Vec<Lora>), Failure> {
    let stored = from.map(|p| &p.request);
    let weighted = match args.sampling.prompt_syntax {
        Some(syntax) => syntax == SyntaxArg::Weighted,
        None => stored.is_none_or(|r| r.prompt_syntax == PromptSyntax::Weighted),
    };
    let prompt = args.prompt.as_ref().or(stored.map(|r| &r.prompt));
    let (prompt, tags) = match prompt {
        Some(text) if weighted => {
            let (text, tags) = loras::take_tags(text)?;
            (Some(text), tags)
        }
        other => (other.cloned(), Vec::new()),
    };
    let given = args.model.lora.iter().map(|text| loras::parse(text));
    let mut all = given.collect::<Result<Vec<_>, Failure>>()?;
    all.extend(tags);
    if all.is_empty()
        && let Some(own) = own
    {
        all = loras::of_picture(own)?;
    }
    Ok((prompt, all))
}

fn named<T: Copy>(table: &[(&str, T)], name: &str) -> Option<T> {
    table
        .iter()
        .find(|(n, _)| *n == name)
        .map(|(_, value)| *value)
}
