"""Reference trajectories of every sampler, on a network that is a formula.

For each case: what the reference passes to the network (input and timestep, call by call), how many
noises it draws, and the final latent. The schedulers are diffusers' own; for samplers that diffusers
has not, k-diffusion's functions, or the papers' formulas as ComfyUI applies them, written out below.

    /work/env/ref/bin/python golden/samplers.py

writes samplers.json (the cases) and samplers.safetensors (their tensors) beside itself.
"""

import json
import math
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

import diffusers
from diffusers import schedulers as S

# k-diffusion's own __init__ wants packages that its samplers do not.
package = types.ModuleType("k_diffusion")
package.__path__ = [str(Path(p) / "k_diffusion") for p in sys.path if (Path(p) / "k_diffusion").is_dir()]
sys.modules["k_diffusion"] = package
from k_diffusion import sampling as K  # noqa: E402

warnings.filterwarnings("ignore")
diffusers.logging.set_verbosity_error()
torch.set_num_threads(1)
torch.set_grad_enabled(False)
HERE = Path(__file__).parent
SHAPE = (1, 2, 4, 4)

generator = torch.Generator("cpu").manual_seed(20240607)
INITIAL = torch.randn(SHAPE, generator=generator)
BANK = torch.randn((48, *SHAPE), generator=generator)


def network(x, t, prediction):
    """The formula; in f64, rounded to the input's type, so that both sides agree to the last place."""
    inner = torch.tanh(0.7 * x.double() + 0.1 * math.sin(float(t) / 100.0))
    scale = {"epsilon": 0.9, "v_prediction": -0.8, "sample": 0.6}[prediction]
    return (scale * inner).to(x.dtype)


class Bank:
    """Hands out the noises of the bank in order, in place of every generator."""

    def __init__(self):
        self.drawn = 0

    def __call__(self, *_, **__):
        self.drawn += 1
        return BANK[self.drawn - 1].clone()


SD = dict(
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    clip_sample=False,
    set_alpha_to_one=False,
    skip_prk_steps=True,
    steps_offset=1,
)

cases, tensors = [], {"initial": INITIAL.flatten(), "bank": BANK.flatten(1)}


def record(sampler, config, steps, calls, times, final, drawn, options=None, note=""):
    name = f"{len(cases):03d}_{sampler}"
    if not all(torch.isfinite(tensor).all() for tensor in [*calls, final]):
        # Rounding in f32 (the root of a negative number) or an empty step breaks some references.
        print("the reference is not finite:", sampler, steps, {k: v for k, v in config.items() if SD.get(k) != v})
        return
    cases.append(
        dict(name=name, sampler=sampler, config=config, steps=steps, options=options or {}, drawn=drawn, note=note)
    )
    tensors[f"{name}/inputs"] = torch.stack([c.flatten() for c in calls]).float()
    tensors[f"{name}/times"] = torch.tensor([float(t) for t in times], dtype=torch.float64)
    tensors[f"{name}/final"] = final.flatten().float()


def run(sampler, cls, config, steps, step_kwargs=None, forced=None, note=""):
    """A diffusers scheduler, as the pipelines drive it."""
    scheduler = cls.from_config({"_class_name": "PNDMScheduler", **config}, **(forced or {}))
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        # Where the first two times round to the same one, diffusers would begin at the second.
        scheduler.set_begin_index(0)
    bank = Bank()
    module = sys.modules[cls.__module__]
    if hasattr(module, "randn_tensor"):
        module.randn_tensor = bank
    scheduler.noise_sampler = bank  # DPMSolverSDE: independent noise for its Brownian tree.
    x = INITIAL * scheduler.init_noise_sigma
    calls, times = [], []
    prediction = config.get("prediction_type", "epsilon")
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t)
        calls.append(scaled)
        times.append(t)
        x = scheduler.step(network(scaled, t, prediction), t, x, return_dict=False, **(step_kwargs or {}))[0]
    record(sampler, config, steps, calls, times, x, bank.drawn, step_kwargs, note)


PLAIN = {
    "euler": S.EulerDiscreteScheduler,
    "euler_a": S.EulerAncestralDiscreteScheduler,
    "heun": S.HeunDiscreteScheduler,
    "dpm2": S.KDPM2DiscreteScheduler,
    "dpm2_a": S.KDPM2AncestralDiscreteScheduler,
    "lms": S.LMSDiscreteScheduler,
    "ddpm": S.DDPMScheduler,
    "ddim": S.DDIMScheduler,
    "pndm": S.PNDMScheduler,
    "dpmpp_2m": S.DPMSolverMultistepScheduler,
    "dpmpp_2m_sde": S.DPMSolverMultistepScheduler,
    "dpmpp_2s": S.DPMSolverSinglestepScheduler,
    "dpmpp_sde": S.DPMSolverSDEScheduler,
    "unipc": S.UniPCMultistepScheduler,
    "deis": S.DEISMultistepScheduler,
    "lcm": S.LCMScheduler,
    "tcd": S.TCDScheduler,
}
FORCED = {"dpmpp_2m_sde": dict(algorithm_type="sde-dpmsolver++")}
CURVED = ["euler", "heun", "dpm2", "dpm2_a", "lms", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2s", "dpmpp_sde", "unipc", "deis"]
NO_SAMPLE = ["euler_a", "dpm2", "dpm2_a", "pndm", "dpmpp_sde"]
# KDPM2 interpolates no midpoint time in a run of one step, and diffusers then fails.


def diffusers_cases():
    for name, cls in PLAIN.items():
        go = lambda config, steps, **kw: run(name, cls, config, steps, forced=FORCED.get(name), **kw)
        for spacing in ["leading", "trailing", "linspace"]:
            for steps in [1, 2, 5, 20]:
                go(SD | dict(timestep_spacing=spacing), steps)
        for steps in [3, 14, 15]:
            go(SD, steps, note="the class's own spacing; solvers change their final orders at 15 steps")
        go({}, 20, note="every default of the class")
        go(SD | dict(prediction_type="v_prediction"), 5)
        if name not in NO_SAMPLE:
            go(SD | dict(prediction_type="sample"), 5)
        if name in CURVED:
            for curve in ["karras", "exponential", "beta"]:
                for steps in [1, 2, 5, 20]:
                    go(SD | {f"use_{curve}_sigmas": True}, steps)
            go(SD | dict(use_karras_sigmas=True, timestep_spacing="leading"), 20)
            go(SD | dict(use_karras_sigmas=True, timestep_spacing="trailing", prediction_type="v_prediction"), 20)
        go(SD | dict(beta_schedule="squaredcos_cap_v2"), 10)
        if name in CURVED:
            go(SD | dict(beta_schedule="squaredcos_cap_v2", use_karras_sigmas=True), 10)

    zero = SD | dict(rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing")
    for name in ["euler", "euler_a", "ddim", "ddpm", "dpmpp_2m", "dpmpp_2m_sde", "unipc"]:
        for steps in [1, 5, 20]:
            run(name, PLAIN[name], zero, steps, forced=FORCED.get(name), note="zero terminal SNR")
    for name in ["heun", "deis", "lms"]:
        run(name, PLAIN[name], zero, 5, note="a class that does not know zero terminal SNR")
    for name in ["lcm", "tcd"]:
        run(name, PLAIN[name], zero, 4, note="zero terminal SNR")

    for name in ["euler", "dpmpp_2m", "dpmpp_2s"]:
        for more in [{}, dict(use_karras_sigmas=True)]:
            run(name, PLAIN[name], SD | dict(final_sigmas_type="sigma_min") | more, 6)
    run("unipc", PLAIN["unipc"], SD | dict(final_sigmas_type="sigma_min"), 6)
    run("dpmpp_2m", PLAIN["dpmpp_2m"], SD | dict(euler_at_final=True), 20)
    run("dpmpp_2m", PLAIN["dpmpp_2m"], SD | dict(lower_order_final=False), 6)
    run("dpmpp_2m", PLAIN["dpmpp_2m"], SD | dict(lambda_min_clipped=-2.0), 10)
    for order in [1, 2, 3]:
        for kind in ["midpoint", "heun"]:
            for name in ["dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2s"]:
                for steps in [6, 7, 20]:
                    config = SD | dict(solver_order=order, solver_type=kind)
                    run(name, PLAIN[name], config, steps, forced=FORCED.get(name))
    for order in [1, 3]:
        run("deis", PLAIN["deis"], SD | dict(solver_order=order), 20)
        # Only the default form of UniPC can end at no noise.
        ends = dict(final_sigmas_type="sigma_min")
        for more in [{}, ends | dict(solver_type="bh1"), ends | dict(predict_x0=False), dict(disable_corrector=[0, 3])]:
            run("unipc", PLAIN["unipc"], SD | dict(solver_order=order) | more, 20)
    run("unipc", PLAIN["unipc"], SD | ends | dict(predict_x0=False, solver_type="bh1"), 8)
    run("unipc", PLAIN["unipc"], SD | ends | dict(lower_order_final=False, solver_order=3), 8)

    for eta in [0.5, 1.0]:
        run("ddim", PLAIN["ddim"], SD, 20, step_kwargs=dict(eta=eta))
        run("ddim", PLAIN["ddim"], SD | dict(clip_sample=True, clip_sample_range=0.8), 5, step_kwargs=dict(eta=eta))
        run("tcd", PLAIN["tcd"], SD, 4, step_kwargs=dict(eta=eta))
    run("tcd", PLAIN["tcd"], SD, 4, step_kwargs=dict(eta=0.0))
    run("lcm", PLAIN["lcm"], SD | dict(original_inference_steps=100, clip_sample=True, timestep_scaling=5.0), 7)
    run("heun", PLAIN["heun"], SD | dict(clip_sample=True, clip_sample_range=0.7), 5)
    for variance in ["fixed_large", "fixed_small_log"]:
        run("ddpm", PLAIN["ddpm"], SD | dict(variance_type=variance), 10)
    for steps in [4, 5, 20]:
        run("pndm", PLAIN["pndm"], SD | dict(skip_prk_steps=False), steps)
        run("pndm", PLAIN["pndm"], SD | dict(skip_prk_steps=False, prediction_type="v_prediction"), steps)
    run("pndm", PLAIN["pndm"], SD | dict(timestep_spacing="trailing", set_alpha_to_one=True), 7)
    run("pndm", PLAIN["pndm"], SD | dict(timestep_spacing="linspace", prediction_type="v_prediction"), 7)
    betas = np.linspace(1e-4, 0.03, 100).tolist()
    for name in ["euler", "ddim", "dpmpp_2m"]:
        run(name, PLAIN[name], dict(trained_betas=betas, num_train_timesteps=100), 8)


class Sigmas:
    """A network as k-diffusion sees it, on EulerDiscrete's sigmas; in f64."""

    def __init__(self, config, steps):
        scheduler = S.EulerDiscreteScheduler.from_config({"_class_name": "PNDMScheduler", **config})
        self.logs = np.log(np.array(((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod) ** 0.5))
        self.scheduler = scheduler
        scheduler.set_timesteps(steps)
        self.sigmas = scheduler.sigmas.double()
        self.x = INITIAL.double() * float(scheduler.init_noise_sigma)
        self.known = {float(s): float(t) for s, t in zip(self.sigmas, scheduler.timesteps)}
        self.calls, self.times = [], []

    def __call__(self, x, sigma, **_):
        sigma = float(sigma.flatten()[0]) if torch.is_tensor(sigma) else float(sigma)
        t = self.known.get(sigma)
        if t is None:
            t = float(self.scheduler._sigma_to_t(np.array(sigma), self.logs))
        scaled = x / math.sqrt(sigma * sigma + 1)
        self.calls.append(scaled)
        self.times.append(t)
        return x - sigma * network(scaled, t, "epsilon")


class DoubleBank(Bank):
    def __call__(self, *_, **__):
        return super().__call__().double()


def er_sde(model, x, sigmas, noise):
    scale = lambda s: s * (math.exp(s**0.3) + 10.0)
    old = old_d = None
    for i in range(len(sigmas) - 1):
        s, t = float(sigmas[i]), float(sigmas[i + 1])
        denoised = model(x, s)
        if t == 0:
            x = denoised
        else:
            r = scale(t) / scale(s)
            x = r * x + (1 - r) * denoised
            if i >= 1:
                dt, width = t - s, (s - t) / 200
                at = [t + k * width for k in range(200)]
                d = (denoised - old) / (s - float(sigmas[i - 1]))
                x = x + (dt + sum(1 / scale(a) for a in at) * width * scale(t)) * d
                if i >= 2:
                    u = sum((a - s) / scale(a) for a in at) * width
                    d2 = (d - old_d) / ((s - float(sigmas[i - 2])) / 2)
                    x = x + (dt * dt / 2 + u * scale(t)) * d2
                old_d = d
            x = x + noise() * math.sqrt(max(t * t - s * s * r * r, 0.0))
        old = denoised
    return x


def res_multistep(model, x, sigmas, noise, eta):
    phi1 = lambda z: math.expm1(z) / z
    phi2 = lambda z: (phi1(z) - 1) / z
    old = old_down = None
    for i in range(len(sigmas) - 1):
        s, t = sigmas[i], sigmas[i + 1]
        denoised = model(x, s)
        down, up = K.get_ancestral_step(s, t, eta)
        if float(down) == 0 or old is None:
            x = x + (x - denoised) / s * (down - s)
        else:
            h = float(torch.log(s / down))
            c2 = float(torch.log(old_down / sigmas[i - 1])) / h
            b1, b2 = phi1(-h) - phi2(-h) / c2, phi2(-h) / c2
            x = math.exp(-h) * x + h * (b1 * denoised + b2 * old)
        if eta > 0 and t > 0:
            x = x + noise() * up
        old, old_down = denoised, down
    return x


def euler_cfg_pp(model, x, sigmas, noise, eta):
    for i in range(len(sigmas) - 1):
        s, t = sigmas[i], sigmas[i + 1]
        uncond = model(x, s)
        denoised = uncond + 0.3 * torch.tanh(uncond)  # Stands for the guided latent.
        if t == 0:
            x = denoised
        else:
            down, up = K.get_ancestral_step(s, t, eta)
            x = denoised + down * (x - uncond) / s
            if eta > 0:
                x = x + noise() * up
    return x


def ipndm(model, x, sigmas):
    weights = [[1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
    ds = []
    for i in range(len(sigmas) - 1):
        s, t = sigmas[i], sigmas[i + 1]
        denoised = model(x, s)
        ds = [(x - denoised) / s, *ds][:4]
        x = denoised if t == 0 else x + (t - s) * sum(w * d for w, d in zip(weights[len(ds) - 1], ds))
    return x


def sigma_cases():
    kwargs = dict(disable=True)
    for more in [dict(timestep_spacing="leading"), dict(timestep_spacing="linspace"), dict(use_karras_sigmas=True)]:
        config = SD | more
        for steps in [1, 2, 5, 20]:
            ways = {
                "dpmpp_2s_a": lambda m, n: K.sample_dpmpp_2s_ancestral(m, m.x, m.sigmas, noise_sampler=n, **kwargs),
                "dpmpp_3m_sde": lambda m, n: K.sample_dpmpp_3m_sde(m, m.x, m.sigmas, noise_sampler=n, **kwargs),
                "dpmpp_sde": None,
                "er_sde": lambda m, n: er_sde(m, m.x, m.sigmas, n),
                "res_multistep": lambda m, n: res_multistep(m, m.x, m.sigmas, n, 0.0),
                "euler_cfg_pp": lambda m, n: euler_cfg_pp(m, m.x, m.sigmas, n, 0.0),
                "euler_a_cfg_pp": lambda m, n: euler_cfg_pp(m, m.x, m.sigmas, n, 1.0),
                "ipndm": lambda m, n: ipndm(m, m.x, m.sigmas),
            }
            if steps == 20:
                ends = lambda m: (math.exp(m.logs[0]), float(m.sigmas[0]))
                ways["dpm_adaptive"] = lambda m, n: K.sample_dpm_adaptive(
                    m, m.x, *(torch.tensor(e, dtype=torch.float64) for e in ends(m)), **kwargs
                )
            for name, way in ways.items():
                if way is None or (name == "dpmpp_3m_sde" and steps == 1):
                    continue  # k-diffusion's own 3M stumbles over a run of one step.
                model, bank = Sigmas(config, steps), DoubleBank()
                final = way(model, bank)
                record(name, config, steps, model.calls, model.times, final, bank.drawn)
    for eta in [0.4, 1.0]:
        model, bank = Sigmas(SD, 10), DoubleBank()
        final = res_multistep(model, model.x, model.sigmas, bank, eta)
        record("res_multistep", SD, 10, model.calls, model.times, final, bank.drawn, dict(eta=eta))
        model, bank = Sigmas(SD, 10), DoubleBank()
        final = K.sample_dpmpp_2s_ancestral(model, model.x, model.sigmas, eta=eta, noise_sampler=bank, **kwargs)
        record("dpmpp_2s_a", SD, 10, model.calls, model.times, final, bank.drawn, dict(eta=eta))
        model, bank = Sigmas(SD, 10), DoubleBank()
        final = K.sample_dpmpp_3m_sde(model, model.x, model.sigmas, eta=eta, noise_sampler=bank, **kwargs)
        record("dpmpp_3m_sde", SD, 10, model.calls, model.times, final, bank.drawn, dict(eta=eta))


def schedule_tables():
    """The cumulative products, whose f32 bits the parity rests on."""
    for kind in ["linear", "scaled_linear", "squaredcos_cap_v2"]:
        for zero in [False, True]:
            s = S.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule=kind, rescale_betas_zero_snr=zero)
            tensors[f"alphas_cumprod/{kind}/{'zero_snr' if zero else 'plain'}"] = s.alphas_cumprod.clone()


def guidance_tables():
    """Guidance and its rescale, on two images."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    cond, uncond = BANK[:2, 0], 0.7 * BANK[:2, 0] + 0.4 * BANK[2:4, 0]
    guided = uncond + 7.5 * (cond - uncond)
    tensors["guidance/cond"], tensors["guidance/uncond"] = cond.flatten(), uncond.flatten()
    tensors["guidance/7.5"] = guided.flatten()
    for rescale in [0.7, 1.0]:
        tensors[f"guidance/7.5/{rescale}"] = rescale_noise_cfg(guided, cond, guidance_rescale=rescale).flatten()


if __name__ == "__main__":
    schedule_tables()
    guidance_tables()
    diffusers_cases()
    sigma_cases()
    versions = dict(torch=torch.__version__, diffusers=diffusers.__version__)
    text = ",\n".join(json.dumps(case) for case in cases)
    (HERE / "samplers.json").write_text(f'{{"versions": {json.dumps(versions)}, "cases": [\n{text}\n]}}\n')
    save_file({k: v.clone().contiguous() for k, v in tensors.items()}, HERE / "samplers.safetensors")
    (HERE / "samplers.safetensors").chmod(0o644)
    print(len(cases), "cases")
