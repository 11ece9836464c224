//! The work that the command line comes to, before anything heavy happens.

use std::path::PathBuf;

use aquatint_engine::metadata::Parameters;
use aquatint_engine::{Model, PromptSyntax, Request, SkipLayers, Tiling, picture};

use crate::args::{GenerateArgs, SamplingArgs, SyntaxArg, TilingArg};
use crate::failure::{Failure, USAGE};
use crate::output::OutputPattern;
use crate::setup::Setup;

/// What to make, of which model, and where to.
pub struct Job {
    /// The request; the seed is the first picture's.
    pub request: Request,
    /// Runs, one after another.
    pub count: u32,
    /// Place in the batch of the one picture to keep (`--from` a picture of a batch).
    pub only: Option<u32>,
    /// The model as pictures name it; `None` is the one inside.
    pub model_label: Option<String>,
    /// How the model is opened.
    pub setup: Setup,
    /// Names of the pictures.
    pub output: OutputPattern,
}

impl Job {
    /// Places in a batch whose pictures are kept.
    pub fn kept(&self) -> Vec<u32> {
        match self.only {
            Some(i) => vec![i],
            None => (0..self.request.batch).collect(),
        }
    }

    /// Finds out whether the pictures and the preview could be written.
    pub fn check_outputs(&self, args: &GenerateArgs, model: &Model) -> Result<(), Failure> {
        let preview = args.output.preview.as_deref();
        if let Some(path) = preview {
            crate::output::check_png("--preview", path)?;
            // A preview is made to be written over.
            picture::check_writable(path, true)?;
        }
        let grid = args.output.grid.as_deref();
        if let Some(path) = grid {
            crate::output::check_png("--grid", path)?;
            picture::check_writable(path, args.output.force)?;
        }
        let mut index = 0;
        for i in 0..self.count {
            for place in self.kept() {
                let offset = u64::from(i) * u64::from(self.request.batch) + u64::from(place);
                let seed = self.request.seed.wrapping_add(offset);
                let path = self
                    .output
                    .free_path(seed, index, model.name(), args.output.force);
                picture::check_writable(&path, args.output.force)?;
                for (flag, what, other) in [
                    ("--preview", "its preview", preview),
                    ("--grid", "the sheet", grid),
                ] {
                    if other == Some(&path) {
                        return Err(Failure::usage(
                            format!("{}: is both the picture and {what}", path.display()),
                            format!("give {flag} another name"),
                        ));
                    }
                }
                index += 1;
            }
        }
        Ok(())
    }
}

/// What is wrong with the command line is said before any file is opened.
pub fn check_early(args: &GenerateArgs) -> Result<(), Failure> {
    let probe = Request {
        steps: args.sampling.steps.unwrap_or(1),
        guidance: args.sampling.guidance.unwrap_or(1.0),
        guidance_rescale: args.sampling.guidance_rescale.unwrap_or(0.0),
        sampler: args
            .sampling
            .sampler
            .clone()
            .unwrap_or_else(|| "euler".into()),
        batch: args.picture.batch.unwrap_or(1),
        clip_skip: args.sampling.clip_skip,
        t5_tokens: args.sampling.t5_tokens,
        true_guidance: args.sampling.true_guidance,
        eta: args.sampling.eta,
        skip_layers: skip_layers(&args.sampling),
        ..Request::default()
    };
    // The sides depend on the model.
    probe.check_sampling()?;
    aquatint_engine::find_sampler(&probe.sampler)?;
    if let Some(schedule) = &args.sampling.schedule {
        aquatint_engine::find_schedule(schedule)?;
    }
    if let Some(rng) = &args.picture.rng {
        aquatint_engine::find_rng(rng)?;
    }
    Ok(())
}

/// The command line over the picture's own parameters over the model's defaults.
pub fn new(
    args: &GenerateArgs,
    from: Option<Parameters>,
    model: &Model,
    model_path: Option<PathBuf>,
    setup: Setup,
) -> Result<Job, Failure> {
    let repeated = from.is_some();
    let batch_index = from.as_ref().map(|p| p.batch_index);
    let base = from.map_or_else(
        || Request {
            seed: random_seed(),
            ..model.defaults()
        },
        |p| p.request,
    );
    let (picture, sampling) = (&args.picture, &args.sampling);
    // A new seed or batch makes other pictures, of which none is the old one.
    let same_batch = picture.seed.is_none() && picture.batch.is_none() && picture.count == 1;
    let sampler = sampling.sampler.as_deref().unwrap_or(&base.sampler);
    let has_eta = has_eta(sampler);
    let request = Request {
        prompt: setup.prompt.clone().unwrap_or(base.prompt),
        negative: args.negative.clone().or(base.negative),
        width: picture.width.unwrap_or(base.width),
        height: picture.height.unwrap_or(base.height),
        steps: sampling.steps.unwrap_or(base.steps),
        guidance: sampling.guidance.unwrap_or(base.guidance),
        guidance_rescale: sampling.guidance_rescale.unwrap_or(base.guidance_rescale),
        guidance_interval: sampling.guidance_interval.or(base.guidance_interval),
        true_guidance: sampling.true_guidance.or(base.true_guidance),
        skip_layers: skip_layers(sampling).or(base.skip_layers),
        sampler: own_name(sampling.sampler.clone().unwrap_or(base.sampler), |n| {
            aquatint_engine::find_sampler(n).map(|s| s.name)
        }),
        schedule: sampling
            .schedule
            .clone()
            .or(base.schedule)
            .map(|name| own_name(name, |n| aquatint_engine::find_schedule(n).map(|s| s.name))),
        seed: picture.seed.unwrap_or(base.seed),
        rng: own_name(picture.rng.clone().unwrap_or(base.rng), |n| {
            aquatint_engine::diffusion::rng::find(n)
                .map(|r| r.name)
                .ok_or(())
        }),
        batch: picture.batch.unwrap_or(base.batch),
        clip_skip: sampling.clip_skip.or(base.clip_skip),
        t5_tokens: sampling.t5_tokens.or(base.t5_tokens),
        eta: sampling.eta.or(base.eta.filter(|_| has_eta)),
        class: match &args.picture.class {
            Some(text) => Some(class(text, model)?),
            None => base.class,
        },
        vae_tiling: sampling.vae_tiling.map_or(base.vae_tiling, |t| match t {
            TilingArg::Auto => Tiling::Auto,
            TilingArg::On => Tiling::On,
            TilingArg::Off => Tiling::Off,
        }),
        prompt_syntax: sampling
            .prompt_syntax
            .map_or(base.prompt_syntax, |s| match s {
                SyntaxArg::Weighted => PromptSyntax::Weighted,
                SyntaxArg::Plain => PromptSyntax::Plain,
            }),
    };
    let only = batch_index.filter(|_| repeated && same_batch && request.batch > 1);
    let many = picture.count > 1 || (request.batch > 1 && only.is_none());
    Ok(Job {
        request,
        count: picture.count,
        only,
        model_label: model_path.map(|p| {
            // A name in the model directory stays a name, so that the picture can move.
            p.canonicalize().unwrap_or(p).to_string_lossy().into_owned()
        }),
        setup,
        output: OutputPattern::new(args.output.output.as_deref(), many)?,
    })
}

/// Whether a sampler has an eta. Other tools, and this one before, write down one that does nothing.
fn has_eta(sampler: &str) -> bool {
    aquatint_engine::find_sampler(sampler).is_ok_and(|info| info.default_eta.is_some())
}

/// The number of a class of the command line.
fn class(text: &str, model: &Model) -> Result<u32, Failure> {
    let Model::Pixel(pixel) = model else {
        return Err(Failure::usage(
            "--class is given, but the model is told a text and no class",
            "say what to draw in the prompt",
        ));
    };
    if let Some(class) = pixel.find_class(text) {
        return Ok(class as u32);
    }
    let hint = match (pixel.class_count, &pixel.classes[..]) {
        (0, _) => "leave it out: the model is told no class".to_owned(),
        (n, []) => format!("give a number from 0 to {}", n - 1),
        (_, names) => {
            let few: Vec<&str> = names.iter().take(12).map(String::as_str).collect();
            let more = if names.len() > few.len() { ", ..." } else { "" };
            format!("the classes are {}{more}", few.join(", "))
        }
    };
    Err(Failure::usage(format!("found no class {text:?}"), hint))
}

/// The name that an alias stands for; one that is not known is told of later.
fn own_name<E>(name: String, find: impl Fn(&str) -> Result<&'static str, E>) -> String {
    find(&name).map_or_else(|_| name.clone(), str::to_owned)
}

/// What a request is refused for is the picture's fault when the command line was silent.
pub fn blame_picture(args: &GenerateArgs, failure: Failure) -> Failure {
    match &args.picture.from {
        Some(path) if failure.code() == USAGE => failure.of_file(path),
        _ => failure,
    }
}

/// A seed that nobody chose: the time and the process, mixed.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // The standard library seeds its hashers from the system's randomness.
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    // Small enough to type.
    hasher.finish() >> 32
}

/// The skip-layer guidance of the command line.
fn skip_layers(sampling: &SamplingArgs) -> Option<SkipLayers> {
    let mut skip = SkipLayers::new(sampling.skip_layers.clone());
    if skip.layers.is_empty() {
        return None;
    }
    skip.scale = sampling.skip_layer_guidance.unwrap_or(skip.scale);
    (skip.start, skip.stop) = sampling.skip_layer_range.unwrap_or((skip.start, skip.stop));
    Some(skip)
}
