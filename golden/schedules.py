"""Makes golden/schedules.safetensors: the sigmas of every schedule, from the references.

Where the k_diffusion package has a schedule, the numbers are its own (f32); the others follow the
formulas of ComfyUI's comfy/samplers.py and of the papers, with scipy's quantiles (f64). The levels
of GITS are in schedules_gits.json, as ComfyUI's nodes_gits.py lists them. Tensor names are
schedule/steps, or schedule@option/steps; `sigmas` is the model's table.

Run: python golden/schedules.py
"""

import json
import math
import pathlib
import sys
import types

import numpy as np
import scipy.stats
import torch
from safetensors.numpy import save_file

# Its evaluation module wants packages that no schedule needs.
sys.modules["k_diffusion.evaluation"] = types.ModuleType("k_diffusion.evaluation")
import k_diffusion  # noqa: E402

HERE = pathlib.Path(__file__).parent
STEPS = [1, 2, 4, 10, 20, 50, 150, 1000]
# Align Your Steps, the published sigmas.
AYS = {
    "sd": [14.6146412293, 6.4745760956, 3.8636745985, 2.6946151520, 1.8841921177, 1.3943805092,
           0.9642583904, 0.6523686016, 0.3977456272, 0.1515232662, 0.0291671582],
    "sdxl": [14.6146412293, 6.3184485287, 3.7681790315, 2.1811480769, 1.3405244945, 0.8620721141,
             0.5550693289, 0.3798540708, 0.2332364134, 0.1114188177, 0.0291671582],
}  # fmt: skip


def model_sigmas():
    """Stable Diffusion's table, as diffusers computes it."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float32) ** 2
    bar = torch.cumprod(1 - betas, 0)
    return ((1 - bar) / bar) ** 0.5


def simple(sigmas, n):
    stride = len(sigmas) / n
    return [sigmas[-(1 + int(i * stride))] for i in range(n)]


def ddim_uniform(sigmas, n):
    """ComfyUI's, which may give more than n."""
    return sigmas[1 :: max(len(sigmas) // n, 1)][::-1].tolist()


def beta(sigmas, n, a, b):
    """ComfyUI's, which may give fewer than n."""
    quantiles = scipy.stats.beta.ppf(1 - np.linspace(0, 1, n, endpoint=False), a, b)
    places = np.rint(quantiles * (len(sigmas) - 1)).astype(int)
    return [sigmas[p] for i, p in enumerate(places) if i == 0 or p != places[i - 1]]


def kl_optimal(sigmas, n):
    ramp = np.arange(n) / (n - 1)
    return np.tan(ramp * math.atan(sigmas[0]) + (1 - ramp) * math.atan(sigmas[-1])).tolist()


def linear_quadratic(sigmas, n, share=0.025):
    if n == 1:
        return [sigmas[-1]]
    linear = n // 2
    quadratic = n - linear
    diff = linear - share * n
    c2 = diff / (linear * quadratic**2)
    c1 = share / linear - 2 * diff / quadratic**2
    c0 = c2 * linear**2
    removed = [i * share / linear for i in range(linear)]
    removed += [c2 * i**2 + c1 * i + c0 for i in range(linear, n)]
    return [(1 - r) * sigmas[-1] for r in removed]


def resample(levels, count):
    old, new = np.linspace(0, 1, len(levels)), np.linspace(0, 1, count)
    return np.exp(np.interp(new, old, np.log(levels[::-1])))[::-1].tolist()


def align_your_steps(levels, n):
    return (levels if n + 1 == len(levels) else resample(levels, n + 1))[:-1]


def gits(rows, n):
    return (rows[n - 2] if n <= 20 else resample(rows[-1], n + 1))[:-1]


def main():
    torch.set_num_threads(1)
    table = model_sigmas()
    sigmas = table.double().numpy()
    low, high = table[0].item(), table[-1].item()
    k = k_diffusion.sampling
    discrete = k_diffusion.external.DiscreteSchedule(table, quantize=False)
    out = {"sigmas": sigmas}

    def put(name, n, starts):
        out[f"{name}/{n}"] = np.array([*starts, 0.0])

    def put_f32(name, n, tensor):
        out[f"{name}/{n}"] = tensor.float().numpy()

    for n in STEPS:
        put_f32("normal", n, discrete.get_sigmas(n))
        spaced = torch.linspace(len(table) - 1, 0, n + 1)[:-1]
        put_f32("sgm_uniform", n, k.append_zero(discrete.t_to_sigma(spaced)))
        put_f32("karras", n, k.get_sigmas_karras(n, low, high))
        put_f32("karras@3", n, k.get_sigmas_karras(n, low, high, rho=3.0))
        put_f32("exponential", n, k.get_sigmas_exponential(n, low, high))
        put_f32("polyexponential", n, k.get_sigmas_polyexponential(n, low, high))
        put_f32("polyexponential@2", n, k.get_sigmas_polyexponential(n, low, high, rho=2.0))
        put("simple", n, simple(sigmas, n))
        put("ddim_uniform", n, ddim_uniform(sigmas, n))
        put("beta", n, beta(sigmas, n, 0.6, 0.6))
        put("beta@0.5,0.7", n, beta(sigmas, n, 0.5, 0.7))
        if n > 1:
            put("kl_optimal", n, kl_optimal(sigmas, n))
        put("linear_quadratic", n, linear_quadratic(sigmas, n))
        put("align_your_steps@sd", n, align_your_steps(AYS["sd"], n))
        put("align_your_steps@sdxl", n, align_your_steps(AYS["sdxl"], n))
    table = json.loads((HERE / "schedules_gits.json").read_text())
    for coefficient in table:
        for n in [*range(2, 21), 21, 50, 150]:
            if n <= 20 or coefficient == "1.20":
                put(f"gits@{coefficient}", n, gits(table[coefficient], n))
    save_file(out, HERE / "schedules.safetensors")


if __name__ == "__main__":
    main()
