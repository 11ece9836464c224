"""UNets with the options that no generation of Stable Diffusion uses together, at sizes that halve
unevenly: a random checkpoint, its configuration, and diffusers' output of every block.

    python golden/unet_variants.py

writes golden/unet_variants/<name>.{json,safetensors}; tensors `model/...` are the checkpoint (f16,
and what ran is exactly that in f32), `in/...` the inputs, `unet/...` the outputs (NCHW).
"""

import json
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

HERE = Path(__file__).parent / "unet_variants"
CROSS = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")
PLAIN = ("DownBlock2D", "UpBlock2D")
SMALL = dict(block_out_channels=(8, 16, 16), norm_num_groups=4, layers_per_block=1, cross_attention_dim=12)


def blocks(*cross):
    kinds = [CROSS if c else PLAIN for c in cross]
    return dict(down_block_types=tuple(k[0] for k in kinds), up_block_types=tuple(k[1] for k in reversed(kinds)))


VARIANTS = {
    # Odd sizes, padding on two sides only, text in the first attention, layers that differ.
    "uneven": ((13, 7), dict(
        **{**SMALL, "layers_per_block": (1, 2, 1)}, **blocks(True, True, False), attention_head_dim=(2, 4, 8),
        use_linear_projection=True, only_cross_attention=(True, False, False), downsample_padding=0,
        mid_block_scale_factor=1.5, center_input_sample=True, flip_sin_to_cos=False, freq_shift=1,
        conv_in_kernel=5, conv_out_kernel=1, in_channels=9, time_embedding_dim=20,
    )),
    # Odd sizes, added conditioning that differs in the batch, depths that differ.
    "added": ((9, 11), dict(
        **SMALL, **blocks(False, True, True), attention_head_dim=(1, 2, 4), use_linear_projection=True,
        transformer_layers_per_block=(1, 2, 3), addition_embed_type="text_time", addition_time_embed_dim=6,
        projection_class_embeddings_input_dim=6 * 6 + 10,
    )),
    # No middle, an embedded guidance scale, one timestep for the batch, a single column.
    "guided": ((10, 1), dict(
        **SMALL, **blocks(True, False, False), attention_head_dim=4, mid_block_type=None, time_cond_proj_dim=10,
    )),
    # The middle without an attention.
    "plain_middle": ((5, 6), dict(
        **SMALL, **blocks(False, False, True), attention_head_dim=4, mid_block_type="UNetMidBlock2D",
    )),
}


def guidance_embedding(w, dim):
    """As the LCM pipeline embeds its guidance scale less one."""
    half = dim // 2
    frequencies = torch.exp(torch.arange(half) * -(torch.log(torch.tensor(10000.0)) / (half - 1)))
    angles = (w * 1000.0)[:, None] * frequencies[None]
    return torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)


def make(name, size, options):
    torch.manual_seed(sum(map(ord, name)))
    unet = UNet2DConditionModel(**options).eval()
    for key, p in unet.named_parameters():
        value = torch.randn_like(p)
        scaled = value / p[0].numel() ** 0.5 if p.ndim > 1 else 0.1 * value
        p.data.copy_(1 + scaled if p.ndim == 1 and "norm" in key and key.endswith("weight") else scaled)
    unet.half().float()
    seen = {}

    def watch(stage):
        def hook(_module, _inputs, output):
            output = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
            seen[f"unet/{stage}"] = output.clone()
        return hook

    kinds = ("ResnetBlock2D", "Transformer2DModel", "Downsample2D", "Upsample2D")
    for stage, module in unet.named_modules():
        if type(module).__name__ in kinds or stage in ("conv_in", "conv_out", "time_embedding", "add_embedding"):
            module.register_forward_hook(watch(stage))
    inputs = {
        "in/sample": torch.randn(2, unet.config.in_channels, *size),
        "in/timestep": torch.tensor([981.0, 981.0] if name == "guided" else [981.0, 7.25]),
        "in/encoder_hidden_states": torch.randn(2, 9, 12),
    }
    more = {}
    if name == "added":
        inputs["in/text_embeds"] = torch.randn(2, 10)
        inputs["in/time_ids"] = torch.tensor([[64.0, 64, 0, 0, 64, 64], [32, 64, 3, 5, 64, 32]])
        more["added_cond_kwargs"] = dict(text_embeds=inputs["in/text_embeds"], time_ids=inputs["in/time_ids"])
    if name == "guided":
        inputs["in/guidance_scale"] = torch.tensor([7.5])
        more["timestep_cond"] = guidance_embedding(torch.tensor([6.5, 6.5]), options["time_cond_proj_dim"])
    with torch.no_grad():
        unet(inputs["in/sample"], inputs["in/timestep"], inputs["in/encoder_hidden_states"], **more)
    model = {f"model/{k}": v.half() for k, v in unet.state_dict().items()}
    save_file({k: v.contiguous() for k, v in {**model, **inputs, **seen}.items()}, HERE / f"{name}.safetensors")
    # As diffusers writes it, without its private keys.
    config = {k: v for k, v in unet.config.items() if not k.startswith("_")}
    (HERE / f"{name}.json").write_text(json.dumps(config, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    HERE.mkdir(exist_ok=True)
    for name, (size, options) in VARIANTS.items():
        make(name, size, options)
