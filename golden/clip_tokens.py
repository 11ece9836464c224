"""clip_tokens.json: ids of prompts by transformers' CLIPTokenizer, for the full CLIP vocabulary and a cut one.

The tokenizers: `sd1` and `sd2` are the full vocabulary with the special tokens of the published SD 1.5 and
SD 2.1 folders; `tiny` is golden/sd1/tokenizer and `tiny_pad` golden/sd2/tokenizer. `saved` is `sd2` as
transformers saves it (a tokenizer.json); its ids are checked here to be those of `sd2`.

    CLIP_BPE=folder python golden/clip_tokens.py
"""

import json
import random
import tempfile
from pathlib import Path

from transformers import CLIPTokenizer

from common import CLIP_BPE, GOLDEN, write_json

SPECIAL = dict(lstrip=False, normalized=True, rstrip=False, single_word=False)

PROMPTS = [
    "", " ", "a", "A photo of a CAT", "a photograph of an astronaut riding a horse", "hello, world!",
    "don't can't I'm you're they've she'd we'll it's 'S 'T DON'T", "'''", "''s", "rock'n'roll",
    "masterpiece, best quality, ultra-detailed, 8k, hdr, (sharp focus:1.2), [blurry]", "1girl, solo, 20yo",
    "0123456789", "3.14159 2,000,000 1/2 50% $9.99 #1 @user a&b", "½ ² ③ Ⅳ ٣ १ 〇 一二三 𝟘𝟙",
    "ÀÉÎÕÜ àéîõü ß ẞ Œ œ Ø ø Þ", "é e\u0301 E\u0301 ñ n\u0303 Å A\u030a \u212b", "ﬁ ﬂ ﬃ", "İstanbul ISTANBUL ı I",
    "Ǆ ǅ ǆ Σίσυφος ΣΑΣ ς", "Привет, мир! Ёлка", "שלום עולם", "مرحبا بالعالم", "नमस्ते दुनिया", "สวัสดีชาวโลก",
    "こんにちは世界", "カタカナ ｶﾀｶﾅ ひらがな", "你好，世界。", "안녕하세요 세계", "\u1112\u1161\u11ab\u1100\u1173\u11af",
    "ⴰⵣⵓⵍ", "ᚠᚢᚦᚨᚱᚲ", "გამარჯობა", "Բարեւ", "ሰላም", "ကောင်း", "ជំរាបសួរ", "ພາສາລາວ", "ᏣᎳᎩ", "ꦲꦏ꧀ꦱꦫ",
    "😀 😃🎉🔥", "👩‍🚀 👨‍👩‍👧‍👦", "🇫🇷🇯🇵", "👍🏽 ☺️ ☺", "❤️‍🔥", "→ ← ∑ ∞ ≠ √ ± × ÷", "“quotes” ‘single’ «guillemets» – — …",
    "a\tb\nc\r\nd\x0be\x0cf", "a\u00a0b\u2003c\u3000d\u200be\ufefff", "a\x00b\x01c\x1fd\x7fe\x85f", "\u2028x\u2029y",
    "a_b_c __init__ snake_case CamelCase kebab-case", "http://example.com/path?q=1&r=2#frag", "user@example.com",
    "C:\\path\\file.txt", "<tag attr=\"x\">text</tag>", "{json: [1, 2, {\"a\": null}]}", "!!! ?!?! ... ,,, ;;;", "! !x x! !!x",
    "~`^|\\/<>{}[]()*&%$#@", "<|startoftext|>", "<|endoftext|>", "a <|endoftext|> b", "<|ENDOFTEXT|> <|StartOfText|>",
    "x<|endoftext|>y<|startoftext|>z", "< |endoftext| >", "<|endoftext", "</w>", "a</w> b</w>", "low</w>er",
    "pneumonoultramicroscopicsilicovolcanoconiosis", "a" * 200, "ab" * 150, "é" * 60, "世" * 80, "😀" * 30, "1" * 90,
    "!" * 90, "word " * 100, "a, " * 60, "   leading and   trailing   ", "\n\n\n", "MiXeD cAsE wOrDs", "naïve café résumé",
    "Ωmega Ω ω ϖ", "\u0345 \u03b9\u0308\u0301 \u1fd3 \u0390", "\u0958 \u0915\u093c", "\u1e9b\u0323", "\u2126 \u00c5 \ufb1d",
    "\ud7b0\U0001f600\U00020000\U0010fffd", "\ue000\uf8ff", "a\u0300\u0301\u0302\u0303b", "ca\u00adf\u00e9", "x\u200dy\u200cz",
    "ᾈ ᾼ Ἀ", "Ⓐⓑ ⅷ Ⅷ", "𐐀𐐨 Deseret", "ſtraße", "K (kelvin) k", "ŉ ǰ ΐ", "ａｂｃ １２３ ！",
]


def more(count):
    """Random mixtures, so that the borders between kinds of characters are met in many ways."""
    dice = random.Random(20)
    pools = ["abcdefghijklmnopqrstuvwxyz", "ABCDEFG", "0123456789", " \t\n\u00a0", ".,!?;:'\"-_()[]{}<>|/", "éàßİΣςжЖשمह世カ한",
             "😀❤️‍🔥", "'s't're've'm'll'd", "\u0301\u0308\u200d", "²½Ⅳ٣"]
    for _ in range(count):
        length = dice.randint(1, 40)
        yield "".join(dice.choice(dice.choice(pools)) for _ in range(length))
    words = "cat dog red blue painting of the highly detailed lighthouse storm 4k, oil! (soft) light's".split()
    for _ in range(count):
        yield " ".join(dice.choice(words) for _ in range(dice.randint(1, 90)))


def write_special(folder, pad):
    start, end = dict(content="<|startoftext|>", **SPECIAL), dict(content="<|endoftext|>", **SPECIAL)
    special = dict(bos_token=start, eos_token=end, pad_token=pad, unk_token=end)
    write_json(folder / "special_tokens_map.json", special)
    typed = {k: dict(__type="AddedToken", **v) if isinstance(v, dict) else v for k, v in special.items()}
    write_json(folder / "tokenizer_config.json", dict(typed, model_max_length=77, tokenizer_class="CLIPTokenizer"))


def full(folder, pad):
    folder.mkdir()
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes((CLIP_BPE / name).read_bytes())
    write_special(folder, pad)
    return CLIPTokenizer.from_pretrained(folder)


def main():
    prompts = PROMPTS + list(more(120))
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        tokenizers = {
            "sd1": full(folder / "sd1", "<|endoftext|>"), "sd2": full(folder / "sd2", "!"),
            "tiny": CLIPTokenizer.from_pretrained(GOLDEN / "sd1/tokenizer"),
            "tiny_pad": CLIPTokenizer.from_pretrained(GOLDEN / "sd2/tokenizer"),
        }
        tokenizers["sd2"].save_pretrained(folder / "saved")
        saved = CLIPTokenizer.from_pretrained(folder / "saved")
        assert all(saved(p).input_ids == tokenizers["sd2"](p).input_ids for p in prompts)
        tokenizers["tiny_pad"].save_pretrained(GOLDEN / "tokenizer_saved")
    rows = []
    for prompt in prompts:
        ids = {name: t(prompt, add_special_tokens=False).input_ids for name, t in tokenizers.items()}
        cut = tokenizers["sd1"](prompt).input_ids[76:-1]
        dropped = tokenizers["sd1"].batch_decode([cut])[0] if cut else None
        rows.append(dict(prompt=prompt, dropped=dropped, **ids))
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    (GOLDEN / "clip_tokens.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
