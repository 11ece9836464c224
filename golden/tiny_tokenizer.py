"""Cuts the CLIP vocabulary down to the merges that a few words need, in CLIP's own layout.

A BPE over a subset of the merges that holds every merge on a word's path splits this word exactly as
the full one does: at each step the merge that the full BPE picks is there, and none of lower rank is
that the full one had not."""

import json

from common import CLIP_BPE, WORDS, write_json


def read_merges():
    lines = (CLIP_BPE / "merges.txt").read_text(encoding="utf-8").split("\n")
    return [tuple(line.split(" ")) for line in lines[1:] if line]


def merges_of(word, ranks):
    """The merges that turn the word's characters into its tokens."""
    parts, used = [*word[:-1], word[-1] + "</w>"], []
    while True:
        pairs = [(ranks.get(pair, len(ranks)), i) for i, pair in enumerate(zip(parts, parts[1:]))]
        rank, i = min(pairs, default=(len(ranks), 0))
        if rank == len(ranks):
            return used
        used.append(rank)
        parts[i:i + 2] = [parts[i] + parts[i + 1]]


def cut_vocabulary():
    """(vocab: token -> cut id, merges, rows: cut id -> id in the full vocabulary)"""
    full = json.loads((CLIP_BPE / "vocab.json").read_text(encoding="utf-8"))
    merges = read_merges()
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    kept = sorted({rank for word in WORDS for rank in merges_of(word, ranks)})
    tokens = sorted(full, key=full.get)[:512]
    tokens += ["".join(merges[rank]) for rank in kept] + ["<|startoftext|>", "<|endoftext|>"]
    return {t: i for i, t in enumerate(tokens)}, [merges[rank] for rank in kept], [full[t] for t in tokens]


def write_tokenizer(folder, pad, full=False):
    """Writes a tokenizer folder as the published checkpoints have it (no tokenizer.json), with the cut
    vocabulary or the full one."""
    vocab, merges, _ = cut_vocabulary()
    if full:
        vocab, merges = json.loads((CLIP_BPE / "vocab.json").read_text(encoding="utf-8")), read_merges()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    text = "#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in merges)
    (folder / "merges.txt").write_text(text, encoding="utf-8")

    def token(content, normalized=True):
        return dict(content=content, lstrip=False, normalized=normalized, rstrip=False, single_word=False)

    start, end = token("<|startoftext|>"), token("<|endoftext|>")
    write_json(folder / "special_tokens_map.json",
               dict(bos_token=start, eos_token=end, pad_token=pad, unk_token=end))
    write_json(folder / "tokenizer_config.json", dict(
        add_prefix_space=False, bos_token=dict(__type="AddedToken", **start), do_lower_case=True,
        eos_token=dict(__type="AddedToken", **end), errors="replace", model_max_length=77, pad_token=pad,
        tokenizer_class="CLIPTokenizer", unk_token=dict(__type="AddedToken", **end)))
