"""Makes reference pictures of the model that ships, with diffusers in f32, from the very same folder.

    python default_references.py [--model ../models/default] [--out default]

To be run again whenever a file of the model changes: `references.json` holds a checksum of each, and the test
(crates/engine/tests/engine/default_model.rs) compares them before anything else. It prints, for each picture, the
PSNR between diffusers' own f32 and f64 runs: what rounding alone does."""

import argparse
import copy
import json
import math
from pathlib import Path

import numpy
import torch
from PIL import Image

import diffusers

from common import GOLDEN
from compare_default import SCHEDULES
from reference_runs import SAMPLERS, run, single_precision_noise

# Aquatint's sampler, its schedule, steps, guidance, seed, prompt, negative prompt, width, height.
CASES = [
    ("euler", "normal", 20, 7.5, 42, "a red apple", None, 128, 128),
    ("ddim", "normal", 15, 4.0, 20251124, "smiling face with sunglasses", "", 128, 128),
    ("dpmpp_2m", "karras", 12, 3.0, 7, "a slice of pizza", "blue", 128, 128),
    ("unipc", "normal", 16, 1.0, 4294967296, "blue heart", None, 128, 128),
    ("euler_a", "normal", 20, 5.0, 1, "a cat, dog face", None, 128, 64),
]


def files(model):
    """What makes the pictures: the index, and all of the components."""
    found = [p for p in model.rglob("*") if p.is_file() and (p.parent != model or p.name == "model_index.json")]
    return sorted(p.relative_to(model).as_posix() for p in found)


def checksum(path):
    """The sum of (i + 1) * byte[i], modulo 2^64."""
    data = numpy.frombuffer(path.read_bytes(), numpy.uint8).astype(numpy.uint64)
    return int((data * numpy.arange(1, len(data) + 1, dtype=numpy.uint64)).sum(dtype=numpy.uint64))


def psnr(a, b):
    mean_square = float(((a.astype(int) - b.astype(int)) ** 2).mean())
    return 10 * math.log10(255 ** 2 / mean_square) if mean_square else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=GOLDEN.parent / "models" / "default")
    parser.add_argument("--out", type=Path, default=GOLDEN / "default")
    args = parser.parse_args()
    args.out.mkdir(exist_ok=True)
    before = {name: checksum(args.model / name) for name in files(args.model)}
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(args.model, torch_dtype=torch.float32,
                                                             local_files_only=True, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    double = copy.deepcopy(pipe)
    for part in (double.unet, double.vae, double.text_encoder):
        part.double()
    base, manifest = pipe.scheduler.config, []
    for number, (sampler, schedule, steps, guidance, seed, prompt, negative, width, height) in enumerate(CASES):
        case = dict(sampler=sampler, schedule=schedule, steps=steps, guidance=guidance, seed=seed, prompt=prompt,
                    negative=negative, width=width, height=height)
        _, _, kind, options, _ = next(row for row in SAMPLERS if row[0] == sampler)
        for one in (pipe, double):
            one.scheduler = getattr(diffusers, kind).from_config(base, **options, **SCHEDULES[schedule])
        call = dict(case, eta=0.0)
        image = run(pipe, call, width, height, torch.float32)[2]
        with single_precision_noise():
            exact = run(double, call, width, height, torch.float64)[2]
        picture = f"{number}_{sampler}.png"
        Image.fromarray(image).save(args.out / picture, optimize=True)
        manifest.append(dict(picture=picture, **case, rounding_psnr=psnr(image, exact)))
        print(json.dumps(manifest[-1]), flush=True)
    if before != {name: checksum(args.model / name) for name in files(args.model)}:
        raise SystemExit("the model's files changed meanwhile; run this again")
    versions = dict(diffusers=diffusers.__version__, torch=torch.__version__)
    text = json.dumps(dict(versions=versions, files=before, cases=manifest), indent=1, ensure_ascii=False)
    (args.out / "references.json").write_text(text + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.no_grad():
        main()
