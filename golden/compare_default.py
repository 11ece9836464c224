"""Compares a picture that Aquatint wrote with the one diffusers makes from the same folder.

    python compare_default.py --model ../models/default --image apple.png --prompt "a red apple" --seed 42
        [--negative TEXT] [--sampler euler] [--schedule normal] [--steps 20] [--guidance 7.5]
        [--width 128] [--height 128] [--eta 0] [--save diffusers.png] [--min-psnr 45]

Prints one JSON object: PSNR in dB (null when the pictures are equal), the fraction of pixels whose every
channel is within 1/255, the largest difference. Exit code 1 when the PSNR is under --min-psnr."""

import argparse
import json
import math
import sys
from pathlib import Path

import numpy
import torch
from PIL import Image

import diffusers

from reference_runs import SAMPLERS

SCHEDULES = {"normal": {}, "karras": {"use_karras_sigmas": True}, "exponential": {"use_exponential_sigmas": True},
             "beta": {"use_beta_sigmas": True}}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a diffusers folder")
    parser.add_argument("--image", type=Path, required=True, help="the PNG that Aquatint wrote")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--negative")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--sampler", default="euler", choices=sorted({row[0] for row in SAMPLERS}))
    parser.add_argument("--schedule", default="normal", choices=list(SCHEDULES))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--eta", type=float, default=0.0)
    parser.add_argument("--width", type=int, help="the PNG's, if absent")
    parser.add_argument("--height", type=int, help="the PNG's, if absent")
    parser.add_argument("--save", type=Path, help="keep diffusers' picture here")
    parser.add_argument("--min-psnr", type=float)
    return parser.parse_args()


def scheduler(pipe, sampler, schedule):
    """The scheduler of a sampler's first row in SAMPLERS, with the schedule's option."""
    _, _, kind, options, _ = next(row for row in SAMPLERS if row[0] == sampler)
    return getattr(diffusers, kind).from_config(pipe.scheduler.config, **options, **SCHEDULES[schedule])


def compare(ours, theirs):
    difference = numpy.abs(ours.astype(int) - theirs.astype(int))
    mean_square = float((difference ** 2).mean())
    return dict(psnr=10 * math.log10(255 ** 2 / mean_square) if mean_square else None,
                within_1=float((difference.max(axis=2) <= 1).mean()), largest=int(difference.max()),
                equal=mean_square == 0)


def main():
    args = arguments()
    ours = numpy.asarray(Image.open(args.image).convert("RGB"))
    height, width = args.height or ours.shape[0], args.width or ours.shape[1]
    if ours.shape[:2] != (height, width):
        sys.exit(f"{args.image} is {ours.shape[1]}x{ours.shape[0]}, not {width}x{height}")
    pipe = diffusers.DiffusionPipeline.from_pretrained(args.model, torch_dtype=torch.float32, local_files_only=True,
                                                       use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = scheduler(pipe, args.sampler, args.schedule)
    picture = pipe(args.prompt, negative_prompt=args.negative, width=width, height=height, eta=args.eta,
                   num_inference_steps=args.steps, guidance_scale=args.guidance, output_type="np",
                   generator=torch.Generator("cpu").manual_seed(args.seed)).images[0]
    theirs = (picture * 255).round().astype(numpy.uint8)
    if args.save:
        Image.fromarray(theirs).save(args.save)
    result = compare(ours, theirs)
    print(json.dumps(dict(result, model=str(args.model), image=str(args.image), sampler=args.sampler,
                          schedule=args.schedule, steps=args.steps, guidance=args.guidance, seed=args.seed)))
    if args.min_psnr is not None and result["psnr"] is not None and result["psnr"] < args.min_psnr:
        sys.exit(1)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
