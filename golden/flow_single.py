"""The flow families' tiny checkpoints in the original layouts: flow/<family>/single_file.json.

    python flow_single.py [sd3 sd35_medium sd35_large flux_dev flux_schnell]

As single_file.py: a map from the file's tensors to the folder's, which aquatint_testkit::flow_single_file assembles, and
which diffusers' own conversion has confirmed here. One file holds all: the transformer (Stability's and Black Forest
Labs' names), the autoencoder, and the text encoders as ComfyUI names them."""

import inspect
import json
import re
import sys

import torch
from safetensors.torch import load_file

from common import GOLDEN
from single_file import Map, assemble, checksum, vae_name
from tiny_tokenizer import cut_vocabulary

FLOW = GOLDEN / "flow"
SD3_HEADS = {
    "pos_embed.pos_embed": "pos_embed", "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2", "pos_embed.proj": "x_embedder.proj",
    "context_embedder": "context_embedder", "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear"}
SD3_BLOCK = {
    "norm1.linear": "x_block.adaLN_modulation.1", "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.to_out.0": "x_block.attn.proj", "attn.to_add_out": "context_block.attn.proj", "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k", "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k", "attn2.to_out.0": "x_block.attn2.proj",
    "attn2.norm_q": "x_block.attn2.ln_q", "attn2.norm_k": "x_block.attn2.ln_k", "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2", "ff_context.net.0.proj": "context_block.mlp.fc1", "ff_context.net.2": "context_block.mlp.fc2"}
SD3_FUSED = {"attn.to_{}": "x_block.attn.qkv", "attn.add_{}_proj": "context_block.attn.qkv", "attn2.to_{}": "x_block.attn2.qkv"}
FLUX_HEADS = {
    "x_embedder": "img_in", "context_embedder": "txt_in", "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer", "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear"}
FLUX_DOUBLE = {
    "norm1.linear": "img_mod.lin", "norm1_context.linear": "txt_mod.lin", "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj", "ff.net.0.proj": "img_mlp.0", "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0", "ff_context.net.2": "txt_mlp.2"}
FLUX_NORMS = {"attn.norm_q.weight": "img_attn.norm.query_norm.scale", "attn.norm_k.weight": "img_attn.norm.key_norm.scale",
              "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
              "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale"}


def stems(weights, prefix):
    """The names below a prefix, without their kind."""
    return {name.removeprefix(prefix).rsplit(".", 1)[0] for name in weights if name.startswith(prefix)}


class FlowMap(Map):
    def __init__(self, family):
        super().__init__(f"flow/{family}")

    def read(self, part):
        own = part == "transformer"
        path = next((FLOW / (self.family.split("/")[1] if own else "parts") / part).glob("*.safetensors"))
        self.files[part] = f"{'' if own else '../parts/'}{part}/{path.name}"
        return load_file(path)

    def plain(self, weights, ours, theirs, op="copy"):
        for kind in ("weight", "bias"):
            if f"{ours}.{kind}" in weights:
                self.add(f"model.diffusion_model.{theirs}.{kind}", op, "transformer", [f"{ours}.{kind}"])

    def heads(self, weights, table):
        for ours, theirs in table.items():
            if ours in weights:
                self.add("model.diffusion_model." + theirs, "copy", "transformer", [ours])
            self.plain(weights, ours, theirs, "swap" if ours == "norm_out.linear" else "copy")

    def fused(self, weights, sources, theirs):
        for kind in ("weight", "bias"):
            self.add(f"model.diffusion_model.{theirs}.{kind}", "concat", "transformer", [f"{s}.{kind}" for s in sources])

    def sd3(self):
        weights = self.read("transformer")
        self.heads(weights, SD3_HEADS)
        layers = 1 + max(int(m[1]) for k in weights if (m := re.match(r"transformer_blocks\.(\d+)\.", k)))
        for i in range(layers):
            at, to = f"transformer_blocks.{i}", f"joint_blocks.{i}"
            for ours, theirs in SD3_BLOCK.items():
                last = i + 1 == layers and ours == "norm1_context.linear"
                self.plain(weights, f"{at}.{ours}", f"{to}.{theirs}", "swap" if last else "copy")
            for ours, theirs in SD3_FUSED.items():
                if f"{at}.{ours.format('q')}.weight" in weights:
                    self.fused(weights, [f"{at}.{ours.format(x)}" for x in "qkv"], f"{to}.{theirs}")

    def flux(self):
        weights = self.read("transformer")
        self.heads(weights, FLUX_HEADS)
        count = lambda kind: 1 + max(int(m[1]) for k in weights if (m := re.match(rf"{kind}\.(\d+)\.", k)))
        for i in range(count("transformer_blocks")):
            at, to = f"transformer_blocks.{i}", f"double_blocks.{i}"
            for ours, theirs in FLUX_DOUBLE.items():
                self.plain(weights, f"{at}.{ours}", f"{to}.{theirs}")
            for ours, theirs in FLUX_NORMS.items():
                self.add(f"model.diffusion_model.{to}.{theirs}", "copy", "transformer", [f"{at}.{ours}"])
            self.fused(weights, [f"{at}.attn.to_{x}" for x in "qkv"], f"{to}.img_attn.qkv")
            self.fused(weights, [f"{at}.attn.add_{x}_proj" for x in "qkv"], f"{to}.txt_attn.qkv")
        for i in range(count("single_transformer_blocks")):
            at, to = f"single_transformer_blocks.{i}", f"single_blocks.{i}"
            self.plain(weights, f"{at}.norm.linear", f"{to}.modulation.lin")
            self.plain(weights, f"{at}.proj_out", f"{to}.linear2")
            self.fused(weights, [*(f"{at}.attn.to_{x}" for x in "qkv"), f"{at}.proj_mlp"], f"{to}.linear1")
            for x, name in (("q", "query"), ("k", "key")):
                self.add(f"model.diffusion_model.{to}.norm.{name}_norm.scale", "copy", "transformer", [f"{at}.attn.norm_{x}.weight"])

    def tower(self, part, prefix):
        for name in self.read(part):
            op = "vocabulary" if "token_embedding" in name else "copy"
            bare = name.removeprefix("text_model.")
            full = bare if bare.startswith("text_projection") else f"text_model.{bare}"
            self.add(prefix + full, op, part, [name])

    def t5(self):
        for name in self.read("text_encoder_3"):
            self.add("text_encoders.t5xxl.transformer." + name, "copy", "text_encoder_3", [name])


def build(family):
    table = FlowMap(family)
    flux = family.startswith("flux")
    table.flux() if flux else table.sd3()
    table.vae()
    if flux:
        for row in table.rows:
            row["name"] = row["name"].replace("first_stage_model.", "vae.")
    table.tower("text_encoder", "text_encoders.clip_l.transformer.")
    if not flux:
        table.tower("text_encoder_2", "text_encoders.clip_g.transformer.")
    table.t5()
    return table


def put_together(table):
    swaps = [row for row in table.rows if row["op"] == "swap"]
    for row in swaps:
        row["op"] = "copy"
    single = assemble(table, cut_vocabulary()[2])
    for row in swaps:
        row["op"] = "swap"
        single[row["name"]] = torch.cat(single[row["name"]].chunk(2)[::-1]).contiguous()
    return single


def check(family, table, single):
    from diffusers.loaders import single_file_utils as utils
    if family.startswith("flux"):
        # The published width is written into the function.
        source = inspect.getsource(utils.convert_flux_transformer_checkpoint_to_diffusers)
        space = dict(vars(utils))
        exec(source.replace("inner_dim = 3072", "inner_dim = 32"), space)
        convert = space["convert_flux_transformer_checkpoint_to_diffusers"]
    else:
        convert = utils.convert_sd3_transformer_checkpoint_to_diffusers
    network = {k: v for k, v in single.items() if k.startswith("model.diffusion_model.")}
    found, want = convert(dict(network)), load_file(FLOW / family / "transformer" / "diffusion_pytorch_model.safetensors")
    assert set(found) == set(want), set(found) ^ set(want)
    for name, value in want.items():
        assert torch.equal(found[name], value), name
    print(f"  {family}: diffusers' conversion gives back all {len(want)} tensors")


def make(family):
    table = build(family)
    single = put_together(table)
    assert len(single) == len(table.rows), "two tensors have one name"
    check(family, table, single)
    for row in table.rows:
        row["checksum"] = checksum(single[row["name"]])
        for key in [k for k in ("part", "sources") if not row[k]]:
            del row[key]
    lines = ",\n".join(json.dumps(row) for row in sorted(table.rows, key=lambda row: row["name"]))
    (FLOW / family / "single_file.json").write_text(
        f'{{"files": {json.dumps(table.files)},\n"vocabulary": 49408,\n"rows": {json.dumps(cut_vocabulary()[2])},\n'
        f'"tensors": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    for name in sys.argv[1:] or ["sd3", "sd35_medium", "sd35_large", "flux_dev", "flux_schnell"]:
        make(name)
