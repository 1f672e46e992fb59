"""Which folders and files are called like images to train on, to validate with or to test with."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from vision_ssm.data.files import is_run, is_visible
from vision_ssm.errors import DataError

__all__ = ["EXACT", "IMAGE_FOLDERS", "is_called", "is_held_out", "named_folder", "part_folder", "visible_folders"]

EXACT = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}
"""The spellings of old by part, which win over all others; in this order."""

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages", "pictures", "photos", "rgb")
"""How folders of images are called, without digits and signs."""

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


def named_folder(folders: Iterable[Path], names: Sequence[str], place: Path) -> Path | None:
    """Return the folder that is called like one of ``names``, digits and signs aside; the first name wins if exact.

    Raises:
        DataError: several in ``place`` are, and none exactly like the first.
    """
    found = [folder for folder in folders if re.sub(r"[\W\d_]", "", folder.name.lower()) in names]
    exact = [folder for folder in found if folder.name.lower() in names[:1]]
    if len(found) > 1 and not exact:
        listed = " and ".join(f"{folder.name}/" for folder in found)
        raise DataError(f"{str(place)!r} has {listed}, and each could be meant; move all but one away.")
    return next(iter([*exact, *found]), None)


def part_folder(folders: Sequence[Path], part: str) -> Path | None:
    """Return the folder that is called like ``train``, ``val`` or ``test``; exact spellings win.

    Raises:
        DataError: several could be meant.
    """
    exact = next((folder for name in EXACT[part] for folder in folders if folder.name == name), None)
    found = [folder for folder in folders if is_called(folder.name, part)]
    if exact is None and len(found) > 1:
        listed = " and ".join(f"{folder.name}/" for folder in found)
        raise DataError(
            f"{str(found[0].parent)!r} has {listed}, and each could be its {part} images; rename the one to use to "
            f"{part}/ and move the others away."
        )
    return exact or next(iter(found), None)
