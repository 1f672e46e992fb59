"""Which files of a data folder are images, which are their masks, and which of them are for training.

Understood are, right in the folder or below folders that hold nothing but one folder:

- ``images/`` and ``annotations/`` (or ``masks/``, ``labels/``, ...), with or without ``train/``, ``val/``, ``test/`` in
  each; ADE20K is one of these;
- ``train/``, ``val/``, ``test/`` with such a pair of folders in each, or with files of the next kind;
- files ``NAME.jpg`` with ``NAME_mask.png`` beside them;
- COCO: ``annotations/train.json`` (or ``instances_train2017.json``) with the images in ``train/`` or ``images/train/``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vision_ssm.data.files import search
from vision_ssm.data.images import ARRAY_SUFFIX
from vision_ssm.data.parts import EXACT, IMAGE_FOLDERS, named_folder, part_folder, visible_folders
from vision_ssm.data.stored import STORED_SUFFIXES
from vision_ssm.errors import DataError
from vision_ssm.tasks.coco_files import CocoPart, find_coco

__all__ = ["Layout", "Pair", "find_layout", "recognise"]

CLASSES_FILES = ("classes.json", "palette.json")

_MASKS = (
    *("annotations", "annotation", "masks", "mask", "labels", "label", "gt", "groundtruth"),
    *("segmentations", "segmentation", "segmentationclass"),
)
_BESIDE = re.compile(r"[_-](mask|masks|label|labels|gt|seg|segmentation)$", re.IGNORECASE)

_EXPECTED = (
    "expected images/ and annotations/ (or masks/, labels/) with files of the same names, both with train/ and val/ in "
    "them or both without; or files NAME.jpg with NAME_mask.png beside them; or COCO's annotations/train.json with the "
    "images in train/"
)


class Pair(NamedTuple):
    """An image and its mask; ``name`` is the image's, from the data folder on."""

    name: str
    image: Path
    mask: Path


class Layout(NamedTuple):
    """What a data folder holds.

    Attributes:
        place: the folder that everything is in.
        parts: pairs by ``train``, ``val`` and ``test``; everything by ``all`` where nothing says what is for what.
        coco: the same, of COCO files; one of the two is empty.
        classes: the file that lists the classes, if any.
        is_ade20k: whether this is ADE20K as it is distributed: its masks need no such file.
        left_out: what belongs to no pair, in words.
    """

    place: Path
    parts: Mapping[str, Sequence[Pair]]
    coco: Mapping[str, CocoPart]
    classes: Path | None
    is_ade20k: bool
    left_out: tuple[str, ...]


def find_layout(root: Path) -> Layout:
    """Find images and masks in a data folder.

    Raises:
        DataError: there are none, parts or pairs do not fit together, or masks are in a lossy format.
    """
    place = root
    for _ in range(8):  # a link may lead to a folder above
        folders = visible_folders(place)
        coco = find_coco(place, folders)
        left_out: list[str] = []
        parts = {} if coco else _mask_parts(place, folders, left_out)
        if coco or parts:
            candidates = [folder / name for folder in (place, root) for name in CLASSES_FILES]
            classes = next((path for path in candidates if path.is_file()), None)
            return Layout(place, parts, coco, classes, _is_ade20k(place, parts), tuple(left_out))
        if len(folders) != 1:
            break
        place = folders[0]
    held = ", ".join([f"{folder.name}/" for folder in visible_folders(root)][:6]) or "no folders"
    raise DataError(f"no images with masks in {str(root)!r}, which holds {held}: {_EXPECTED}.")


def recognise(folder: Path) -> str | None:
    """Say why a folder can hardly be anything but images with masks; None where it can, as COCO files can."""
    try:
        parts = find_layout(folder).parts
    except DataError:
        return None
    pair = next((pairs[0] for pairs in parts.values() if pairs), None)
    return None if pair is None else f"{pair.mask.name} is a mask of {pair.name}"


def _mask_parts(place: Path, folders: Sequence[Path], left_out: list[str]) -> dict[str, Sequence[Pair]]:
    images, masks = named_folder(folders, IMAGE_FOLDERS, place), named_folder(folders, _MASKS, place)
    if images and masks:
        inner = {part: part_folder(visible_folders(images), part) for part in EXACT}
        if not any(inner.values()):
            return {"all": _paired(place, images, masks, left_out)}
        found: dict[str, Sequence[Pair]] = {}
        for part, folder in inner.items():
            other = part_folder(visible_folders(masks), part)
            if folder and other:
                found[part] = _paired(place, folder, other, left_out)
            for alone, missing in ((folder, masks), (other, images)):
                if alone and not (folder and other):
                    left_out.append(f"{_short(alone, place)}/, as {missing.name}/ has no such folder")
        return _with_training(place, found)
    parts = {part: part_folder(folders, part) for part in EXACT}
    found = {part: _one_part(place, folder, left_out) for part, folder in parts.items() if folder}
    found = {part: pairs for part, pairs in found.items() if pairs}
    if found:
        return _with_training(place, found)
    beside = _beside(place, place, left_out)
    return {"all": beside} if beside else {}


def _one_part(place: Path, folder: Path, left_out: list[str]) -> Sequence[Pair]:
    folders = visible_folders(folder)
    images, masks = named_folder(folders, IMAGE_FOLDERS, folder), named_folder(folders, _MASKS, folder)
    return _paired(place, images, masks, left_out) if images and masks else _beside(place, folder, left_out)


def _with_training(place: Path, found: dict[str, Sequence[Pair]]) -> dict[str, Sequence[Pair]]:
    if found and "train" not in found:
        raise DataError(
            f"{str(place)!r} has {' and '.join(found)} images with masks but none to train on: {_EXPECTED}."
        )
    return found


def _paired(place: Path, images: Path, masks: Path, left_out: list[str]) -> list[Pair]:
    """Pair the files of two folders by their names without suffix, subfolders included."""
    pictures = _by_stem(images, search(images).images)
    known = _by_stem(masks, _exact_files(masks, search(masks).images))
    if not pictures:
        raise DataError(f"{str(images)!r} holds no images; expected one for each mask in {str(masks)!r}.")
    pairs: dict[str, Path] = {}
    for stem, mask in known.items():
        of = stem if stem in pictures else _BESIDE.sub("", stem)
        if of not in pictures:
            first = next(iter(pictures.values()))
            raise DataError(
                f"mask {str(mask)!r} has no image of that name in {str(images)!r}, whose first is {first.name!r}; an "
                "image and its mask must be called alike, up to the suffix."
            )
        if of in pairs:
            raise DataError(
                f"masks {str(pairs[of])!r} and {str(mask)!r} are both of {pictures[of].name!r}; remove one."
            )
        pairs[of] = mask
    return _listed(place, images, pictures, pairs, left_out)


def _beside(place: Path, folder: Path, left_out: list[str]) -> list[Pair]:
    """Pair ``NAME.jpg`` with ``NAME_mask.png`` of one folder, subfolders included."""
    files = search(folder).images
    masks = [file for file in files if _BESIDE.search(file.stem)]
    if not masks:
        return []
    pictures = _by_stem(folder, [file for file in files if not _BESIDE.search(file.stem)])
    pairs: dict[str, Path] = {}
    for stem, mask in _by_stem(folder, _exact_files(folder, masks)).items():
        of = _BESIDE.sub("", stem)
        if of not in pictures:
            raise DataError(
                f"mask {str(mask)!r} has no image called {Path(of).name!r} beside it; add it, or remove it."
            )
        if of in pairs:
            raise DataError(
                f"masks {str(pairs[of])!r} and {str(mask)!r} are both of {pictures[of].name!r}; remove one."
            )
        pairs[of] = mask
    return _listed(place, folder, pictures, pairs, left_out)


def _listed(
    place: Path, folder: Path, pictures: Mapping[str, Path], pairs: Mapping[str, Path], left_out: list[str]
) -> list[Pair]:
    alone = [picture.name for stem, picture in pictures.items() if stem not in pairs]
    if alone:
        listed = f"{', '.join(alone[:3])}{', ...' if len(alone) > 3 else ''}"
        left_out.append(f"{len(alone):,} images without a mask in {_short(folder, place)}/ ({listed})")
    return [
        Pair(picture.relative_to(place).as_posix(), picture, pairs[stem])
        for stem, picture in pictures.items()
        if stem in pairs
    ]


def _by_stem(folder: Path, files: Sequence[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in files:
        stem = os.path.splitext(file.relative_to(folder).as_posix())[0]
        if stem in found:
            raise DataError(
                f"{str(found[stem])!r} and {file.name!r} have one name; which one is meant? Remove the other."
            )
        found[stem] = file
    return found


def _exact_files(folder: Path, files: Sequence[Path]) -> list[Path]:
    """Leave what can hold a mask; pictures of masks may lie beside them."""
    exact = [file for file in files if file.suffix.lower() in STORED_SUFFIXES]
    if not exact:
        if not files:
            raise DataError(f"{str(folder)!r} holds no masks; expected PNG files of a class index per pixel.")
        kind = (
            "arrays" if files[0].suffix == ARRAY_SUFFIX else f"{files[0].suffix} files, which may change their values"
        )
        raise DataError(
            f"mask {str(files[0])!r} cannot be used: masks are not read from {kind}. Export them as PNG of a class "
            "index per pixel, from their source."
        )
    return exact


def _is_ade20k(place: Path, parts: Mapping[str, Sequence[Pair]]) -> bool:
    named = place.name == "ADEChallengeData2016" or (place / "objectInfo150.txt").is_file()
    return named and any(pair.image.name.startswith("ADE_") for pairs in parts.values() for pair in pairs)


def _short(folder: Path, place: Path) -> str:
    return folder.relative_to(place).as_posix()
