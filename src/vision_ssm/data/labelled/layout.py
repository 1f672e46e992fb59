"""Which folders of a data folder are its parts, and which are classes.

What can be told from names alone is often wrong: ``train`` is also a vehicle, and ``Test`` a class of nothing. So a
folder counts as a part only if it holds folders of images, and what cannot be meant is refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vision_ssm.data.files import holds_images, is_visible
from vision_ssm.data.images import IMAGE_SUFFIXES
from vision_ssm.data.parts import EXACT, is_called, visible_folders
from vision_ssm.errors import DataError

__all__ = ["Layout", "find_layout", "recognise"]


class Layout(NamedTuple):
    """Where the class folders are.

    Attributes:
        whole: of everything, where nothing says which images are for what; else None.
        train: of the images to train on, or None.
        val: of held-out images, or None.
        test: of more of them, or None.
        left_out: folders beside these.
    """

    whole: Path | None
    train: Path | None = None
    val: Path | None = None
    test: Path | None = None
    left_out: tuple[str, ...] = ()


def find_layout(root: Path) -> Layout:
    """Find the parts of a data folder, below folders that hold nothing but one folder where there are such.

    Raises:
        DataError: parts that do not belong together, or that could be several.
    """
    left_out: tuple[str, ...] = ()
    places = [root, *_nested(root)]
    for place, inner in zip(places, [*places[1:], None], strict=True):
        found = _parts(place)
        if found is not None:
            return found._replace(left_out=(*left_out, *found.left_out))
        left_out = (*left_out, *(_others(place, [inner]) if inner else ()))
    return Layout(places[-1], left_out=left_out) if len(_full(places[-1])) > 1 else Layout(root)


def recognise(folder: Path) -> str | None:
    """Say why a folder can hardly be anything but images in class folders, from names alone; None where it can."""
    try:
        layout = find_layout(folder)
    except DataError:
        return None
    classes = [inner for inner in visible_folders(layout.train or layout.whole or folder) if _has_images(inner)]
    stems = {frozenset(file.stem for file in inner.iterdir()) for inner in classes}
    if len(classes) < 2 or len(stems) < len(classes):  # equal names belong together, as an image's and its mask's
        return None
    return f"folders of images per class: {_and(classes[:3])}{' and more' if len(classes) > 3 else ''}"


def _parts(place: Path) -> Layout | None:
    folders = visible_folders(place)
    train, val, test = (_find(place, folders, part) for part in EXACT)
    if train is not None and _is_class(train, [folder for folder in folders if folder not in (train, val, test)]):
        train = None
    held = [folder for folder in (val, test) if folder is not None]
    if train is None and held:
        raise DataError(
            f"{str(place)!r} has {_and(held)} but no train/ folder; add one to train, give {str(held[0])!r} itself to "
            "evaluate, or give a folder of class folders (a class of that name needs another one)."
        )
    if train is None:
        _refuse_unlabelled(place, folders)
        return None
    others = [folder for folder in folders if folder not in (train, *held)]
    if train.name not in EXACT["train"] and not held and any(map(holds_images, others)):
        raise DataError(
            f"{str(place)!r} has {train.name}/, which looks like the images to train on, and {_and(others[:5])} with "
            "more images. Move them apart: either train/ and val/ with the class folders in each, or class folders."
        )
    train_tree, val_tree, test_tree = (folder and _unwrapped(folder) for folder in (train, val, test))
    return Layout(None, train_tree, val_tree, test_tree, _others(place, [train, *held]))


def _find(place: Path, folders: Sequence[Path], part: str) -> Path | None:
    exact = next((place / name for name in EXACT[part] if (place / name).is_dir()), None)
    if exact is not None:
        return exact
    found = [folder for folder in folders if is_called(folder.name, part) and _full(folder)]
    if len(found) > 1:
        raise DataError(
            f"{str(place)!r} has {_and(found)}, and each could be its {part} images; rename the one to use to {part}/ "
            "and move the others away."
        )
    return found[0] if found else None


def _is_class(train: Path, others: Sequence[Path]) -> bool:
    """Tell whether ``train/`` is a class, of vehicles: images right in it, and other classes beside it."""
    return _has_images(train) and not _full(train) and any(map(_has_images, others))


def _refuse_unlabelled(place: Path, folders: Sequence[Path]) -> None:
    named = {part: [f for f in folders if is_called(f.name, part) and _has_images(f)] for part in EXACT}
    if named["train"] and (named["val"] or named["test"]):
        alike = [folder for found in named.values() for folder in found]
        raise DataError(
            f"{_and(alike)} in {str(place)!r} hold images but no class folders; put the images of each class into a "
            "folder named after the class."
        )


def _nested(place: Path) -> list[Path]:
    """Return the folders, one in the other, that each hold all there is in ``place``, down to where it branches."""
    found: list[Path] = []
    while len(found) < 8 and not _has_images(place):  # a link may lead to a folder above
        full = _full(place)
        if len(full) != 1 or _has_images(full[0]):
            break
        place = full[0]
        found.append(place)
    return found


def _unwrapped(tree: Path) -> Path:
    nested = _nested(tree)
    return nested[-1] if nested and len(_full(nested[-1])) > 1 else tree


def _full(folder: Path) -> list[Path]:
    """Return the first two folders in a folder that hold images: none, one and several is all that matters."""
    return list(itertools.islice(filter(holds_images, visible_folders(folder)), 2))


def _has_images(folder: Path) -> bool:
    return any(
        is_visible(entry.name) and entry.suffix.lower() in IMAGE_SUFFIXES and entry.is_file()
        for entry in folder.iterdir()
    )


def _others(place: Path, used: Sequence[Path]) -> tuple[str, ...]:
    return tuple(f"{folder.name}/" for folder in visible_folders(place) if folder not in used)


def _and(folders: Sequence[Path]) -> str:
    return " and ".join(f"{folder.name}/" for folder in folders)
