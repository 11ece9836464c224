"""What the golden scripts share: the three tiny families, how their weights are drawn, prompts, files."""

import json
import os
from pathlib import Path

import torch

torch.set_num_threads(1)
GOLDEN = Path(__file__).resolve().parent
# The full CLIP vocabulary: a folder with vocab.json and merges.txt (see README.md).
CLIP_BPE = Path(os.environ.get("CLIP_BPE", "/work/env/clip_bpe"))

PROMPTS = [
    "a photograph of an astronaut riding a horse on the moon",
    "a red apple on a wooden table, soft light",
    "an oil painting of a lighthouse in a storm, highly detailed",
    "portrait of a cat wearing a blue hat, 4k",
    "",
]
NEGATIVE = "blurry, low quality, deformed"
# Words that the cut vocabulary holds whole, so that a prompt made of them has the same tokens
# (under other ids) in the cut and in the full vocabulary.
WORDS = (
    " ".join(PROMPTS + [NEGATIVE]).replace(",", "")
    + " the and with green yellow white black big small old new dog bird tree house car city sea sky sun"
    " water fire snow night day flower man woman child face art style photo picture drawing render bright dark"
    " close up view high best ugly bad hands watermark text banana orange pizza castle forest mountain river"
).split()

SCHEDULERS = {
    # As in the repositories of SD 1.5, SD 2.1 (768, v-prediction), SDXL base and SDXL-Turbo.
    "sd1": ("PNDMScheduler", dict(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000,
        set_alpha_to_one=False, skip_prk_steps=True, steps_offset=1, trained_betas=None, clip_sample=False)),
    "sd2": ("DDIMScheduler", dict(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000,
        set_alpha_to_one=False, skip_prk_steps=True, steps_offset=1, trained_betas=None, clip_sample=False,
        prediction_type="v_prediction")),
    "sdxl": ("EulerDiscreteScheduler", dict(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000,
        interpolation_type="linear", prediction_type="epsilon", sample_max_value=1.0, set_alpha_to_one=False,
        skip_prk_steps=True, steps_offset=1, timestep_spacing="leading", trained_betas=None, clip_sample=False,
        use_karras_sigmas=False)),
    "sdxl_turbo": ("EulerAncestralDiscreteScheduler", dict(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000,
        interpolation_type="linear", prediction_type="epsilon", sample_max_value=1.0, set_alpha_to_one=False,
        skip_prk_steps=True, steps_offset=1, timestep_spacing="trailing", trained_betas=None, clip_sample=False,
        use_karras_sigmas=False)),
}

# A loader of single files sees tensors and no config. Two rules hold for every published model and for
# these tiny ones, so that both layouts give the same numbers: heads = max(1, channels / 64) (SD 1: eight
# heads), and groups of the norms = min(32, narrowest channels / 4). One channel a group would not do:
# the norm would erase what the time embedding adds.
UNET = dict(
    act_fn="silu", center_input_sample=False, downsample_padding=1, flip_sin_to_cos=True, freq_shift=0,
    in_channels=4, out_channels=4, layers_per_block=2, mid_block_scale_factor=1, norm_eps=1e-5,
    norm_num_groups=8)
UNETS = {
    # Eight heads (the name attention_head_dim is SD 1's misnomer), 1x1 convolutions as projections.
    "sd1": dict(
        UNET, sample_size=16, attention_head_dim=8, block_out_channels=(32, 32, 32, 64), cross_attention_dim=32,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3),
    # Heads by level. SD 2 and SDXL have heads of 64 channels; so narrow a model has one head a level.
    "sd2": dict(
        UNET, sample_size=16, attention_head_dim=[1, 1, 1, 1], block_out_channels=(32, 32, 32, 32),
        cross_attention_dim=32, use_linear_projection=True, dual_cross_attention=False,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3),
    "sdxl": dict(
        UNET, sample_size=16, attention_head_dim=[1, 1, 1], block_out_channels=(32, 32, 32),
        cross_attention_dim=48, use_linear_projection=True, transformer_layers_per_block=[1, 2, 3],
        addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32 + 6 * 8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")),
}

VAE = dict(
    act_fn="silu", block_out_channels=(16, 16, 32, 32), in_channels=3, out_channels=3, latent_channels=4,
    layers_per_block=2, norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4)
VAES = {
    "sd1": dict(VAE, sample_size=128, scaling_factor=0.18215),
    "sd2": dict(VAE, sample_size=128, scaling_factor=0.18215),
    "sdxl": dict(VAE, sample_size=128, scaling_factor=0.13025, force_upcast=True),
}

CLIP = dict(
    max_position_embeddings=77, bos_token_id=0, eos_token_id=2, pad_token_id=1, layer_norm_eps=1e-5,
    num_attention_heads=1, attention_dropout=0.0)
TEXT_ENCODERS = {
    "sd1": [dict(CLIP, hidden_size=32, intermediate_size=128, num_hidden_layers=4, hidden_act="quick_gelu",
                 projection_dim=32)],
    # OpenCLIP's last layer is not used by SD 2, and the diffusers conversion leaves it out.
    "sd2": [dict(CLIP, hidden_size=32, intermediate_size=128, num_hidden_layers=4, hidden_act="gelu",
                 projection_dim=32)],
    "sdxl": [dict(CLIP, hidden_size=16, intermediate_size=64, num_hidden_layers=4, hidden_act="quick_gelu",
                  projection_dim=16),
             dict(CLIP, hidden_size=32, intermediate_size=128, num_hidden_layers=5, hidden_act="gelu",
                  projection_dim=32)],
}
# The pad token of each tokenizer.
PADS = {"sd1": ["<|endoftext|>"], "sd2": ["!"], "sdxl": ["<|endoftext|>", "!"]}


def rounded(module):
    """Rounds the weights to f16 and keeps them in f32: what is stored in f16 is exactly what ran."""
    return module.half().float().eval()


def draw_weights(module, seed):
    """Draws every weight anew. Variance-preserving layers, and norms and biases that are not trivial,
    so that a forgotten bias or a swapped norm shows."""
    generator = torch.Generator().manual_seed(seed)

    def normal(parameter, mean, std):
        parameter.data = mean + std * torch.randn(parameter.shape, generator=generator)

    for name, layer in sorted(module.named_modules()):
        if isinstance(layer, (torch.nn.GroupNorm, torch.nn.LayerNorm)):
            if layer.weight is None:  # modulated norms have no weights of their own
                continue
            normal(layer.weight, 1.0, 0.2)
            normal(layer.bias, 0.0, 0.1)
        elif isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)):
            gain = 0.9
            if name.endswith(("to_q", "to_k", "q_proj", "k_proj")):
                gain = 1.4  # sharper attention than a fresh network has, else softmax is hardly tested
            elif name.endswith(("conv2", "proj_out", "net.2", "to_out.0")):
                gain = 0.5  # the ends of residual branches: a deep network of strong ones is chaotic
            normal(layer.weight, 0.0, gain / layer.weight[0].numel() ** 0.5)
            if layer.bias is not None:
                normal(layer.bias, 0.0, 0.1)
        elif isinstance(layer, torch.nn.Embedding):
            normal(layer.weight, 0.0, 0.7 if "token" in name else 0.3)
    return module


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
