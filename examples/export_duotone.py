"""Writes twenty pictures in one style, blue ink on white, for examples/lora_duotone.toml.

They are emoji that models/prepare_emoji.py laid out (see models/README.md), without their colours. Needs Pillow:

    pip install pillow
    python examples/export_duotone.py EMOJI_FOLDER [OUT]
"""

import sys
from pathlib import Path

try:
    from PIL import Image, ImageOps
except ImportError:
    sys.exit("Pillow is missing; install it first: pip install pillow")

NAMES = {
    "red apple": "1f34e", "rocket": "1f680", "cat face": "1f431", "dog face": "1f436", "pizza": "1f355", "star": "2b50",
    "rainbow": "1f308", "house": "1f3e0", "automobile": "1f697", "airplane": "2708-fe0f", "hot beverage": "2615",
    "birthday cake": "1f382", "sunflower": "1f33b", "deciduous tree": "1f333", "octopus": "1f419", "lion": "1f981",
    "grinning face": "1f600", "blue heart": "1f499", "umbrella": "2602-fe0f", "key": "1f511",
}


def picture(folder, code):
    for name in (code, code.removesuffix("-fe0f"), code + "-fe0f"):
        if (path := folder / f"{name}.webp").is_file():
            return path
    sys.exit(f"{folder} has no {code}.webp; give the folder that models/prepare_emoji.py wrote")


def main():
    if not 2 <= len(sys.argv) <= 3:
        sys.exit(__doc__)
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent / "duotone"
    out.mkdir(parents=True, exist_ok=True)
    for name, code in NAMES.items():
        image = Image.open(picture(Path(sys.argv[1]), code)).convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        grey = ImageOps.autocontrast(Image.alpha_composite(white, image).convert("L"))
        stem = out / name.replace(" ", "_")
        ImageOps.colorize(grey, (16, 32, 120), "white").resize((128, 128)).save(stem.with_suffix(".png"))
        stem.with_suffix(".txt").write_text(f"{name}, blue ink\n")
    print(f"wrote {len(NAMES)} pictures to {out}")


if __name__ == "__main__":
    main()
