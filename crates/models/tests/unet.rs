//! The UNet against diffusers, stage by stage, on tiny checkpoints of each generation and on
//! variants with the other options.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // helpers of tests are tests

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
    part || matches!(
        name,
        "conv_in" | "conv_out" | "time_embedding" | "add_embedding"
    )
}

fn conditioning(references: &Tensors, inputs: &str) -> Conditioning {
    let get = |name: &str| references.get(&format!("{inputs}{name}"));
    let has = |name: &str| references.contains(&format!("{inputs}{name}"));
    let mut conditioning = Conditioning::new(to_device(get("encoder_hidden_states")));
    if has("time_ids") {
        let ids = get("time_ids");
        conditioning = conditioning.with_added(AddedConditioning {
            text_embeds: to_device(get("text_embeds")),
            time_ids: floats(ids)
                .chunks(ids.shape()[1])
                .map(<[f64]>::to_vec)
                .collect(),
        });
    }
    if has("guidance_scale") {
        conditioning = conditioning.with_guidance_scale(floats(get("guidance_scale"))[0]);
    }
    conditioning
}

fn every_stage(unet: &UNet2DCondition, references: &Tensors, inputs: &str) {
    let x = image(references.get(&format!("{inputs}sample")));
    let conditioning = conditioning(references, inputs);
    let timesteps = floats(references.get(&format!("{inputs}timestep")));
    let mut seen = Stages::new(references, "unet/", TOLERANCE);
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

fn generation(name: &str) -> (UNet2DCondition, Tensors) {
    let stages = Tensors::read(golden(name).join("stages.safetensors")).unwrap();
    (load_unet(&golden(name).join("unet")), stages)
}

#[test]
fn sd1_equals_diffusers_at_every_stage() {
    let (unet, stages) = generation("sd1");
    every_stage(&unet, &stages, "unet/in/");
}

#[test]
fn sd2_equals_diffusers_at_every_stage() {
    let (unet, stages) = generation("sd2");
    every_stage(&unet, &stages, "unet/in/");
}

#[test]
fn sdxl_equals_diffusers_at_every_stage() {
    let (unet, stages) = generation("sdxl");
    every_stage(&unet, &stages, "unet/in/");
}

fn variant(name: &str) -> (UNet2DCondition, Tensors) {
    let path = |extension: &str| golden("unet_variants").join(format!("{name}.{extension}"));
    let config = std::fs::read_to_string(path("json")).unwrap();
    let config = UNetConfig::from_json(&config).unwrap();
    let checkpoint = Checkpoint::read(path("safetensors"), "model/");
    let unet = UNet2DCondition::load(&Params::new(&checkpoint, &device()), &config).unwrap();
    (unet, Tensors::read(path("safetensors")).unwrap())
}

#[test]
fn uneven_sizes_and_rare_options_equal_diffusers() {
    let (unet, references) = variant("uneven");
    every_stage(&unet, &references, "in/");
}

#[test]
fn added_conditioning_that_differs_in_the_batch_equals_diffusers() {
    let (unet, references) = variant("added");
    every_stage(&unet, &references, "in/");
}

#[test]
fn an_embedded_guidance_scale_equals_diffusers() {
    let (unet, references) = variant("guided");
    every_stage(&unet, &references, "in/");
}

#[test]
fn a_middle_without_attention_equals_diffusers() {
    let (unet, references) = variant("plain_middle");
    every_stage(&unet, &references, "in/");
}

#[test]
fn one_entry_of_a_batch_alone_gives_the_same() {
    let (unet, stages) = generation("sd1");
    let x = image(stages.get("unet/in/sample"));
    let context: Tensor<3> = to_device(stages.get("unet/in/encoder_hidden_states"));
    let timesteps = floats(stages.get("unet/in/timestep"));
    let both = unet
        .forward(x.clone(), &timesteps, &Conditioning::new(context.clone()))
        .unwrap();
    for i in 0..2 {
        let alone = Conditioning::new(context.clone().narrow(0, i, 1));
        let y = unet
            .forward(x.clone().narrow(0, i, 1), &timesteps[i..=i], &alone)
            .unwrap();
        let want = values(both.clone().narrow(0, i, 1));
        assert!(relative_error(&values(y), &want) < TOLERANCE);
    }
}

#[test]
fn inputs_that_do_not_fit_are_errors() {
    let (unet, _) = generation("sdxl");
    let latent = |dims: [usize; 4]| Tensor::<4>::zeros(dims, &device());
    let text = |batch: usize, channels: usize| {
        Conditioning::new(Tensor::zeros([batch, 3, channels], &device()))
    };
    let added = |batch: usize, channels: usize, sizes: usize| AddedConditioning {
        text_embeds: Tensor::zeros([batch, channels], &device()),
        time_ids: vec![vec![8.0; sizes]; batch],
    };
    let good = || text(1, 48).with_added(added(1, 32, 6));
    let x = [1, 4, 4, 4];
    assert!(unet.forward(latent(x), &[1.0], &good()).is_ok());
    let bad = [
        ("the latent", latent([1, 4, 4, 3]), vec![1.0], good()),
        ("the latent", latent([0, 4, 4, 4]), vec![], good()),
        ("the latent", latent([1, 0, 4, 4]), vec![1.0], good()),
        ("timesteps", latent(x), vec![1.0, 2.0], good()),
        ("timesteps", latent(x), vec![], good()),
        (
            "the text's batch",
            latent([2, 4, 4, 4]),
            vec![1.0; 2],
            good(),
        ),
        (
            "the text",
            latent(x),
            vec![1.0],
            text(1, 47).with_added(added(1, 32, 6)),
        ),
        ("the added conditioning", latent(x), vec![1.0], text(1, 48)),
        (
            "the added conditioning",
            latent(x),
            vec![1.0],
            text(1, 48).with_added(added(1, 31, 6)),
        ),
        (
            "the added conditioning",
            latent(x),
            vec![1.0],
            text(1, 48).with_added(added(1, 32, 5)),
        ),
        (
            "the added conditioning",
            latent(x),
            vec![1.0],
            text(1, 48).with_added(added(2, 32, 6)),
        ),
    ];
    for (what, x, timesteps, conditioning) in bad {
        let error = unet.forward(x, &timesteps, &conditioning).unwrap_err();
        let error = error.to_string();
        assert!(error.starts_with(&format!("unet: {what} ")), "{error}");
    }
}

#[test]
fn a_missing_tensor_is_named() {
    let config = UNetConfig::from_json(
        &std::fs::read_to_string(golden("sd1").join("unet/config.json")).unwrap(),
    )
    .unwrap();
    let weights = golden("sd1").join("unet/diffusion_pytorch_model.safetensors");
    let checkpoint = unet_support::Only(Checkpoint::read(weights, ""), |name| {
        name != "up_blocks.1.attentions.2.proj_in.weight"
    });
    let error = UNet2DCondition::load(&Params::new(&checkpoint, &device()), &config).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("up_blocks.1.attentions.2.proj_in.weight"),
        "{error}"
    );
}
