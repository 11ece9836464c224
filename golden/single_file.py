"""The same tiny checkpoints in the original single-file (LDM) layout.

    python single_file.py [--out DIR] [sd1 sd2 sdxl taesd]

Writes golden/<family>/single_file.json: for each tensor of the single file, from which tensors of the
folder it is made, and how. The test kit assembles the file from it (aquatint_testkit::single_file), so
that the weights are stored once. The map is checked here: diffusers' own conversion of the assembled
file must give back the folder's tensors, all of them, exactly, and (SD 1, SDXL) a pipeline loaded from the file, with the full
vocabulary's tokenizer, must paint the reference picture. --out DIR keeps the assembled files."""

import argparse
import json
import re
import shutil
import tempfile
from pathlib import Path

import numpy
import torch
from safetensors.torch import load_file, save_file

import common
from common import GOLDEN
from tiny_tokenizer import cut_vocabulary

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
          "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
UNET_ENDS = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
             "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
             "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPENCLIP = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
            "self_attn.out_proj": "attn.out_proj"}


def unet_name(name, with_attention):
    """The LDM name of a UNet tensor. `with_attention`: the indices of up blocks that have attention."""
    stem, kind = name.rsplit(".", 1)
    if stem in UNET_ENDS:
        return f"{UNET_ENDS[stem]}.{kind}"
    if match := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name):
        side, block, part, layer, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        if part == "downsamplers":
            return f"input_blocks.{3 * block + 3}.0.op.{kind}"
        if part == "upsamplers":
            # It stands behind the attention where there is one.
            return f"output_blocks.{3 * block + 2}.{2 if block in with_attention else 1}.conv.{kind}"
        index = f"input_blocks.{3 * block + layer + 1}" if side == "down" else f"output_blocks.{3 * block + layer}"
    else:
        match = re.fullmatch(r"mid_block\.(\w+)\.(\d+)\.(.+)", name)
        part, rest = match[1], match[3]
        index = f"middle_block.{2 * int(match[2]) if part == 'resnets' else 1}"
        return f"{index}.{resnet_rest(rest) if part == 'resnets' else rest}"
    return f"{index}.0.{resnet_rest(rest)}" if part == "resnets" else f"{index}.1.{rest}"


def resnet_rest(rest):
    part, kind = rest.rsplit(".", 1)
    return f"{RESNET[part]}.{kind}"


def vae_name(name, levels=4):
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.", lambda m: f"up.{levels - 1 - int(m[1])}.block.", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)
    if match := re.fullmatch(r"(.*)mid_block\.attentions\.0\.(.+)\.(weight|bias)", name):
        name = f"{match[1]}mid.attn_1.{VAE_ATTENTION[match[2]]}.{match[3]}"
    return name


class Map:
    """The rows of single_file.json."""

    def __init__(self, family):
        self.family, self.rows, self.files = family, [], {}

    def read(self, part):
        path = next((GOLDEN / self.family / part).glob("*.safetensors"))
        self.files[part] = f"{part}/{path.name}"
        return load_file(path)

    def add(self, name, op, part=None, sources=(), **more):
        self.rows.append(dict(name=name, op=op, part=part, sources=list(sources), **more))

    def unet(self):
        weights = self.read("unet")
        attention = {int(m[1]) for k in weights if (m := re.match(r"up_blocks\.(\d+)\.attentions", k))}
        for name in weights:
            self.add("model.diffusion_model." + unet_name(name, attention), "copy", "unet", [name])

    def vae(self):
        for name, value in self.read("vae").items():
            target = vae_name(name)
            matrix = "attn_1" in target and value.ndim == 2
            # The original's attention projections are 1x1 convolutions.
            shape = [*value.shape, 1, 1] if matrix else list(value.shape)
            self.add("first_stage_model." + target, "copy", "vae", [name], shape=shape)

    def clip(self, part, prefix):
        """A CLIP text tower, as transformers names it (always with the text_model prefix)."""
        for name in self.read(part):
            if name.endswith("position_ids"):
                continue
            op = "vocabulary" if "token_embedding" in name else "copy"
            bare = name.removeprefix("text_model.")
            self.add(f"{prefix}text_model.{bare}", op, part, [name])
        self.add(f"{prefix}text_model.embeddings.position_ids", "arange", shape=[1, 77], dtype="I64")

    def openclip(self, part, prefix, extra_layer):
        """An OpenCLIP text tower: q, k and v in one matrix, the projection transposed."""
        weights = self.read(part)
        find = {name.removeprefix("text_model."): name for name in weights}
        self.add(prefix + "token_embedding.weight", "vocabulary", part, [find["embeddings.token_embedding.weight"]])
        self.add(prefix + "positional_embedding", "copy", part, [find["embeddings.position_embedding.weight"]])
        for kind in ("weight", "bias"):
            self.add(f"{prefix}ln_final.{kind}", "copy", part, [find[f"final_layer_norm.{kind}"]])
        layers = 1 + max(int(m[1]) for k in find if (m := re.match(r"encoder\.layers\.(\d+)\.", k)))
        # SD 2's file has one layer more than is used; any weights will do for it.
        for target in range(layers + extra_layer):
            block, source = f"{prefix}transformer.resblocks.{target}.", f"encoder.layers.{min(target, layers - 1)}."
            for kind in ("weight", "bias"):
                qkv = [find[f"{source}self_attn.{x}_proj.{kind}"] for x in "qkv"]
                self.add(f"{block}attn.in_proj_{kind}", "concat", part, qkv)
                for ours, theirs in OPENCLIP.items():
                    self.add(f"{block}{theirs}.{kind}", "copy", part, [find[f"{source}{ours}.{kind}"]])
        if "text_projection.weight" in find:
            self.add(prefix + "text_projection", "transpose", part, ["text_projection.weight"])
        else:
            width = weights[find["final_layer_norm.bias"]].shape[0]
            self.add(prefix + "text_projection", "fill", shape=[width, width], dtype="F16", value=0.25)
        self.add(prefix + "logit_scale", "fill", shape=[], dtype="F32", value=4.5)

    def ballast(self):
        """What the published files carry beside the networks."""
        self.add("alphas_cumprod", "fill", shape=[1000], dtype="F32", value=0.5)
        self.add("model_ema.decay", "fill", shape=[], dtype="F32", value=0.75)
        self.add("model_ema.num_updates", "fill", shape=[], dtype="I64", value=7)


def build(family):
    table = Map(family)
    table.unet()
    table.vae()
    if family == "sd1":
        table.clip("text_encoder", "cond_stage_model.transformer.")
        table.ballast()
    elif family == "sd2":
        table.openclip("text_encoder", "cond_stage_model.model.", extra_layer=1)
        table.ballast()
    else:
        table.clip("text_encoder", "conditioner.embedders.0.transformer.")
        table.openclip("text_encoder_2", "conditioner.embedders.1.model.", extra_layer=0)
    return table


def assemble(table, rows):
    """The tensors of the single file."""
    parts = {part: load_file(GOLDEN / table.family / path) for part, path in table.files.items()}
    kinds = {"F16": torch.float16, "F32": torch.float32, "I64": torch.int64}
    out = {}
    for row in table.rows:
        sources = [parts[row["part"]][name] for name in row["sources"]]
        if row["op"] == "copy":
            value = sources[0].reshape(row.get("shape", sources[0].shape))
        elif row["op"] == "concat":
            value = torch.cat(sources)
        elif row["op"] == "transpose":
            value = sources[0].T
        elif row["op"] == "vocabulary":
            # The cut vocabulary's rows at their places in the full one, zeros elsewhere.
            value = torch.zeros(49408, sources[0].shape[1], dtype=sources[0].dtype)
            value[rows] = sources[0]
        elif row["op"] == "arange":
            value = torch.arange(77).reshape(row["shape"])
        else:
            value = torch.full(row["shape"], row["value"], dtype=kinds[row["dtype"]])
        out[row["name"]] = value.contiguous().clone()
    return out


def checksum(value):
    """The sum of (i + 1) * byte i, modulo 2^64."""
    data = numpy.frombuffer(value.numpy().tobytes(), dtype=numpy.uint8).astype(numpy.uint64)
    return int((data * numpy.arange(1, len(data) + 1, dtype=numpy.uint64)).sum(dtype=numpy.uint64))


def check(family, table, single, rows):
    """Converts back with diffusers' code and compares every tensor."""
    from diffusers.loaders import single_file_utils as utils
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    def same(part, found, ignore=()):
        want = {k.removeprefix("text_model."): v for k, v in load_file(GOLDEN / family / table.files[part]).items()}
        found = {k.removeprefix("text_model."): v for k, v in found.items()}
        key = "embeddings.token_embedding.weight"
        if key in found:
            found[key] = found[key][rows]
        assert set(want) == {k for k in found if not k.endswith(ignore)}, set(want) ^ set(found)
        for name, value in want.items():
            assert torch.equal(found[name].reshape(value.shape), value), name
        print(f"  {part}: diffusers' conversion gives back all {len(want)} tensors")

    def config(part):
        return json.loads((GOLDEN / family / part / "config.json").read_text())

    same("unet", utils.convert_ldm_unet_checkpoint(dict(single), config("unet")))
    same("vae", utils.convert_ldm_vae_checkpoint(dict(single), config("vae")))
    if family != "sd2":
        same("text_encoder", utils.convert_ldm_clip_checkpoint(dict(single)), ignore=("position_ids",))
    if family != "sd1":
        part, prefix = (("text_encoder", "cond_stage_model.model.") if family == "sd2"
                        else ("text_encoder_2", "conditioner.embedders.1.model."))
        model = CLIPTextModelWithProjection(CLIPTextConfig.from_dict(config(part)))
        found = utils.convert_open_clip_checkpoint(model, dict(single), prefix=prefix)
        if family == "sd2":
            # diffusers leaves out the last layer by its number, 23; here it is number 4.
            found = {k: v for k, v in found.items() if ".layers.4." not in k and "text_projection" not in k}
        same(part, found)


def check_picture(family, path):
    """Runs one reference case from the file alone, with the config and the tokenizer of a full model."""
    import diffusers
    manifest = json.loads((GOLDEN / family / "cases.json").read_text())["cases"]
    case = next(c for c in manifest if c["sampler"] == "euler" and c["guidance"] > 1)
    with tempfile.TemporaryDirectory() as scratch:
        config = Path(scratch) / family
        shutil.copytree(GOLDEN / family, config, ignore=shutil.ignore_patterns("*.safetensors", "cases.json"))
        for encoder in config.glob("text_encoder*/config.json"):
            encoder.write_text(json.dumps(dict(json.loads(encoder.read_text()), vocab_size=49408)))
        for tokenizer in config.glob("tokenizer*"):
            for name in ("vocab.json", "merges.txt"):
                shutil.copy(common.CLIP_BPE / name, tokenizer / name)
        kind = diffusers.StableDiffusionXLPipeline if family == "sdxl" else diffusers.StableDiffusionPipeline
        pipe = kind.from_single_file(str(path), config=str(config), local_files_only=True,
                                     torch_dtype=torch.float32)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    picture = pipe(case["prompt"], negative_prompt=case["negative"], width=case["width"], height=case["height"],
                   num_inference_steps=case["steps"], guidance_scale=case["guidance"], output_type="np",
                   generator=torch.Generator("cpu").manual_seed(case["seed"])).images[0]
    want = load_file(GOLDEN / family / case["file"])[case["name"] + "/image"].numpy()
    difference = int(numpy.abs((picture * 255).round() - want).max())
    print(f"  {case['name']} from the single file: largest difference {difference}")
    assert difference <= 1


def make_family(family, out):
    print(family)
    table = build(family)
    rows = cut_vocabulary()[2]
    single = assemble(table, rows)
    assert len(single) == len(table.rows), "two tensors have one name"
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(out or scratch) / f"{family}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(single, path)
        check(family, table, load_file(path), rows)
        if family != "sd2":  # diffusers knows an OpenCLIP tower's unused layer by its number only
            check_picture(family, path)
        print(f"  {path.name}: {len(single)} tensors, {path.stat().st_size / 1e6:.2f} MB")
    for row in table.rows:
        row["checksum"] = checksum(single[row["name"]])
    for row in table.rows:
        for key in [k for k in ("part", "sources") if not row[k]]:
            del row[key]
    lines = ",\n".join(json.dumps(row) for row in sorted(table.rows, key=lambda row: row["name"]))
    text = (f'{{"files": {json.dumps(table.files)},\n"vocabulary": 49408,\n"rows": {json.dumps(rows)},\n'
            f'"tensors": [\n{lines}\n]}}\n')
    json.loads(text)
    (GOLDEN / family / "single_file.json").write_text(text)


def make_taesd(out):
    """The tiny autoencoder's decoder and encoder as madebyollin publishes them: plain Sequentials."""
    weights = load_file(GOLDEN / "taesd" / "diffusion_pytorch_model.safetensors")
    for half in ("encoder", "decoder"):
        # The original decoder begins with its clamp as module 0, which diffusers keeps apart.
        shift = 1 if half == "decoder" else 0
        renamed = {}
        for name, value in weights.items():
            if match := re.fullmatch(rf"{half}\.layers\.(\d+)\.(.+)", name):
                renamed[f"{int(match[1]) + shift}.{match[2]}"] = value
        path = GOLDEN / "taesd" / f"taesd_{half}.safetensors"
        save_file(renamed, path)
        print(f"taesd/{path.name}: {len(renamed)} tensors, {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("family", nargs="*", default=["sd1", "sd2", "sdxl", "taesd"])
    arguments = parser.parse_args()
    for family in arguments.family:
        make_taesd(arguments.out) if family == "taesd" else make_family(family, arguments.out)
