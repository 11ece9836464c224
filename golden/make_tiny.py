"""Makes the tiny checkpoints golden/sd1, sd2, sdxl (diffusers folders) and golden/taesd.

    python make_tiny.py [sd1 sd2 sdxl taesd]

The weights are random, except the UNet's last convolution, which is fitted (ridge regression) so that
the network really predicts noise, roughly: latents then stay near unit scale and a whole pipeline is
as well-conditioned as with a trained model. All weights are rounded to f16 and stored so."""

import json
import shutil
import sys

import torch
from safetensors.torch import load_file, save_file

import diffusers
from diffusers import (AutoencoderKL, AutoencoderTiny, StableDiffusionPipeline, StableDiffusionXLPipeline,
                       UNet2DConditionModel)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import common
from common import GOLDEN, PROMPTS, draw_weights, rounded
from tiny_tokenizer import cut_vocabulary, write_tokenizer

SEEDS = {"sd1": 1100, "sd2": 2100, "sdxl": 3100, "taesd": 4100}


def text_encoder(family, index):
    config = CLIPTextConfig(vocab_size=len(cut_vocabulary()[0]), **common.TEXT_ENCODERS[family][index])
    kind = CLIPTextModelWithProjection if index == 1 else CLIPTextModel
    return rounded(draw_weights(kind(config), SEEDS[family] + 10 + index))


def scheduler(family):
    kind, config = common.SCHEDULERS[family]
    # from_config and not the constructor: a key of another scheduler stays in the file, as in the
    # published ones, and what the file leaves out stays a default.
    return getattr(diffusers, kind).from_config(config)


def build(family, folder):
    """The pipeline, with unfitted networks."""
    tokenizers = []
    for i, pad in enumerate(common.PADS[family]):
        path = folder / ("tokenizer" if i == 0 else "tokenizer_2")
        write_tokenizer(path, pad)
        tokenizers.append(CLIPTokenizer.from_pretrained(path))
    encoders = [text_encoder(family, i) for i in range(len(tokenizers))]
    unet = draw_weights(UNet2DConditionModel(**common.UNETS[family]), SEEDS[family] + 20)
    for name, layer in unet.named_modules():
        if name.endswith("attn2.to_out.0"):
            # The text is heard, so that guidance has something to guide.
            layer.weight.data *= 2.5
    vae = draw_weights(AutoencoderKL(**common.VAES[family]), SEEDS[family] + 30)
    if family == "sd2":
        # What tells v-prediction from epsilon in a file without a config (ComfyUI's rule): this bias
        # is wider than 0.09 in the published v models.
        unet.up_blocks[3].attentions[2].transformer_blocks[0].norm1.bias.data *= 2.5
    # The decoder's norms would hide a wrong latent scale, were there nothing to measure it by.
    vae.post_quant_conv.bias.data *= 30
    parts = dict(vae=rounded(vae), unet=rounded(unet), scheduler=scheduler(family),
                 text_encoder=encoders[0], tokenizer=tokenizers[0])
    if family == "sdxl":
        return StableDiffusionXLPipeline(**parts, text_encoder_2=encoders[1], tokenizer_2=tokenizers[1],
                                         force_zeros_for_empty_prompt=True, add_watermarker=False)
    return StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None,
                                   requires_safety_checker=False)


def smooth(shape, generator):
    """Smooth random fields of unit scale: what stands for clean latents and pictures."""
    batch, channels, height, width = shape
    coarse = torch.randn(batch, channels, max(height // 4, 2), max(width // 4, 2), generator=generator)
    field = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return field / field.std()


def conditioning(pipe, prompts):
    """(text embeddings, added conditioning) of a batch of prompts."""
    if isinstance(pipe, StableDiffusionXLPipeline):
        embeds, _, pooled, _ = pipe.encode_prompt(prompts, device="cpu", do_classifier_free_guidance=False)
        size = torch.tensor([[128.0, 64.0, 0.0, 0.0, 128.0, 64.0]]).repeat(len(prompts), 1)
        return embeds, dict(text_embeds=pooled, time_ids=size)
    return pipe.encode_prompt(prompts, "cpu", 1, False)[0], None


@torch.no_grad()
def fit_last_layer(pipe, seed):
    """Fits conv_out by ridge regression to predict the noise (or v) of noised smooth fields."""
    generator = torch.Generator().manual_seed(seed)
    unet = pipe.unet
    alphas = pipe.scheduler.alphas_cumprod
    features, targets = [], []
    hook = unet.conv_out.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    for _ in range(24):
        clean = 0.8 * smooth((4, 4, 16, 8), generator)
        noise = torch.randn(clean.shape, generator=generator)
        t = torch.randint(0, 1000, (4,), generator=generator)
        alpha, sigma = alphas[t].sqrt().view(-1, 1, 1, 1), (1 - alphas[t]).sqrt().view(-1, 1, 1, 1)
        noised = alpha * clean + sigma * noise
        embeds, added = conditioning(pipe, PROMPTS[:4])
        unet(noised, t, embeds, added_cond_kwargs=added)
        v = pipe.scheduler.config.prediction_type == "v_prediction"
        targets.append(alpha * noise - sigma * clean if v else noise)
    hook.remove()
    patches = torch.nn.functional.unfold(torch.cat(features), 3, padding=1)
    x = patches.transpose(1, 2).reshape(-1, patches.shape[1]).double()
    x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    y = torch.cat(targets).permute(0, 2, 3, 1).reshape(-1, 4).double()
    gram = x.T @ x
    ridge = 3e-3 * gram.diagonal().mean() * torch.eye(len(gram), dtype=x.dtype)
    solution = torch.linalg.solve(gram + ridge, x.T @ y)
    unet.conv_out.weight.data = solution[:-1].T.reshape(unet.conv_out.weight.shape).float()
    unet.conv_out.bias.data = solution[-1].float()
    rounded(unet)
    explained = 1 - ((x @ solution - y) ** 2).mean() / (y ** 2).mean()
    print(f"  the last layer explains {explained:.2f} of its target; its weights' std is "
          f"{unet.conv_out.weight.std():.3f}")


@torch.no_grad()
def level_decoder(decode, last, seed):
    """Scales the decoder's last convolution so that pictures use the range without saturating."""
    generator = torch.Generator().manual_seed(seed)
    picture = decode(smooth((4, 4, 16, 8), generator))
    deviation = picture.std(dim=(0, 2, 3))
    mean = picture.mean(dim=(0, 2, 3))
    gain = 0.4 / deviation
    last.weight.data *= gain.view(-1, 1, 1, 1)
    last.bias.data = (last.bias.data - mean) * gain


def store_f16(pipe, folder):
    pipe.to(torch.float16)
    pipe.save_pretrained(folder)
    pipe.to(torch.float32)
    for path in folder.glob("*/tokenizer.json"):
        path.unlink()
    for i, pad in enumerate(["tokenizer", "tokenizer_2"]):
        if (folder / pad).exists():
            shutil.rmtree(folder / pad)


def make_family(family):
    folder = GOLDEN / family
    shutil.rmtree(folder, ignore_errors=True)
    print(family)
    pipe = build(family, folder)
    fit_last_layer(pipe, SEEDS[family] + 40)
    scale = pipe.vae.config.scaling_factor
    level_decoder(lambda z: pipe.vae.decode(z / scale).sample, pipe.vae.decoder.conv_out, SEEDS[family] + 50)
    rounded(pipe.vae)
    store_f16(pipe, folder)
    for i, pad in enumerate(common.PADS[family]):
        write_tokenizer(folder / ("tokenizer" if i == 0 else "tokenizer_2"), pad)
    # Exactly the published keys: save_pretrained adds every default of the scheduler's class.
    kind, config = common.SCHEDULERS[family]
    common.write_json(folder / "scheduler" / "scheduler_config.json",
                      dict(_class_name=kind, _diffusers_version="0.42.1", **config))
    if family == "sdxl":
        kind, config = common.SCHEDULERS["sdxl_turbo"]
        common.write_json(folder / "scheduler_turbo" / "scheduler_config.json",
                          dict(_class_name=kind, _diffusers_version="0.42.1", **config))
    if family == "sd2":
        add_text_model_prefix(folder / "text_encoder" / "model.safetensors")
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    print(f"  {size / 1e6:.2f} MB")


def add_text_model_prefix(path):
    """Writes a text encoder's keys as transformers 4 did; transformers 5 leaves the prefix out."""
    weights = {k if k.startswith("text_model.") else "text_model." + k: v for k, v in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})


def make_taesd():
    """The tiny autoencoder for previews: a diffusers folder."""
    folder = GOLDEN / "taesd"
    shutil.rmtree(folder, ignore_errors=True)
    # The published one has 64 channels and 2.4 million weights; 16 keep the layout and cost 1/16.
    model = draw_weights(AutoencoderTiny(encoder_block_out_channels=(16,) * 4,
                                         decoder_block_out_channels=(16,) * 4), SEEDS["taesd"])
    level_decoder(lambda z: model.decode(z).sample, model.decoder.layers[-1], SEEDS["taesd"] + 50)
    rounded(model).half().save_pretrained(folder)
    print("taesd", sum(p.stat().st_size for p in folder.iterdir()) / 1e6, "MB")


if __name__ == "__main__":
    for name in sys.argv[1:] or ["sd1", "sd2", "sdxl", "taesd"]:
        make_taesd() if name == "taesd" else make_family(name)
