"""Times a step of a flow transformer in Aquatint, stable-diffusion.cpp and diffusers, in turns on one machine.

    python bench_flow.py --binary ../target/release/aquatint --family sd35-medium|flux-dev|flux-schnell
        --folder DIR [--transformer FILE.gguf] [--t5 FILE.gguf] [--sdcpp-vae FILE]
        [--diffusers f32|bf16|gguf ...] [--sdcpp] [--rounds 1] [--steps 2] [--width 512] [--height 512] [--threads 2]

DIR is a diffusers folder, as make_full_flow.py writes it; --transformer and --t5 take its place where they are given.
Aquatint runs as its users run it, `generate --json`. diffusers runs the transformer alone, from the folder in f32 or bf16
where memory allows, or from the GGUF file (computing in f32). stable-diffusion.cpp is the build in the PyPI package
cyllama (0.2.18), with flash attention, and reads the same files; it is ended before it decodes, which takes it minutes.
Each run is a process of its own, and its peak resident memory is its own. Prints a Markdown table.

Nothing else should run on the machine."""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GB = 1e9
PROMPT = "a lighthouse in a storm"
GUIDANCE = {"sd35-medium": 4.5, "flux-dev": 3.5, "flux-schnell": 0.0}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=Path(__file__).parent / "../target/release/aquatint")
    parser.add_argument("--family", choices=list(GUIDANCE), required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--transformer", type=Path)
    parser.add_argument("--t5", type=Path)
    parser.add_argument("--sdcpp-vae", type=Path, help="the autoencoder in the original layout, if not the folder's")
    parser.add_argument("--diffusers", choices=["f32", "bf16", "gguf"], action="append", default=[])
    parser.add_argument("--sdcpp", action="store_true")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--torch-step", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--sdcpp-run", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def measured(command, enough=None):
    """A process's output and peak resident memory; it is ended after the line with the text `enough`."""
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    text = ""
    for line in process.stdout:
        text += line
        if enough and enough in line:
            process.kill()
            break
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) != 0 and not (enough and enough in text):
        sys.exit(f"{' '.join(map(str, command))}\nended with {os.waitstatus_to_exitcode(status)}:\n{text[-3000:]}")
    return text, usage.ru_maxrss * 1024


def clip_files(args):
    names = ["text_encoder"] if args.family.startswith("flux") else ["text_encoder", "text_encoder_2"]
    return [args.folder / name / "model.safetensors" for name in names]


def ours(args, out):
    command = [args.binary, "generate", PROMPT, "-o", out / "ours.png", "--force", "--json", "--seed", 7,
               "--width", args.width, "--height", args.height, "--steps", args.steps, "--threads", args.threads]
    if args.transformer:
        command += ["-m", args.transformer, "--vae", args.folder / "vae"]
        for clip in clip_files(args):
            tokenizer = clip.parent.with_name(clip.parent.name.replace("text_encoder", "tokenizer"))
            command += ["--text-encoder", clip.parent, "--tokenizer", tokenizer]
        command += ["--t5", args.t5 or args.folder / ("text_encoder_2" if args.family.startswith("flux") else "text_encoder_3")]
    else:
        command += ["-m", args.folder] + (["--t5", args.t5] if args.t5 else [])
    text, peak = measured(command)
    seconds = json.loads(text[text.index("{"):])["seconds"]
    return {"step": seconds["denoise"] / args.steps, "text": seconds["text_encode"], "decode": seconds["decode"], "peak": peak}


def sdcpp(args):
    # Its decoder takes minutes; what is compared is the step.
    text, peak = measured(own(args, "--sdcpp-run"), "sampling completed")
    taking = lambda what: (m := re.search(what + r".*?taking ([\d.]+) ?(ms|s)", text)) and float(m[1]) / (1000 if m[2] == "ms" else 1)
    step = taking("sampling completed")
    if step is None:
        sys.exit(f"stable-diffusion.cpp told no time of its sampling:\n{text[-3000:]}")
    return {"step": step / args.steps, "text": taking("get_learned_condition completed"), "decode": None, "peak": peak}


def sdcpp_run(args):
    """stable-diffusion.cpp in this process, with its log on standard output."""
    from cyllama.sd import SampleMethod, SDContext, SDContextParams, set_log_callback

    params = SDContextParams()
    params.diffusion_model_path = str(args.transformer or args.folder / "transformer/diffusion_pytorch_model.safetensors")
    params.vae_path = str(args.sdcpp_vae or args.folder / "vae/diffusion_pytorch_model.safetensors")
    params.t5xxl_path = str(args.t5)
    params.clip_l_path, *rest = map(str, clip_files(args))
    if rest:
        params.clip_g_path, = rest
    params.n_threads, params.diffusion_flash_attn, params.vae_decode_only = args.threads, True, True
    context = SDContext(params)
    # Not before: with a callback its loader waits for Python for ever.
    set_log_callback(lambda level, text: print(text, flush=True))
    # Distilled guidance is 3.5 by default.
    guidance = 1.0 if args.family.startswith("flux") else GUIDANCE[args.family]
    context.generate(prompt=PROMPT, width=args.width, height=args.height, seed=7, sample_steps=args.steps, cfg_scale=guidance,
                     sample_method=SampleMethod.EULER)


def torch_step(args):
    """One step of the transformer in this process."""
    import diffusers
    import torch

    torch.set_num_threads(args.threads)
    how, = args.diffusers
    dtype = torch.bfloat16 if how == "bf16" else torch.float32
    flux = args.family.startswith("flux")
    kind = diffusers.FluxTransformer2DModel if flux else diffusers.SD3Transformer2DModel
    if how == "gguf":
        quantization = diffusers.GGUFQuantizationConfig(compute_dtype=dtype)
        model = kind.from_single_file(str(args.transformer), config=str(args.folder), subfolder="transformer",
                                      quantization_config=quantization, torch_dtype=dtype)
    else:
        model = kind.from_pretrained(args.folder / "transformer", torch_dtype=dtype)
    h, w = args.height // 8, args.width // 8
    if flux:
        tokens, text = h * w // 4, 512
        call = lambda: model(hidden_states=torch.randn(1, tokens, 64, dtype=dtype), timestep=torch.tensor([0.5], dtype=dtype),
                             encoder_hidden_states=torch.randn(1, text, 4096, dtype=dtype),
                             pooled_projections=torch.randn(1, 768, dtype=dtype), img_ids=torch.zeros(tokens, 3),
                             txt_ids=torch.zeros(text, 3),
                             guidance=torch.tensor([3.5]) if model.config.guidance_embeds else None)
    else:
        # 77 tokens of CLIP and 256 of T5, as the pipeline has it; a batch of two for the guidance.
        call = lambda: model(hidden_states=torch.randn(2, 16, h, w, dtype=dtype), timestep=torch.tensor([500, 500]),
                             encoder_hidden_states=torch.randn(2, 333, 4096, dtype=dtype),
                             pooled_projections=torch.randn(2, 2048, dtype=dtype))
    times = []
    with torch.no_grad():
        for _ in range(args.steps):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    print(json.dumps({"step": statistics.median(times)}))


def own(args, mode):
    """This script as a process of its own."""
    command = [sys.executable, "-u", __file__, mode, "--family", args.family, "--folder", args.folder, "--steps", args.steps,
               "--width", args.width, "--height", args.height, "--threads", args.threads]
    for flag, path in (("--transformer", args.transformer), ("--t5", args.t5), ("--sdcpp-vae", args.sdcpp_vae)):
        command += [flag, path] if path else []
    return command


def diffusers_step(args, how):
    text, peak = measured([*own(args, "--torch-step"), "--diffusers", how])
    return {"step": json.loads(text.strip().splitlines()[-1])["step"], "text": None, "decode": None, "peak": peak}


def main():
    args = arguments()
    if args.torch_step:
        return torch_step(args)
    if args.sdcpp_run:
        return sdcpp_run(args)
    if args.sdcpp and not args.t5:
        sys.exit("--t5 is missing: stable-diffusion.cpp reads T5 from one file")
    engines = {"Aquatint": ours}
    if args.sdcpp:
        engines["stable-diffusion.cpp"] = lambda args, _: sdcpp(args)
    for how in args.diffusers:
        engines[f"diffusers {how}, the transformer alone"] = lambda args, _, how=how: diffusers_step(args, how)
    found = {name: [] for name in engines}
    with tempfile.TemporaryDirectory() as out:
        for _ in range(args.rounds):
            for name, run in engines.items():
                found[name].append(run(args, Path(out)))
                print(name, found[name][-1], file=sys.stderr, flush=True)
    middle = lambda runs, key: statistics.median(run[key] for run in runs) if runs[0][key] is not None else None
    mine = middle(found["Aquatint"], "step")
    print(f"{args.family}, {args.width}x{args.height}, {args.threads} threads\n")
    print("| engine | prompt | one step | decode | peak memory | Aquatint's step is |\n|---|---|---|---|---|---|")
    for name, runs in found.items():
        text, decode = (f"{s:.1f} s" if (s := middle(runs, key)) is not None else "" for key in ("text", "decode"))
        step = middle(runs, "step")
        ratio = "" if name == "Aquatint" else f"**{step / mine:.2f}** times as fast"
        print(f"| {name} | {text} | {step:.1f} s | {decode} | {middle(runs, 'peak') / GB:.1f} GB | {ratio} |")


if __name__ == "__main__":
    main()
