"""Gradients of two tiny UNets in diffusers, and what plain gradient descent does to the loss:
unet_gradients.safetensors.

    python golden/unet_gradients.py

`<model>/gradients` has a row for each parameter, in the order of the sorted names: the gradient's norm
and four of its elements, at `(len - 1) * j // 3`. `<model>/losses` are the losses before and after each of
three steps of gradient descent with rate `<model>/rate`. Inputs are drawn by the generator of
`ops_backward.py`: the noisy latent with seed 1, the text with 2, the target with 3; the loss is the mean
square of prediction less target. Computed in f64, from the f16 (f32) weights of the checkpoint.
"""

import json

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from common import GOLDEN
from ops_backward import random


def models():
    yield "sd1", UNet2DConditionModel.from_pretrained(GOLDEN / "sd1" / "unet"), (8, 12), 0.02
    folder = GOLDEN / "unet_variants"
    config = json.loads((folder / "uneven.json").read_text())
    unet = UNet2DConditionModel.from_config(config)
    tensors = load_file(folder / "uneven.safetensors")
    weights = {k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")}
    unet.load_state_dict(weights)
    yield "uneven", unet, (13, 7), 0.02


def main():
    out = {}
    for name, unet, size, rate in models():
        unet = unet.double().train()
        config = unet.config
        dim = config.cross_attention_dim
        dim = dim if isinstance(dim, int) else dim[0]
        nchw = lambda channels, seed: random((2, *size, channels), seed).permute(0, 3, 1, 2)
        x, target = nchw(config.in_channels, 1), nchw(config.out_channels, 3)
        text = random((2, 5, dim), 2)
        losses = []
        for step in range(4):
            unet.zero_grad()
            y = unet(x, torch.tensor([10.0, 700.0]).double(), text).sample
            loss = ((y - target) ** 2).mean()
            losses.append(loss.item())
            loss.backward()
            parameters = sorted(unet.named_parameters())
            if step == 0:
                rows = []
                for _, p in parameters:
                    g = p.grad.flatten()
                    rows.append([g.norm().item()] + [g[(g.numel() - 1) * j // 3].item() for j in range(4)])
                out[f"{name}/gradients"] = torch.tensor(rows, dtype=torch.float32)
            with torch.no_grad():
                for _, p in parameters:
                    p -= rate * p.grad
        print(name, len(parameters), losses)
        out[f"{name}/losses"] = torch.tensor(losses, dtype=torch.float32)
        out[f"{name}/rate"] = torch.tensor([rate], dtype=torch.float32)
    save_file(out, GOLDEN / "unet_gradients.safetensors")


if __name__ == "__main__":
    main()
