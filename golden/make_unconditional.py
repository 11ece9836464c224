"""Tiny UNets without text (diffusers' UNet2DModel): a random checkpoint, its configuration, and diffusers'
output of every block.

    python golden/make_unconditional.py

writes golden/unconditional/<name>.{json,safetensors}; tensors `model/...` are the checkpoint (f16, and what ran
is exactly that in f32), `in/...` the inputs, `unet/...` the outputs (NCHW)."""

import json

import torch
from diffusers import UNet2DModel
from safetensors.torch import save_file

from common import GOLDEN, draw_weights, rounded

HERE = GOLDEN / "unconditional"
PLAIN, ATTENTION = ("DownBlock2D", "UpBlock2D"), ("AttnDownBlock2D", "AttnUpBlock2D")


def blocks(*attention):
    kinds = [ATTENTION if a else PLAIN for a in attention]
    return dict(down_block_types=tuple(k[0] for k in kinds), up_block_types=tuple(k[1] for k in reversed(kinds)))


VARIANTS = {
    # Attention in the middle level only, with two heads; the names of old checkpoints.
    "plain": ((4, 8), dict(
        **blocks(False, True, False), block_out_channels=(4, 8, 8), layers_per_block=1, norm_num_groups=2,
        attention_head_dim=4, attn_norm_num_groups=4, mid_block_scale_factor=1.5, center_input_sample=True,
        downsample_padding=0)),
    # One of five classes, one head, and sizes that halve unevenly.
    "classes": ((7, 5), dict(
        **blocks(False, True, True), block_out_channels=(4, 4, 8), layers_per_block=2, norm_num_groups=2,
        attention_head_dim=None, in_channels=1, out_channels=2, num_class_embeds=5, flip_sin_to_cos=False,
        freq_shift=1, time_embedding_dim=12)),
    # The time scales and shifts (the middle's attention then has no norm); a class told as a number.
    "scale_shift": ((4, 4), dict(
        **blocks(True, False), block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        attention_head_dim=4, resnet_time_scale_shift="scale_shift", class_embed_type="timestep")),
    # A class told as a vector; a middle without attention.
    "vector": ((4, 6), dict(
        **blocks(False, True), block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2,
        attention_head_dim=2, add_attention=False, class_embed_type="identity")),
    # No middle at all, one level.
    "shallow": ((3, 3), dict(
        **blocks(True), block_out_channels=(4,), layers_per_block=1, norm_num_groups=2, attention_head_dim=2,
        mid_block_type=None)),
}
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def classes_of(config):
    if config.class_embed_type == "timestep":
        return torch.tensor([3.0, 250.5])
    if config.class_embed_type == "identity":
        return 0.5 * torch.randn(2, 4 * config.block_out_channels[0])
    return torch.tensor([4, 1]) if config.num_class_embeds else None


def enlarge_to_skips(unet, size):
    """UNet2DModel doubles; its blocks, as those of UNet2DConditionModel, can enlarge to a given size."""
    sizes = [size]
    for _ in unet.down_blocks[1:]:
        sizes.append(tuple((n + 1) // 2 for n in sizes[-1]))
    for block, to in zip(unet.up_blocks, reversed(sizes[:-1])):
        block.upsamplers[0].register_forward_pre_hook(
            lambda _, args, to=to: (args[0], to) if len(args) == 1 else args)


@torch.no_grad()
def make(name, size, options):
    torch.manual_seed(sum(map(ord, name)))
    unet = rounded(draw_weights(UNet2DModel(**options), sum(map(ord, name))))
    if name == "classes":
        enlarge_to_skips(unet, size)
    seen = {}

    def watch(stage):
        def hook(_module, _inputs, output):
            seen[f"unet/{stage}"] = (output[0] if isinstance(output, tuple) else output).clone()
        return hook

    kinds = ("ResnetBlock2D", "Attention", "Downsample2D", "Upsample2D")
    for stage, module in unet.named_modules():
        if type(module).__name__ in kinds or stage in ("conv_in", "conv_out", "time_embedding", "class_embedding"):
            module.register_forward_hook(watch(stage))
    inputs = {"in/sample": torch.randn(2, unet.config.in_channels, *size),
              "in/timestep": torch.tensor([981.0, 981.0] if name == "shallow" else [981.0, 7.25])}
    classes = classes_of(unet.config)
    unet(inputs["in/sample"], inputs["in/timestep"], classes)
    if classes is not None:
        inputs["in/classes"] = classes.float()
    model = {f"model/{k}": v.half() for k, v in unet.state_dict().items()}
    if name == "plain":
        for new, old in OLD_NAMES.items():
            model = {k.replace(f".{new}.", f".{old}."): v for k, v in model.items()}
    save_file({k: v.contiguous() for k, v in {**model, **inputs, **seen}.items()}, HERE / f"{name}.safetensors")
    # As diffusers writes it, without its private keys.
    config = {k: v for k, v in unet.config.items() if not k.startswith("_")}
    (HERE / f"{name}.json").write_text(json.dumps(config, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    HERE.mkdir(exist_ok=True)
    for name, (size, options) in VARIANTS.items():
        make(name, size, options)
