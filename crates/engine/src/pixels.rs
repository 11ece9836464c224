//! Pictures of models without text: noise -> denoising loop -> pixels, or latents and their decoder.

use aquatint_diffusion::schedule::SearchedLevels;
use aquatint_diffusion::{BoxError, Branches, Network, Outputs, Plan};
use aquatint_models::PixelModel;
use aquatint_models::unet::{Classes, Cost, UNet2D};
use aquatint_models::vae::AutoencoderKl;
use aquatint_ops::{Device, buffer};

use crate::EngineError;
use crate::decode::to_picture;
use crate::events::{Observer, Stage};
use crate::network::{from_channels_last, image_by_image, to_channels_last};
use crate::pipeline::{Loop, Run, Stages};
use crate::plan::{Estimate, Work};
use crate::request::Request;
use crate::schedule::{asks_uncond, classifier_free, plan};

/// Makes the pictures of a request to a model without text.
///
/// # Errors
/// As [`crate::generate`]; a prompt, a class that the model does not know, a side that its levels do not halve.
pub fn generate_pixels(
    model: &PixelModel,
    request: &Request,
    device: &Device,
    observer: &mut Observer<'_>,
) -> Result<Run, EngineError> {
    check(model, request)?;
    let plan = layout(model, request)?;
    let mut stages = Stages::new(observer);
    let unet = stages.run(Stage::Load, || Ok(model.load_unet(device)?))?;
    let vae = stages.run(Stage::Load, || Ok(model.load_vae(device)?))?;
    let factor = model.factor();
    let shape = [
        request.batch as usize,
        model.unet.config.in_channels,
        request.height as usize / factor,
        request.width as usize / factor,
    ];
    let network = PixelNetwork {
        unet,
        class: request.class.map(|class| class as usize),
        none: model.null_class,
        shape,
        device: device.clone(),
    };
    let (step, decode) = costs(model, request)?;
    let looped = Loop {
        plan: &plan,
        request,
        shape,
        guidance: classifier_free(request),
        keep_uncond: plan.info.needs_uncond,
        decode_share: decode.multiply_adds() as f64
            / step.times(plan.network_calls()).multiply_adds().max(1) as f64,
    };
    let values = looped
        .run(&mut stages, network)
        .map_err(|error| blame_weights(error, model))?;
    model.unet.source.release_pages();
    buffer::release();
    let pictures = stages.run(Stage::Decode, || {
        let each = values.chunks_exact(values.len() / shape[0]);
        each.map(|one| {
            let x = to_channels_last(one, [1, shape[1], shape[2], shape[3]], device);
            to_picture(match &vae {
                Some(vae) => decoded(vae, x)?,
                None => x,
            })
        })
        .collect::<Result<Vec<_>, _>>()
    });
    let pictures = pictures.map_err(|error| blame_weights(error, model))?;
    buffer::release();
    Ok(Run {
        pictures: request.seeds().into_iter().zip(pictures).collect(),
        seconds: stages.seconds,
    })
}

fn decoded(
    vae: &AutoencoderKl,
    x: aquatint_ops::Tensor<4>,
) -> Result<aquatint_ops::Tensor<4>, EngineError> {
    Ok(vae.decode(vae.config().unscale(x))?)
}

/// Estimates the run of a request to a model without text.
///
/// # Errors
/// As [`generate_pixels`] before it loads anything; and when the activations alone are larger than the machine's memory.
pub fn estimate_pixels(model: &PixelModel, request: &Request) -> Result<Estimate, EngineError> {
    check(model, request)?;
    let plan = layout(model, request)?;
    let (step, decode) = costs(model, request)?;
    let weights = model.sources().iter().map(|(_, s)| s.bytes()).sum();
    Work {
        stages: &[
            (weights, step.activation_bytes),
            (weights, decode.activation_bytes),
        ],
        calls: plan.network_calls(),
        total: step.times(plan.network_calls()).then(decode),
    }
    .estimate()
}

/// Lays out the run of a request to a model without text.
///
/// # Errors
/// As [`crate::layout`].
pub(crate) fn layout(model: &PixelModel, request: &Request) -> Result<Plan, EngineError> {
    let searched = request.schedule.as_deref().map(str::to_lowercase);
    if searched.is_some_and(|s| s.starts_with("align_your_steps") || s.starts_with("ays")) {
        return usage(
            "align_your_steps has levels for Stable Diffusion only".into(),
            "take another schedule, such as karras",
        );
    }
    plan(&model.scheduler, SearchedLevels::default(), request)
}

/// Cost of one step of the batch, and of decoding the batch.
fn costs(model: &PixelModel, request: &Request) -> Result<(Cost, Cost), EngineError> {
    let factor = model.factor();
    let [height, width] = [request.height, request.width].map(|s| s as usize / factor);
    let branches = match asks_uncond(request)? && model.null_class.is_some() {
        true => 2,
        false => 1,
    };
    let batch = request.batch as usize;
    let step = model.unet.config.cost(branches, height, width).times(batch);
    let decode = model.vae.as_ref().map_or_else(Cost::default, |vae| {
        vae.config.decode_cost(1, height, width).times(batch)
    });
    Ok((step, decode))
}

fn usage<T>(message: String, hint: &str) -> Result<T, EngineError> {
    Err(EngineError::Usage {
        message,
        hint: hint.into(),
    })
}

/// Checks what a request and a model must agree on.
fn check(model: &PixelModel, request: &Request) -> Result<(), EngineError> {
    request.check_sampling()?;
    if !request.prompt.is_empty() || request.negative.is_some() {
        let hint = match model.class_count {
            0 => "leave the prompt out: the model draws what it was trained on",
            _ => "leave the prompt out, and say what to draw with --class",
        };
        return usage("found a prompt, but the model reads no text".into(), hint);
    }
    if request.skip_layers.is_some() {
        return usage(
            "found skip-layer guidance, which a model without text has not".into(),
            "leave --skip-layers out",
        );
    }
    if request.t5_tokens.is_some() || request.true_guidance.is_some() {
        return usage(
            "found T5 tokens or true guidance, which a model without text has not".into(),
            "leave --t5-tokens and --true-guidance out",
        );
    }
    let step = model.side_step() as u32;
    for (name, side) in [("width", request.width), ("height", request.height)] {
        if side == 0 || side > 4096 || !side.is_multiple_of(step) {
            let near = side.clamp(step, 4096 / step * step).next_multiple_of(step);
            return usage(
                format!(
                    "{name} is {side}, expected a multiple of {step} up to 4096 for this model"
                ),
                &format!("try {near}"),
            );
        }
    }
    check_class(model, request)
}

fn check_class(model: &PixelModel, request: &Request) -> Result<(), EngineError> {
    const SHOWN: usize = 20;
    let count = model.class_count;
    let known = || match &model.classes[..] {
        [] => format!("a number from 0 to {}", count.saturating_sub(1)),
        names if names.len() > SHOWN => format!("{}, ...", names[..SHOWN].join(", ")),
        names => names.join(", "),
    };
    match request.class {
        Some(_) if count == 0 => usage(
            "found a class, but the model is told none".into(),
            "leave --class out",
        ),
        Some(class) if class as usize >= count => usage(
            format!("class is {class}, expected {}", known()),
            "give its name or its number",
        ),
        None if count > 0 => usage(
            format!("no class is given, expected {}", known()),
            "say which with --class",
        ),
        _ if asks_uncond(request)? && count > 0 && model.null_class.is_none() => usage(
            format!(
                "guidance is {}, but the model was trained with no class that stands for none",
                request.guidance
            ),
            "leave guidance at 1, and take a sampler without _cfg_pp",
        ),
        _ => Ok(()),
    }
}

fn blame_weights(error: EngineError, model: &PixelModel) -> EngineError {
    if !error.is_numbers() {
        return error;
    }
    let found = model
        .sources()
        .into_iter()
        .find_map(|(_, s)| s.non_finite());
    found.map_or(error, |e| aquatint_models::ModelError::from(e).into())
}

/// The UNet with the class of a run.
struct PixelNetwork {
    unet: UNet2D,
    class: Option<usize>,
    none: Option<usize>,
    shape: [usize; 4],
    device: Device,
}

impl Network for PixelNetwork {
    fn run(
        &mut self,
        input: &[f32],
        timestep: f64,
        branches: Branches,
    ) -> Result<Outputs, BoxError> {
        let wanted = branches == Branches::CondAndUncond;
        let classes = match (wanted, self.class, self.none) {
            (true, Some(class), Some(none)) => Some(vec![none, class]),
            (_, class, _) => class.map(|class| vec![class]),
        };
        let both = classes.as_ref().is_some_and(|rows| rows.len() == 2);
        let classes = classes.map(Classes::Rows);
        let found = image_by_image(input, self.shape, &self.device, both, |x| {
            let times = vec![timestep; x.dims()[0]];
            from_channels_last(self.unet.forward(x, &times, classes.as_ref())?)
        })?;
        let Outputs { cond, uncond } = found;
        // Without a class the two are one.
        let uncond = uncond.or_else(|| wanted.then(|| cond.clone()));
        Ok(Outputs { cond, uncond })
    }
}
