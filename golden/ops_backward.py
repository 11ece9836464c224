"""Outputs and gradients of the fused operations in PyTorch: ops_backward.safetensors.

One f32 tensor a case of `crates/ops/tests/backward/cases.rs`: the output, then the gradient of each
operand, flattened and joined, channels last. Operands and the upstream gradient are drawn by the
xorshift generator of the tests, seeds 1, 2, ... and 100, so that they need not be stored.
Computed in f64, so that PyTorch's own rounding is not part of the comparison.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file

from common import GOLDEN


def random(shape, seed):
    state = (seed * 2654435761) & 0xFFFFFFFF | 1
    out = np.empty(math.prod(shape), np.float32)
    for i in range(out.size):
        state ^= state << 13 & 0xFFFFFFFF
        state ^= state >> 17
        state ^= state << 5 & 0xFFFFFFFF
        out[i] = np.float32(state) / np.float32(0xFFFFFFFF) * np.float32(2) - np.float32(1)
    return torch.tensor(out.reshape(shape), dtype=torch.float64)


def finish(y, activation, rest):
    activations = {
        "silu": F.silu,
        "gelu": F.gelu,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
        "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
        None: lambda x: x,
    }
    y = activations[activation](y)
    return y + rest[0] if rest else y


def linear(activation=None):
    return lambda x, w, b, *rest: finish(F.linear(x, w, b), activation, rest)


def conv(activation=None, stride=1, padding=(1, 1, 1, 1), upsample=False):
    """The bias is `[out]`, or `[batch * out]` for a bias an image."""
    def run(x, w, b, *rest):
        x = x.permute(0, 3, 1, 2)
        if upsample:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        y = F.conv2d(F.pad(x, padding), w, stride=stride).permute(0, 2, 3, 1)
        return finish(y + b.reshape(-1, 1, 1, y.shape[3]), activation, rest)
    return run


def attention(heads, causal=False, masked=False):
    def run(q, k, v):
        n, m = q.shape[1], k.shape[1]
        mask = None
        if masked:
            mask = (torch.arange(n * m) * 7 % 11).float().mul(0.3).sub(1.5).double().reshape(n, m)
        split = lambda t: t.unflatten(2, (heads, -1)).transpose(1, 2)
        y = F.scaled_dot_product_attention(split(q), split(k), split(v), attn_mask=mask, is_causal=causal)
        return y.transpose(1, 2).flatten(2)
    return run


def group_norm(groups, activation=None):
    def run(x, g, b):
        y = F.group_norm(x.permute(0, 3, 1, 2), groups, g, b, 1e-5)
        return finish(y.permute(0, 2, 3, 1), activation, ())
    return run


def modulated(norm):
    def run(x, g, scale, shift):
        return norm(x, g) * (1 + scale[:, None]) + shift[:, None]
    return run


def rotary(halves):
    def run(x):
        tokens, half = x.shape[1], x.shape[3] // 2
        angles = (torch.arange(tokens * half) * 7 % 11).float().mul(0.3).double()
        cos, sin = (f(angles.reshape(tokens, 1, half)) for f in (torch.cos, torch.sin))
        apart = (2, half) if halves else (half, 2)
        a, b = x.unflatten(3, apart).unbind(3 if halves else 4)
        turned = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=3 if halves else 4)
        return turned.flatten(3)
    return run


def geglu(x):
    value, gate = (x * 3).chunk(2, dim=-1)
    return value * F.gelu(gate)


def main():
    lin = [(2, 3, 5), (7, 5), (7,)]
    lin_residual = lin + [(2, 3, 7)]
    con = lambda kernel: [(2, 4, 5, 3), (4, 3, kernel, kernel), (4,)]
    qkv = lambda n, m: [(2, n, 6), (2, m, 6), (2, m, 6)]
    norm = [(2, 3, 5, 6), (6,), (6,)]
    modulation = [(2, 3, 7), (7,), (2, 7), (2, 7)]
    ids = torch.tensor([[0, 4, 2, 2], [2, 1, 0, 4]])
    wide = lambda activation: lambda x: finish(x * 4, activation, ())
    cases = {
        "linear": (lin, linear()),
        "linear_residual": (lin_residual, linear()),
        "linear_silu": (lin_residual, linear("silu")),
        "linear_gelu": (lin_residual, linear("gelu")),
        "linear_gelu_tanh": (lin, linear("gelu_tanh")),
        "linear_quick_gelu": (lin, linear("quick_gelu")),
        "conv3": (con(3), conv()),
        "conv1": (con(1), conv(padding=(0, 0, 0, 0))),
        "conv_strided": (con(3), conv(stride=2)),
        "conv_uneven": (con(3), conv(stride=2, padding=(0, 1, 0, 1))),
        "conv_upsampled": (con(3), conv(upsample=True)),
        "conv_silu": (con(3) + [(2, 4, 5, 4)], conv("silu")),
        "conv_images": (con(3)[:2] + [(8,)], conv()),
        "conv_images_silu": (con(3)[:2] + [(8,), (2, 4, 5, 4)], conv("silu")),
        "attention": (qkv(5, 7), attention(2)),
        "attention_causal": (qkv(5, 5), attention(2, causal=True)),
        "attention_masked": (qkv(5, 7), attention(2, masked=True)),
        "group_norm": (norm, group_norm(3)),
        "group_norm_silu": (norm, group_norm(3, "silu")),
        "layer_norm": ([(2, 3, 7), (7,), (7,)], lambda x, g, b: F.layer_norm(x, (7,), g, b, 1e-5)),
        "rms_norm": ([(2, 3, 2, 7), (7,)], lambda x, g: F.rms_norm(x, (7,), g, 1e-5)),
        "modulated_layer_norm": (modulation, modulated(lambda x, g: F.layer_norm(x, (7,), g, None, 1e-5))),
        "modulated_rms_norm": (modulation, modulated(lambda x, g: F.rms_norm(x, (7,), g, 1e-5))),
        "add_gated": ([(2, 3, 7), (2, 3, 7), (2, 7)], lambda x, y, gate: x + gate[:, None] * y),
        "rotary_neighbours": ([(2, 3, 2, 6)], rotary(False)),
        "rotary_halves": ([(2, 3, 2, 6)], rotary(True)),
        "silu": ([(33,)], wide("silu")),
        "gelu": ([(33,)], wide("gelu")),
        "gelu_tanh": ([(33,)], wide("gelu_tanh")),
        "quick_gelu": ([(33,)], wide("quick_gelu")),
        "geglu": ([(5, 14)], geglu),
        "join_channels": ([(6, 4), (6, 5)], lambda a, b: torch.cat([a, b], dim=1)),
        "embedding": ([(5, 3)], lambda table: F.embedding(ids, table)),
    }
    out = {}
    for name, (shapes, run) in cases.items():
        operands = [random(shape, i + 1).requires_grad_() for i, shape in enumerate(shapes)]
        y = run(*operands)
        (y * random(tuple(y.shape), 100)).sum().backward()
        parts = [y.detach()] + [t.grad for t in operands]
        out[name] = torch.cat([p.flatten() for p in parts]).float().numpy()
    save_file(out, GOLDEN / "ops_backward.safetensors")


if __name__ == "__main__":
    main()
