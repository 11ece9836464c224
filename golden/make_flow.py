"""Makes the tiny checkpoints of the flow families, golden/flow: Stable Diffusion 3, 3.5 and FLUX.1, and their references.

    python flow_tokens.py && python make_flow.py [sd3 sd35_medium sd35_large flux_dev flux_schnell]

`parts` holds what the families share (text encoders, tokenizers, autoencoder); each family's folder holds its
transformer, scheduler and model_index.json. aquatint_testkit::flow_folder puts a whole diffusers folder together, as
`folder` does here. Weights as in make_tiny.py: random, the last layer fitted to predict the velocity."""

import shutil
import sys
import tempfile
from pathlib import Path

import torch

from diffusers import (AutoencoderKL, FluxPipeline, FluxTransformer2DModel,
                       SD3Transformer2DModel, StableDiffusion3Pipeline)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel, T5Tokenizer

import common
from common import GOLDEN, PROMPTS, draw_weights, rounded
from make_tiny import level_decoder, smooth
from tiny_tokenizer import cut_vocabulary, write_tokenizer

FLOW = GOLDEN / "flow"
PARTS = FLOW / "parts"
SD3 = dict(
    sample_size=16, patch_size=2, in_channels=16, out_channels=16, num_layers=2, attention_head_dim=16, num_attention_heads=2,
    joint_attention_dim=56, caption_projection_dim=32, pooled_projection_dim=48, pos_embed_max_size=12)
FLUX = dict(
    patch_size=1, in_channels=64, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
    joint_attention_dim=56, pooled_projection_dim=16, axes_dims_rope=(4, 6, 6))
TRANSFORMERS = {
    "sd3": (SD3Transformer2DModel, SD3),
    # The published ones: dual attention in blocks 0 to 12 of 24; query and key norms.
    "sd35_medium": (SD3Transformer2DModel, dict(SD3, num_layers=3, dual_attention_layers=(0, 1), qk_norm="rms_norm",
                                                pos_embed_max_size=16)),
    "sd35_large": (SD3Transformer2DModel, dict(SD3, qk_norm="rms_norm")),
    "flux_dev": (FluxTransformer2DModel, dict(FLUX, guidance_embeds=True)),
    "flux_schnell": (FluxTransformer2DModel, dict(FLUX, guidance_embeds=False)),
}
# As published.
SHIFTED = dict(num_train_timesteps=1000, shift=3.0)
SCHEDULERS = {
    "sd3": SHIFTED, "sd35_medium": SHIFTED, "sd35_large": SHIFTED,
    "flux_dev": dict(base_image_seq_len=256, base_shift=0.5, max_image_seq_len=4096, max_shift=1.15, num_train_timesteps=1000,
                     shift=3.0, use_dynamic_shifting=True),
    "flux_schnell": dict(base_image_seq_len=256, base_shift=0.5, max_image_seq_len=4096, max_shift=1.15,
                         num_train_timesteps=1000, shift=1.0, use_dynamic_shifting=False),
}
CLIPS = [dict(common.CLIP, hidden_size=16, intermediate_size=64, num_hidden_layers=3, hidden_act="quick_gelu", projection_dim=16),
         dict(common.CLIP, hidden_size=32, intermediate_size=128, num_hidden_layers=3, hidden_act="gelu", projection_dim=32)]
T5 = dict(d_model=56, d_kv=12, d_ff=96, num_layers=2, num_heads=4, relative_attention_num_buckets=32,
          relative_attention_max_distance=128, feed_forward_proj="gated-gelu", dropout_rate=0.0, is_encoder_decoder=False,
          tie_word_embeddings=False, layer_norm_epsilon=1e-6, use_cache=False)
VAE = dict(common.VAE, layers_per_block=1, latent_channels=16, sample_size=128, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False,
           use_post_quant_conv=False)


def draw(module, seed):
    """As draw_weights, and the norms and residual branches that transformers have."""
    draw_weights(module, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for name, layer in sorted(module.named_modules()):
        kind = type(layer).__name__
        if "RMSNorm" in kind or kind == "T5LayerNorm":
            layer.weight.data = 1 + 0.2 * torch.randn(layer.weight.shape, generator=generator)
        if name.endswith((".linear", "wo", "SelfAttention.o", "to_add_out")):
            layer.weight.data *= 0.5
        # T5 does not scale its logits.
        if name.endswith(("SelfAttention.q",)):
            layer.weight.data *= 1.4 / 12 ** 0.5
        if name.endswith("relative_attention_bias"):
            layer.weight.data = torch.randn(layer.weight.shape, generator=generator)
    return module


def make_parts():
    for name in ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "vae"):
        shutil.rmtree(PARTS / name, ignore_errors=True)
    vocabulary = len(cut_vocabulary()[0])
    for i, config in enumerate(CLIPS):
        suffix = "" if i == 0 else "_2"
        write_tokenizer(PARTS / f"tokenizer{suffix}", "<|endoftext|>" if i == 0 else "!")
        encoder = draw(CLIPTextModelWithProjection(CLIPTextConfig(vocab_size=vocabulary, **config)), 5100 + 10 * i)
        rounded(encoder).half().save_pretrained(PARTS / f"text_encoder{suffix}")
    tokenizer = T5Tokenizer.from_pretrained(PARTS / "tokenizer_3")
    config = T5Config(vocab_size=-(-len(tokenizer) // 8) * 8, **T5)
    rounded(draw(T5EncoderModel(config), 5200)).half().save_pretrained(PARTS / "text_encoder_3")
    vae = draw(AutoencoderKL(**VAE), 5300)
    # A wrong shift or scale shows.
    vae.decoder.conv_in.bias.data *= 10
    level_decoder(lambda z: vae.decode(z.repeat(1, 4, 1, 1) / VAE["scaling_factor"] + VAE["shift_factor"]).sample,
                  vae.decoder.conv_out, 5350)
    rounded(vae).half().save_pretrained(PARTS / "vae")


def parts_of(family):
    """What of the parts a family has, under the names in its folder."""
    if family.startswith("flux"):
        return {"text_encoder": "text_encoder", "text_encoder_2": "text_encoder_3", "tokenizer": "tokenizer",
                "tokenizer_2": "tokenizer_3", "vae": "vae"}
    return {name: name for name in ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2",
                                    "tokenizer_3", "vae")}


def write_index(family):
    flux = family.startswith("flux")
    clip = ["transformers", "CLIPTextModel" if flux else "CLIPTextModelWithProjection"]
    index = dict(_class_name="FluxPipeline" if flux else "StableDiffusion3Pipeline", _diffusers_version="0.42.1",
                 scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"], text_encoder=clip,
                 tokenizer=["transformers", "CLIPTokenizer"],
                 transformer=["diffusers", TRANSFORMERS[family][0].__name__], vae=["diffusers", "AutoencoderKL"])
    third = "_2" if flux else "_3"
    if not flux:
        index.update(text_encoder_2=clip, tokenizer_2=["transformers", "CLIPTokenizer"])
    index.update({f"text_encoder{third}": ["transformers", "T5EncoderModel"],
                  f"tokenizer{third}": ["transformers", "T5TokenizerFast"]})
    common.write_json(FLOW / family / "model_index.json", dict(sorted(index.items())))


def folder(family, into):
    """The whole diffusers folder of a family."""
    target = Path(into) / family
    for name, part in parts_of(family).items():
        shutil.copytree(PARTS / part, target / name)
    for name in ("transformer", "scheduler"):
        shutil.copytree(FLOW / family / name, target / name)
    shutil.copy(FLOW / family / "model_index.json", target)
    return target


def load(family, into, drop=()):
    kind = FluxPipeline if family.startswith("flux") else StableDiffusion3Pipeline
    path = folder(family, into)
    pipe = kind.from_pretrained(path, torch_dtype=torch.float32, local_files_only=True, **{name: None for name in drop})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def patches(latent):
    """`[batch, channels, height, width]` to tokens, and their channels as the last layer has them."""
    batch, channels, height, width = latent.shape
    return latent.view(batch, channels, height // 2, 2, width // 2, 2)


@torch.no_grad()
def fit_last_layer(pipe, family, seed):
    """Fits proj_out by ridge regression to predict the velocity of noised smooth fields."""
    generator = torch.Generator().manual_seed(seed)
    flux = family.startswith("flux")
    net = pipe.transformer
    features, targets = [], []
    hook = net.proj_out.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    for _ in range(16):
        clean = 0.8 * smooth((4, 16, 16, 8), generator)
        noise = torch.randn(clean.shape, generator=generator)
        sigma = torch.rand(4, generator=generator)
        x = (1 - sigma.view(-1, 1, 1, 1)) * clean + sigma.view(-1, 1, 1, 1) * noise
        run_network(pipe, family, x, sigma * 1000, *conditioning(pipe, family, PROMPTS[:4]))
        velocity = patches(noise - clean)
        order = (0, 2, 4, 1, 3, 5) if flux else (0, 2, 4, 3, 5, 1)
        targets.append(velocity.permute(*order).reshape(-1, 64))
    hook.remove()
    x = torch.cat([f.reshape(-1, f.shape[-1]) for f in features]).double()
    x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    y = torch.cat(targets).double()
    gram = x.T @ x
    solution = torch.linalg.solve(gram + 3e-3 * gram.diagonal().mean() * torch.eye(len(gram), dtype=x.dtype), x.T @ y)
    net.proj_out.weight.data = solution[:-1].T.float()
    net.proj_out.bias.data = solution[-1].float()
    rounded(net)
    explained = 1 - ((x @ solution - y) ** 2).mean() / (y ** 2).mean()
    print(f"  the last layer explains {explained:.2f} of its target")


def conditioning(pipe, family, prompts, length=None):
    if family.startswith("flux"):
        embeds, pooled, _ = pipe.encode_prompt(prompts, None, device="cpu", max_sequence_length=length or 512)
        return embeds, pooled
    embeds, _, pooled, _ = pipe.encode_prompt(prompts, None, None, device="cpu", do_classifier_free_guidance=False,
                                              max_sequence_length=length or 256)
    return embeds, pooled


def run_network(pipe, family, x, timestep, embeds, pooled, **more):
    net = pipe.transformer
    if not family.startswith("flux"):
        return net(x, embeds, pooled, timestep, **more).sample
    batch, channels, height, width = x.shape
    tokens = FluxPipeline._pack_latents(x, batch, channels, height, width)
    ids = FluxPipeline._prepare_latent_image_ids(batch, height // 2, width // 2, "cpu", torch.float32)
    guidance = torch.full([batch], 3.5) if net.config.guidance_embeds else None
    out = net(tokens, embeds, pooled, timestep / 1000, ids, torch.zeros(embeds.shape[1], 3), guidance).sample
    return FluxPipeline._unpack_latents(out, height * 8, width * 8, 8)


@torch.no_grad()
def make_model(family):
    kind, config = TRANSFORMERS[family]
    target = FLOW / family
    shutil.rmtree(target, ignore_errors=True)
    net = draw(kind(**config), 6000 + 100 * list(TRANSFORMERS).index(family))
    for name, layer in net.named_modules():
        if name.endswith("context_embedder"):
            layer.weight.data *= 2  # the text is heard
    rounded(net).half().save_pretrained(target / "transformer")
    # Exactly the published keys.
    common.write_json(target / "scheduler" / "scheduler_config.json",
                      dict(_class_name="FlowMatchEulerDiscreteScheduler", _diffusers_version="0.42.1", **SCHEDULERS[family]))
    write_index(family)
    with tempfile.TemporaryDirectory() as scratch:
        pipe = load(family, scratch)
        fit_last_layer(pipe, family, 7000)
        pipe.transformer.half().save_pretrained(target / "transformer")


if __name__ == "__main__":
    import flow_references
    names = sys.argv[1:] or list(TRANSFORMERS)
    if not sys.argv[1:]:
        make_parts()
    for name in names:
        print(name)
        make_model(name)
        flow_references.make(name)
