"""What the tests of the command share: running it, a tiny model's options, and images that are easy to tell apart."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

TINY = ["--model.options.depth", "1", "--model.options.embed_dim=32", "--batch-size", "16", "--workers", "0"]


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


def python(code: str, *, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python code in a fresh interpreter."""
    full = {**os.environ, **(env or {})}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=full, check=False)


def write_images(folder: Path, classes: Sequence[str] = ("dark", "light"), count: int = 12) -> Path:
    """Class folders of noise around a grey that tells the classes apart."""
    random = np.random.default_rng(0)
    for index, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 60, (32, 32, 3)) + 190 * index
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder
