"""Low-rank additions to the tiny checkpoints, and what diffusers makes of them with load_lora_weights and peft.

    python golden/lora.py

writes golden/lora/<case>.safetensors, files as users have them (f16):

  sd1_kohya       every kind of layer: linear, 1x1 and 3x3 convolutions, time projections, the text encoder;
                  ranks and alphas differ from layer to layer
  sd1_diffusers   pipe.save_lora_weights of a peft adapter, whose alpha stands in the file's metadata
  sd1_processor   the spelling of diffusers before 0.22
  sdxl_kohya      the original code's block names (input_blocks_4_1_...), lora_te1_ and lora_te2_
  sdxl_diffusers  lora_A and lora_B under unet., text_encoder. and text_encoder_2.

and golden/lora/references.safetensors with `<case>/...`: the prompts' embeddings, the UNet's output and some blocks
(inputs: those of <family>/stages.safetensors, entry 0), and a run of three DDIM steps with every latent and the picture.
`sd1_both` has two files at once with weights 0.8 and -0.5.
"""

import torch
from safetensors.torch import load_file, save_file

from peft import LoraConfig
from transformers.integrations import peft as transformers_peft

from common import GOLDEN, NEGATIVE, PROMPTS
from make_references import Recorder, load as load_patched, unet_inputs

# transformers 5.24 asks for 0.22, which is not out; 0.21.2 has what is used here.
transformers_peft.MIN_PEFT_VERSION = "0.21.0"
HERE = GOLDEN / "lora"
BLOCKS = ("conv_in", "down_blocks.1.resnets.0", "down_blocks.1.attentions.0", "mid_block.attentions.0", "up_blocks.1.resnets.1",
          "up_blocks.1.upsamplers.0", "time_embedding")


def load(family):
    pipe = load_patched(family)
    # diffusers looks for this name to tell how a text encoder spells its layers.
    vars(pipe.text_encoder).pop("text_model", None)
    return pipe


def layers(model, wanted):
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    return {n: m for n, m in model.named_modules() if isinstance(m, kinds) and wanted(n)}


def matrices(module, rank, generator, strength):
    """Down and up of one layer, of such a size that the addition shows beside the weight."""
    weight = module.weight
    down = torch.randn(rank, *weight.shape[1:], generator=generator) / weight[0].numel() ** 0.5
    up = torch.randn(weight.shape[0], rank, *[1] * (weight.dim() - 2), generator=generator)
    return down.half(), (up * strength / rank ** 0.5).half()


def kohya(pipe, components, spell, wanted, seed):
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for prefix, model in components:
        for i, (name, module) in enumerate(layers(model, wanted).items()):
            rank = (2, 3, 1)[i % 3]
            down, up = matrices(module, rank, generator, 0.25)
            key = f"{prefix}_{spell(prefix, name).replace('.', '_')}"
            out[f"{key}.lora_down.weight"], out[f"{key}.lora_up.weight"] = down, up
            # diffusers 0.42.1 gives all attentions and text encoders their commonest alpha: here they have one.
            own = "attn" in name or prefix.startswith("lora_te")
            out[f"{key}.alpha"] = torch.tensor(2.0 if own else (1.0, 2.0, 0.5)[i // 3 % 3]).half()
    return out


def text_name(name):
    return name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}"


def plain(prefix, name):
    return text_name(name) if prefix.startswith("lora_te") else name


RESNET = {"conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
HEADS = {"conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
         "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2", "conv_out": "out.2"}


def original(prefix, name):
    """The original code's names of SDXL's UNet (three levels, two resnets each)."""
    if prefix != "lora_unet":
        return text_name(name)
    if name in HEADS:
        return HEADS[name]
    parts = name.split(".")
    rest = ".".join(parts[4:])
    rest = RESNET.get(rest, rest)
    if parts[0] == "mid_block":
        rest = ".".join(parts[3:])
        index = 1 if parts[1] == "attentions" else 2 * int(parts[2])
        return f"middle_block.{index}.{RESNET.get(rest, rest)}"
    level, kind, j = int(parts[1]), parts[2], int(parts[3])
    if kind == "downsamplers":
        return f"input_blocks.{3 * level + 3}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{3 * level + 2}.{2 if level < 2 else 1}.conv"
    base = f"input_blocks.{3 * level + 1 + j}" if parts[0] == "down_blocks" else f"output_blocks.{3 * level + j}"
    return f"{base}.{0 if kind == 'resnets' else 1}.{rest}"


ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj")


def adapter(model, targets, rank, alpha, seed):
    """A peft adapter with weights of its own."""
    generator = torch.Generator().manual_seed(seed)
    model.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets)))
    for name, value in model.named_parameters():
        if "lora_A" in name:
            value.data = (torch.randn(value.shape, generator=generator) / value.shape[1] ** 0.5).half().float()
        elif "lora_B" in name:
            value.data = (torch.randn(value.shape, generator=generator) * 0.25 / rank ** 0.5).half().float()


def save_adapters(pipe, path, names, seed):
    from peft.utils import get_peft_model_state_dict
    found, metadata = {}, {}
    for i, name in enumerate(names):
        model = getattr(pipe, name)
        targets = ATTENTION + ("ff.net.2", "proj_in") if name == "unet" else TEXT
        rank, alpha = (3, 2) if name == "unet" else (2, 3)
        adapter(model, targets, rank, alpha, seed + i)
        inner = text_name if name != "unet" else lambda n: n
        found[name] = {inner(k): v for k, v in get_peft_model_state_dict(model).items()}
        metadata[f"{name}_lora_adapter_metadata"] = model.peft_config["default"].to_dict()
    kind = {"unet": "unet_lora_layers", "text_encoder": "text_encoder_lora_layers", "text_encoder_2": "text_encoder_2_lora_layers"}
    pipe.save_lora_weights(path.parent, weight_name=path.name, **{kind[n]: v for n, v in found.items()},
                           **{k: v for k, v in metadata.items()})
    halve(path)


def halve(path):
    """The file in f16, with its metadata."""
    from safetensors import safe_open
    with safe_open(path, "pt") as f:
        metadata = f.metadata()
    save_file({k: v.half() for k, v in load_file(path).items()}, path, metadata)


def processor_spelling(pipe, seed):
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for name, module in layers(pipe.unet, lambda n: n.endswith(ATTENTION)).items():
        attention, part = name.rsplit(".", 2)[0] if name.endswith("to_out.0") else name.rsplit(".", 1)[0], \
            "to_out" if name.endswith("to_out.0") else name.rsplit(".", 1)[1]
        down, up = matrices(module, 2, generator, 0.25)
        out[f"unet.{attention}.processor.{part}_lora.down.weight"] = down
        out[f"unet.{attention}.processor.{part}_lora.up.weight"] = up
    return out


def stages(out, case, pipe, family):
    if family == "sdxl":
        found = pipe.encode_prompt(PROMPTS[0], device="cpu", negative_prompt=NEGATIVE)
        out[f"{case}/prompt_embeds"], out[f"{case}/pooled"] = found[0][0], found[2][0]
    else:
        out[f"{case}/prompt_embeds"] = pipe.encode_prompt(PROMPTS[0], "cpu", 1, True, negative_prompt=NEGATIVE)[0][0]
    sample, timestep, text, added = unet_inputs({}, family, pipe.unet.config.cross_attention_dim)
    first = {k: v[:1] for k, v in added.items()} if added else None
    with Recorder(out, f"{case}/unet", pipe.unet, lambda n: n in BLOCKS):
        out[f"{case}/unet/out"] = pipe.unet(sample[:1], timestep[:1], text[:1], added_cond_kwargs=first).sample
    step = []
    from diffusers import DDIMScheduler
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)

    def keep(_pipe, _index, _timestep, kwargs):
        step.append(kwargs["latents"][0].clone())
        return kwargs

    image = pipe(PROMPTS[0], negative_prompt=NEGATIVE, num_inference_steps=3, guidance_scale=6.0, width=64, height=64,
                 generator=torch.Generator().manual_seed(77), output_type="np", callback_on_step_end=keep).images[0]
    for i, latents in enumerate(step):
        out[f"{case}/step{i}"] = latents
    out[f"{case}/image"] = (torch.tensor(image) * 255).round().to(torch.uint8)


@torch.no_grad()
def main():
    torch.set_num_threads(1)
    HERE.mkdir(exist_ok=True)
    pipe = load("sd1")
    everything = lambda n: n != "conv_out"
    sd1 = [("lora_unet", pipe.unet), ("lora_te", pipe.text_encoder)]
    save_file(kohya(pipe, sd1, plain, everything, 81), HERE / "sd1_kohya.safetensors")
    save_file(processor_spelling(pipe, 82), HERE / "sd1_processor.safetensors")
    save_adapters(pipe, HERE / "sd1_diffusers.safetensors", ["unet", "text_encoder"], 83)
    pipe = load("sdxl")
    sdxl = [("lora_unet", pipe.unet), ("lora_te1", pipe.text_encoder), ("lora_te2", pipe.text_encoder_2)]
    # diffusers' reading of these names knows linear layers of blocks best.
    wanted = lambda n: "attentions" in n or "encoder.layers" in n or "resnets" in n
    save_file(kohya(pipe, sdxl, original, wanted, 84), HERE / "sdxl_kohya.safetensors")
    save_adapters(pipe, HERE / "sdxl_diffusers.safetensors", ["unet", "text_encoder", "text_encoder_2"], 85)

    out = {}
    for case in ("sd1_kohya", "sd1_processor", "sd1_diffusers", "sdxl_kohya", "sdxl_diffusers"):
        family = case.split("_")[0]
        pipe = load(family)
        pipe.load_lora_weights(HERE, weight_name=f"{case}.safetensors")
        stages(out, case, pipe, family)
    pipe = load("sd1")
    pipe.load_lora_weights(HERE, weight_name="sd1_kohya.safetensors", adapter_name="a")
    pipe.load_lora_weights(HERE, weight_name="sd1_diffusers.safetensors", adapter_name="b")
    pipe.set_adapters(["a", "b"], [0.8, -0.5])
    stages(out, "sd1_both", pipe, "sd1")
    for family in ("sd1", "sdxl"):
        stages(out, f"{family}_none", load(family), family)
    for name in [n for n in out if n.startswith(("sd1_none", "sdxl_none"))]:
        case = [c for c in ("sd1_kohya", "sd1_diffusers", "sd1_both", "sdxl_kohya", "sdxl_diffusers", "sd1_processor")
                if c.split("_")[0] == name.split("_")[0]]
        for c in case:
            other = out[name.replace(name.split("/")[0], c)]
            print(c, name.split("/", 1)[1], float((other.float() - out[name].float()).abs().max() / out[name].float().abs().max()))
    keep = {k: v.contiguous().clone() for k, v in sorted(out.items()) if "_none/" not in k}
    save_file(keep, HERE / "references.safetensors")
    for path in sorted(HERE.iterdir()):
        print(path.name, path.stat().st_size)


if __name__ == "__main__":
    main()
