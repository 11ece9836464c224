"""Writes random GGUF files of the published sizes of the flow families' transformers and of T5 XXL. Not committed.

    python make_full_gguf.py --what flux-dev|flux-schnell|sd35-medium|t5-xxl --type q4_k|q8_0 --out FILE

Blocks are written as they are stored, with random quants and a scale that gives weights of the deviation that a network
of that width begins with; no 16-bit model of 24 GB is needed on the way. Transformers have the names of the original
layout, T5 has llama.cpp's, as the files that people download. Vectors are f32; rows that do not hold whole blocks, and
first and last layers, f16."""

import argparse
import math
from pathlib import Path

import gguf
import numpy
import torch
from transformers import T5Config, T5EncoderModel

import flow_single
from make_full_flow import TRANSFORMERS, XXL, shapes

Type = gguf.GGMLQuantizationType
# Block length, and bytes a block.
BLOCKS = {"q4_k": (256, 144, Type.Q4_K), "q8_0": (32, 34, Type.Q8_0)}
T5_NAMES = {"SelfAttention.q": "attn_q", "SelfAttention.k": "attn_k", "SelfAttention.v": "attn_v", "SelfAttention.o": "attn_o",
            "SelfAttention.relative_attention_bias": "attn_rel_b", "DenseReluDense.wi_0": "ffn_gate",
            "DenseReluDense.wi_1": "ffn_up", "DenseReluDense.wo": "ffn_down"}
PLAIN = ("img_in", "txt_in", "time_in", "vector_in", "guidance_in", "final_layer", "x_embedder", "pos_embed", "context_embedder",
         "t_embedder", "y_embedder", "attn_rel_b")


class Shapes(flow_single.FlowMap):
    """The map from folder to single file, of shapes alone."""

    def __init__(self, family, of):
        super().__init__(family)
        self.of = of

    def read(self, part):
        return self.of


def transformer(family):
    kind, config = TRANSFORMERS[family]
    of = shapes(lambda: kind(**config))
    # What has no parameters is in no file, but for Stable Diffusion 3's table of positions.
    if family == "sd35-medium":
        of["pos_embed.pos_embed"] = (1, 384 * 384, 1536)
    table = Shapes(family.replace("-", "_"), of)
    table.flux() if family.startswith("flux") else table.sd3()
    found = {}
    for row in table.rows:
        parts = [of[name] for name in row["sources"]]
        name = row["name"].removeprefix("model.diffusion_model.")
        found[name] = (sum(p[0] for p in parts), *parts[0][1:])
    return found


def t5():
    found = {}
    for name, shape in shapes(lambda: T5EncoderModel(T5Config(**XXL))).items():
        words = name.split(".")
        if words[0] == "shared":
            found["token_embd.weight"] = shape
        elif words[1] == "final_layer_norm":
            found["enc.output_norm.weight"] = shape
        else:
            block, layer, rest = words[2], words[4], ".".join(words[5:-1])
            own = {"0": "attn_norm", "1": "ffn_norm"}[layer] if rest == "layer_norm" else T5_NAMES[rest]
            found[f"enc.blk.{block}.{own}.weight"] = shape
    return found


def half(value):
    return numpy.frombuffer(numpy.float16(value).tobytes(), numpy.uint8)


def blocks(kind, count, std, generator):
    length, size, _ = BLOCKS[kind]
    data = generator.integers(0, 256, (count, size), dtype=numpy.uint8)
    if kind == "q8_0":
        # Quants are evenly spread over int8.
        data[:, :2] = half(std / 73.9)
    else:
        # Eight scales and minima of 16; quants are 0 to 15, so a minimum of 7.5 scales centres them.
        scale = std / (16 * 4.61)
        data[:, :2], data[:, 2:4] = half(scale), half(7.5 * scale)
        data[:, 4:12], data[:, 12:16] = 80, 0
    return data


def stored(name, shape, kind):
    if len(shape) < 2:
        return "f32"
    whole = shape[-1] % BLOCKS[kind][0] == 0 and len(shape) == 2
    return kind if whole and not name.startswith(PLAIN) and "attn_rel_b" not in name else "f16"


def nbytes(shape, kind):
    size = math.prod(shape)
    return {"f32": 4 * size, "f16": 2 * size}.get(kind) or size // BLOCKS[kind][0] * BLOCKS[kind][1]


def values(name, shape, kind, generator):
    if kind == "f32":
        scale = name.endswith(("norm.weight", "scale", "ln_q.weight", "ln_k.weight"))
        return numpy.full(shape, float(scale), numpy.float32)
    std = 0.02 if "pos_embed" in name else 0.8 / math.prod(shape[1:]) ** 0.5
    if name.startswith("token_embd"):
        std = 1.0
    if kind == "f16":
        return (generator.standard_normal(shape, dtype=numpy.float32) * numpy.float32(std)).astype(numpy.float16)
    return blocks(kind, math.prod(shape) // BLOCKS[kind][0], std, generator)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=[*TRANSFORMERS, "t5-xxl"], required=True)
    parser.add_argument("--type", choices=list(BLOCKS), required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    encoder = args.what == "t5-xxl"
    tensors = t5() if encoder else transformer(args.what)
    writer = gguf.GGUFWriter(args.out, "t5encoder" if encoder else args.what.split("-")[0].replace("sd35", "sd3"))
    if encoder:
        for key, value in (("block_count", XXL["num_layers"]), ("embedding_length", XXL["d_model"]),
                           ("feed_forward_length", XXL["d_ff"]), ("attention.head_count", XXL["num_heads"]),
                           ("attention.key_length", XXL["d_kv"]), ("attention.value_length", XXL["d_kv"]),
                           ("attention.relative_buckets_count", 32)):
            writer.add_uint32(f"t5encoder.{key}", value)
        writer.add_float32("t5encoder.attention.layer_norm_rms_epsilon", 1e-6)
    types = {name: stored(name, shape, args.type) for name, shape in tensors.items()}
    for name, shape in tensors.items():
        kind = types[name]
        size = nbytes(shape, kind)
        if kind in BLOCKS:
            rows = (*shape[:-1], shape[-1] // BLOCKS[kind][0] * BLOCKS[kind][1])
            writer.add_tensor_info(name, rows, numpy.dtype(numpy.uint8), size, BLOCKS[kind][2])
        else:
            writer.add_tensor_info(name, shape, numpy.dtype(numpy.float32 if kind == "f32" else numpy.float16), size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    generator = numpy.random.default_rng(20)
    for name, shape in tensors.items():
        writer.write_tensor_data(values(name, shape, types[name], generator))
    writer.close()
    count = sum(math.prod(shape) for shape in tensors.values())
    print(f"{args.out}: {count / 1e6:.1f} M parameters in {len(tensors)} tensors, {args.out.stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
