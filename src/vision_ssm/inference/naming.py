"""Names of the files that are written for images."""

from __future__ import annotations

from pathlib import Path

__all__ = ["free_name"]


def free_name(path: str, suffix: str, used: set[str]) -> str:
    """Return a file name after the image's and add it to ``used``; a name that is taken is numbered, from 2."""
    stem = Path(path).stem.replace(" ", "_")
    name, number = f"{stem}{suffix}", 2
    while name.lower() in used:  # file systems may not tell A from a
        name, number = f"{stem}_{number}{suffix}", number + 1
    used.add(name.lower())
    return name
