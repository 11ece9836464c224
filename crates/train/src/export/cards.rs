//! What a folder says of itself: model indices, recommended settings, model cards.

use aquatint_models::unet::UNet2DConfig;
use serde_json::{Value, json};

use super::VERSION;
use crate::config::DiffusionConfig;
use crate::run::Card;

/// `model_index.json` of a Stable Diffusion pipeline.
pub(crate) fn stable_diffusion_index(scheduler: &str) -> Value {
    json!({
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": VERSION,
        "feature_extractor": [null, null],
        "image_encoder": [null, null],
        "requires_safety_checker": false,
        "safety_checker": [null, null],
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    })
}

/// `model_index.json` of a pipeline that is told nothing: over pixels, or over latents.
pub(crate) fn unconditional_index(scheduler: &str, latent: bool) -> Value {
    let mut index = json!({
        "_class_name": if latent { "LDMPipeline" } else { "DDPMPipeline" },
        "_diffusers_version": VERSION,
        "scheduler": ["diffusers", scheduler],
        "unet": ["diffusers", "UNet2DModel"],
    });
    if latent {
        index["vqvae"] = json!(["diffusers", "AutoencoderKL"]);
    }
    index
}

/// `aquatint.json`: what `aquatint generate` takes where it is told nothing else.
pub(crate) fn defaults(config: &DiffusionConfig) -> Value {
    let (samples, side) = (&config.samples, config.data.resolution);
    json!({
        "width": side,
        "height": side,
        "steps": samples.steps,
        "guidance": samples.guidance,
        "sampler": samples.sampler,
    })
}

/// The data in words.
pub(crate) fn pictures(count: usize, config: &DiffusionConfig) -> String {
    let dir = config.data.dir.as_deref().map(std::path::Path::display);
    let of = dir.map_or_else(String::new, |dir| format!(" of {dir}"));
    match config.data.source.as_str() {
        "" => format!("{count} pictures{of}"),
        source => format!("{count} pictures{of} ({source})"),
    }
}

/// How a pipeline that is told nothing is used.
pub(crate) fn unconditional_use(latent: bool) -> String {
    let class = if latent {
        "LDMPipeline"
    } else {
        "DDPMPipeline"
    };
    python(&format!(
        "from diffusers import {class}\n\
         pipe = {class}.from_pretrained(\"model\")\n\
         pipe(num_inference_steps=50).images[0].save(\"out.png\")\n"
    ))
}

/// How a model that is told captions is used.
pub(crate) fn text_use(config: &DiffusionConfig) -> String {
    let samples = &config.samples;
    let prompt = samples.prompts.first().map_or("a caption", String::as_str);
    let side = config.data.resolution;
    let mut text = python(&format!(
        "from diffusers import StableDiffusionPipeline\n\
         pipe = StableDiffusionPipeline.from_pretrained(\"model\")\n\
         pipe({prompt:?}, width={side}, height={side}, num_inference_steps={}, \
         guidance_scale={:?}).images[0].save(\"out.png\")\n",
        samples.steps, samples.guidance
    ));
    text += &format!("\n```sh\naquatint generate -m model {prompt:?}\n```\n");
    text
}

/// How a model that is told a class is used. diffusers has no pipeline for a UNet of this kind.
pub(crate) fn class_use(scheduler: &str, unet: &UNet2DConfig, example: &str) -> String {
    let [height, width] = unet.sample_size.unwrap_or([64, 64]);
    let channels = unet.in_channels;
    let text = "`classes.json` lists the classes in the order of their numbers; the number after the last stands for \
                none, for guidance. diffusers has no pipeline for such a model; its parts load as they are:\n\n";
    text.to_owned()
        + &python(&format!(
            "import json, torch\n\
             from diffusers import {scheduler}, UNet2DModel\n\
             unet = UNet2DModel.from_pretrained(\"model/unet\")\n\
             scheduler = {scheduler}.from_pretrained(\"model/scheduler\")\n\
             classes = json.load(open(\"model/classes.json\"))\n\
             told = torch.tensor([classes.index({example:?}), len(classes)])\n\
             scheduler.set_timesteps(50)\n\
             x = torch.randn(1, {channels}, {height}, {width})\n\
             for t in scheduler.timesteps:\n    \
             with torch.no_grad():\n        \
             with_class, without = unet(torch.cat([x, x]), t, class_labels=told).sample.chunk(2)\n    \
             x = scheduler.step(without + 2.0 * (with_class - without), t, x).prev_sample\n"
        ))
}

fn python(code: &str) -> String {
    format!("```python\n{code}```\n")
}

/// A model card; `how` says how the model is used.
pub(crate) fn card(title: &str, data: &str, card: &Card, how: &str) -> String {
    let hours = card.seconds / 3600.0;
    let how = match how {
        "" => String::new(),
        how => format!("## Use\n\n{how}\n"),
    };
    format!(
        "# {title}\n\n\
         Trained by [Aquatint](https://github.com/aquatint/aquatint), `aquatint train`.\n\n\
         * **Data**: {data}\n\
         * **Licence**: that of the data and of the weights it began with; not stated here.\n\
         * **Updates**: {}, on {} examples\n\
         * **Training time**: {:.0} s ({hours:.2} h)\n\n\
         {how}## Configuration\n\n```toml\n{}```\n",
        card.steps, card.samples, card.seconds, card.config
    )
}
