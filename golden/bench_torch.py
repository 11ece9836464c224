"""Times Aquatint beside PyTorch on one machine, and prints the tables of the README's "Speed" as Markdown.

    python bench_torch.py --binary ../target/release/aquatint --model sd15/ [--threads 2] [--rounds 3]
        [--only ops|model|picture] [--op conv2d|gemm|attention] [--width 512] [--height 512] [--steps 3]

ops      Every shape of `aquatint bench ops`, in turns: a run of the binary, then PyTorch in both layouts
         (contiguous and channels last), `--rounds` times. The median of each; PyTorch's better layout counts.
model    Text encoder, UNet step (guidance: a batch of two) and VAE decode of a diffusers folder, each stage and
         each turn in a process of its own, so that its peak memory is its own. PyTorch runs in f32.
picture  One picture by both from the same folder, prompt and seed: PSNR, and relative error of the pixels,
         which must be at least 50 dB and at most 1e-3. A model of random weights will do: `make_full.py`.

Nothing else should run on the machine. PyTorch is used as its users have it: f32, oneDNN, no compilation."""

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STAGES = {"text": ("text_encode_s", "prompts to embeddings"), "step": ("denoise_step_s", "UNet step with guidance"),
          "decode": ("vae_decode_s", "VAE decode")}
GB = 1e9


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=Path(__file__).parent / "../target/release/aquatint")
    parser.add_argument("--model", type=Path, help="a diffusers folder of Stable Diffusion 1.x or 2.x")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["ops", "model", "picture"])
    parser.add_argument("--op", choices=["conv2d", "gemm", "attention"])
    parser.add_argument("--stage", choices=list(STAGES), help="of --only model")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--torch-stage", help=argparse.SUPPRESS)
    parser.add_argument("--channels-last", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def ours(args, *command):
    """What the binary prints as JSON."""
    command = [str(args.binary), *command, "--threads", str(args.threads), "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


# Operations


def torch_calls(shape):
    """PyTorch's ways to do an operation, by name: the layouts of a convolution, else one."""
    import torch
    import torch.nn.functional as F

    words = shape.split()
    if "->" in shape:
        sizes, output = words[0].split("->")
        batch, height, width, channels = map(int, sizes.split("x"))
        kernel, stride = int(words[1][1:]), int(words[2][1:])
        x, weight = torch.randn(batch, channels, height, width), torch.randn(int(output), channels, kernel, kernel)

        def conv(layout):
            a, b = x.to(memory_format=layout), weight.to(memory_format=layout)
            return lambda: F.conv2d(a, b, None, stride, kernel // 2)

        return {"contiguous": conv(torch.contiguous_format), "channels last": conv(torch.channels_last)}
    if len(words) == 2:
        batch, heads, queries, dim = map(int, words[0].split("x"))
        keys = int(words[1][2:])
        q = torch.randn(batch, heads, queries, dim)
        k, v = torch.randn(batch, heads, keys, dim), torch.randn(batch, heads, keys, dim)
        return {"": lambda: F.scaled_dot_product_attention(q, k, v)}
    m, k, n = map(int, shape.split("x"))
    x, weight = torch.randn(m, k), torch.randn(n, k)
    return {"": lambda: F.linear(x, weight)}


def torch_ms(call):
    """Median milliseconds, by the rule of `aquatint bench ops`: one run ahead, five and 0.6 s at least."""
    import torch

    with torch.no_grad():
        call()
        times, begin = [], time.perf_counter()
        while len(times) < 5 or (len(times) < 200 and time.perf_counter() - begin < 0.6):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def serve(args):
    """Answers shapes on standard input with times: PyTorch in a process of its own, idle in the binary's turn."""
    import torch

    torch.set_num_threads(args.threads)
    for line in sys.stdin:
        calls = torch_calls(line.strip())
        print(json.dumps({name: torch_ms(call) for name, call in calls.items()}), flush=True)


def ops(args):
    listed = [] if not args.op else ["--only", args.op]
    first = ours(args, "bench", "ops", *listed)
    shapes = list(dict.fromkeys((o["op"], o["shape"]) for o in first["ops"]))
    command = [sys.executable, __file__, "--serve", "--threads", str(args.threads)]
    torch = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    print(f"{args.threads} threads, peak {first['peak_gflops']:.0f} GFLOP/s\n")
    print("| operation | shape | storage | Aquatint | of peak | PyTorch f32 | ratio |")
    print("|---|---|---|---|---|---|---|")
    totals = {}
    for op, shape in shapes:
        mine, theirs, peaks = {}, {}, []
        for _ in range(args.rounds):
            found = ours(args, "bench", "ops", "--shape", shape)
            peaks.append(found["peak_gflops"])
            for o in found["ops"]:
                mine.setdefault(o["rhs"], []).append(o)
            torch.stdin.write(shape + "\n")
            torch.stdin.flush()
            for name, ms in json.loads(torch.stdout.readline()).items():
                theirs.setdefault(name, []).append(ms)
        layout, best = min(((name, statistics.median(ms)) for name, ms in theirs.items()), key=lambda pair: pair[1])
        layout = f" ({layout})" if layout else ""
        for rhs, found in mine.items():
            ms = statistics.median(o["ms"] for o in found)
            percent = 100 * statistics.median(o["gflops"] for o in found) / max(peaks)
            print(f"| {op} | {shape} | {rhs} | {ms:.3f} ms | {percent:.0f} % | {best:.3f} ms{layout} | "
                  f"**{best / ms:.2f}** |", flush=True)
            if op == "conv2d" and shape.endswith("k3 s1"):
                group = "UNet" if shape.startswith("2x") else "VAE"
                a, b = totals.get(group, (0, 0))
                totals[group] = a + ms, b + best
    torch.stdin.close()
    torch.wait()
    for group, (a, b) in totals.items():
        print(f"| conv2d | 3x3, all of the {group} | f32 | {a:.1f} ms | | {b:.1f} ms | **{b / a:.2f}** |")
    print()


# Stages of a model


def torch_stage(args):
    """One stage of the model in this process: median seconds, and the peak of the process."""
    import torch
    import diffusers
    import transformers

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    layout = torch.channels_last if args.channels_last else torch.contiguous_format

    def load(kind, folder):
        model = kind.from_pretrained(args.model, subfolder=folder, torch_dtype=torch.float32)
        return model.to(memory_format=layout) if folder != "text_encoder" else model

    def latent(config, batch):
        size = [args.height // 8, args.width // 8]
        return torch.randn(batch, config, *size).to(memory_format=layout)

    if args.torch_stage == "text":
        model = load(transformers.CLIPTextModel, "text_encoder")
        ids = torch.randint(1000, 40000, (2, 77))
        call, runs = lambda: model(ids), 3
    elif args.torch_stage == "step":
        model = load(diffusers.UNet2DConditionModel, "unet")
        x, text = latent(model.config.in_channels, 2), torch.randn(2, 77, model.config.cross_attention_dim)
        call, runs = lambda: model(x, torch.tensor(500), text), args.steps
    else:
        model = load(diffusers.AutoencoderKL, "vae")
        del model.encoder
        z = latent(model.config.latent_channels, 1)
        call, runs = lambda: model.decode(z), 3
    times = []
    with torch.no_grad():
        for _ in range(runs):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": statistics.median(times), "peak_bytes": peak}))


def model(args):
    size = ["--width", str(args.width), "--height", str(args.height)]
    print(f"{args.width}x{args.height}, {args.threads} threads\n")
    print("| stage | Aquatint | PyTorch f32 | ratio | Aquatint's peak | PyTorch's peak | share |")
    print("|---|---|---|---|---|---|---|")
    for stage, (key, title) in STAGES.items():
        if args.stage and stage != args.stage:
            continue
        mine, theirs = [], {False: [], True: []}
        for _ in range(args.rounds):
            found = ours(args, "bench", "model", "-m", str(args.model), *size, "--steps", str(args.steps),
                         "--only", stage)
            mine.append((found[key], found["peak_bytes"]))
            for last in theirs if stage != "text" else [False]:
                command = [sys.executable, __file__, "--torch-stage", stage, "--model", str(args.model), *size,
                           "--threads", str(args.threads), "--steps", str(args.steps)]
                command += ["--channels-last"] if last else []
                found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                theirs[last].append((found["seconds"], found["peak_bytes"]))
        middle = lambda runs: tuple(map(statistics.median, zip(*runs)))
        a, memory = middle(mine)
        b, torch_memory = min(middle(runs) for runs in theirs.values() if runs)
        print(f"| {title} | {a:.3f} s | {b:.3f} s | **{b / a:.2f}** | {memory / GB:.2f} GB | {torch_memory / GB:.2f} GB | "
              f"{100 * memory / torch_memory:.0f} % |", flush=True)
    print()


# A picture


def picture(args):
    import numpy
    import torch
    import diffusers
    from PIL import Image

    prompt, seed, guidance = "a lighthouse in a storm", 7, 7.5
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "ours.png"
        start = time.perf_counter()
        found = ours(args, "generate", prompt, "-m", str(args.model), "--seed", str(seed), "--sampler", "euler",
                     "--steps", str(args.steps), "--guidance", str(guidance), "--prompt-syntax", "plain",
                     "--width", str(args.width), "--height", str(args.height), "-o", str(out))
        seconds = time.perf_counter() - start
        mine = numpy.asarray(Image.open(out).convert("RGB"))
    torch.set_num_threads(args.threads)
    start = time.perf_counter()
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(args.model, torch_dtype=torch.float32, safety_checker=None)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.unet, pipe.vae):
        part.to(memory_format=torch.channels_last)
    image = pipe(prompt, num_inference_steps=args.steps, guidance_scale=guidance, width=args.width, height=args.height,
                 generator=torch.Generator("cpu").manual_seed(seed)).images[0]
    torch_seconds = time.perf_counter() - start
    theirs = numpy.asarray(image.convert("RGB"))
    difference = (mine.astype(float) - theirs) / 255
    square = float((difference ** 2).mean())
    psnr = math.inf if square == 0 else -10 * math.log10(square)
    relative = math.sqrt(square / float(((theirs / 255) ** 2).mean()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    memory = found["peak_memory_bytes"]
    print(f"| whole run | seconds | peak memory |\n|---|---|---|\n| Aquatint, {args.steps} steps | {seconds:.1f} | "
          f"{memory / GB:.2f} GB |\n| diffusers, channels last | {torch_seconds:.1f} | {peak / GB:.2f} GB |\n")
    print(f"The two pictures: PSNR {psnr:.1f} dB, relative error {relative:.1e}, largest difference "
          f"{round(255 * abs(difference).max())}/255, spread of the values {theirs.std():.0f}/255.\n")
    if psnr < 50 or relative > 1e-3:
        sys.exit("the pictures differ: expected at least 50 dB and at most 1e-3")


def main():
    args = arguments()
    if args.serve:
        return serve(args)
    if args.torch_stage:
        return torch_stage(args)
    wanted = lambda part: args.only in (None, part)
    if not args.model and (wanted("model") or wanted("picture")):
        sys.exit("--model is missing: give a diffusers folder, or --only ops")
    if wanted("ops"):
        ops(args)
    if wanted("model"):
        model(args)
    if wanted("picture"):
        picture(args)


if __name__ == "__main__":
    main()
