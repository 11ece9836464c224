"""Reference tensors of the flow families: every stage, and whole runs of diffusers' pipelines. Part of make_flow.py."""

import copy
import tempfile

import numpy
import torch
from safetensors.torch import save_file

import diffusers
import common
from common import NEGATIVE, PROMPTS
from make_references import Recorder
from reference_runs import single_precision_noise

# Aquatint's sampler and schedule, the scheduler of diffusers, options for it, steps, guidance, options of the pipeline.
FLOW_SIGMAS = dict(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
RUNS = [
    ("euler", "normal", "FlowMatchEulerDiscreteScheduler", {}, 6, 7.0, {}),
    ("euler", "normal", "FlowMatchEulerDiscreteScheduler", {}, 5, 1.0, {}),
    ("euler", "normal", "FlowMatchEulerDiscreteScheduler", {}, 1, 4.5, {}),
    ("heun", "normal", "FlowMatchHeunDiscreteScheduler", {}, 5, 7.0, {}),
    ("dpmpp_2m", "normal", "DPMSolverMultistepScheduler", FLOW_SIGMAS, 6, 4.5, {}),
    ("dpmpp_2m_sde", "normal", "DPMSolverMultistepScheduler", dict(FLOW_SIGMAS, algorithm_type="sde-dpmsolver++"), 6, 4.5, {}),
    ("dpmpp_2s", "normal", "DPMSolverSinglestepScheduler", FLOW_SIGMAS, 6, 4.5, {}),
    ("unipc", "normal", "UniPCMultistepScheduler", FLOW_SIGMAS, 6, 4.5, {}),
    ("deis", "normal", "DEISMultistepScheduler", FLOW_SIGMAS, 6, 4.5, {}),
    ("euler", "karras", "FlowMatchEulerDiscreteScheduler", {"use_karras_sigmas": True}, 5, 4.5, {}),
    ("euler", "exponential", "FlowMatchEulerDiscreteScheduler", {"use_exponential_sigmas": True}, 5, 4.5, {}),
    ("euler", "beta", "FlowMatchEulerDiscreteScheduler", {"use_beta_sigmas": True}, 5, 4.5, {}),
]
SHORT = [RUNS[0], RUNS[3]]
FLUX_RUNS = [
    ("euler", "normal", "FlowMatchEulerDiscreteScheduler", {}, 5, 3.5, {}),
    ("euler", "normal", "FlowMatchEulerDiscreteScheduler", {}, 4, 1.0, {}),
]
EXTRAS = {
    "sd3": RUNS + [("euler", "normal", "FlowMatchEulerDiscreteScheduler", {}, 5, 4.5, {"drop": ["text_encoder_3", "tokenizer_3"]}),
                   ("euler", "normal", "FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, 5, 4.5, {}),
                   ("euler", "normal", "FlowMatchEulerDiscreteScheduler", {"shift_terminal": 0.1}, 5, 4.5, {}),
                   ("euler", "normal", "FlowMatchEulerDiscreteScheduler",
                    {"use_dynamic_shifting": True, "time_shift_type": "linear", "base_shift": 1.5, "max_shift": 3.0}, 5, 4.5, {}),
                   ("euler", "normal", "FlowMatchEulerDiscreteScheduler", {}, 5, 4.5, {"clip_skip": 1})],
    "sd35_medium": SHORT + [("euler", "normal", "FlowMatchEulerDiscreteScheduler", {}, 8, 4.5,
                             {"skip_guidance_layers": [1], "skip_layer_guidance_scale": 2.8,
                              "skip_layer_guidance_start": 0.01, "skip_layer_guidance_stop": 0.4})],
    "sd35_large": SHORT + [("euler", "normal", "FlowMatchEulerDiscreteScheduler", {}, 5, 4.5, {"max_sequence_length": 77})],
    "flux_dev": FLUX_RUNS + [
        ("euler", "normal", "FlowMatchEulerDiscreteScheduler", {}, 4, 3.5, {"true_cfg_scale": 2.5}),
        ("euler", "normal", "FlowMatchEulerDiscreteScheduler", {}, 4, 3.5, {"max_sequence_length": 128})],
    "flux_schnell": FLUX_RUNS[:1],
}
SIZE = (64, 96)  # width, height


def name_of(sampler, schedule, options, guidance, more, seed):
    words = [sampler] + ([schedule] if schedule != "normal" else [])
    words += [f"{k}{v}" for k, v in options.items()
              if k in ("use_dynamic_shifting", "shift_terminal", "time_shift_type")]
    words += ["no_t5"] if "drop" in more else []
    words += [k for k in more if k in ("clip_skip", "skip_guidance_layers", "true_cfg_scale", "max_sequence_length")]
    return f"pipe/{'_'.join(words)}/g{guidance}/seed{seed}"


def run(pipe, case, dtype):
    flux = isinstance(pipe, diffusers.FluxPipeline)
    width, height = case["width"], case["height"]
    noise = torch.randn((1, 16, height // 8, width // 8), generator=torch.Generator("cpu").manual_seed(case["seed"]))
    generator = torch.Generator("cpu").manual_seed(case["seed"])
    options = dict(generator=generator)
    if dtype == torch.float64:
        torch.randn(noise.shape, generator=generator)
        latents = noise.double()
        options["latents"] = pipe._pack_latents(latents, *latents.shape) if flux else latents
    steps = []

    def keep(_pipe, _step, _timestep, values):
        now = values["latents"].detach().clone()
        steps.append(pipe._unpack_latents(now, height, width, 8) if flux else now)
        return values

    if not flux or "true_cfg_scale" in case["more"]:
        options["negative_prompt"] = case["negative"]
        options.update(case["more"])
    # These pipelines do not hand their generator to the scheduler, which draws from the global one.
    torch.manual_seed(case["seed"])
    torch.randn(noise.shape)
    picture = pipe(case["prompt"], width=width, height=height, num_inference_steps=case["steps"],
                   guidance_scale=case["guidance"], callback_on_step_end=keep, output_type="np",
                   max_sequence_length=case["tokens"], **options).images[0]
    return noise, steps, (picture * 255).round().astype(numpy.uint8)


def double(pipe):
    copied = copy.deepcopy(pipe)
    for part in copied.components.values():
        if isinstance(part, torch.nn.Module):
            part.double()
    return copied


def make_runs(family, load):
    import make_flow
    tensors, manifest = {}, []
    for number, (sampler, schedule, kind, options, steps, guidance, more) in enumerate(EXTRAS[family]):
        with tempfile.TemporaryDirectory() as scratch:
            pipe = load(family, scratch, more.get("drop", ()))
        config = pipe.scheduler.config
        seed = 4711 + 17 * number
        case = dict(prompt=PROMPTS[number % 4], negative=NEGATIVE if guidance > 1 and number % 2 == 0 else None, seed=seed,
                    steps=steps, guidance=guidance, width=SIZE[0], height=SIZE[1],
                    tokens=more.get("max_sequence_length", 512 if family.startswith("flux") else 256),
                    more={k: v for k, v in more.items() if k not in ("drop", "max_sequence_length")})
        pipe.scheduler = getattr(diffusers, kind).from_config(config, **options)
        twin = double(pipe)
        noise, latents, image = run(pipe, case, torch.float32)
        with single_precision_noise():
            _, latents64, image64 = run(twin, case, torch.float64)
        rounding = max(float((a.double() - b.double()).abs().max() / b.abs().max()) for a, b in zip(latents, latents64))
        name = name_of(sampler, schedule, options, guidance, more, seed)
        tensors[f"{name}/noise"] = noise
        for i, latent in enumerate(latents):
            tensors[f"{name}/step{i:02}"] = latent
        tensors[f"{name}/image"] = torch.from_numpy(image)
        manifest.append(dict(
            name=name, file="pipelines.safetensors", model=family, scheduler="scheduler", sampler=sampler, schedule=schedule,
            spacing="flow", diffusers=dict(class_name=kind, **{k: v for k, v in sorted(options.items())}),
            timesteps=[float(t) for t in pipe.scheduler.timesteps], sigmas=[float(s) for s in pipe.scheduler.sigmas],
            steps=steps, recorded=len(latents), guidance=guidance, eta=0.0, seed=seed, prompt=case["prompt"],
            negative=case["negative"], width=case["width"], height=case["height"], guidance_rescale=0.0,
            clip_skip=more.get("clip_skip", 0) + 1, rounding=rounding, drop=list(more.get("drop", [])),
            skip_layers=more.get("skip_guidance_layers", []), t5_tokens=more.get("max_sequence_length"),
            true_guidance=more.get("true_cfg_scale")))
        print(f"  {name}: f32 against f64 {rounding:.1e}, pixels {numpy.abs(image.astype(int) - image64.astype(int)).max()}; "
              f"|latent| {latents[-1].abs().mean():.2f}, picture std {image.std():.0f}", flush=True)
    return tensors, dict(versions=dict(diffusers=diffusers.__version__, torch=torch.__version__), cases=manifest)


def text_stages(out, pipe, family):
    flux = family.startswith("flux")
    encoders = [("text_encoder", pipe.tokenizer, pipe.text_encoder)]
    if not flux:
        encoders.append(("text_encoder_2", pipe.tokenizer_2, pipe.text_encoder_2))
        encoders.append(("t5", pipe.tokenizer_3, pipe.text_encoder_3))
        for name, tokenizer, encoder in encoders:
            length = 77 if name != "t5" else 80
            ids = tokenizer(PROMPTS[0], padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
            found = encoder(ids, output_hidden_states=True)
            out[f"{name}/tokens"] = ids[0]
            for i, hidden in enumerate(found.hidden_states):
                out[f"{name}/hidden{i}"] = hidden[0]
            out[f"{name}/last_hidden_state"] = found.last_hidden_state[0]
            if name == "t5":
                mask = (ids != 0).long()
                out["t5/masked"] = encoder(ids, attention_mask=mask).last_hidden_state[0]
            else:
                out[f"{name}/pooled"] = found.text_embeds[0]


def network_stages(out, pipe, family):
    import make_flow
    generator = torch.Generator().manual_seed(7000)
    x = torch.randn(2, 16, 12, 8, generator=generator)
    # Times are fractions of a training step, as flows have them.
    timestep = torch.tensor([901.25, 37.5])
    net = pipe.transformer
    embeds = torch.randn(2, 90, net.config.joint_attention_dim, generator=generator)
    pooled = torch.randn(2, net.config.pooled_projection_dim, generator=generator)
    out.update({"transformer/in/sample": x, "transformer/in/timestep": timestep, "transformer/in/context": embeds,
                "transformer/in/pooled": pooled})

    def hook(name):
        def keep(_module, _inputs, output):
            if isinstance(output, tuple):
                context, image = output
                out[f"transformer/{name}/image"] = image.detach().clone()
                if context is not None:
                    out[f"transformer/{name}/context"] = context.detach().clone()
            else:
                out[f"transformer/{name}"] = output.detach().clone()
        return keep

    hooks = []
    for name, module in net.named_modules():
        block = name.count(".") == 1 and "transformer_blocks." in name
        if block or name in ("pos_embed", "time_text_embed", "context_embedder", "norm_out") and not (
                name == "pos_embed" and family.startswith("flux")):
            hooks.append(module.register_forward_hook(hook(name)))
    out["transformer/out"] = make_flow.run_network(pipe, family, x, timestep, embeds, pooled)
    for one in hooks:
        one.remove()
    if family == "sd35_medium":
        out["transformer/skip_1"] = make_flow.run_network(pipe, family, x, timestep, embeds, pooled, skip_layers=[1])


def prompt_stages(out, pipe, family):
    import make_flow
    embeds, pooled = make_flow.conditioning(pipe, family, [PROMPTS[1]], 77)
    out["prompt_embeds"], out["pooled_prompt_embeds"] = embeds[0], pooled[0]


def vae_stages(out, pipe):
    generator = torch.Generator().manual_seed(7100)
    latent = torch.randn(1, 16, 4, 3, generator=generator)
    out["vae/in/latent"] = latent
    config = pipe.vae.config
    out["vae/decoded"] = pipe.vae.decode(latent / config.scaling_factor + config.shift_factor).sample


@torch.no_grad()
def make(family):
    import make_flow
    with tempfile.TemporaryDirectory() as scratch:
        pipe = make_flow.load(family, scratch)
    out = {}
    if family == "sd3":
        text_stages(out, pipe, family)
        vae_stages(out, pipe)
    if family in ("sd3", "flux_dev"):
        prompt_stages(out, pipe, family)
    network_stages(out, pipe, family)
    target = make_flow.FLOW / family
    save_file({k: v.detach().contiguous().clone() for k, v in sorted(out.items())}, target / "stages.safetensors")
    tensors, manifest = make_runs(family, make_flow.load)
    save_file({k: v.detach().contiguous().clone() for k, v in sorted(tensors.items())}, target / "pipelines.safetensors")
    common.write_json(target / "cases.json", manifest)
    for path in sorted(target.rglob("*")):
        if path.is_file() and path.suffix == ".safetensors":
            print(f"  {path.relative_to(target)}: {path.stat().st_size / 1e6:.2f} MB")
