//! Runs of the reference cases, and what is held of them.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use aquatint_engine::diffusion::TimestepSpacing;
use aquatint_engine::models::{Checkpoint, Location, OpenOptions};
use aquatint_engine::picture::Picture;
use aquatint_engine::{
    Device, EngineError, Event, PromptSyntax, Request, RunOptions, SkipLayers, Stage, generate,
};
use aquatint_testkit::{Case, Cases, Tensors, compare, golden, pixels_within, psnr};

/// Latents: relative to the largest reference value (golden/README.md says why).
pub const LATENTS: f64 = 1e-4;
/// Pictures: the share of pixels that must be within 1/255.
pub const PIXELS: f64 = 0.999;

pub fn open(path: impl AsRef<Path>, options: &OpenOptions) -> Checkpoint {
    let path = path.as_ref();
    Checkpoint::open(&Location::Path(path.to_owned()), options)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The reference runs of a family.
pub struct References {
    pub cases: Vec<Case>,
    pub tensors: Tensors,
}

impl References {
    pub fn read(family: &str) -> Self {
        let cases = Cases::read(golden(family).join("cases.json"))
            .unwrap()
            .cases;
        let tensors = Tensors::read(golden(family).join("pipelines.safetensors")).unwrap();
        assert!(cases.iter().all(|c| c.file == "pipelines.safetensors"));
        References { cases, tensors }
    }

    /// The first case of each beginning, such as `pipe/ddim/g7.5`.
    pub fn pick(&self, beginnings: &[&str]) -> Vec<&Case> {
        let find = |b: &&str| self.cases.iter().find(|c| c.name.starts_with(*b));
        beginnings
            .iter()
            .map(|b| find(b).unwrap_or_else(|| panic!("no case begins with {b}")))
            .collect()
    }
}

/// The request that a case is.
pub fn request(case: &Case) -> Request {
    let usual_layer = match case.model.as_str() {
        "sd1" | "sd2" => 1,
        _ => 2,
    };
    let has_eta = matches!(case.sampler.as_str(), "ddim" | "tcd");
    Request {
        prompt: case.prompt.clone(),
        negative: case.negative.clone(),
        width: case.width as u32,
        height: case.height as u32,
        steps: case.steps as u32,
        guidance: case.guidance,
        guidance_rescale: case.guidance_rescale,
        sampler: case.sampler.clone(),
        schedule: (case.schedule != "normal").then(|| case.schedule.clone()),
        seed: case.seed,
        // Counted from the family's usual layer in the manifest, from the last one in a request.
        clip_skip: (case.clip_skip > 1).then(|| (usual_layer + case.clip_skip - 1) as u32),
        eta: has_eta.then_some(case.eta),
        t5_tokens: case.t5_tokens,
        true_guidance: case.true_guidance,
        prompt_syntax: PromptSyntax::Plain,
        // What golden/flow_references.py gives diffusers.
        skip_layers: case.name.contains("skip_guidance").then(|| SkipLayers {
            stop: 0.4,
            ..SkipLayers::new(vec![1])
        }),
        ..Request::default()
    }
}

/// What a case changes in its model's scheduler configuration: the options given to `from_config`.
pub fn override_scheduler(model: &mut Checkpoint, case: &Case) {
    let what = case.name.split('/').nth(1).unwrap_or_default();
    let config = &mut model.spec.scheduler;
    for (word, spacing) in [
        ("_leading", TimestepSpacing::Leading),
        ("_trailing", TimestepSpacing::Trailing),
    ] {
        if what.contains(word) {
            config.timestep_spacing = Some(spacing);
        }
    }
    if what.contains("zero_snr") {
        config.rescale_betas_zero_snr = Some(true);
    }
}

/// Which recorded latents those after step `i` are. diffusers records each call of the scheduler:
/// solvers of two stages have two for a step (one for the last), PNDM one more for its first step.
pub fn recorded(case: &Case, i: usize) -> usize {
    match case.recorded - case.steps {
        0 => i,
        1 if case.sampler == "pndm" => i + 1,
        n if n == case.steps - 1 => (2 * i + 1).min(case.recorded - 1),
        n => panic!("{}: {n} records more than steps", case.name),
    }
}

/// A run and its latents after each step.
pub struct Traced {
    pub latents: Vec<Vec<f32>>,
    pub seeds: Vec<u64>,
    pub pictures: Vec<Picture>,
}

pub fn run(model: &Checkpoint, request: &Request) -> Result<Traced, EngineError> {
    let mut latents = Vec::new();
    let mut keep = |event: Event<'_>| {
        if let Event::Step {
            stage: Stage::Denoise,
            latents: Some(now),
            ..
        } = event
        {
            latents.push(now.values.to_vec());
        }
        ControlFlow::Continue(())
    };
    let options = RunOptions::default();
    let made = generate(model, request, &options, &Device::flex(), &mut keep)?;
    let (seeds, pictures) = made.pictures.into_iter().unzip();
    Ok(Traced {
        latents,
        seeds,
        pictures,
    })
}

/// The largest errors of a case, or of many.
#[derive(Debug, Clone, Copy, Default)]
pub struct Errors {
    /// Relative error of the latents, of any step.
    pub latents: f64,
    /// The largest share of pixels further than 1/255 off.
    pub pixels_off: f64,
    /// The largest difference of a channel.
    pub channel: u8,
}

impl Errors {
    pub fn add(&mut self, other: Errors) {
        self.latents = self.latents.max(other.latents);
        self.pixels_off = self.pixels_off.max(other.pixels_off);
        self.channel = self.channel.max(other.channel);
    }
}

/// Runs a case on a model; says where it departs from the reference.
pub fn check(model: &Checkpoint, case: &Case, references: &Tensors) -> Result<Errors, String> {
    let name = &case.name;
    let traced = run(model, &request(case)).map_err(|e| format!("{name}: {e}"))?;
    if traced.latents.len() != case.steps {
        return Err(format!(
            "{name}: {} steps, wanted {}",
            traced.latents.len(),
            case.steps
        ));
    }
    let mut errors = Errors::default();
    for (i, latents) in traced.latents.iter().enumerate() {
        let stage = format!("{name}/step{:02}", recorded(case, i));
        let found = compare(latents, references.get(&stage).f32());
        errors.latents = errors.latents.max(found.relative);
        if found.relative > LATENTS || found.relative.is_nan() {
            return Err(format!(
                "{stage} (step {} of {}): relative error {:.2e} > {LATENTS:.0e}, cosine {:.7}",
                i + 1,
                case.steps,
                found.relative,
                found.cosine
            ));
        }
    }
    let want = references.get(&format!("{name}/image"));
    let [picture] = &traced.pictures[..] else {
        return Err(format!("{name}: {} pictures", traced.pictures.len()));
    };
    if [picture.height as usize, picture.width as usize, 3] != want.shape() {
        return Err(format!(
            "{name}: a picture of {}x{}",
            picture.width, picture.height
        ));
    }
    let (got, want) = (&picture.rgb, want.u8());
    errors.pixels_off = 1.0 - pixels_within(got, want, 1);
    errors.channel = got
        .iter()
        .zip(want)
        .map(|(a, b)| a.abs_diff(*b))
        .max()
        .unwrap_or(0);
    if errors.pixels_off > 1.0 - PIXELS {
        return Err(format!(
            "{name}/image: {:.4} of the pixels are within 1/255, wanted {PIXELS}; largest difference {}, PSNR {:.1} dB",
            1.0 - errors.pixels_off,
            errors.channel,
            psnr(got, want)
        ));
    }
    Ok(errors)
}

/// Runs cases; fails with all that depart, not only the first.
#[track_caller]
pub fn check_all<'a>(
    what: &str,
    cases: impl IntoIterator<Item = &'a Case>,
    references: &Tensors,
    mut model: impl FnMut(&Case) -> Checkpoint,
) -> Errors {
    let (mut worst, mut failed, mut count) = (Errors::default(), Vec::new(), 0);
    for case in cases {
        count += 1;
        match check(&model(case), case, references) {
            Ok(errors) => {
                eprintln!("{what}: {}: {errors:?}", case.name);
                worst.add(errors);
            }
            Err(message) => failed.push(message),
        }
    }
    eprintln!("{what}: {count} cases, worst {worst:?}");
    assert!(
        failed.is_empty(),
        "{what}: {} of {count} cases depart from diffusers:\n{}",
        failed.len(),
        failed.join("\n")
    );
    worst
}

/// A tensor of a file that a test rewrites.
pub struct Raw {
    pub dtype: safetensors::Dtype,
    pub shape: Vec<usize>,
    pub data: Vec<u8>,
}

/// Changes the tensors of a file in place.
pub fn rewrite(path: &Path, change: impl FnOnce(&mut BTreeMap<String, Raw>)) {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: BTreeMap<String, Raw> = file
        .iter()
        .map(|(name, view)| {
            let raw = Raw {
                dtype: view.dtype(),
                shape: view.shape().to_vec(),
                data: view.data().to_vec(),
            };
            (name.to_owned(), raw)
        })
        .collect();
    change(&mut tensors);
    let views: Vec<_> = tensors
        .iter()
        .map(|(name, raw)| {
            let shape = raw.shape.clone();
            let view = safetensors::tensor::TensorView::new(raw.dtype, shape, &raw.data).unwrap();
            (name.as_str(), view)
        })
        .collect();
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}
