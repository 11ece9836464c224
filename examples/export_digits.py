"""Writes scikit-learn's handwritten digits as pictures, for examples/digits.toml.

1,797 grey PNGs of 8x8 pixels in subfolders named after what they show: examples/digits/0/0000.png and so on, about
7 MB on a disk with 4 kB blocks. Needs scikit-learn and Pillow:

    pip install scikit-learn pillow
    python examples/export_digits.py [FOLDER]
"""

import sys
from pathlib import Path

try:
    from PIL import Image
    from sklearn.datasets import load_digits
except ImportError as error:
    sys.exit(f"{error.name} is missing; install it first: pip install scikit-learn pillow")


def main():
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "digits"
    digits = load_digits()
    for index, (values, label) in enumerate(zip(digits.images, digits.target)):
        path = folder / str(label) / f"{index:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        # Values run from 0 to 16.
        Image.fromarray((values * 255 / 16).round().astype("uint8")).save(path)
    print(f"{len(digits.images)} pictures in {folder}")


if __name__ == "__main__":
    main()
