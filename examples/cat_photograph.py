"""Write the photograph of a cat that scikit-image ships (Chelsea, by Stéfan van der Walt, public domain) to a file.

Usage: python examples/cat_photograph.py FILE
"""

from __future__ import annotations

import sys
from pathlib import Path

import skimage.data
from PIL import Image


def main(file: Path) -> None:
    """Write the picture, 451 x 300 pixels."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(skimage.data.chelsea()).save(file)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
