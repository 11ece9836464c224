"""Low-rank additions to the tiny transformers, and what diffusers makes of them with load_lora_weights and peft.

    python golden/lora_flow.py

writes golden/lora/<case>.safetensors, files as users have them (f16):

  sd35_medium_diffusers, flux_dev_diffusers   pipe.save_lora_weights of a peft adapter, whose alpha stands in the metadata
  sd35_medium_kohya, flux_dev_kohya           the original code's names: queries, keys and values are one module

and golden/lora/flow_references.safetensors with `<case>/step{i}` and `<case>/image`: runs of three steps of the family's
pipeline. diffusers' own reading of kohya's names has the published widths written into it, so those cases are given to it
as what they mean: the same down matrix beside each part of the up matrix."""

import tempfile

import torch
from safetensors.torch import save_file

import common
import flow_single
import make_flow
from common import GOLDEN, NEGATIVE, PROMPTS
from lora import adapter, halve

HERE = GOLDEN / "lora"
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_v_proj", "to_add_out", "ff.net.0.proj", "ff_context.net.2", "norm1.linear")
FLUX_TARGETS = TARGETS + ("proj_mlp", "proj_out", "norm.linear", "x_embedder")


def load(family):
    with tempfile.TemporaryDirectory() as scratch:
        return make_flow.load(family, scratch)


def save_adapter(pipe, path, seed):
    from peft.utils import get_peft_model_state_dict
    flux = pipe.__class__.__name__.startswith("Flux")
    adapter(pipe.transformer, FLUX_TARGETS if flux else TARGETS, 3, 2, seed)
    pipe.save_lora_weights(path.parent, weight_name=path.name, transformer_lora_layers=get_peft_model_state_dict(pipe.transformer),
                           transformer_lora_adapter_metadata=pipe.transformer.peft_config["default"].to_dict())
    halve(path)


def modules(family):
    """The original's modules with weights of two axes: name, the layers that it is made of, and whether its halves are turned."""
    table = flow_single.FlowMap(family)
    table.flux() if family.startswith("flux") else table.sd3()
    for row in table.rows:
        name = row["name"].removeprefix("model.diffusion_model.")
        if name.endswith(".weight") and "norm.query" not in name and "ln_" not in name and not name.endswith("norm.scale"):
            yield name.removesuffix(".weight"), [s.removesuffix(".weight") for s in row["sources"]], row["op"] == "swap"


def kohya(pipe, family, seed):
    """A file of kohya's, and the same as diffusers takes it."""
    generator = torch.Generator().manual_seed(seed)
    layers = dict(pipe.transformer.named_modules())
    fused, split = {}, {}
    for i, (name, sources, swapped) in enumerate(modules(family)):
        parts = [layers[s] for s in sources]
        if not all(isinstance(p, torch.nn.Linear) for p in parts):
            continue
        rank, alpha = (2, 3, 1)[i % 3], (1.0, 2.0, 0.5)[i // 3 % 3]
        inner = parts[0].weight.shape[1]
        down = (torch.randn(rank, inner, generator=generator) / inner ** 0.5).half()
        ups = [(torch.randn(p.weight.shape[0], rank, generator=generator) * 0.25 / rank ** 0.5).half() for p in parts]
        key = f"lora_unet_{name.replace('.', '_')}"
        whole = torch.cat(ups)
        fused[f"{key}.lora_down.weight"] = down
        fused[f"{key}.lora_up.weight"] = torch.cat(whole.chunk(2)[::-1]) if swapped else whole
        fused[f"{key}.alpha"] = torch.tensor(alpha).half()
        for source, up in zip(sources, ups):
            split[f"transformer.{source}.lora_A.weight"] = down.float()
            split[f"transformer.{source}.lora_B.weight"] = up.float() * alpha / rank
    return {k: v.contiguous() for k, v in fused.items()}, split


def stages(out, case, pipe):
    flux = pipe.__class__.__name__.startswith("Flux")
    steps = []

    def keep(_pipe, _index, _timestep, kwargs):
        now = kwargs["latents"].clone()
        steps.append((pipe._unpack_latents(now, 64, 64, 8) if flux else now)[0])
        return kwargs

    more = {} if flux else dict(negative_prompt=NEGATIVE)
    image = pipe(PROMPTS[0], num_inference_steps=3, guidance_scale=4.0, width=64, height=64, output_type="np",
                 generator=torch.Generator().manual_seed(77), callback_on_step_end=keep, **more).images[0]
    for i, latents in enumerate(steps):
        out[f"{case}/step{i}"] = latents
    out[f"{case}/image"] = (torch.tensor(image) * 255).round().to(torch.uint8)


@torch.no_grad()
def main():
    torch.set_num_threads(1)
    out = {}
    for number, family in enumerate(("sd35_medium", "flux_dev")):
        plain = {}
        stages(plain, "plain", load(family))
        case = f"{family}_diffusers"
        save_adapter(load(family), HERE / f"{case}.safetensors", 91 + number)
        pipe = load(family)
        pipe.load_lora_weights(HERE, weight_name=f"{case}.safetensors")
        stages(out, case, pipe)
        other = f"{family}_kohya"
        pipe = load(family)
        fused, split = kohya(pipe, family, 95 + number)
        save_file(fused, HERE / f"{other}.safetensors")
        pipe.load_lora_weights(split)
        stages(out, other, pipe)
        for c in (case, other):
            change = (out[f"{c}/step2"] - plain["plain/step2"]).abs().max() / plain["plain/step2"].abs().max()
            print(f"{c}: changes the latents by {float(change):.2f}")
    save_file({k: v.contiguous().clone() for k, v in sorted(out.items())}, HERE / "flow_references.safetensors")
    for path in sorted(HERE.iterdir()):
        print(path.name, path.stat().st_size)


if __name__ == "__main__":
    main()
