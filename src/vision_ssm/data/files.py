"""Which files of a folder are images."""

from __future__ import annotations

import os
from pathlib import Path

from vision_ssm.data.images import IMAGE_SUFFIXES

__all__ = ["image_files", "is_visible"]


def image_files(folder: Path) -> list[Path]:
    """Return the image files (by suffix) in a folder and its subfolders, sorted; hidden ones are left out."""
    found: list[Path] = []
    visited: set[str] = set()
    for current, subfolders, files in os.walk(folder, followlinks=True):
        # A link to a folder above would be walked for ever.
        real = os.path.realpath(current)
        if real in visited:
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = sorted(name for name in subfolders if is_visible(name))
        found += [
            Path(current, name)
            for name in files
            if is_visible(name) and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
        ]
    return sorted(found)


def is_visible(name: str) -> bool:
    """Tell whether a file or folder is meant for people: neither hidden nor left by an archiver."""
    return not name.startswith((".", "__MACOSX"))
