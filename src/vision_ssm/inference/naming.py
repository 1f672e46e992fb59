"""Names of the files that are written for images."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["free_name"]

_LONGEST = 255  # bytes, of one name on every common file system


def free_name(path: str, suffix: str, used: set[str]) -> str:
    """Return a file name after the image's and add it to ``used``; a name that is taken is numbered, from 2.

    A name that would be longer than file systems take is cut.
    """
    stem = Path(path).stem.replace(" ", "_")
    name, number = _fitting(stem, suffix), 2
    while name.lower() in used:  # file systems may not tell A from a
        name, number = _fitting(stem, f"_{number}{suffix}"), number + 1
    used.add(name.lower())
    return name


def _fitting(stem: str, ending: str) -> str:
    room = _LONGEST - len(os.fsencode(ending))
    encoded = os.fsencode(stem)
    while len(encoded) > room:  # by characters, so that none is cut in two
        stem = stem[:-1]
        encoded = os.fsencode(stem)
    return stem + ending
