"""The first ten losses of tiny runs in PyTorch, for crates/train/tests/text.rs and pictures.rs.

The same weights (golden/sd1, and golden/train_pixels, which this script makes), pictures, order, captions, classes, noise
levels and noise as `aquatint train diffusion` takes from the seed: its random numbers are Philox words of (seed, step,
purpose, index), computed here by numpy.

    python golden/train_losses.py        writes golden/train_losses.json and golden/train_pixels/
"""

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel, UNet2DModel
from transformers import CLIPTextModel, CLIPTokenizer

from common import draw_weights, rounded

HERE = Path(__file__).parent
SEED, BATCH, STEPS, RATE, DROPOUT, PICTURES, SIDE = 11, 2, 10, 1e-3, 0.3, 5, 64
TIMES, CHOICES, NOISE = 1, 2, 3
EPOCHS, LATENT_NOISE = 1 << 63, 0x6C6174656E747321


def philox(counter, key):
    """Philox4x32-10; each word an array of uint64 below 2^32."""
    low = np.uint64(0xFFFFFFFF)
    c = [np.asarray(x, dtype=np.uint64) for x in counter]
    k = [np.uint64(x) for x in key]
    for _ in range(10):
        p0, p1 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(p1 >> np.uint64(32)) ^ c[1] ^ k[0], p1 & low, (p0 >> np.uint64(32)) ^ c[3] ^ k[1], p0 & low]
        k = [np.uint64((int(k[0]) + 0x9E3779B9) & 0xFFFFFFFF), np.uint64((int(k[1]) + 0xBB67AE85) & 0xFFFFFFFF)]
    return c


def halves(x):
    return x & 0xFFFFFFFF, x >> 32


class Draw:
    def __init__(self, seed, step):
        self.seed, self.step = seed, step

    def words(self, stream, index):
        return [int(w) for w in philox([index & 0xFFFFFFFF, stream, *halves(self.step)], halves(self.seed))]

    def uniform(self, stream, index):
        a, b, *_ = self.words(stream, index)
        return ((a << 32 | b) >> 11) / 2**53

    def normal(self, example, count):
        a, b, c, d = self.words(NOISE, example)
        index = np.arange(count, dtype=np.uint64)
        zero = np.zeros_like(index)
        x, y, *_ = philox([zero + c_ for c_ in np.array([*halves(c << 32 | d)], dtype=np.uint64)] + [index, zero], halves(a << 32 | b))
        step = np.float32(2.3283064e-10)
        tau = np.float32(step * np.float32(2 * np.pi))
        fused = lambda v, s: (v.astype(np.float32).astype(np.float64) * float(s) + float(np.float32(s / np.float32(2)))).astype(np.float32)
        u, v = fused(x, step), fused(y, tau)
        radius = np.sqrt((np.float32(-2.0) * np.log(u.astype(np.float64)).astype(np.float32)).astype(np.float32))
        return (radius * np.sin(v.astype(np.float64)).astype(np.float32)).astype(np.float32)


def picture(i, side=SIDE, channels=3):
    """A pattern of whole bytes, as the test writes it: [height, width, channels]."""
    y, x, c = np.meshgrid(np.arange(side), np.arange(side), np.arange(channels), indexing="ij")
    return ((x * (i + 3) + y * (7 - i) + c * 61 * (i + 1)) % 256).astype(np.uint8)


def shuffle(items, uniform):
    for i in range(len(items) - 1, 0, -1):
        j = int(uniform() * (i + 1))
        items[i], items[j] = items[j], items[i]


def epoch(number):
    draw, index = Draw(SEED, EPOCHS | number), [0]

    def uniform():
        index[0] += 1
        return draw.uniform(CHOICES, index[0] - 1)

    order = list(range(PICTURES))
    shuffle(order, uniform)
    batches = [order[i : i + BATCH] for i in range(0, PICTURES, BATCH)]
    shuffle(batches, uniform)
    return batches


class Betas:
    """The levels of a chain of noising steps, of uniform times; the weight of min-SNR with `gamma`, or 1."""

    def __init__(self, scheduler, gamma=None):
        self.abar = scheduler.alphas_cumprod.double()
        self.kind, self.gamma = scheduler.config.prediction_type, gamma

    def level(self, draw, slot):
        t = min(int(draw.uniform(TIMES, slot) * len(self.abar)), len(self.abar) - 1)
        a = float(self.abar[t])
        return t, a**0.5, (1 - a) ** 0.5

    def target(self, clean, noise, alpha, sigma):
        return noise if self.kind == "epsilon" else alpha * noise - sigma * clean

    def weight(self, alpha, sigma):
        snr = (alpha / sigma) ** 2
        assert self.gamma is None or self.kind == "v_prediction"
        return 1.0 if self.gamma is None else min(snr, self.gamma) / (snr + 1)


class Flow:
    """A straight flow as SD3 is trained: logit-normal times, shifted, with the weight `cosmap`."""

    def __init__(self, shift):
        self.shift = shift

    def level(self, draw, slot):
        u, v = 1 - draw.uniform(TIMES, 2 * slot), draw.uniform(TIMES, 2 * slot + 1)
        normal = (-2 * np.log(u)) ** 0.5 * np.cos(2 * np.pi * v)
        share = (min(int(1000 / (1 + np.exp(-normal))), 999) + 1) / 1000
        sigma = self.shift * share / (1 + (self.shift - 1) * share)
        return 1000 * sigma, 1 - sigma, sigma

    def target(self, clean, noise, alpha, sigma):
        return noise - clean

    def weight(self, alpha, sigma):
        return 2 / (np.pi * (1 - 2 * sigma + 2 * sigma**2))


def run(network, process, clean_of, told_of, predict):
    """`clean_of(example, slot, step)` is channels last, as the noise is drawn; `told_of(example, without)` is what
    `predict(network, x, times, told)` takes a list of."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE)
    network.train()
    per_epoch, losses = -(-PICTURES // BATCH), []
    for step in range(STEPS):
        draw = Draw(SEED, step)
        inputs, targets, times, told, weights = [], [], [], [], []
        for slot, example in enumerate(epoch(step // per_epoch)[step % per_epoch]):
            told.append(told_of(example, draw.uniform(CHOICES, (slot << 16) + 3) < DROPOUT))
            clean = clean_of(example, slot, step)
            noise = draw.normal(slot, clean.size).reshape(clean.shape)
            time, alpha, sigma = process.level(draw, slot)
            inputs.append((alpha * clean + sigma * noise).astype(np.float32))
            targets.append(process.target(clean, noise, alpha, sigma).astype(np.float32))
            times.append(time)
            weights.append(process.weight(alpha, sigma))
        turn = lambda x: torch.from_numpy(np.stack(x)).permute(0, 3, 1, 2)
        error = predict(network, turn(inputs), torch.tensor(times), told) - turn(targets)
        loss = (error.square() * torch.tensor(weights, dtype=torch.float32).reshape(-1, 1, 1, 1)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def of_captions(process):
    model = HERE / "sd1"
    unet = UNet2DConditionModel.from_pretrained(model / "unet", torch_dtype=torch.float32)
    vae = AutoencoderKL.from_pretrained(model / "vae", torch_dtype=torch.float32)
    text = CLIPTextModel.from_pretrained(model / "text_encoder", torch_dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer")
    with torch.no_grad():
        pixels = torch.stack([torch.from_numpy(picture(i)).permute(2, 0, 1) for i in range(PICTURES)])
        posterior = vae.encode(pixels.float() / 127.5 - 1).latent_dist
    mean = (posterior.mean * vae.config.scaling_factor).permute(0, 2, 3, 1).numpy()
    deviation = (posterior.std * vae.config.scaling_factor).permute(0, 2, 3, 1).numpy()

    def clean_of(example, slot, step):
        noise = Draw(SEED ^ LATENT_NOISE, step).normal(slot, mean[example].size)
        return mean[example] + deviation[example] * noise.reshape(mean[example].shape)

    def predict(unet, x, times, captions):
        ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            context = text(ids).last_hidden_state
        return unet(x, times, context).sample

    return run(unet, process, clean_of, lambda example, without: "" if without else f"picture number {example}", predict)


def of_classes():
    """Grey pixels, told one of two classes: those of even and of odd number, in folders of their own."""
    model = HERE / "train_pixels"
    torch.manual_seed(5)
    unet = rounded(draw_weights(UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2,
        attention_head_dim=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), num_class_embeds=3), 5))
    unet.half().save_pretrained(model / "unet")
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    scheduler.save_pretrained(model / "scheduler")
    unet = UNet2DModel.from_pretrained(model / "unet", torch_dtype=torch.float32)
    # In the order of their paths: even/0.png, even/2.png, ...
    examples = [i for i in range(PICTURES) if i % 2 == 0] + [i for i in range(PICTURES) if i % 2 == 1]
    pictures = [picture(i, 8, 1).astype(np.float32) / np.float32(127.5) - 1 for i in examples]
    classes = [i % 2 for i in examples]
    return run(unet, Betas(scheduler, gamma=5.0), lambda example, slot, step: pictures[example],
               lambda example, without: 2 if without else classes[example],
               lambda unet, x, times, told: unet(x, times, torch.tensor(told)).sample)


def main():
    torch.set_num_threads(1)
    losses = {
        "captions": of_captions(Betas(DDIMScheduler.from_pretrained(HERE / "sd1" / "scheduler"))),
        "captions, flow": of_captions(Flow(shift=3.0)),
        "classes": of_classes(),
    }
    (HERE / "train_losses.json").write_text(json.dumps(losses, indent=1) + "\n")
    print(json.dumps(losses, indent=1))


if __name__ == "__main__":
    main()
