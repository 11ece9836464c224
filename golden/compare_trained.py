"""What `aquatint train diffusion` wrote, drawn by diffusers: the folder of an unconditional model of pixels loads as a
DDPMPipeline, and gives the pictures of the run's last grid.

    aquatint train diffusion examples/digits.toml --out digits
    python golden/compare_trained.py digits
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMPipeline
from PIL import Image


def main(out):
    torch.set_num_threads(1)
    pipe = DDPMPipeline.from_pretrained(out / "model")
    pipe.set_progress_bar_config(disable=True)
    steps = json.loads((out / "model/aquatint.json").read_text())["steps"]
    name = type(pipe.scheduler).__name__
    drawn = pipe(num_inference_steps=steps, generator=torch.Generator().manual_seed(0)).images[0]
    print(f"{name}: drew {drawn.size[0]}x{drawn.size[1]}")
    # The grid was drawn without noise on the way: by DDIM, or along the flow.
    if name == "DDPMScheduler":
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    sheet = np.asarray(Image.open(sorted((out / "samples").glob("step-*.png"))[-1])).astype(int)
    side = pipe.unet.config.sample_size
    zoom = max(64 // side, 1)
    cell = side * zoom + 2
    columns, count = sheet.shape[1] // cell, 4
    worst = 0
    for i in range(count):
        found = pipe(num_inference_steps=steps, generator=torch.Generator().manual_seed(i), output_type="np").images[0]
        top, left = i // columns * cell + 1, i % columns * cell + 1
        ours = sheet[top : top + side * zoom : zoom, left : left + side * zoom : zoom, : found.shape[2]]
        worst = max(worst, np.abs(ours - np.round(found * 255)).max())
    print(f"largest difference of {count} pictures: {worst:.0f}/255")
    # The folder holds f16, the grid was drawn from f32.
    sys.exit(int(worst > 2))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
