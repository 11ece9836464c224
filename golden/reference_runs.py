"""Whole runs of the true diffusers pipelines: latents after every step, and the 8-bit picture."""

import copy
import json
import random
import sys
from contextlib import contextmanager

import numpy
import torch

import diffusers

from common import GOLDEN, NEGATIVE, PROMPTS

# Aquatint's sampler name, its schedule, the scheduler of diffusers and the options it is given, eta.
SAMPLERS = [
    ("ddpm", "normal", "DDPMScheduler", {}, 0.0),
    ("ddim", "normal", "DDIMScheduler", {}, 0.0),
    ("ddim", "normal", "DDIMScheduler", {}, 0.6),
    ("euler", "normal", "EulerDiscreteScheduler", {}, 0.0),
    ("euler", "karras", "EulerDiscreteScheduler", {"use_karras_sigmas": True}, 0.0),
    ("euler_a", "normal", "EulerAncestralDiscreteScheduler", {}, 0.0),
    ("heun", "normal", "HeunDiscreteScheduler", {}, 0.0),
    ("dpm2", "normal", "KDPM2DiscreteScheduler", {}, 0.0),
    ("dpmpp_2m", "normal", "DPMSolverMultistepScheduler", {}, 0.0),
    ("dpmpp_2m", "karras", "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, 0.0),
    ("dpmpp_2m", "exponential", "DPMSolverMultistepScheduler", {"use_exponential_sigmas": True}, 0.0),
    ("dpmpp_2m_sde", "normal", "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, 0.0),
    ("dpmpp_2m_sde", "karras", "DPMSolverMultistepScheduler",
     {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}, 0.0),
    ("unipc", "normal", "UniPCMultistepScheduler", {}, 0.0),
    ("lms", "normal", "LMSDiscreteScheduler", {}, 0.0),
    ("pndm", "normal", "PNDMScheduler", {}, 0.0),
    ("deis", "normal", "DEISMultistepScheduler", {}, 0.0),
    ("lcm", "normal", "LCMScheduler", {}, 0.0),
    ("tcd", "normal", "TCDScheduler", {}, 0.0),
    ("tcd", "normal", "TCDScheduler", {}, 0.3),
]
# Square runs with one thing changed; the last two columns are pipeline arguments and the families.
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
EXTRAS = [
    ("euler", "normal", "EulerDiscreteScheduler", {"timestep_spacing": "trailing"}, {}, "sd1 sd2 sdxl"),
    ("dpmpp_2m", "normal", "DPMSolverMultistepScheduler", {"timestep_spacing": "leading"}, {}, "sd1"),
    ("dpmpp_2m", "normal", "DPMSolverMultistepScheduler", {"timestep_spacing": "trailing"}, {}, "sd1"),
    ("euler", "beta", "EulerDiscreteScheduler", {"use_beta_sigmas": True}, {}, "sd1"),
    ("ddim", "normal", "DDIMScheduler", {}, {"clip_skip": 1}, "sd1 sdxl"),
    ("ddim", "normal", "DDIMScheduler", {}, {"guidance_rescale": 0.7}, "sd1 sdxl"),
    ("ddim", "normal", "DDIMScheduler", ZERO_SNR, {"guidance_rescale": 0.7}, "sd2"),
]
SIZES = {"sd1": (64, 128), "sd2": (64, 128), "sdxl": (64, 96)}  # width, height


def cases(family):
    chance = random.Random(family)
    for number, (sampler, schedule, kind, options, eta) in enumerate(SAMPLERS):
        for guidance in (7.5, 1.0):
            steps = chance.randrange(5, 8)
            prompt = PROMPTS[chance.randrange(4)]
            negative = NEGATIVE if guidance != 1.0 and number % 2 == 0 else None
            yield dict(sampler=sampler, schedule=schedule, scheduler=kind, options=options, steps=steps,
                       guidance=guidance, eta=eta, seed=chance.randrange(2**32), prompt=prompt, negative=negative)
    for sampler, schedule, kind, options, more, families in EXTRAS:
        if family in families.split():
            yield dict(sampler=sampler, schedule=schedule, scheduler=kind, options=options, steps=5, guidance=6.0,
                       eta=0.0, seed=chance.randrange(2**32), prompt=PROMPTS[2], negative=NEGATIVE, size=(64, 64),
                       more=more)
    if family == "sdxl":
        turbo = json.loads((GOLDEN / "sdxl" / "scheduler_turbo" / "scheduler_config.json").read_text())
        for steps, guidance in ((1, 0.0), (4, 0.0), (4, 2.0)):
            yield dict(sampler="euler_a", schedule="normal", scheduler="EulerAncestralDiscreteScheduler",
                       options=turbo, steps=steps, guidance=guidance, eta=0.0, seed=chance.randrange(2**32),
                       prompt=PROMPTS[1], negative=None, turbo=True)


def case_name(case):
    parts = [("turbo_" if case.get("turbo") else "") + case["sampler"]]
    parts += [case["schedule"]] if case["schedule"] != "normal" else []
    parts += [f"eta{case['eta']}"] if case["eta"] else []
    options = case["options"]
    if not case.get("turbo"):
        parts += [options["timestep_spacing"]] if "timestep_spacing" in options else []
        parts += ["zero_snr"] if "rescale_betas_zero_snr" in options else []
        parts += [f"{k}{v}" for k, v in case.get("more", {}).items()]
    steps = f"/steps{case['steps']}" if case.get("turbo") else ""
    return f"pipe/{'_'.join(parts)}{steps}/g{case['guidance']}/seed{case['seed']}"


@contextmanager
def single_precision_noise():
    """Lets schedulers that run in f64 draw the noise of the f32 run."""
    from diffusers.utils import torch_utils
    true = torch_utils.randn_tensor

    def drawn(*args, dtype=None, **options):
        return true(*args, dtype=torch.float32, **options).to(dtype)

    holders = [m for n, m in list(sys.modules.items())
               if n.startswith("diffusers.") and getattr(m, "__dict__", {}).get("randn_tensor") is true]
    for module in holders:
        module.randn_tensor = drawn
    try:
        yield
    finally:
        for module in holders:
            module.randn_tensor = true


def run(pipe, case, width, height, dtype):
    """(noise, latents after each call of the scheduler, the 8-bit picture)"""
    generator = torch.Generator("cpu").manual_seed(case["seed"])
    shape = (1, pipe.unet.config.in_channels, height // 8, width // 8)
    options = dict(generator=generator)
    noise = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(case["seed"]))
    if dtype == torch.float64:
        torch.randn(shape, generator=generator)  # what the pipeline would have drawn
        options["latents"] = noise.double()
    steps = []

    def keep(_pipe, _step, _timestep, values):
        steps.append(values["latents"].detach().clone())
        return values

    picture = pipe(case["prompt"], negative_prompt=case["negative"], width=width, height=height,
                   num_inference_steps=case["steps"], guidance_scale=case["guidance"], eta=case["eta"],
                   callback_on_step_end=keep, output_type="np", **options, **case.get("more", {})).images[0]
    return noise, steps, (picture * 255).round().astype(numpy.uint8), picture


def make_runs(pipe, family):
    base = pipe.scheduler.config
    double = copy.deepcopy(pipe)
    for part in (double.unet, double.vae, double.text_encoder, getattr(double, "text_encoder_2", None)):
        if part is not None:
            part.double()
    tensors, manifest = {}, []
    for case in cases(family):
        width, height = case.get("size", SIZES[family])
        name, more = case_name(case), case.get("more", {})
        kind = getattr(diffusers, case["scheduler"])
        options = case["options"]
        config = options if case.get("turbo") else base
        given = {} if case.get("turbo") else options
        pipe.scheduler, double.scheduler = kind.from_config(config, **given), kind.from_config(config, **given)
        noise, steps, image, exact = run(pipe, case, width, height, torch.float32)
        with single_precision_noise():
            _, steps64, image64, exact64 = run(double, case, width, height, torch.float64)
        rounding = max(float((a.double() - b.double()).abs().max() / b.abs().max()) for a, b in zip(steps, steps64))
        pixels = int(numpy.abs(image.astype(int) - image64.astype(int)).max())
        tensors[f"{name}/noise"] = noise
        for i, latent in enumerate(steps):
            tensors[f"{name}/step{i:02}"] = latent
        tensors[f"{name}/image"] = torch.from_numpy(image)
        sigmas = getattr(pipe.scheduler, "sigmas", None)
        manifest.append(dict(
            name=name, file="pipelines.safetensors", model=family,
            scheduler="scheduler_turbo" if case.get("turbo") else "scheduler",
            sampler=case["sampler"], schedule=case["schedule"],
            spacing=pipe.scheduler.config.get("timestep_spacing", "linspace"),
            # JSON has no infinity (lambda_min_clipped's default): null.
            diffusers=dict(class_name=kind.__name__,
                           **{k: None if isinstance(v, float) and numpy.isinf(v) else v
                              for k, v in sorted(pipe.scheduler.config.items()) if not k.startswith("_")}),
            timesteps=[float(t) for t in pipe.scheduler.timesteps],
            sigmas=None if sigmas is None else [float(s) for s in sigmas],
            steps=case["steps"], recorded=len(steps), guidance=case["guidance"], eta=case["eta"],
            seed=case["seed"], prompt=case["prompt"], negative=case["negative"], width=width, height=height,
            guidance_rescale=more.get("guidance_rescale", 0.0),
            # Counted as Aquatint does: 1 is the family's usual layer.
            clip_skip=more.get("clip_skip", 0) + 1, rounding=rounding))
        clipped = float(((image == 0) | (image == 255)).mean())
        print(f"  {name}: f32 against f64 {rounding:.1e}, pixels {pixels}; |latent| {steps[-1].abs().mean():.2f}, "
              f"picture std {image.std():.0f}, clipped {clipped:.3f}", flush=True)
    versions = dict(diffusers=diffusers.__version__, torch=torch.__version__)
    return tensors, dict(versions=versions, cases=manifest)
