"""The block of train_block.rs in PyTorch, in both layouts: forward and backward, medians.

    python crates/ops/examples/train_block.py [batch side channels]
"""

import statistics
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F


class Block(nn.Module):
    def __init__(self, c, time_dim):
        super().__init__()
        self.norm1, self.norm2, self.norm = (nn.GroupNorm(32, c) for _ in range(3))
        self.conv1, self.conv2 = (nn.Conv2d(c, c, 3, padding=1) for _ in range(2))
        self.time = nn.Linear(time_dim, c)
        self.proj_in, self.out, self.proj_out = (nn.Linear(c, c) for _ in range(3))
        self.q, self.k, self.v = (nn.Linear(c, c, bias=False) for _ in range(3))
        self.ln1, self.ln2 = nn.LayerNorm(c), nn.LayerNorm(c)
        self.ff1, self.ff2 = nn.Linear(c, 8 * c), nn.Linear(4 * c, c)

    def forward(self, x, t):
        b, c, h, w = x.shape
        y = self.conv1(F.silu(self.norm1(x))) + self.time(t)[:, :, None, None]
        x = self.conv2(F.silu(self.norm2(y))) + x
        tokens = lambda x: x.permute(0, 2, 3, 1).reshape(b, h * w, c)
        z = self.proj_in(tokens(self.norm(x)))
        y = self.ln1(z)
        split = lambda x: x.view(b, h * w, 8, c // 8).transpose(1, 2)
        y = F.scaled_dot_product_attention(split(self.q(y)), split(self.k(y)), split(self.v(y)))
        z = self.out(y.transpose(1, 2).reshape(b, h * w, c)) + z
        value, gate = self.ff1(self.ln2(z)).chunk(2, dim=-1)
        z = self.ff2(value * F.gelu(gate)) + z
        return self.proj_out(z) + tokens(x)


def main():
    torch.set_num_threads(2)
    batch, side, c = (int(a) for a in sys.argv[1:]) if len(sys.argv) > 1 else (8, 16, 256)
    for layout in (torch.contiguous_format, torch.channels_last):
        block = Block(c, 4 * c).to(memory_format=layout)
        x = torch.randn(batch, c, side, side).to(memory_format=layout).requires_grad_()
        t = torch.randn(batch, 4 * c)
        forward, backward = [], []
        for _ in range(9):
            start = time.perf_counter()
            loss = block(x, t).pow(2).mean()
            middle = time.perf_counter()
            loss.backward()
            end = time.perf_counter()
            block.zero_grad()
            x.grad = None
            forward.append(1e3 * (middle - start))
            backward.append(1e3 * (end - middle))
        f, b = statistics.median(forward), statistics.median(backward)
        name = str(layout).split(".")[-1]
        print(f"torch {batch}x{side}x{side}x{c} {name}: forward {f:.1f} ms, backward {b:.1f} ms, together {f + b:.1f} ms")


if __name__ == "__main__":
    main()
