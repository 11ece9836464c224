"""webui_prompts.json, webui_prompts.safetensors: prompts as AUTOMATIC1111's web UI reads, cuts and weighs them.

It runs the web UI's own parser and chunking (modules/prompt_parser.py, sd_hijack_clip.py, sd_emphasis.py)
over golden/sd2, of which the padding is not the end token; only what those files import besides is stood in
for.

    python golden/webui_prompts.py /path/to/stable-diffusion-webui
"""

import json
import random
import sys
import types

import torch
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer

from common import GOLDEN

PROMPTS = [
    "", "normal text", "an (important) word", "(unbalanced", r"\(literal\]", "(unnecessary)(parens)",
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).", "((a)", "(a))", "[[a]", "[a]]", "(a [b) c]", "a:1.2)",
    "(a:1.2)", "(a:1.)", "(a:.5)", "(a:-1)", "(a:+0.3)", "(a: 2)", "(a:b:1.4)", "(a:)", ":)", "(:", "(:1.5)", "()", "[]",
    "\\", "\\\\", "a\\b", r"\\(a\\)", r"(\(:1.5)", r"\:1.2)", "[a:1.2]", "(a:0)", "(a:0.0)[b]", "a BREAK b", "BREAK",
    "BREAK BREAK a", "a,BREAK,b", "aBREAK BREAKb _BREAK BREAK_", "a\nBREAK\n\nb", "(a) BREAK [b]", "a BREAK (b:1.2) BREAK",
    "(a red:1.4) cat, [a blue dog], ((tree))", "(very detailed:1.5), (bad:-0.5)", "a (b (c (d (e:0.9):1.1):1.2):1.3) f",
    "  spaces  ( around : 1.3 )  ", "(é世界😀:1.25) ü", "(a:99)", "a(b)c(d)e", "3:4 1:2) x:y",
]
EMBEDDED = ["a (red:1.4) cat", "((a photograph)) of [an old house], (bright:0.7) sky BREAK a (dog:1.2)",
            "(a red apple on a wooden table:1.3)"]


def more(count):
    dice = random.Random(31)
    words = "cat dog red blue tree house , , ( ) [ ] :1.2) :0.8) \\( BREAK".split()
    for _ in range(count):
        yield " ".join(dice.choice(words) for _ in range(dice.randint(1, 14)))
    plain = "a cat dog red blue, tree, house city sky".split()
    for _ in range(count):
        yield " ".join(dice.choice(plain) for _ in range(dice.randint(60, 260)))
    for commas in (54, 55, 56, 74, 75):
        yield "cat " * commas + ", " + "dog " * 40


def stand_in(webui):
    """What the three files import and do not need here."""
    for name, members in {
        "lark": dict(Lark=lambda grammar: None, Visitor=object, Transformer=object),
        "modules.devices": dict(device="cpu", torch_npu_set_device=lambda: None),
        "modules.sd_hijack": dict(StableDiffusionModelHijack=object),
        "modules.shared": dict(opts=types.SimpleNamespace(emphasis="Original", comma_padding_backtrack=20)),
    }.items():
        module = types.ModuleType(name)
        module.__dict__.update(members)
        sys.modules[name] = module
    sys.path.insert(0, webui)
    import modules
    for name in ("devices", "sd_hijack", "shared"):
        setattr(modules, name, sys.modules[f"modules.{name}"])


def embedder(tokenizer, model):
    from modules.sd_hijack_clip import FrozenCLIPEmbedderWithCustomWordsBase

    class Embedder(FrozenCLIPEmbedderWithCustomWordsBase):
        def __init__(self):
            nothing = types.SimpleNamespace(find_embedding_at_position=lambda tokens, at: (None, None))
            super().__init__(None, types.SimpleNamespace(embedding_db=nothing))
            self.id_start, self.id_end = tokenizer.bos_token_id, tokenizer.eos_token_id
            self.id_pad = tokenizer.pad_token_id
            self.comma_token = tokenizer.get_vocab()[",</w>"]

        def tokenize(self, texts):
            return tokenizer(texts, truncation=False, add_special_tokens=False)["input_ids"]

        def encode_with_transformers(self, tokens):
            return model(tokens).last_hidden_state

    return Embedder()


@torch.no_grad()
def main(webui):
    stand_in(webui)
    from modules.prompt_parser import parse_prompt_attention

    tokenizer = CLIPTokenizer.from_pretrained(GOLDEN / "sd2/tokenizer")
    model = CLIPTextModel.from_pretrained(GOLDEN / "sd2/text_encoder", dtype=torch.float32).eval()
    web = embedder(tokenizer, model)
    rows, tensors = [], {}
    for prompt in PROMPTS + EMBEDDED + list(more(40)):
        chunks, _ = web.tokenize_line(prompt)
        # The tokens up to the padding; where every weight is 1, none are written.
        kept = []
        for chunk in chunks:
            inner, weights = chunk.tokens[1:-1], chunk.multipliers[1:-1]
            length = inner.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in inner else len(inner)
            weights = weights[:length]
            kept.append([inner[:length], [] if all(w == 1 for w in weights) else weights])
        rows.append(dict(prompt=prompt, parsed=parse_prompt_attention(prompt), chunks=kept))
        if prompt in EMBEDDED:
            states = [web.process_tokens([c.tokens], [c.multipliers]) for c in chunks]
            tensors[f"embeddings/{EMBEDDED.index(prompt)}"] = torch.cat(states, 1).contiguous()
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    (GOLDEN / "webui_prompts.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    save_file(tensors, GOLDEN / "webui_prompts.safetensors")


if __name__ == "__main__":
    main(sys.argv[1])
