"""Which folders and files are called like images to train on, to validate with or to test with."""

from __future__ import annotations

import re
from pathlib import Path

from vision_ssm.data.files import is_run, is_visible

__all__ = ["EXACT", "is_called", "is_held_out", "visible_folders"]

EXACT = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}
"""The spellings of old by part, which win over all others; in this order."""

_WORDS = {
    "train": "training|train|trn",
    "val": "validation|valid|val|dev",
    "test": "testing|test|tst|evaluation|eval|holdout",
}
_AROUND = "images|image|imgs|img|pictures|pics|photos|dataset|data|sets|set|split|folder|files|seg|jpg|jpeg|png|new"
_SPELLINGS = {part: re.compile(f"(?:{_AROUND})*(?:{words})(?:{_AROUND})*") for part, words in _WORDS.items()}


def is_called(name: str, part: str) -> bool:
    """Tell whether a name is some spelling of ``train``, ``val`` or ``test``, such as ``Training_Images``."""
    letters = re.sub(r"[\W\d_]", "", name.lower())
    return _SPELLINGS[part].fullmatch(letters) is not None


def is_held_out(name: str) -> bool:
    """Tell whether a folder of everything is itself called like held-out images, exactly."""
    return name.lower() in (*EXACT["val"], *EXACT["test"])


def visible_folders(folder: Path) -> list[Path]:
    """Return the folders in a folder that may be classes or parts, sorted by name; neither a system's nor a run's."""
    folders = [entry for entry in folder.iterdir() if is_visible(entry.name) and entry.is_dir() and not is_run(entry)]
    return sorted(folders, key=lambda path: path.name)
