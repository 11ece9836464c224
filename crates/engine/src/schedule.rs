//! The run that a request asks for: which sampler, over which noise levels.

use aquatint_diffusion::rng::RNGS;
use aquatint_diffusion::schedule::{SCHEDULES, ScheduleInfo, ScheduleOptions, SearchedLevels};
use aquatint_diffusion::{
    Guidance, Plan, SAMPLERS, SamplerInfo, SchedulerConfig, Sigmas, SkipGuidance, sampler,
};
use aquatint_models::Checkpoint;
use aquatint_models::families::GuidanceUse;

use crate::EngineError;
use crate::request::Request;

/// Lays out the run of a request.
///
/// # Errors
/// Names that are not known, with the nearest ones; steps that the sampler cannot do.
pub fn layout(model: &Checkpoint, request: &Request) -> Result<Plan, EngineError> {
    let config = SchedulerConfig {
        image_tokens: Some(image_tokens(model, request)),
        ..model.spec.scheduler.clone()
    };
    plan(&config, model.family.searched, request)
}

/// Lays out a run under a scheduler's configuration.
pub(crate) fn plan(
    config: &SchedulerConfig,
    searched: SearchedLevels,
    request: &Request,
) -> Result<Plan, EngineError> {
    let info = find_sampler(&request.sampler)?;
    find_rng(&request.rng)?;
    check_eta(info, request)?;
    let steps = request.steps as usize;
    let Some(name) = &request.schedule else {
        return usable(Plan::new(info, config, steps, Sigmas::Config));
    };
    let schedule = find_schedule(name)?;
    usable(Plan::on_schedule(
        info,
        config,
        steps,
        schedule,
        searched,
        &ScheduleOptions::default(),
    ))
}

/// An eta that would do nothing is a mistake, of the sampler or of the option.
fn check_eta(info: &SamplerInfo, request: &Request) -> Result<(), EngineError> {
    if request.eta.is_none() || info.default_eta.is_some() {
        return Ok(());
    }
    let with = SAMPLERS.iter().filter(|s| s.default_eta.is_some());
    let names: Vec<&str> = with.map(|s| s.name).collect();
    Err(EngineError::Usage {
        message: format!("found eta, but the sampler {} has none", info.name),
        hint: format!("leave it out, or take one of {}", names.join(", ")),
    })
}

/// How many tokens a transformer makes of the picture.
fn image_tokens(model: &Checkpoint, request: &Request) -> usize {
    let token = model.vae.config.factor() * model.network.config.patch_size();
    let [rows, columns] = [request.height, request.width].map(|side| side as usize / token.max(1));
    rows * columns
}

/// What a plan refuses is the request's doing.
fn usable(plan: Result<Plan, aquatint_diffusion::Error>) -> Result<Plan, EngineError> {
    plan.map_err(|e| EngineError::Usage {
        message: e.to_string(),
        hint: "`aquatint samplers` shows what each sampler can do".into(),
    })
}

/// The classifier-free guidance of a request.
pub(crate) fn guidance(model: &Checkpoint, request: &Request) -> Guidance {
    match (model.spec.guidance, request.true_guidance) {
        (GuidanceUse::ClassifierFree, _) => classifier_free(request),
        (_, Some(scale)) => classifier_free(&Request {
            guidance: scale,
            ..request.clone()
        }),
        (_, None) => Guidance::none(),
    }
}

/// The same, of a network that runs with and without what it is told.
pub(crate) fn classifier_free(request: &Request) -> Guidance {
    let mut guidance = Guidance::new(request.guidance);
    guidance.rescale = request.guidance_rescale;
    if let Some(interval) = request.guidance_interval {
        guidance.interval = interval;
    }
    guidance
}

/// The guidance of a request's run, which knows the steps that skip-layer guidance counts.
pub(crate) fn guidance_of(model: &Checkpoint, request: &Request, plan: &Plan) -> Guidance {
    let mut guidance = guidance(model, request);
    if let Some(skip) = &request.skip_layers {
        let n = plan.len() as f64;
        let acts = |i: &usize| *i as f64 > n * skip.start && (*i as f64) < n * skip.stop;
        let mut levels = (0..plan.len())
            .filter(acts)
            .map(|i| plan.steps[i].from.ratio());
        guidance.skip = levels.next().map(|highest| SkipGuidance {
            scale: skip.scale,
            interval: (levels.next_back().unwrap_or(highest), highest),
        });
    }
    guidance
}

/// Whether the network runs on the negative prompt at all.
pub(crate) fn needs_uncond(model: &Checkpoint, request: &Request) -> Result<bool, EngineError> {
    match model.spec.guidance {
        GuidanceUse::ClassifierFree => asks_uncond(request),
        GuidanceUse::Embedded | GuidanceUse::Unused => Ok(guidance(model, request).is_on()),
    }
}

/// Whether a request asks for the network's output without what it is told.
pub(crate) fn asks_uncond(request: &Request) -> Result<bool, EngineError> {
    Ok(classifier_free(request).is_on() || find_sampler(&request.sampler)?.needs_uncond)
}

/// The sampler of that name or alias.
///
/// # Errors
/// [`EngineError::Usage`] with the nearest names.
pub fn find_sampler(name: &str) -> Result<&'static SamplerInfo, EngineError> {
    sampler::find(name).map_err(|_| {
        unknown(
            "sampler",
            name,
            SAMPLERS.iter().map(|s| (s.name, s.aliases)),
        )
    })
}

/// The schedule of that name or alias.
///
/// # Errors
/// [`EngineError::Usage`] with the nearest names.
pub fn find_schedule(name: &str) -> Result<&'static ScheduleInfo, EngineError> {
    let names = || SCHEDULES.iter().map(|s| (s.name, s.aliases));
    aquatint_diffusion::schedule::find(name).map_err(|_| unknown("schedule", name, names()))
}

/// Whether there is a generator of noise of that name or alias.
///
/// # Errors
/// [`EngineError::Usage`] with the nearest names.
pub fn find_rng(name: &str) -> Result<(), EngineError> {
    if aquatint_diffusion::rng::find(name).is_some() {
        return Ok(());
    }
    Err(unknown(
        "generator",
        name,
        RNGS.iter().map(|r| (r.name, r.aliases)),
    ))
}

fn unknown<'a>(
    what: &str,
    name: &str,
    known: impl Iterator<Item = (&'a str, &'a [&'a str])>,
) -> EngineError {
    let mut near: Vec<(f64, &str)> = known
        .map(|(own, aliases)| {
            let all = std::iter::once(&own).chain(aliases);
            let best = all
                .map(|n| strsim::jaro_winkler(&name.to_lowercase(), n))
                .fold(0.0, f64::max);
            (best, own)
        })
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    let names: Vec<&str> = near.iter().take(3).map(|(_, n)| *n).collect();
    EngineError::Usage {
        message: format!("found no {what} {name:?}"),
        hint: format!(
            "the nearest are {}; `aquatint samplers` lists all",
            names.join(", ")
        ),
    }
}
