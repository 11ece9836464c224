#!/usr/bin/env python3
"""Makes the training folder of the default model: emoji with captions, in the imagefolder convention.

    npm pack @lobehub/fluent-emoji-3d@1.1.0 emojibase-data@17.0.0
    python3 prepare_emoji.py lobehub-fluent-emoji-3d-1.1.0.tgz emojibase-data-17.0.0.tgz emoji

Needs Python 3.12 (or 3.11.4) and nothing else. The pictures are copied as they are; `aquatint train` puts them on
white and scales them.
"""

import argparse
import json
import re
import tarfile
from pathlib import Path


def squash(hexcode):
    """The code of a picture without the mark that asks for colour."""
    return hexcode.upper().replace("-FE0F", "")


def clean(text):
    text = text.replace("’", "'").replace("“", "").replace("”", "").replace(":", ",")
    return re.sub(r"\s+", " ", text).strip().lower()


def article(words):
    """'a red apple', 'an airplane', but 'grapes'."""
    last = re.split(r" (?:with|of|in|on|and|without) ", words)[0].split()[-1]
    if last.endswith("s") and not last.endswith(("ss", "us", "is")):
        return words
    return ("an " if words[0] in "aeio" else "a ") + words


def captions(label, tags):
    """What a picture is called; the trainer takes one at a time, and moves and drops what follows the first comma."""
    plain = label.replace(",", "")
    found = [plain, plain, article(plain), article(plain), "an emoji of " + article(plain)]
    if plain.endswith(" face"):
        found.append(plain[: -len(" face")])
    if tags:
        found += [", ".join([plain] + tags)] * 3
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path, help="the package @lobehub/fluent-emoji-3d")
    parser.add_argument("names", type=Path, help="the package emojibase-data")
    parser.add_argument("out", type=Path, help="the folder to make")
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    with tarfile.open(a.names) as names:
        table = json.load(names.extractfile("package/en/data.json"))
    rows = {}
    for entry in table:
        tags = [clean(tag) for tag in entry.get("tags", [])]
        for one in [entry, *entry.get("skins", [])]:
            rows.setdefault(squash(one["hexcode"]), (clean(one["label"]), clean(entry["label"]), tags))
    lines = []
    with tarfile.open(a.pictures) as pictures:
        for member in sorted(pictures.getmembers(), key=lambda m: m.name):
            name = Path(member.name)
            if name.suffix != ".webp" or squash(name.stem) not in rows:
                continue
            (a.out / name.name).write_bytes(pictures.extractfile(member).read())
            label, base, tags = rows[squash(name.stem)]
            lines.append({"file_name": name.name, "text": captions(label, tags), "label": base})
    (a.out / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(f"{len(lines)} pictures in {a.out}")


if __name__ == "__main__":
    main()
