#!/usr/bin/env python3
"""Trains Aquatint's default model: a tiny Stable Diffusion 1.x that draws emoji.

Stages, in order (each can be stopped and started again; state lives in --work):

    prep      unpack the two npm packages, make 128x128 pictures and captions
    tokenizer train a small byte-level BPE in CLIP's file layout
    latents   principal components of 8x8 patches: the latents, in closed form
    text      warm-start the text encoder: guess the picture from its caption
    unet      train UNet and text encoder together on the latents
    decoder   train the AutoencoderKL's decoder from these latents to pixels
    encoder   train its encoder to give these latents
    export    write the diffusers folder, f16
    grid      draw a sheet of prompts with the exported folder
    psnr      autoencoder PSNR of the exported folder on held-out pictures

The learning rates follow a cosine over wall-clock time (--minutes), because the
machine it was made on was shared: one gives it a time, not a number of steps.
"""
import argparse
import copy
import json
import math
import os
import random
import re
import tarfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

SIZE = 128          # pixels
LATENT = 16         # SIZE / 8
CHANNELS = 8        # latent channels
CONTEXT = 77        # tokens, as in SD 1.x
HELD_OUT = 48       # pictures the autoencoder never sees (the diffusion model does)

VAE = dict(
    in_channels=3, out_channels=3, latent_channels=CHANNELS,
    block_out_channels=(16, 24, 48, 96), layers_per_block=1, norm_num_groups=8,
    down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    sample_size=SIZE,
)
TEXT = dict(hidden_size=128, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4)
UNET = dict(
    sample_size=LATENT, in_channels=CHANNELS, out_channels=CHANNELS,
    block_out_channels=(64, 96, 128), layers_per_block=1, attention_head_dim=4,
    cross_attention_dim=TEXT["hidden_size"], norm_num_groups=16,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
)
SCHEDULE = dict(
    num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
    steps_offset=1, clip_sample=False, set_alpha_to_one=False, prediction_type="v_prediction",
)

# Pictures people ask for first; they are drawn far more often in training.
POPULAR = """red apple|green apple|banana|pizza|hamburger|hot dog|taco|sushi|cookie|doughnut|birthday cake|ice cream|
hot beverage|beer mug|wine glass|grapes|strawberry|watermelon|lemon|tangerine|cherries|peach|pineapple|avocado|carrot|
tomato|mushroom|bread|cheese wedge|egg|french fries|popcorn|dog face|dog|cat face|cat|mouse face|rabbit face|fox|bear|
panda|koala|tiger face|lion|cow face|pig face|frog|monkey face|chicken|penguin|bird|duck|owl|horse face|unicorn|
honeybee|butterfly|snail|turtle|snake|octopus|fish|dolphin|spouting whale|shark|elephant|rocket|airplane|automobile|
bus|bicycle|locomotive|sailboat|helicopter|house|castle|tent|mountain|volcano|sun|full moon|crescent moon|star|
rainbow|cloud|snowflake|snowman|fire|droplet|water wave|umbrella|high voltage|deciduous tree|evergreen tree|
palm tree|cactus|rose|tulip|sunflower|four leaf clover|red heart|blue heart|green heart|yellow heart|purple heart|
broken heart|grinning face|smiling face|face with tears of joy|winking face|crying face|angry face|thumbs up|
waving hand|clapping hands|eyes|skull|ghost|alien|robot|pile of poo|clown face|soccer ball|basketball|american football|tennis|
trophy|guitar|drum|musical note|camera|mobile phone|laptop|light bulb|open book|pencil|scissors|key|hammer|wrapped gift|balloon|
Christmas tree|jack-o-lantern|crown|gem stone|money bag|alarm clock|locked|bomb|teddy bear|smiling face with sunglasses|
smiling face with heart-eyes|slightly smiling face|beaming face with smiling eyes|smiling face with smiling eyes"""
POPULAR = {w.strip().lower() for w in POPULAR.replace("\n", "").split("|")}

# Other names people use, with the colour the picture has.
ALIASES = """red apple: apple, shiny red apple|green apple: apple|automobile: car, red car|airplane: plane, blue airplane|
deciduous tree: tree, green tree|evergreen tree: pine tree, fir tree|hot beverage: coffee, cup of coffee, cup of tea|
doughnut: donut, chocolate donut|wrapped gift: gift, present, red gift|american football: football|red heart: heart, love heart|
face with tears of joy: laughing face, laughing emoji|grinning face: happy face|smiling face: smiley face, happy face|
slightly smiling face: smiley, smile|crying face: sad face|open book: book|spouting whale: whale, blue whale|
tangerine: orange, orange fruit|high voltage: lightning, lightning bolt|locomotive: train, steam train|
mobile phone: phone|pile of poo: poop|honeybee: bee|star: yellow star, gold star|full moon: moon|crescent moon: moon|
gem stone: diamond, blue diamond|locked: lock, padlock|musical note: music note|beer mug: beer|wine glass: glass of wine, red wine|
hamburger: burger|cheese wedge: cheese, yellow cheese|banana: yellow banana|lemon: yellow lemon|pizza: slice of pizza|
frog: green frog|bird: red bird|fish: blue fish|sun: yellow sun, bright sun|balloon: red balloon|rose: red rose|
tulip: pink tulip|sunflower: yellow flower|house: small house|bus: orange bus, yellow bus|umbrella: purple umbrella|
crown: golden crown, gold crown|trophy: gold cup|key: golden key|cat: orange cat, kitten|dog: brown dog, puppy|
cat face: cat, orange cat|dog face: dog, puppy|teddy bear: teddy|bear: brown bear|pig face: pink pig|mushroom: red mushroom|
strawberry: red strawberry|tomato: red tomato|carrot: orange carrot|grapes: purple grapes|fire: flame|droplet: water drop|
water wave: wave, sea wave|rabbit face: bunny|alien: green alien|guitar: electric guitar|bicycle: bike, red bicycle|
sailboat: boat, sailing boat|clapping hands: applause|thumbs up: thumb|alarm clock: clock, red clock|rocket: space rocket|
mountain: snowy mountain|jack-o-lantern: pumpkin, halloween pumpkin|french fries: fries|bread: loaf of bread|
birthday cake: cake|duck: green duck|butterfly: orange butterfly|turtle: green turtle|snake: green snake|octopus: pink octopus"""
ALIASES = {k.strip(): [v.strip() for v in vs.split(",")]
           for k, vs in (x.split(":") for x in ALIASES.replace("\n", "").split("|"))}


# ---------------------------------------------------------------- data

def squash(hexcode):
    return hexcode.upper().replace("-FE0F", "")


def clean(text):
    text = text.replace("’", "'").replace("“", "").replace("”", "").replace(":", ",")
    return re.sub(r"\s+", " ", text).strip().lower()


def weight_of(label, group, skin):
    """How often a picture is drawn in training; near-duplicates share one turn."""
    if skin:
        return 0.02
    if label in POPULAR:
        return 25.0
    w = {0: 1.0, 1: 0.6, 3: 1.2, 4: 1.2, 5: 0.9, 6: 1.0, 7: 0.9, 8: 0.4, 9: 0.1}.get(group, 0.2)
    if group == 1:
        if re.match(r"(family|couple|kiss|people holding|men holding|women holding)", label):
            w = 0.12
        elif re.match(r"(man|woman|men|women)\b", label):
            w = 0.15
    if re.search(r"o'clock|thirty$", label):
        w = 0.3
    return w


def prep(a):
    from PIL import Image
    raw = a.work / "raw"
    for tgz in (a.emojibase, a.pictures):
        to = raw / Path(tgz).stem
        if not to.exists():
            with tarfile.open(tgz) as t:
                t.extractall(to, filter="data")
    base = next(raw.glob("emojibase-data-*")) / "package/en/data.json"
    assets = next(raw.glob("lobehub-*")) / "package/assets"
    files = {squash(p.stem): p for p in assets.glob("*.webp")}
    rows, pictures = [], []

    def add(e, tags, group, skin):
        p = files.get(squash(e["hexcode"]))
        if p is None:
            return
        im = Image.open(p).convert("RGBA")
        white = Image.new("RGBA", im.size, (255, 255, 255, 255))
        im = Image.alpha_composite(white, im).convert("RGB").resize((SIZE, SIZE), Image.LANCZOS)
        label = clean(e["label"])
        pictures.append(np.asarray(im))
        rows.append(dict(label=label, tags=[clean(t) for t in tags], group=group, skin=skin,
                         hexcode=e["hexcode"], weight=weight_of(label, group, skin)))

    for e in json.load(open(base)):
        tags = e.get("tags", [])
        add(e, tags, e.get("group", -1), False)
        for s in e.get("skins", []):
            add(s, tags, e.get("group", -1), True)
    rng = random.Random(7)
    plain = [i for i, r in enumerate(rows) if not r["skin"] and r["group"] in (0, 3, 4, 5, 6, 7)]
    for i in rng.sample(plain, HELD_OUT):
        rows[i]["held_out"] = True
    np.save(a.work / "pictures.npy", np.stack(pictures))
    json.dump(rows, open(a.work / "rows.json", "w"), indent=0)
    print(len(rows), "pictures, of them without skin variants", sum(not r["skin"] for r in rows),
          "sum of weights", round(sum(r["weight"] for r in rows)))


def article(s):
    first = s.split()[0]
    last = re.split(r" (?:with|of|in|on|and|without) ", s)[0].split()[-1]
    if last.endswith("s") and not last.endswith(("ss", "us", "is")):
        return s                                   # "grapes", "clapping hands"
    return ("an " if first[0] in "aeio" else "a ") + s


def caption(row, rng):
    """One caption of a picture: its label most of the time, sometimes only tags."""
    label, tags = row["label"], row["tags"]
    plain = label.replace(",", "")
    if label in ALIASES and rng.random() < 0.25:
        plain = rng.choice(ALIASES[label])
    r = rng.random()
    if r < 0.25:
        return label if rng.random() < 0.3 else plain
    if r < 0.28:
        return rng.choice(("a cute {}", "{} on a white background", "{}, 3d", "the {}", "one {}",
                           "a small {}", "a big {}", "draw a {}")).format(plain)
    if r < 0.56:
        return article(plain)
    if r < 0.62:
        return "an emoji of " + article(plain)
    if r < 0.67:
        return ("a picture of ", "a drawing of ", "a photo of ")[rng.randrange(3)] + article(plain)
    if r < 0.72:
        return plain + " emoji"
    words = plain.split()
    short = plain
    if plain.endswith(" face") and row["group"] == 3:
        short = plain[:-5]                         # "dog face" -> "dog"
    elif len(words) > 1 and words[-1] in tags:
        short = words[-1]                          # "red apple" -> "apple"
    if r < 0.80:
        return article(short) if rng.random() < 0.6 else short
    if not tags:
        return plain
    some = rng.sample(tags, min(len(tags), rng.randint(1, 4)))
    if r < 0.90:
        return ", ".join([plain] + some) if rng.random() < 0.5 else " ".join([plain] + some)
    if len(some) == 1:
        in_label = some[0] in words
        return article(some[0]) if in_label or rng.random() < 0.3 else some[0]
    return (", " if rng.random() < 0.5 else " ").join(some)


# ---------------------------------------------------------------- tokenizer

def byte_table():
    bs = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    cs, n = bs[:], 0
    for b in range(256):
        if b not in bs:
            bs.append(b)
            cs.append(256 + n)
            n += 1
    return {b: chr(c) for b, c in zip(bs, cs)}


def tokenizer(a):
    """CLIP's layout: 256 bytes, the same with </w>, merges, start, end."""
    rows = json.load(open(a.work / "rows.json"))
    rng = random.Random(1)
    table, counts = byte_table(), {}
    for row in rows:
        for _ in range(1 if row["skin"] else 20):
            for w in re.findall(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|[^\s\w]+", caption(row, rng)):
                counts[w] = counts.get(w, 0) + 1
    words = {}
    for w, c in counts.items():
        t = [table[b] for b in w.encode()]
        words[w] = (t[:-1] + [t[-1] + "</w>"], min(c, 400))
    merges = []
    while len(merges) < a.merges:
        pairs = {}
        for t, c in words.values():
            for p in zip(t, t[1:]):
                pairs[p] = pairs.get(p, 0) + c
        if not pairs:
            break
        best = max(pairs, key=lambda p: (pairs[p], p))
        if pairs[best] < 2:
            break
        merges.append(best)
        for w, (t, c) in words.items():
            if best[0] in t:
                i, out = 0, []
                while i < len(t):
                    if i + 1 < len(t) and (t[i], t[i + 1]) == best:
                        out.append(t[i] + t[i + 1])
                        i += 2
                    else:
                        out.append(t[i])
                        i += 1
                words[w] = (out, c)
    chars = list(byte_table().values())
    vocab = chars + [c + "</w>" for c in chars] + ["".join(m) for m in merges]
    vocab = list(dict.fromkeys(vocab)) + ["<|startoftext|>", "<|endoftext|>"]
    d = a.work / "tokenizer"
    d.mkdir(exist_ok=True)
    json.dump({w: i for i, w in enumerate(vocab)}, open(d / "vocab.json", "w"), ensure_ascii=False)
    with open(d / "merges.txt", "w") as f:
        f.write("#version: 0.2\n" + "".join(f"{x} {y}\n" for x, y in merges))
    special = dict(bos_token="<|startoftext|>", eos_token="<|endoftext|>",
                   unk_token="<|endoftext|>", pad_token="<|endoftext|>")
    json.dump(special, open(d / "special_tokens_map.json", "w"), indent=2)
    json.dump(dict(special, tokenizer_class="CLIPTokenizer", model_max_length=CONTEXT,
                   add_prefix_space=False, do_lower_case=True, errors="replace"),
              open(d / "tokenizer_config.json", "w"), indent=2)
    tok = load_tokenizer(a)
    print(len(vocab), "tokens;", tok.tokenize("A red apple, smiling face with heart-eyes!"),
          tok("a red apple").input_ids)


def load_tokenizer(a):
    from transformers import CLIPTokenizer
    return CLIPTokenizer.from_pretrained(str(a.work / "tokenizer"))


# ---------------------------------------------------------------- shared training helpers

class Clock:
    """Wall-clock cosine schedule which survives restarts."""

    def __init__(self, minutes, lr, warmup=60):
        self.total, self.lr, self.warmup = minutes * 60, lr, warmup
        self.spent, self.last = 0.0, time.time()

    def tick(self, opt):
        now = time.time()
        self.spent += min(now - self.last, 30)
        self.last = now
        x = min(self.spent / self.total, 1)
        f = min(1, self.spent / self.warmup + 0.02) * 0.5 * (1 + math.cos(math.pi * x))
        for g in opt.param_groups:
            g["lr"] = self.lr * f * g.get("scale", 1)
        return x < 1


class Team:
    """Averages gradients between processes started by torchrun (one thread each).

    On a busy machine two one-thread processes waste less than one with two threads.
    Rank 0's clock rides along, so that all stop at the same step.
    """

    def __init__(self, params, clock):
        self.n, self.rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        self.params, self.clock = params, clock
        if self.n > 1:
            torch.distributed.init_process_group("gloo")

    def average(self):
        if self.n == 1:
            return
        spent = self.clock.spent if self.rank == 0 else 0.0
        flat = torch.cat([p.grad.flatten() for p in self.params] + [torch.tensor([spent])])
        torch.distributed.all_reduce(flat)
        self.clock.spent = flat[-1].item()
        flat /= self.n
        k = 0
        for p in self.params:
            p.grad.copy_(flat[k:k + p.numel()].view(p.grad.shape))
            k += p.numel()


def save(path, obj):
    torch.save(obj, str(path) + ".part")
    os.replace(str(path) + ".part", path)


class Ema:
    def __init__(self, params, decay):
        self.params, self.decay, self.n = list(params), decay, 0
        self.avg = [p.detach().clone() for p in self.params]

    @torch.no_grad()
    def step(self):
        self.n += 1
        d = min(self.decay, (1 + self.n) / (10 + self.n))
        torch._foreach_lerp_(self.avg, [p.detach() for p in self.params], 1 - d)


def load_pictures(a):
    rows = json.load(open(a.work / "rows.json"))
    return rows, torch.from_numpy(np.load(a.work / "pictures.npy")).permute(0, 3, 1, 2)


def to_float(x):
    return x.float() / 127.5 - 1


def psnr_of(x, y):
    """Mean over pictures of the PSNR, pixels in [-1, 1]."""
    mse = (x.clamp(-1, 1) - y).square().flatten(1).mean(1)
    return (10 * torch.log10(4 / mse)).mean().item()


# ---------------------------------------------------------------- autoencoder

def picture_loss(y, x):
    """L1 at four scales, L1 of the edges, L1 of the colour, and a little squared error."""
    d = y - x
    loss = d.abs().mean() + 0.5 * d.square().mean()
    for dim in (-1, -2):
        loss = loss + 0.5 * d.diff(dim=dim).abs().mean()
    for _ in range(3):
        d = F.avg_pool2d(d, 2)
        loss = loss + 0.5 * d.abs().mean() + (d - d.mean(1, keepdim=True)).abs().mean()
    return loss


def new_vae(a):
    from diffusers import AutoencoderKL
    return AutoencoderKL(**VAE)


def part_of(v, part):
    """The trainable modules of one half of the autoencoder."""
    return torch.nn.ModuleList([v.decoder, v.post_quant_conv] if part == "decoder" else [v.encoder, v.quant_conv])


def load_vae(a):
    v = new_vae(a)
    for part in ("decoder", "encoder"):
        if (a.work / f"{part}.pt").exists():
            ck = torch.load(a.work / f"{part}.pt", weights_only=False)
            for p, e in zip(part_of(v, part).parameters(), ck["ema"]):
                p.data.copy_(e)
    return v.eval()


def latents(a):
    """Principal components of all 8x8 patches, and every picture's coefficients.

    Learning the latent space end to end took too long on two shared cores (after half an
    hour it still had no colours), and this one is the best linear one from the start. The
    spread of the components is halved in logarithm, and a white patch is zero, so that the
    UNet's zero padding looks like the background.
    """
    rows, pics = load_pictures(a)

    def patches(i):
        return F.unfold(to_float(pics[i]), 8, stride=8).transpose(1, 2) - 1     # white = 0

    ids = [i for i, r in enumerate(rows) if not r["skin"] and r["group"] != 9 and not r.get("held_out")]
    x = patches(ids).flatten(0, 1)
    mean = x.mean(0)
    val, vec = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    val, vec = val.flip(0)[:CHANNELS], vec.flip(1)[:, :CHANNELS]
    basis = vec * val.pow(-0.25)
    std = ((x - mean) @ basis).square().mean().sqrt().item()
    z = torch.cat([patches(list(range(i, min(i + 256, len(rows))))) @ basis for i in range(0, len(rows), 256)])
    z = z.transpose(1, 2).unflatten(2, (LATENT, LATENT)).contiguous()
    save(a.work / "latents.pt", dict(z=z, basis=basis, scaling=round(1 / std, 5)))
    print("latents", tuple(z.shape), "scaled: std", (z.std((0, 2, 3)) / std).tolist(),
          "mean", (z.mean((0, 2, 3)) / std).tolist(), "max", z.abs().max().item() / std)


def decoder(a):
    train_half(a, "decoder")


def encoder(a):
    train_half(a, "encoder")


def train_half(a, part):
    rows, pics = load_pictures(a)
    data = torch.load(a.work / "latents.pt", weights_only=False)
    held = [i for i, r in enumerate(rows) if r.get("held_out")]
    w = np.array([0 if r.get("held_out") else max(r["weight"], 0.08) for r in rows])
    w /= w.sum()
    torch.manual_seed(1)
    v = new_vae(a).to(memory_format=torch.channels_last)
    half = part_of(v, part)
    train = list(half.parameters())
    opt = torch.optim.AdamW(train, lr=a.lr, betas=(0.9, 0.99), weight_decay=1e-4)
    ema, clock, step = Ema(train, 0.995), Clock(a.minutes, a.lr, 20), 0
    path = a.work / f"{part}.pt"
    if path.exists():
        ck = torch.load(path, weights_only=False)
        half.load_state_dict(ck["model"])
        opt.load_state_dict(ck["opt"])
        ema.avg, ema.n, clock.spent, step = ck["ema"], ck["n"], ck["spent"], ck["step"]
    if a.restart:
        clock.spent = 0.0
    team = Team(train, clock)
    rng = np.random.default_rng(step * team.n + team.rank)
    torch.manual_seed(step * team.n + team.rank)

    def keep():
        save(path, dict(model=half.state_dict(), opt=opt.state_dict(), ema=ema.avg, n=ema.n,
                        spent=clock.spent, step=step))

    last_save = last_log = time.time()
    log_step, total, n = step, 0.0, a.batch
    while clock.tick(opt):
        whole = clock.spent > 0.7 * clock.total    # quarter pictures first: more steps in the same time
        n = max(1, a.batch // 4) if whole else a.batch
        ids = torch.from_numpy(rng.choice(len(rows), n, p=w))
        x, z = to_float(pics[ids]), data["z"][ids]
        if not whole:
            i, j = rng.integers(0, LATENT // 2 + 1, 2)
            x = x[:, :, 8 * i:8 * i + SIZE // 2, 8 * j:8 * j + SIZE // 2]
            z = z[:, :, i:i + LATENT // 2, j:j + LATENT // 2]
        if part == "decoder":                      # the UNet's latents will not be exact either
            z = z + 0.1 * torch.rand(n, 1, 1, 1) / data["scaling"] * torch.randn_like(z)
            loss = picture_loss(v.decode(z.contiguous(memory_format=torch.channels_last)).sample, x)
        else:
            mean, logvar = v.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist.parameters.chunk(2, 1)
            loss = F.mse_loss(mean, z) + 0.5 * F.l1_loss(mean, z) + 0.001 * (logvar + 8).square().mean()
        loss.backward()
        team.average()
        torch.nn.utils.clip_grad_norm_(train, 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        if team.rank == 0:
            ema.step()
        step += 1
        total += loss.item()
        now = time.time()
        if team.rank:
            continue
        if now - last_log > 30:
            k = step - log_step
            print(f"{clock.spent / 60:.1f} min step {step} loss {total / k:.4f} lr {opt.param_groups[0]['lr']:.1e} "
                  f"{k * team.n * n / (now - last_log):.1f} pictures/s", flush=True)
            last_log, log_step, total = now, step, 0.0
        if now - last_save > 120:
            keep()
            last_save = now
    if team.rank:
        return
    keep()
    v = load_vae(a)
    with torch.no_grad():
        x, z = to_float(pics[held]), data["z"][held]
        if part == "encoder":
            print("held-out latents, relative error",
                  ((v.encode(x).latent_dist.mean - z).square().mean() / z.square().mean()).sqrt().item())
        else:
            print("held-out PSNR, decoder on exact latents", round(psnr_of(v.decode(z).sample, x), 2), "dB")


# ---------------------------------------------------------------- diffusion

def new_text_encoder(a):
    from transformers import CLIPTextConfig, CLIPTextModel
    vocab = json.load(open(a.work / "tokenizer/vocab.json"))
    end, start = vocab["<|endoftext|>"], vocab["<|startoftext|>"]
    c = CLIPTextConfig(vocab_size=len(vocab), max_position_embeddings=CONTEXT, hidden_act="quick_gelu",
                       bos_token_id=start, eos_token_id=end, pad_token_id=end,
                       projection_dim=TEXT["hidden_size"], **TEXT)
    return CLIPTextModel(c)


def text(a):
    """Before the UNet: which picture, and roughly what does it look like?

    The features after the end token (all padding positions) are what the UNet mostly reads,
    so the loss is on the end token and on a later position.
    """
    rows = json.load(open(a.work / "rows.json"))
    data = torch.load(a.work / "latents.pt", weights_only=False)
    look = F.avg_pool2d(data["z"], 2).flatten(1)
    look = (look - look.mean(0)) / look.std()
    w = np.array([r["weight"] for r in rows]) ** 0.5
    w /= w.sum()
    tok = load_tokenizer(a)
    torch.manual_seed(1)
    enc = new_text_encoder(a)
    torch.nn.init.normal_(enc.get_input_embeddings().weight, std=0.1)
    which = torch.nn.Linear(TEXT["hidden_size"], len(rows))
    like = torch.nn.Linear(TEXT["hidden_size"], look.shape[1])
    train = [*enc.parameters(), *which.parameters(), *like.parameters()]
    opt = torch.optim.AdamW(train, lr=a.lr, betas=(0.9, 0.99), weight_decay=0.01, foreach=True)
    clock, rng, gen, n, step = Clock(a.minutes, a.lr, 15), random.Random(1), np.random.default_rng(1), a.batch, 0
    last = time.time()
    while clock.tick(opt):
        ids = gen.choice(len(rows), n, p=w)
        ids_t = torch.from_numpy(ids)
        tokens = tok([caption(rows[i], rng) for i in ids], padding="max_length", max_length=40,
                     truncation=True, return_tensors="pt").input_ids
        ends = (tokens == tok.eos_token_id).int().argmax(1)
        cut = min(40, int(ends.max()) + 6)
        h = enc(tokens[:, :cut]).last_hidden_state
        later = ends + torch.randint(1, 6, (n,))
        loss = 0
        for at in (ends, later.clamp(max=cut - 1)):
            f = h[torch.arange(n), at]
            loss = loss + F.cross_entropy(which(f), ids_t) + 2 * F.mse_loss(like(f), look[ids_t])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(train, 1.0, foreach=True)
        opt.step()
        opt.zero_grad(set_to_none=True)
        step += 1
        if time.time() - last > 20:
            last = time.time()
            hit = (which(f).argmax(1) == ids_t).float().mean().item()
            print(f"{clock.spent / 60:.1f} min step {step} loss {loss.item() / 2:.3f} right picture {hit:.2f} "
                  f"look error {F.mse_loss(like(f), look[ids_t]).item():.3f}", flush=True)
    save(a.work / "text.pt", enc.state_dict())


def new_unet():
    from diffusers import UNet2DConditionModel
    return UNet2DConditionModel(**UNET)


def alphas_bar():
    s = SCHEDULE
    beta = torch.linspace(s["beta_start"] ** 0.5, s["beta_end"] ** 0.5, s["num_train_timesteps"]) ** 2
    return torch.cumprod(1 - beta, 0)


def unet(a):
    rows = json.load(open(a.work / "rows.json"))
    data = torch.load(a.work / "latents.pt", weights_only=False)
    z0 = data["z"] * data["scaling"]
    w = np.array([r["weight"] for r in rows])
    w /= w.sum()
    tok = load_tokenizer(a)
    torch.manual_seed(1)
    text, net = new_text_encoder(a), new_unet()
    text.load_state_dict(torch.load(a.work / "text.pt", weights_only=False))
    net = net.to(memory_format=torch.channels_last)
    both = list(text.parameters()) + list(net.parameters())
    print("parameters: text", sum(p.numel() for p in text.parameters()),
          "unet", sum(p.numel() for p in net.parameters()), flush=True)
    groups = [dict(params=list(text.parameters()), scale=0.4), dict(params=list(net.parameters()))]
    opt = torch.optim.AdamW(groups, lr=a.lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    ema, clock, step = Ema(both, 0.999), Clock(a.minutes, a.lr, 60), 0
    path = a.work / "unet.pt"
    if path.exists():
        ck = torch.load(path, weights_only=False)
        text.load_state_dict(ck["text"])
        net.load_state_dict(ck["unet"])
        opt.load_state_dict(ck["opt"])
        ema.avg, ema.n, clock.spent, step = ck["ema"], ck["n"], ck["spent"], ck["step"]

    def keep():
        save(path, dict(text=text.state_dict(), unet=net.state_dict(), opt=opt.state_dict(),
                        ema=ema.avg, n=ema.n, spent=clock.spent, step=step))

    # colour and brightness first, fine detail last
    channel_weight = torch.tensor([1.5, 2.5, 2.5, 1, 1, 0.7, 0.7, 0.7])[:, None, None]
    ab = alphas_bar()
    fwd = torch.compile(net) if a.compile else net
    enc = torch.compile(text) if a.compile else text
    team = Team(both, clock)
    seed = step * team.n + team.rank
    rng, gen = random.Random(seed), np.random.default_rng(seed)
    torch.manual_seed(seed)
    last_save = last_log = time.time()
    log_step, total = step, 0.0
    n = a.batch
    while clock.tick(opt):
        ids = gen.choice(len(rows), n, p=w)
        caps = ["" if rng.random() < 0.1 else caption(rows[i], rng) for i in ids]
        tokens = tok(caps, padding="max_length", max_length=CONTEXT, truncation=True,
                     return_tensors="pt").input_ids
        x = z0[torch.from_numpy(ids)]
        # one draw per 1/n-th of the time axis (less noise in the gradient), more of them where
        # there is much noise and the text matters most
        t = (((torch.arange(n) + torch.rand(n)) / n) ** 0.75 * 1000).long().clamp(0, 999)
        noise = torch.randn_like(x)
        s, c = ab[t].sqrt()[:, None, None, None], (1 - ab[t]).sqrt()[:, None, None, None]
        noisy = (s * x + c * noise).contiguous(memory_format=torch.channels_last)
        target = s * noise - c * x
        with torch.autocast("cpu", torch.bfloat16, enabled=a.bf16):
            ctx = enc(tokens).last_hidden_state
            out = fwd(noisy, t, ctx).sample
        weight = 1 / (1 + ab[t] / (1 - ab[t]) / 4)
        error = (out.float() - target).square() * channel_weight
        loss = (error.mean((1, 2, 3)) * weight).mean()
        loss.backward()
        team.average()
        torch.nn.utils.clip_grad_norm_(both, 1.0, foreach=True)
        opt.step()
        opt.zero_grad(set_to_none=True)
        if team.rank == 0:
            ema.step()
        step += 1
        total += loss.item()
        now = time.time()
        if team.rank:
            continue
        if now - last_log > 30:
            k = step - log_step
            print(f"{clock.spent / 60:.1f} min step {step} loss {total / k:.4f} lr {opt.param_groups[1]['lr']:.2e} "
                  f"{k * team.n * n / (now - last_log):.1f} samples/s", flush=True)
            last_log, log_step, total = now, step, 0.0
        if now - last_save > 150:
            keep()
            last_save = now
    if team.rank == 0:
        keep()


# ---------------------------------------------------------------- export and check

def export(a):
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    text, net = new_text_encoder(a), new_unet()
    ck = torch.load(a.work / "unet.pt", weights_only=False)
    for p, e in zip(list(text.parameters()) + list(net.parameters()), ck["ema"]):
        p.data.copy_(e)
    v = load_vae(a)
    v.register_to_config(scaling_factor=torch.load(a.work / "latents.pt", weights_only=False)["scaling"])
    pipe = StableDiffusionPipeline(
        vae=v, text_encoder=text, tokenizer=load_tokenizer(a), unet=net,
        scheduler=DDIMScheduler(**SCHEDULE), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False)
    pipe.to(torch.float16).save_pretrained(a.out, safe_serialization=True)
    tk = Path(a.out) / "tokenizer"      # CLIPTokenizer's classic four files
    for f in tk.iterdir():
        f.unlink()
    for f in (a.work / "tokenizer").iterdir():
        (tk / f.name).write_bytes(f.read_bytes())
    for f in Path(a.out).rglob("*.safetensors"):
        f.chmod(0o644)
    size = sum(f.stat().st_size for f in Path(a.out).rglob("*") if f.is_file())
    for n, m in (("vae", v), ("text", text), ("unet", net)):
        print(n, round(sum(p.numel() for p in m.parameters()) / 1e6, 3), "M")
    print("step", ck["step"], "bytes", size)


PROMPTS = """a red apple|apple|a cat|pizza|rocket|smiling face|red heart|dog face|banana|a blue car|fire|a yellow star|
sun|tree|house|an airplane|a green apple|face with tears of joy|thumbs up|ghost|a frog|strawberry|hamburger|guitar|
soccer ball|robot|a dog|crown|rainbow|fish|cup of coffee|umbrella"""


def load_pipe(a):
    from diffusers import StableDiffusionPipeline
    p = StableDiffusionPipeline.from_pretrained(str(a.out), torch_dtype=torch.float32)
    p.set_progress_bar_config(disable=True)
    return p


def grid(a):
    import diffusers
    from PIL import Image, ImageDraw
    p = load_pipe(a)
    if a.sampler != "DDIMScheduler":
        p.scheduler = getattr(diffusers, a.sampler).from_config(p.scheduler.config)
    prompts = [s.strip() for s in (a.prompts or PROMPTS).replace("\n", "").split("|")]
    cols, cell = 8, SIZE + 14
    sheet = Image.new("RGB", (cols * SIZE, -(-len(prompts) // cols) * cell), "white")
    draw = ImageDraw.Draw(sheet)
    t0 = time.time()
    for k, s in enumerate(prompts):
        g = torch.Generator().manual_seed(a.seed)
        im = p(s, num_inference_steps=a.steps, guidance_scale=a.guidance, height=SIZE, width=SIZE,
               generator=g).images[0]
        sheet.paste(im, (k % cols * SIZE, k // cols * cell))
        draw.text((k % cols * SIZE + 2, k // cols * cell + SIZE), s[:22], fill="black")
    sheet.save(a.png)
    print(a.png, f"{(time.time() - t0) / len(prompts):.2f} s a picture")


@torch.no_grad()
def psnr(a):
    rows, pics = load_pictures(a)
    v = load_pipe(a).vae
    for name, ids in (("held-out", [i for i, r in enumerate(rows) if r.get("held_out")]),
                      ("seen", [i for i, r in enumerate(rows) if not r.get("held_out") and not r["skin"]][::20])):
        x = to_float(pics[ids])
        y = v.decode(v.encode(x).latent_dist.mean).sample
        print(name, len(ids), "pictures, PSNR", round(psnr_of(y, x), 2), "dB")
        from PIL import Image
        both = torch.cat([x[:12], y[:12].clamp(-1, 1)]).add(1).mul(127.5).byte().permute(0, 2, 3, 1).numpy()
        Image.fromarray(np.concatenate([np.concatenate(list(both[:len(both) // 2]), 1),
                                        np.concatenate(list(both[len(both) // 2:]), 1)], 0)).save(a.work / f"psnr_{name}.png")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("stage", choices="prep tokenizer latents text unet decoder encoder export grid psnr".split())
    p.add_argument("--work", type=Path, default=Path("work"), help="checkpoints and intermediate files")
    p.add_argument("--out", type=Path, default=Path(__file__).parent / "default")
    p.add_argument("--emojibase", default="emojibase-data-17.0.0.tgz", help="npm pack emojibase-data@17.0.0")
    p.add_argument("--pictures", default="lobehub-fluent-emoji-3d-1.1.0.tgz",
                   help="npm pack @lobehub/fluent-emoji-3d@1.1.0")
    p.add_argument("--merges", type=int, default=2000)
    p.add_argument("--minutes", type=float, default=15, help="wall-clock length of the training")
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--batch", type=int, default=16, help="pictures a process")
    p.add_argument("--restart", action="store_true", help="keep the weights, begin the schedule anew")
    p.add_argument("--compile", action="store_true", help="torch.compile (needs a C++ compiler)")
    p.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--steps", type=int, default=20)
    p.add_argument("--guidance", type=float, default=4.0)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--sampler", default="DDIMScheduler")
    p.add_argument("--prompts", help="separated by |")
    p.add_argument("--png", default="grid.png")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    a.work.mkdir(parents=True, exist_ok=True)
    globals()[a.stage](a)


if __name__ == "__main__":
    main()
