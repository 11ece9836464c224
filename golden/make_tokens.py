"""Makes golden/tokens.json: what transformers' CLIPTokenizer, with the full vocabulary, makes of some prompts.

    CLIP_BPE=folder_with_vocab.json_and_merges.txt python make_tokens.py

`ids` are all tokens with start and end, not padded and not cut at 77; `ids_pad_bang` those of a tokenizer
whose pad token is "!" (SD 2, and SDXL's second), where that token is special and a "!" in a prompt is
token 0."""

from transformers import CLIPTokenizer

from common import CLIP_BPE, GOLDEN, write_json
from make_references import TOKEN_PROMPTS
from tiny_tokenizer import cut_vocabulary

PROMPTS = TOKEN_PROMPTS + [
    "don't you've we'll I'm he's they'd", "1234567890 3.14 1/2 50%", "UPPER lower MiXeD", "tab\tnew\nline  double",
    "(masterpiece:1.2), [[ugly]], best quality:1.3", "email@example.com https://example.com/a?b=c&d=e#f",
    "Ünïcödé ÀÉÎ ñ ß ﬁ Ǆ İ ı", "emoji 👩‍🚀🚀❤️ family 👨‍👩‍👧", "русский текст", "中文提示词", "العربية", "한국어",
    "a\u00a0b\u2003c\u3000d", "e\u0301 combining é", "underscore_name snake_case __x__", "...!?,;:'\"-–—…",
    "<|startoftext|>hello<|endoftext|>", "a<|endoftext|>b", "</w> x</w>", "supercalifragilisticexpialidocious",
    "\u0000\u0001 control", "½ ² ③ Ⅷ", " leading and trailing ", "'", "''", "'S 'T 'RE",
]


def main():
    files = [str(CLIP_BPE / name) for name in ("vocab.json", "merges.txt")]
    plain, bang = CLIPTokenizer(*files), CLIPTokenizer(*files, pad_token="!")
    table = [dict(prompt=p, ids=plain(p).input_ids, ids_pad_bang=bang(p).input_ids) for p in PROMPTS]
    # The cut vocabulary of the tiny folders splits the run prompts as the full one does.
    rows = cut_vocabulary()[2]
    cut = CLIPTokenizer.from_pretrained(GOLDEN / "sd1" / "tokenizer")
    from common import NEGATIVE, PROMPTS as RUN_PROMPTS
    for prompt in RUN_PROMPTS + [NEGATIVE]:
        assert [rows[i] for i in cut(prompt).input_ids] == plain(prompt).input_ids, prompt
    write_json(GOLDEN / "tokens.json", dict(tokens=table))
    print(len(table), "prompts")


if __name__ == "__main__":
    main()
