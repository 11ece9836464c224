"""Weights after 1, 2, 5 and 10 updates of torch.optim.AdamW, for the test in crates/train/src/optim/adamw.rs."""

import numpy as np
import torch

weights = torch.tensor([0.5, -1.0, 0.25], requires_grad=True)
optimizer = torch.optim.AdamW([weights], lr=0.01, weight_decay=0.1)
for update in range(1, 11):
    angles = np.float32(update) * np.float32(0.7) + np.arange(3, dtype=np.float32)
    weights.grad = torch.from_numpy(np.sin(angles))
    optimizer.step()
    if update in (1, 2, 5, 10):
        print([float(f"{v:.9g}") for v in weights.tolist()])
