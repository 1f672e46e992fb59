"""Write some held-out handwritten digits as PNG files, so that `vision-ssm predict` has files to read.

Usage: python examples/digit_files.py FOLDER [COUNT]
"""

from __future__ import annotations

import sys
from pathlib import Path

from vision_ssm.data.labelled.sources import open_dataset


def main(folder: Path, count: int) -> None:
    """Write ``count`` images; the name of each file says which digit it is."""
    digits = open_dataset("digits", "val")
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(min(count, len(digits))):
        image, target = digits[number]
        image.save(folder / f"{number:02d}_a_{digits.class_names[target]}.png")  # type: ignore[union-attr]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 12)
