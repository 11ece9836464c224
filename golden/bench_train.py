"""Training the shipped model beside PyTorch: samples a second of `aquatint train` and of the same networks in diffusers.

    cargo build --release
    python golden/bench_train.py --threads 2                  both networks, each program in turn
    python golden/bench_train.py --only diffusion --rounds 3

The configurations are models/emoji.toml and models/emoji_autoencoder.toml with their batch sizes; the pictures are random,
which no speed depends on. Both programs do the forward and backward pass, clip gradients, update with AdamW and average
the weights. Ours reads and decodes its pictures and writes its metrics too; PyTorch is given tensors that are ready, its
fused AdamW, and the faster of its two memory layouts.
"""

import argparse
import csv
import statistics
import subprocess
import tempfile
import time
import tomllib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

ROOT = Path(__file__).parent.parent
MODELS = ROOT / "models"


def config_of(name):
    return tomllib.loads((MODELS / name).read_text())


def pictures(folder, count=64, side=128):
    random = np.random.default_rng(1)
    folder.mkdir()
    for i in range(count):
        Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"random picture number {i}\n")


def aquatint(args, work, kind, name, changes):
    """The median samples a second of the later half of the steps."""
    text = (MODELS / name).read_text()
    for old, new in changes.items():
        assert old in text, f"{name} has no {old}"
        text = text.replace(old, new)
    config = work / name
    config.write_text(text)
    out = Path(tempfile.mkdtemp(dir=work))
    command = [args.binary, "train", kind, config, "--out", out / "run", "--max-steps", str(args.steps[kind]),
               "--threads", str(args.threads), "--quiet"]
    subprocess.run(command, check=True)
    # Of a diffusion run with a warm-up, the run itself.
    rows = list(csv.DictReader((out / "run/metrics.csv").open()))
    return statistics.median(float(row["samples_per_second"]) for row in rows[len(rows) // 2:])


class Training:
    def __init__(self, parameters, rate, beta2, decay):
        self.parameters = list(parameters)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=rate, betas=(0.9, beta2), fused=True)
        self.average = [p.detach().clone() for p in self.parameters]
        self.decay = decay

    def step(self, loss):
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 1 - self.decay)


def pace(step, batch, steps):
    step()
    seconds = []
    for _ in range(steps):
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    return batch / statistics.median(seconds)


def torch_diffusion(args, layout):
    config = config_of("emoji.toml")
    batch, unet_keys = config["batch_size"], config["model"]["unet"]
    side = config["data"]["resolution"] // 8
    channels = config_of("emoji_autoencoder.toml")["model"]["latent_channels"]
    tokenizer = CLIPTokenizer.from_pretrained(MODELS / "default/tokenizer")
    text_keys = config["model"]["text_encoder"]
    text = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), max_position_embeddings=77, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **text_keys))
    unet = UNet2DConditionModel(sample_size=side, in_channels=channels, out_channels=channels,
                                cross_attention_dim=text_keys["hidden_size"], **unet_keys)
    unet.to(memory_format=layout).train()
    text.train()
    training = Training([*unet.parameters(), *text.parameters()], 1e-3, 0.99, 0.9995)
    noisy = torch.randn(batch, channels, side, side).to(memory_format=layout)
    target, weights = torch.randn_like(noisy), torch.rand(batch, 1, 1, 1)
    times = torch.randint(0, 1000, (batch,))

    def step():
        ids = tokenizer([f"random picture number {i}" for i in range(batch)], padding="max_length", max_length=77,
                        truncation=True, return_tensors="pt").input_ids
        found = unet(noisy, times, text(ids).last_hidden_state).sample
        training.step(((found - target).square() * weights).mean())

    return pace(step, batch, args.steps["diffusion"] // 2)


def torch_autoencoder(args, layout):
    config = config_of("emoji_autoencoder.toml")
    batch, side, factors = config["batch_size"], config["data"]["resolution"], config["loss"]
    vae = AutoencoderKL(in_channels=3, out_channels=3, **config["model"]).to(memory_format=layout).train()
    training = Training(vae.parameters(), 1e-3, 0.99, 0.999)
    wanted = torch.rand(batch, 3, side, side).to(memory_format=layout) * 2 - 1
    edges = lambda x: (x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :])

    def step():
        latent = vae.encode(wanted).latent_dist
        difference = vae.decode(latent.sample()).sample - wanted
        loss = factors["l1"] * difference.abs().mean() + factors["l2"] * difference.square().mean()
        loss = loss + factors["edge"] * sum(e.abs().mean() for e in edges(difference)) / 2
        for size in (2, 4, 8):
            loss = loss + factors["multi_scale"] / 3 * F.avg_pool2d(difference, size).abs().mean()
        mean, log_variance = latent.mean, latent.logvar
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        training.step(loss + factors["kl"] * kl)

    return pace(step, batch, args.steps["autoencoder"] // 2)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=ROOT / "target/release/aquatint", type=Path)
    parser.add_argument("--threads", default=2, type=int)
    parser.add_argument("--rounds", default=1, type=int)
    parser.add_argument("--only", choices=["diffusion", "autoencoder"])
    parser.add_argument("--diffusion-steps", default=24, type=int)
    parser.add_argument("--autoencoder-steps", default=12, type=int)
    args = parser.parse_args()
    args.steps = {"diffusion": args.diffusion_steps, "autoencoder": args.autoencoder_steps}
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    kinds = {
        "diffusion": ("emoji.toml", torch_diffusion, {
            'dir = "emoji"': 'dir = "pictures"',
            'autoencoder = "emoji_autoencoder/model"': f'autoencoder = "{MODELS}/default/vae"',
            'tokenizer = "emoji_tokenizer"': f'tokenizer = "{MODELS}/default/tokenizer"',
            "every = 2000": "every = 0",
        }),
        "autoencoder": ("emoji_autoencoder.toml", torch_autoencoder, {'dir = "emoji"': 'dir = "pictures"'}),
    }
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        pictures(work / "pictures")
        for kind, (name, reference, changes) in kinds.items():
            if args.only not in (None, kind):
                continue
            for _ in range(args.rounds):
                ours = aquatint(args, work, kind, name, changes)
                theirs = max(reference(args, layout) for layout in (torch.contiguous_format, torch.channels_last))
                print(f"{kind}: aquatint {ours:.1f} samples/s, PyTorch {theirs:.1f} samples/s, ratio {ours / theirs:.2f}",
                      flush=True)


if __name__ == "__main__":
    main()
