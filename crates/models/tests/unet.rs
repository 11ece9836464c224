//! The UNet against diffusers, stage by stage, on tiny checkpoints of each generation.

mod unet_support;

use aquatint_models::unet::{AddedConditioning, Conditioning, UNet2DCondition, UNetConfig};
use aquatint_ops::{Params, Tensor};
use aquatint_testkit::{Tensors, golden, relative_error};
use unet_support::{Checkpoint, Stages, device, floats, image, load_unet, to_device, values};

/// Relative to the largest value of a stage. f32 sums in another order differ by about 1e-6.
const TOLERANCE: f64 = 2e-5;

/// Stages that the trace shows: whole blocks' parts, not the layers inside of them.
fn is_stage(name: &str) -> bool {
    let last_two: Vec<&str> = name.rsplit('.').take(2).collect();
    let part = matches!(
        last_two.as_slice(),
        [_, "resnets" | "attentions" | "downsamplers" | "upsamplers"]
    );
    part || matches!(name, "conv_in" | "conv_out" | "time_embedding")
}

fn conditioning(stages: &Tensors) -> Conditioning {
    let context = to_device(stages.get("unet/in/encoder_hidden_states"));
    let conditioning = Conditioning::new(context);
    if !stages.contains("unet/in/time_ids") {
        return conditioning;
    }
    let ids = stages.get("unet/in/time_ids");
    conditioning.with_added(AddedConditioning {
        text_embeds: to_device(stages.get("unet/in/text_embeds")),
        time_ids: floats(ids)
            .chunks(ids.shape()[1])
            .map(<[f64]>::to_vec)
            .collect(),
    })
}

fn timesteps(stages: &Tensors) -> Vec<f64> {
    floats(stages.get("unet/in/timestep"))
}

fn every_stage(generation: &str) {
    let stages = Tensors::read(golden(generation).join("stages.safetensors")).unwrap();
    let unet = load_unet(&golden(generation).join("unet"));
    let x = image(stages.get("unet/in/sample"));
    let conditioning = conditioning(&stages);
    let timesteps = timesteps(&stages);
    let mut seen = Stages::new(&stages, "unet/", TOLERANCE);
    let y = unet
        .forward_traced(x.clone(), &timesteps, &conditioning, &mut |name, y| {
            seen.check(name, y);
        })
        .unwrap();
    seen.finish(is_stage);

    let prepared = unet.prepare(conditioning).unwrap();
    let again = unet.forward(x, &timesteps, &prepared).unwrap();
    assert_eq!(values(again), values(y), "prepared text gives the same");
}

#[test]
fn sd1_equals_diffusers_at_every_stage() {
    every_stage("sd1");
}

#[test]
fn sd2_equals_diffusers_at_every_stage() {
    every_stage("sd2");
}

#[test]
fn sdxl_equals_diffusers_at_every_stage() {
    every_stage("sdxl");
}
