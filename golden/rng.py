"""Makes golden/rng.json: what torch.randn gives on the CPU, as checksums.

Needs torch on an x86 machine with AVX2 (checked below). Run: python golden/rng.py
"""

import json
import pathlib
import random
import zlib

import numpy as np
import torch

WORDS = 624
BITS_24 = 1 << 24


def randn(size, generator):
    return torch.randn(size, generator=generator, dtype=torch.float32).numpy()


def call(size, generator):
    values = randn(size, generator)
    head = values[:2].view(np.uint32).tolist()
    return {"size": size, "crc32": zlib.crc32(values.tobytes()), "head": head}


def run(seed, sizes):
    generator = torch.Generator("cpu").manual_seed(seed)
    return {"seed": seed, "calls": [call(size, generator) for size in sizes]}


def untemper(y):
    """The state words that MT19937 tempers into y."""
    y = y ^ (y >> np.uint32(18))
    y = y ^ ((y << np.uint32(15)) & np.uint32(0xEFC60000))
    t = y
    for _ in range(5):
        t = y ^ ((t << np.uint32(7)) & np.uint32(0x9D2C5680))
    y = t
    for _ in range(3):
        t = y ^ (t >> np.uint32(11))
    return t


def exhaustive(stride):
    """The CRC of torch's transform of every 24-bit uniform as a radius and as an angle.

    The uniforms cannot be given to torch, so its generator gets the states that yield them. Its
    state is the legacy layout: seed (8 bytes), left, seeded (4 each), next (8), 624 words of 8.
    """
    per_state = 608  # a multiple of 16 that one state yields
    k = np.arange(BITS_24, dtype=np.uint32)
    uniforms = np.stack([k.reshape(-1, 8), (k * np.uint32(stride) % BITS_24).reshape(-1, 8)], 1)
    uniforms = uniforms.reshape(-1).astype(np.uint32)
    generator = torch.Generator("cpu").manual_seed(0)
    state = generator.get_state().numpy().copy()
    state.view(np.int32)[2] = WORDS  # left
    state.view(np.int32)[4:6] = 0  # next
    crc = 0
    for first in range(0, len(uniforms), per_state):
        part = uniforms[first : first + per_state]
        state.view(np.uint64)[3 : 3 + len(part)] = untemper(part)
        generator.set_state(torch.from_numpy(state))
        crc = zlib.crc32(randn(len(part), generator).tobytes(), crc)
    return {"stride": stride, "crc32": crc}


def main():
    torch.set_num_threads(1)
    capability = torch.backends.cpu.get_cpu_capability()
    assert capability in ("AVX2", "AVX512"), f"{capability} takes torch's other transform"
    rng = random.Random(20)
    seeds = [0, 1, 42, 1234, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**63, 2**64 - 1]
    seeds += [rng.getrandbits(64) for _ in range(10)]
    runs = [run(1, range(1, 65)), run(2, list(range(64, 0, -1)))]
    runs.append(run(3, [15, 16, 1, 31, 32, 33, 623, 624, 625, 1248, 7, 7, 7, 100]))
    runs += [run(seed, [3, 16384, 1, 65536, 5, 12289, 4 * 77 * 51]) for seed in seeds]
    # A drawn mixture: the spare value of the small path must survive the big ones.
    for _ in range(10):
        sizes = [rng.choice([rng.randint(1, 15), rng.randint(16, 3000)]) for _ in range(40)]
        runs.append(run(rng.getrandbits(64), sizes))
    golden = {
        "torch": torch.__version__.split("+")[0],
        "runs": runs,
        "exhaustive": exhaustive(stride=0x9E3779B1),
    }
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
