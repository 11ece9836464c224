"""Writes random checkpoints of the published sizes, for benchmarks. Not committed.

    python make_full.py --family sd15|sd21|sdxl --out DIR [--dtype f16|f32] [--layout folder|single]

Normal weights scaled by their fan-in, norms that do nothing: activations stay finite in f16, pictures
mean nothing. Tensors are drawn and written one by one, so memory stays small."""

import argparse
import json
import math
import struct
import time
from pathlib import Path

import numpy
import torch

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import common
from common import SCHEDULERS, write_json
from single_file import OPENCLIP, unet_name, vae_name
from tiny_tokenizer import write_tokenizer

FOUR_DOWN = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
FOUR_UP = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
BASE = dict(common.UNET, norm_num_groups=32)
UNETS = {
    "sd15": dict(BASE, sample_size=64, attention_head_dim=8, block_out_channels=(320, 640, 1280, 1280),
                 cross_attention_dim=768, down_block_types=FOUR_DOWN, up_block_types=FOUR_UP),
    "sd21": dict(BASE, sample_size=96, attention_head_dim=[5, 10, 20, 20], block_out_channels=(320, 640, 1280, 1280),
                 cross_attention_dim=1024, use_linear_projection=True, down_block_types=FOUR_DOWN,
                 up_block_types=FOUR_UP),
    "sdxl": dict(BASE, sample_size=128, attention_head_dim=[5, 10, 20], block_out_channels=(320, 640, 1280),
                 cross_attention_dim=2048, use_linear_projection=True, transformer_layers_per_block=[1, 2, 10],
                 addition_embed_type="text_time", addition_time_embed_dim=256,
                 projection_class_embeddings_input_dim=2816,
                 down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                 up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")),
}
VAE = dict(common.VAE, block_out_channels=(128, 256, 512, 512), norm_num_groups=32)
VAES = {"sd15": dict(VAE, sample_size=512, scaling_factor=0.18215),
        "sd21": dict(VAE, sample_size=768, scaling_factor=0.18215),
        "sdxl": dict(VAE, sample_size=1024, scaling_factor=0.13025, force_upcast=True)}
VIT_L = dict(common.CLIP, vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
             num_attention_heads=12, hidden_act="quick_gelu", projection_dim=768)
VIT_H = dict(common.CLIP, vocab_size=49408, hidden_size=1024, intermediate_size=4096, num_hidden_layers=23,
             num_attention_heads=16, hidden_act="gelu", projection_dim=512)
BIG_G = dict(common.CLIP, vocab_size=49408, hidden_size=1280, intermediate_size=5120, num_hidden_layers=32,
             num_attention_heads=20, hidden_act="gelu", projection_dim=1280)
TEXT_ENCODERS = {"sd15": [VIT_L], "sd21": [VIT_H], "sdxl": [VIT_L, BIG_G]}
TINY = {"sd15": "sd1", "sd21": "sd2", "sdxl": "sdxl"}


def shapes(kind, config):
    """Names and shapes of a network's tensors, without making them."""
    with torch.device("meta"):
        model = kind.from_config(config) if hasattr(kind, "from_config") else kind(CLIPTextConfig(**config))
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def draw(name, shape, generator, dtype):
    vector = len(shape) < 2
    if vector:
        # Scales of norms are 1, all biases 0; what else has one axis is a bias.
        value = numpy.ones(shape, numpy.float32) if name.endswith("weight") else numpy.zeros(shape, numpy.float32)
    else:
        fan_in = math.prod(shape[1:])
        std = 0.02 if "embedding" in name and "embeddings" in name else 0.8 / fan_in ** 0.5
        value = generator.standard_normal(shape, dtype=numpy.float32) * numpy.float32(std)
    return value.astype(dtype).tobytes()


def write_file(path, tensors, dtype):
    """Streams a .safetensors file: `tensors` is name -> shape."""
    width, header, offset = numpy.dtype(dtype).itemsize, {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensors.items():
        size = width * math.prod(shape)
        header[name] = dict(dtype="F16" if width == 2 else "F32", shape=list(shape), data_offsets=[offset, offset + size])
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator, start = numpy.random.default_rng(20), time.time()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors.items():
            file.write(draw(name, shape, generator, dtype))
    parameters = sum(math.prod(shape) for shape in tensors.values())
    print(f"{path}: {parameters / 1e6:.1f} M parameters, {path.stat().st_size / 1e9:.2f} GB, {time.time() - start:.0f} s")


def write_folder(family, out, dtype):
    tiny = TINY[family]
    encoders = TEXT_ENCODERS[family]
    write_file(out / "unet" / "diffusion_pytorch_model.safetensors", shapes(UNet2DConditionModel, UNETS[family]), dtype)
    write_json(out / "unet" / "config.json", dict(_class_name="UNet2DConditionModel", **UNETS[family]))
    write_file(out / "vae" / "diffusion_pytorch_model.safetensors", shapes(AutoencoderKL, VAES[family]), dtype)
    write_json(out / "vae" / "config.json", dict(_class_name="AutoencoderKL", **VAES[family]))
    for i, config in enumerate(encoders):
        suffix = "_2" if i else ""
        kind = CLIPTextModelWithProjection if i else CLIPTextModel
        write_file(out / f"text_encoder{suffix}" / "model.safetensors", shapes(kind, config), dtype)
        write_json(out / f"text_encoder{suffix}" / "config.json",
                   dict(config, architectures=[kind.__name__], model_type="clip_text_model"))
        write_tokenizer(out / f"tokenizer{suffix}", common.PADS[tiny][i], full=True)
    kind, config = SCHEDULERS[tiny]
    write_json(out / "scheduler" / "scheduler_config.json", dict(_class_name=kind, **config))
    index = json.loads((common.GOLDEN / tiny / "model_index.json").read_text())
    write_json(out / "model_index.json", index)


def openclip_shapes(config, prefix, extra_layer):
    width, inner = config["hidden_size"], config["intermediate_size"]
    found = {prefix + "positional_embedding": (77, width), prefix + "token_embedding.weight": (49408, width),
             prefix + "text_projection": (width, width)}
    sizes = {"ln_1": (width,), "ln_2": (width,), "mlp.c_fc": (inner, width), "mlp.c_proj": (width, inner),
             "attn.out_proj": (width, width)}
    assert set(sizes) == set(OPENCLIP.values())
    for layer in range(config["num_hidden_layers"] + extra_layer):
        block = f"{prefix}transformer.resblocks.{layer}."
        found |= {block + "attn.in_proj_weight": (3 * width, width), block + "attn.in_proj_bias": (3 * width,)}
        for name, size in sizes.items():
            found |= {f"{block}{name}.weight": size, f"{block}{name}.bias": size[:1]}
    return found | {prefix + "ln_final.weight": (width,), prefix + "ln_final.bias": (width,)}


def write_single(family, path, dtype):
    unet, vae = shapes(UNet2DConditionModel, UNETS[family]), shapes(AutoencoderKL, VAES[family])
    attention = {int(name.split(".")[1]) for name in unet if name.startswith("up_blocks") and "attentions" in name}
    tensors = {"model.diffusion_model." + unet_name(name, attention): shape for name, shape in unet.items()}
    for name, shape in vae.items():
        name = "first_stage_model." + vae_name(name)
        tensors[name] = (*shape, 1, 1) if "attn_1" in name and len(shape) == 2 else shape
    if family == "sd21":
        tensors |= openclip_shapes(VIT_H, "cond_stage_model.model.", 1)
    else:
        prefix = "cond_stage_model" if family == "sd15" else "conditioner.embedders.0"
        for name, shape in shapes(CLIPTextModel, VIT_L).items():
            tensors[f"{prefix}.transformer.text_model.{name.removeprefix('text_model.')}"] = shape
    if family == "sdxl":
        tensors |= openclip_shapes(BIG_G, "conditioner.embedders.1.model.", 0)
    write_file(path, tensors, dtype)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=list(UNETS), required=True)
    parser.add_argument("--out", type=Path, required=True, help="the folder (folder) or the file (single) to write")
    parser.add_argument("--dtype", choices=["f16", "f32"], default="f16")
    parser.add_argument("--layout", choices=["folder", "single"], default="folder")
    options = parser.parse_args()
    write = write_folder if options.layout == "folder" else write_single
    write(options.family, options.out, numpy.float16 if options.dtype == "f16" else numpy.float32)
