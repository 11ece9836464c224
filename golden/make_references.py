"""Makes the reference tensors of the tiny checkpoints, with diffusers and transformers in f32.

    python make_references.py [sd1 sd2 sdxl taesd]

For each family: stages.safetensors (text encoders, UNet, autoencoder), pipelines.safetensors (whole
runs) and cases.json, the manifest of the runs."""

import sys

import torch
from safetensors.torch import save_file

from diffusers import AutoencoderTiny, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig

import common
from common import GOLDEN, PROMPTS
from make_tiny import smooth
from reference_runs import make_runs

# Prompts of the token goldens beyond the usual: "!" is the pad token of SD 2 and of SDXL's second tokenizer.
TOKEN_PROMPTS = PROMPTS + [
    "Hello, WORLD!  it's   a \n\t test-case (no. 42)", "café naïve übergroß 日本語 🍎 x", "red apple!!! cat",
    "a cat <|endoftext|> a dog", "very " * 90 + "long",
]


def load(family):
    kind = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
    pipe = kind.from_pretrained(GOLDEN / family, torch_dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    if not hasattr(pipe.text_encoder, "text_model"):
        # diffusers 0.42.1 asks for the name that transformers 5 took away, when it skips layers. Past
        # nn.Module's own setter: the encoder must not become its own submodule.
        object.__setattr__(pipe.text_encoder, "text_model", pipe.text_encoder)
    return pipe


class Recorder:
    """Keeps the outputs of the modules of a network under its name."""

    def __init__(self, out, prefix, network, wanted):
        self.hooks = []
        for name, module in network.named_modules():
            if wanted(name):
                self.hooks.append(module.register_forward_hook(self.keep(out, f"{prefix}/{name}")))

    def keep(self, out, name):
        def hook(_module, _inputs, output):
            value = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
            out[name] = value.detach().clone()
        return hook

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()


def text_stages(out, pipe):
    encoders = [("text_encoder", pipe.tokenizer, pipe.text_encoder)]
    if getattr(pipe, "text_encoder_2", None) is not None:
        encoders.append(("text_encoder_2", pipe.tokenizer_2, pipe.text_encoder_2))
    for name, tokenizer, encoder in encoders:
        for p, prompt in enumerate(TOKEN_PROMPTS):
            ids = tokenizer(prompt, padding="max_length", max_length=77, truncation=True,
                            return_tensors="pt").input_ids
            out[f"{name}/tokens/p{p}"] = ids[0]
            if p >= 2:
                continue
            prefix = f"{name}/p{p}"
            with Recorder(out, prefix, encoder, lambda n: n.endswith("embeddings") and p == 0):
                found = encoder(ids, output_hidden_states=True)
            norm = getattr(encoder, "text_model", encoder).final_layer_norm
            if p == 0:
                for layer, hidden in enumerate(found.hidden_states):
                    out[f"{prefix}/hidden{layer}"] = hidden[0]
            out[f"{prefix}/last_hidden_state"] = found.last_hidden_state[0]
            out[f"{prefix}/penultimate"] = found.hidden_states[-2][0]
            out[f"{prefix}/clip_skip2_normed"] = norm(found.hidden_states[-2])[0]
            out[f"{prefix}/clip_skip3_normed"] = norm(found.hidden_states[-3])[0]
            pooled = getattr(found, "text_embeds", None)
            out[f"{prefix}/pooled"] = pooled[0] if pooled is not None else found.pooler_output[0]
        # The same weights cut into four heads: a head's width cannot be told from the tensors.
        config = CLIPTextConfig.from_dict(dict(encoder.config.to_dict(), num_attention_heads=4))
        many = type(encoder)(config).eval()
        many.load_state_dict(encoder.state_dict())
        out[f"{name}/heads4/p0/last_hidden_state"] = many(out[f"{name}/tokens/p0"][None]).last_hidden_state[0]


def prompt_stages(out, pipe, family):
    """What the pipeline makes of a prompt and a negative one."""
    for p in (0, 1):
        if family == "sdxl":
            found = pipe.encode_prompt(PROMPTS[p], device="cpu", negative_prompt=common.NEGATIVE)
            names = ["prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds",
                     "negative_pooled_prompt_embeds"]
        else:
            found = pipe.encode_prompt(PROMPTS[p], "cpu", 1, True, negative_prompt=common.NEGATIVE)
            names = ["prompt_embeds", "negative_prompt_embeds"]
        for name, value in zip(names, found):
            out[f"{name}/p{p}"] = value[0]


def unet_inputs(out, family, width):
    generator = torch.Generator().manual_seed(7000)
    sample = torch.randn(2, 4, 16, 8, generator=generator)
    # The pipeline's timesteps are whole; samplers of the k-diffusion kind ask for fractions.
    timestep = torch.tensor([901.0, 37.25])
    text = torch.randn(2, 77, width, generator=generator)
    out.update({"unet/in/sample": sample, "unet/in/timestep": timestep, "unet/in/encoder_hidden_states": text})
    added = None
    if family == "sdxl":
        added = dict(text_embeds=torch.randn(2, 32, generator=generator),
                     time_ids=torch.tensor([[128.0, 64, 0, 0, 128, 64], [96, 160, 8, 16, 128, 64]]))
        out.update({f"unet/in/{k}": v for k, v in added.items()})
    return sample, timestep, text, added


def unet_stages(out, pipe, family):
    unet = pipe.unet
    sample, timestep, text, added = unet_inputs(out, family, unet.config.cross_attention_dim)
    inner = "down_blocks.1.attentions.0"

    def wanted(name):
        parts = name.split(".")
        block = len(parts) == 4 and parts[2] in ("resnets", "attentions", "downsamplers", "upsamplers")
        middle = len(parts) == 3 and parts[0] == "mid_block"
        inside = name.startswith(inner) and name.count(".") <= 5 and "attn1." not in name
        resnet = name.startswith("down_blocks.1.resnets.0.") and "nonlinearity" not in name
        top = name in ("time_proj", "time_embedding", "add_time_proj", "add_embedding", "conv_in",
                       "mid_block", "conv_norm_out", "conv_out")
        return block or middle or inside or resnet or top or (len(parts) == 2 and parts[0].endswith("blocks"))

    with Recorder(out, "unet", unet, wanted):
        out["unet/out"] = unet(sample, timestep, text, added_cond_kwargs=added).sample
    # A block's output is its last part's: kept once.
    for name in [n for n in out if n.count(".") == 1 and "_blocks." in n] + ["unet/mid_block"]:
        del out[name]
    if family != "sd1":
        heads = [2, 4, 4, 8][:len(unet.config.block_out_channels)]
        many = UNet2DConditionModel.from_config(dict(unet.config, attention_head_dim=heads)).eval()
        many.load_state_dict(unet.state_dict())
        out["unet/heads_2_4_4_8/out"] = many(sample, timestep, text, added_cond_kwargs=added).sample


def vae_stages(out, pipe):
    vae = pipe.vae
    generator = torch.Generator().manual_seed(7100)
    picture = (0.5 * smooth((1, 3, 32, 24), generator)).clamp(-1, 1)
    latent = smooth((1, 4, 4, 3), generator) / vae.config.scaling_factor

    def wanted(name):
        parts = name.split(".")
        return (name in ("quant_conv", "post_quant_conv") or name.endswith(("conv_in", "mid_block"))
                or name.endswith("mid_block.attentions.0") or (len(parts) == 3 and parts[1].endswith("blocks")
                                                             and name not in ("decoder.up_blocks.3",
                                                                              "encoder.down_blocks.0")))

    with Recorder(out, "vae", vae, wanted):
        out["vae/in/image"], out["vae/in/latent"] = picture, latent
        out["vae/moments"] = vae.encode(picture).latent_dist.parameters
        out["vae/decoded"] = vae.decode(latent).sample


@torch.no_grad()
def make_taesd():
    model = AutoencoderTiny.from_pretrained(GOLDEN / "taesd", torch_dtype=torch.float32)
    generator = torch.Generator().manual_seed(7200)
    picture = (0.5 * smooth((1, 3, 48, 32), generator)).clamp(-1, 1)
    latent = smooth((1, 4, 6, 4), generator)
    out = {"in/image": picture, "in/latent": latent}
    out["encoded"] = model.encode(picture).latents
    # Beyond +-3 the decoder's own clamp (3 tanh(x/3)) matters.
    out["decoded"] = model.decode(latent).sample
    out["in/latent_large"] = 4 * latent
    out["decoded_large"] = model.decode(4 * latent).sample
    save(out, GOLDEN / "taesd" / "stages.safetensors")


def save(out, path):
    save_file({k: v.detach().contiguous().clone() for k, v in sorted(out.items())}, path)
    print(f"  {path.relative_to(GOLDEN)}: {len(out)} tensors, {path.stat().st_size / 1e6:.2f} MB")


@torch.no_grad()
def make_family(family):
    print(family)
    pipe, out = load(family), {}
    text_stages(out, pipe)
    prompt_stages(out, pipe, family)
    unet_stages(out, pipe, family)
    vae_stages(out, pipe)
    save(out, GOLDEN / family / "stages.safetensors")
    tensors, manifest = make_runs(pipe, family)
    save(tensors, GOLDEN / family / "pipelines.safetensors")
    common.write_json(GOLDEN / family / "cases.json", manifest)


if __name__ == "__main__":
    for name in sys.argv[1:] or ["sd1", "sd2", "sdxl", "taesd"]:
        make_taesd() if name == "taesd" else make_family(name)
