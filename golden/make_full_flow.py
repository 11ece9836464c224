"""Writes random checkpoints of the published sizes of the flow families, as diffusers folders. Not committed.

    python make_full_flow.py --family sd35-medium|flux-dev|flux-schnell --out DIR [--dtype bf16|f16]
        [--without-t5] [--without-transformer]

As make_full.py, in shards of at most 5 GB. SD 3.5 Medium takes 5 GB, FLUX.1 24 GB, T5 XXL 9.5 GB more. The T5
tokenizer is the small one of golden/flow, whose ids the large encoder knows too."""

import argparse
import json
import math
import shutil
import struct
import time
from pathlib import Path

import numpy
import torch

from diffusers import AutoencoderKL, FluxTransformer2DModel, SD3Transformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

import make_flow
from common import write_json
from make_full import BIG_G, VAE, VIT_L, draw
from tiny_tokenizer import write_tokenizer

SHARD = 5_000_000_000
FLUX = dict(patch_size=1, in_channels=64, num_layers=19, num_single_layers=38, attention_head_dim=128,
            num_attention_heads=24, joint_attention_dim=4096, pooled_projection_dim=768, axes_dims_rope=(16, 56, 56))
TRANSFORMERS = {
    "sd35-medium": (SD3Transformer2DModel, dict(
        sample_size=128, patch_size=2, in_channels=16, out_channels=16, num_layers=24, attention_head_dim=64,
        num_attention_heads=24, joint_attention_dim=4096, caption_projection_dim=1536, pooled_projection_dim=2048,
        pos_embed_max_size=384, dual_attention_layers=list(range(13)), qk_norm="rms_norm")),
    "flux-dev": (FluxTransformer2DModel, dict(FLUX, guidance_embeds=True)),
    "flux-schnell": (FluxTransformer2DModel, dict(FLUX, guidance_embeds=False)),
}
FAMILIES = {"sd35-medium": "sd35_medium", "flux-dev": "flux_dev", "flux-schnell": "flux_schnell"}
XXL = dict(make_flow.T5, vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64)
SIXTEEN = dict(VAE, latent_channels=16, sample_size=1024, use_quant_conv=False, use_post_quant_conv=False)
SCALES = {True: dict(scaling_factor=0.3611, shift_factor=0.1159), False: dict(scaling_factor=1.5305, shift_factor=0.0609)}


def shapes(make):
    """Names and shapes of a network's tensors, without making them."""
    with torch.device("meta"):
        state = make().state_dict()
    # Tied weights are stored once.
    return {name: tuple(value.shape) for name, value in state.items() if name != "encoder.embed_tokens.weight"}


def normals(shape, pool, generator):
    """Numbers of a pool of a few million, from a random place on: as good as fresh ones here, and fifty times as fast."""
    size, start = math.prod(shape), int(generator.integers(len(pool)))
    return numpy.resize(numpy.roll(pool, -start) if size > len(pool) - start else pool[start:start + size], size)


def sixteen_bits(name, shape, pool, generator, dtype):
    if len(shape) < 2:
        value = draw(name, shape, generator, numpy.float32)
    else:
        std = 0.02 if "embedding" in name and "embeddings" in name else 0.8 / math.prod(shape[1:]) ** 0.5
        value = normals(shape, pool, generator) * numpy.float32(std)
    if dtype == "F16":
        return value.astype(numpy.float16).tobytes()
    bits = numpy.frombuffer(value, numpy.uint32)
    # Half to even; nothing drawn is near infinity.
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(numpy.uint16).tobytes()


def write_file(path, tensors, dtype, pool, generator):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensors.items():
        size = 2 * math.prod(shape)
        header[name] = dict(dtype=dtype, shape=list(shape), data_offsets=[offset, offset + size])
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors.items():
            file.write(sixteen_bits(name, shape, pool, generator, dtype))


def write_component(folder, stem, tensors, dtype):
    """One file, or shards with their index."""
    folder.mkdir(parents=True, exist_ok=True)
    start, shards, room = time.time(), [{}], SHARD
    for name, shape in tensors.items():
        size = 2 * math.prod(shape)
        if size > room and shards[-1]:
            shards.append({})
            room = SHARD
        shards[-1][name] = shape
        room -= size
    generator, places = numpy.random.default_rng(20), {}
    # Of an odd length, so that rows of a power of two do not repeat.
    pool = generator.standard_normal(4_194_301, dtype=numpy.float32)
    for i, shard in enumerate(shards):
        name = f"{stem}.safetensors" if len(shards) == 1 else f"{stem}-{i + 1:05}-of-{len(shards):05}.safetensors"
        write_file(folder / name, shard, dtype, pool, generator)
        places |= {tensor: name for tensor in shard}
    parameters = sum(math.prod(shape) for shape in tensors.values())
    if len(shards) > 1:
        write_json(folder / f"{stem}.safetensors.index.json",
                   dict(metadata=dict(total_size=2 * parameters), weight_map=places))
    print(f"{folder}: {parameters / 1e6:.1f} M parameters in {len(shards)} files, {time.time() - start:.0f} s", flush=True)


def write_folder(family, out, dtype, with_t5, with_transformer):
    flux, tiny = family.startswith("flux"), make_flow.FLOW / FAMILIES[family]
    kind, config = TRANSFORMERS[family]
    stem = "diffusion_pytorch_model"
    if with_transformer:
        write_component(out / "transformer", stem, shapes(lambda: kind(**config)), dtype)
    write_json(out / "transformer" / "config.json", dict(_class_name=kind.__name__, **config))
    vae = dict(SIXTEEN, **SCALES[flux])
    write_component(out / "vae", stem, shapes(lambda: AutoencoderKL(**vae)), dtype)
    write_json(out / "vae" / "config.json", dict(_class_name="AutoencoderKL", **vae))
    for i, clip in enumerate([VIT_L] if flux else [VIT_L, BIG_G]):
        suffix, kind = "_2" if i else "", CLIPTextModel if flux else CLIPTextModelWithProjection
        tensors = shapes(lambda: kind(CLIPTextConfig(**clip)))
        # As published files have it; transformers 5 leaves the prefix out.
        whole = any(name.startswith("text_model.") for name in tensors)
        write_component(out / f"text_encoder{suffix}", "model",
                        tensors if whole else {f"text_model.{name}": shape for name, shape in tensors.items()}, dtype)
        write_json(out / f"text_encoder{suffix}" / "config.json",
                   dict(clip, architectures=[kind.__name__], model_type="clip_text_model"))
        write_tokenizer(out / f"tokenizer{suffix}", "!" if i else "<|endoftext|>", full=True)
    suffix = "_2" if flux else "_3"
    if with_t5:
        write_component(out / f"text_encoder{suffix}", "model", shapes(lambda: T5EncoderModel(T5Config(**XXL))), dtype)
        write_json(out / f"text_encoder{suffix}" / "config.json",
                   dict(XXL, architectures=["T5EncoderModel"], model_type="t5"))
    shutil.copytree(make_flow.PARTS / "tokenizer_3", out / f"tokenizer{suffix}", dirs_exist_ok=True)
    shutil.copytree(tiny / "scheduler", out / "scheduler", dirs_exist_ok=True)
    index = json.loads((tiny / "model_index.json").read_text())
    if not with_t5:
        index[f"text_encoder{suffix}"] = index[f"tokenizer{suffix}"] = [None, None]
    write_json(out / "model_index.json", index)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=list(TRANSFORMERS), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dtype", choices=["bf16", "f16"], default="bf16")
    parser.add_argument("--without-t5", action="store_true")
    parser.add_argument("--without-transformer", action="store_true", help="make_full_gguf.py writes quantised ones")
    options = parser.parse_args()
    write_folder(options.family, options.out, options.dtype.upper(), not options.without_t5,
                 not options.without_transformer)
