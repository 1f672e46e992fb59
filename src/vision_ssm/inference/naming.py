"""Names of the files that are written for images."""

from __future__ import annotations

import os
from pathlib import Path

from vision_ssm.storage import NAME_BYTES

__all__ = ["free_name"]


def free_name(path: str, suffix: str, used: set[str]) -> str:
    """Return a file name after the image's and add it to ``used``; a name that is taken is numbered, from 2.

    An image's name that is too long for the new ending loses characters at its end.
    """
    stem = Path(path).stem.replace(" ", "_")
    name, number = _fitting(stem, suffix), 2
    while name.lower() in used:  # file systems may not tell A from a
        name, number = _fitting(stem, f"_{number}{suffix}"), number + 1
    used.add(name.lower())
    return name


def _fitting(stem: str, ending: str) -> str:
    while len(os.fsencode(stem + ending)) > NAME_BYTES:
        stem = stem[:-1]
    return stem + ending
