"""Models without text: tiny random ones as folders, and diffusers' runs of them, every step.

    python golden/pixels.py

writes golden/pixels/<model>/ (f16; what ran is exactly that in f32):

  grey     DDPMPipeline: 8x8, one channel, v-prediction, the cosine schedule
  colour   DDIMPipeline: 8x12, three channels, epsilon, clipped
  classes  no pipeline of diffusers: three classes and none, as `aquatint train` writes such a model

and golden/pixels/references.safetensors: `<case>/step<i>` (after each step) and `<case>/image` (u8). Runs with classes are
the loop that the trainer's model cards show: `without + 2 (with - without)`."""

import json
import shutil

import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import save_file

from common import GOLDEN, draw_weights, rounded

HERE = GOLDEN / "pixels"
UNET = dict(layers_per_block=1, norm_num_groups=4, attention_head_dim=8, block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"))


def unet(seed, **options):
    return rounded(draw_weights(UNet2DModel(**{**UNET, **options}), seed)).eval()


def record(out, case, scheduler):
    """Keeps what every step of a scheduler gives."""
    true, seen = scheduler.step, []

    def step(*args, **kwargs):
        given = true(*args, **kwargs)
        out[f"{case}/step{len(seen):02}"] = given.prev_sample.clone()
        seen.append(1)
        return given
    scheduler.step = step


def finish(folder, pipe):
    """Weights in f16, and only the files that a reader needs."""
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({k: v.half().contiguous() for k, v in pipe.unet.state_dict().items()}, path, {"format": "pt"})
    path.chmod(0o644)


def pipeline(out, name, pipe, steps, seed, **options):
    folder = HERE / name
    pipe.save_pretrained(folder)
    finish(folder, pipe)
    pipe.set_progress_bar_config(disable=True)
    case = f"{name}/{steps}"
    record(out, case, pipe.scheduler)
    image = pipe(generator=torch.Generator().manual_seed(seed), num_inference_steps=steps, output_type="np", **options)
    out[f"{case}/image"] = torch.tensor((image.images[0] * 255).round()).to(torch.uint8)


def classes(out):
    folder = HERE / "classes"
    model = unet(3, sample_size=8, in_channels=1, out_channels=1, num_class_embeds=4)
    scheduler = DDPMScheduler(prediction_type="epsilon")
    model.save_pretrained(folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")
    finish(folder, type("Pipe", (), {"unet": model}))
    (folder / "classes.json").write_text(json.dumps(["circle", "cross", "7"]) + "\n")
    settings = {"width": 8, "height": 8, "steps": 6, "guidance": 2.0, "sampler": "ddim"}
    (folder / "aquatint.json").write_text(json.dumps(settings) + "\n")
    for case, label, scale, kind in (("classes/ddim", 1, 2.0, DDIMScheduler), ("classes/ddpm", 2, 1.0, DDPMScheduler)):
        scheduler = kind.from_config(scheduler.config)
        scheduler.set_timesteps(6)
        record(out, case, scheduler)
        generator = torch.Generator().manual_seed(5)
        x = torch.randn(1, 1, 8, 8, generator=generator)
        told = torch.tensor([label, 3])
        for t in scheduler.timesteps:
            if scale > 1:
                given, without = model(torch.cat([x, x]), t, class_labels=told).sample.chunk(2)
                given = without + scale * (given - without)
            else:
                given = model(x, t, class_labels=told[:1]).sample
            x = scheduler.step(given, t, x, generator=generator).prev_sample
        out[f"{case}/image"] = ((x / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)[0].permute(1, 2, 0)


@torch.no_grad()
def main():
    torch.set_num_threads(1)
    shutil.rmtree(HERE, ignore_errors=True)
    out = {}
    grey = unet(1, sample_size=8, in_channels=1, out_channels=1)
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    pipeline(out, "grey", DDPMPipeline(grey, scheduler), 10, 3)
    colour = unet(2, sample_size=(8, 12), in_channels=3, out_channels=3)
    pipeline(out, "colour", DDIMPipeline(colour, DDIMScheduler()), 6, 4)
    # DDIMPipeline makes a DDIM scheduler of whatever it is given; DDPM over colours beside it.
    pipe = DDPMPipeline(colour, DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    record(out, "colour/ddpm", pipe.scheduler)
    image = pipe(generator=torch.Generator().manual_seed(6), num_inference_steps=7, output_type="np").images[0]
    out["colour/ddpm/image"] = torch.tensor((image * 255).round()).to(torch.uint8)
    classes(out)
    save_file({k: v.contiguous().clone() for k, v in sorted(out.items())}, HERE / "references.safetensors")
    (HERE / "references.safetensors").chmod(0o644)
    for path in sorted(p for p in HERE.rglob("*") if p.is_file()):
        print(path.relative_to(HERE), path.stat().st_size)
    for name, value in out.items():
        if "image" in name or "step00" in name:
            print(name, tuple(value.shape), float(value.float().min()), float(value.float().max()))


if __name__ == "__main__":
    main()
