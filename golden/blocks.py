"""Block formats as the PyPI package `gguf` decodes them, and torch's float8_e4m3fn.

    python golden/blocks.py        (gguf, numpy, torch, safetensors)

Writes golden/blocks.safetensors: for each format `<name>.bytes` and `<name>.values`, which are what
`gguf.quants.dequantize` gives; `q8_0.source`, which `gguf.quants.quantize` turned into `q8_0.bytes`; and
`f8_e4m3.values`, the 256 numbers of torch.float8_e4m3fn. Bytes of the 4-bit formats are random with scales of
both signs, zero, and the smallest and subnormal f16, so that every bit of a block is in use.
"""

from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType as T
from gguf import quants
from safetensors.numpy import save_file

rng = np.random.default_rng(5)
out = {}


def scales(count):
    """f16 scales as bytes, [count, 2]."""
    values = rng.normal(0, 0.05, count).astype(np.float16)
    values[:4] = [0.0, -0.0, 6e-8, -6.2e-5]
    return values.view(np.uint8).reshape(count, 2)


source = (rng.normal(0, 1, (12, 32)) * 10.0 ** rng.uniform(-6, 3, (12, 1))).astype(np.float32)
source[0] = 0
source[1] = np.linspace(-1, 1, 32) * 127.0  # scale 1: halves that round away from zero
source[1, 1:9] = [0.5, -0.5, 1.5, 2.5, -2.5, 126.5, -126.5, 0.49999997]
source[2] = 0
source[2, 7] = -3.0
out["q8_0.source"] = source
out["q8_0.bytes"] = quants.quantize(source, T.Q8_0).reshape(12, 34)

random = rng.integers(0, 256, (12, 34), dtype=np.uint8)
random[:, :2] = scales(12)
out["q8_0.bytes"] = np.concatenate([out["q8_0.bytes"], random])

q4_0 = rng.integers(0, 256, (16, 18), dtype=np.uint8)
q4_0[:, :2] = scales(16)
out["q4_0.bytes"] = q4_0

q4_k = rng.integers(0, 256, (6, 144), dtype=np.uint8)
q4_k[:, :2] = scales(6)
q4_k[:, 2:4] = scales(6)[::-1]
out["q4_k.bytes"] = q4_k

# The other formats: name, type, bytes of a block, where its f16 scales lie.
OTHERS = [
    ("q4_1", T.Q4_1, 20, [0, 2]),
    ("q5_0", T.Q5_0, 22, [0]),
    ("q5_1", T.Q5_1, 24, [0, 2]),
    ("q2_k", T.Q2_K, 84, [80, 82]),
    ("q3_k", T.Q3_K, 110, [108]),
    ("q5_k", T.Q5_K, 176, [0, 2]),
    ("q6_k", T.Q6_K, 210, [208]),
]
for name, kind, size, places in OTHERS:
    count = 16 if size < 32 else 6
    blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
    for place in places:
        blocks[:, place : place + 2] = scales(count)[:: -1 if place in (2, 82) else 1]
    out[f"{name}.bytes"] = blocks

for name, kind in [("q8_0", T.Q8_0), ("q4_0", T.Q4_0), ("q4_k", T.Q4_K), *(o[:2] for o in OTHERS)]:
    out[f"{name}.values"] = quants.dequantize(out[f"{name}.bytes"], kind).astype(np.float32)

f8 = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
out["f8_e4m3.values"] = f8.to(torch.float32).numpy()

out = {name: np.ascontiguousarray(value) for name, value in out.items()}
save_file(out, Path(__file__).with_name("blocks.safetensors"))
