"""The first ten losses of a tiny run in PyTorch, for crates/train/tests/losses.rs.

The same weights (golden/sd1), pictures, order, captions, noise levels and noise as `aquatint train diffusion` takes from the
seed: its random numbers are Philox words of (seed, step, purpose, index), computed here by numpy.

    python golden/train_losses.py        writes golden/train_losses.json
"""

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

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


def picture(i):
    """A pattern of whole bytes, as the test writes it: [height, width, 3]."""
    y, x, c = np.meshgrid(np.arange(SIDE), np.arange(SIDE), np.arange(3), indexing="ij")
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


def main():
    torch.set_num_threads(1)
    model = HERE / "sd1"
    unet = UNet2DConditionModel.from_pretrained(model / "unet", torch_dtype=torch.float32)
    vae = AutoencoderKL.from_pretrained(model / "vae", torch_dtype=torch.float32)
    text = CLIPTextModel.from_pretrained(model / "text_encoder", torch_dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer")
    abar = DDIMScheduler.from_pretrained(model / "scheduler").alphas_cumprod.double()
    with torch.no_grad():
        pixels = torch.stack([torch.from_numpy(picture(i)).permute(2, 0, 1) for i in range(PICTURES)])
        posterior = vae.encode(pixels.float() / 127.5 - 1).latent_dist
    # Channels last, as the noise is drawn.
    mean = (posterior.mean * vae.config.scaling_factor).permute(0, 2, 3, 1).numpy()
    deviation = (posterior.std * vae.config.scaling_factor).permute(0, 2, 3, 1).numpy()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=RATE)
    unet.train()
    per_epoch, losses = -(-PICTURES // BATCH), []
    for step in range(STEPS):
        examples = epoch(step // per_epoch)[step % per_epoch]
        draw, own = Draw(SEED, step), Draw(SEED ^ LATENT_NOISE, step)
        inputs, targets, times, captions = [], [], [], []
        for slot, example in enumerate(examples):
            without = draw.uniform(CHOICES, (slot << 16) + 3) < DROPOUT
            captions.append("" if without else f"picture number {example}")
            shape = mean[example].shape
            clean = mean[example] + deviation[example] * own.normal(slot, mean[example].size).reshape(shape)
            noise = draw.normal(slot, clean.size).reshape(shape)
            t = min(int(draw.uniform(TIMES, slot) * len(abar)), len(abar) - 1)
            a = float(abar[t])
            inputs.append((a**0.5 * clean + (1 - a) ** 0.5 * noise).astype(np.float32))
            targets.append(noise)
            times.append(t)
        ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            context = text(ids).last_hidden_state
        turn = lambda x: torch.from_numpy(np.stack(x)).permute(0, 3, 1, 2)
        prediction = unet(turn(inputs), torch.tensor(times), context).sample
        loss = (prediction - turn(targets)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    (HERE / "train_losses.json").write_text(json.dumps(losses) + "\n")
    print(losses)


if __name__ == "__main__":
    main()
