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
from typing import Literal, NamedTuple

from vision_ssm.data.files import search
from vision_ssm.data.images import ARRAY_SUFFIX
from vision_ssm.data.parts import EXACT, IMAGE_FOLDERS, named_folder, part_folder, visible_folders
from vision_ssm.data.stored import STORED_SUFFIXES
from vision_ssm.errors import DataError
from vision_ssm.tasks.coco_files import CocoPart, find_coco

__all__ = ["Fault", "Layout", "Pair", "find_layout", "recognise"]

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


class Fault(NamedTuple):
    """What in a data folder is not used.

    Attributes:
        part: that it is of, as in `Layout.parts`.
        path: of the file or folder.
        text: what is wrong; a sentence that names it where it is ``refused``.
        kind: ``refused`` is an error for whoever wants to use the data, ``left out`` is told, and ``harmless`` is told
            as what may well be meant so.
    """

    part: str
    path: Path
    text: str
    kind: Literal["refused", "left out", "harmless"]


class Layout(NamedTuple):
    """What a data folder holds.

    Attributes:
        place: the folder that everything is in.
        parts: pairs by ``train``, ``val`` and ``test``; everything by ``all`` where nothing says what is for what. One
            without a usable pair is empty.
        coco: the same, of COCO files; one of the two is empty.
        classes: the file that lists the classes, if any.
        is_ade20k: whether this is ADE20K as it is distributed: its masks need no such file.
        faults: what belongs to no pair.
    """

    place: Path
    parts: Mapping[str, Sequence[Pair]]
    coco: Mapping[str, CocoPart]
    classes: Path | None
    is_ade20k: bool
    faults: tuple[Fault, ...]


def find_layout(root: Path) -> Layout:
    """Find images and masks in a data folder.

    Raises:
        DataError: there are none, or parts do not fit together.
    """
    place = root
    for _ in range(8):  # a link may lead to a folder above
        folders = visible_folders(place)
        coco = find_coco(place, folders)
        faults: list[Fault] = []
        parts = {} if coco else _mask_parts(place, folders, faults)
        if coco or parts:
            candidates = [folder / name for folder in (place, root) for name in CLASSES_FILES]
            classes = next((path for path in candidates if path.is_file()), None)
            return Layout(place, parts, coco, classes, _is_ade20k(place, parts), tuple(faults))
        if len(folders) != 1:
            break
        place = folders[0]
    held = ", ".join([f"{folder.name}/" for folder in visible_folders(root)][:6]) or "no folders"
    raise DataError(f"no images with masks in {str(root)!r}, which holds {held}: {_EXPECTED}.")


def recognise(folder: Path) -> str | None:
    """Say why a folder can hardly be anything but images with masks; None where it can, as COCO files can."""
    try:
        layout = find_layout(folder)
    except DataError:
        return None
    if any(fault.kind == "refused" for fault in layout.faults):
        return None
    pair = next((pairs[0] for pairs in layout.parts.values() if pairs), None)
    return None if pair is None else f"{pair.mask.name} is a mask of {pair.name}"


def _mask_parts(place: Path, folders: Sequence[Path], faults: list[Fault]) -> dict[str, Sequence[Pair]]:
    images, masks = named_folder(folders, IMAGE_FOLDERS, place), named_folder(folders, _MASKS, place)
    found: dict[str, Sequence[Pair]] = {}
    if images and masks:
        inner = {part: part_folder(visible_folders(images), part) for part in EXACT}
        if not any(inner.values()):
            return {"all": _paired("all", place, images, masks, faults)}
        for part, folder in inner.items():
            other = part_folder(visible_folders(masks), part)
            if folder and other:
                found[part] = _paired(part, place, folder, other, faults)
            elif folder:
                faults.append(_alone(part, folder, f"as {masks.name}/ has no such folder"))
            elif other:
                faults.append(Fault(part, other, f"as {images.name}/ has no such folder", "left out"))
        return _with_training(place, found)
    parts = {part: folder for part in EXACT if (folder := part_folder(folders, part))}
    found = {part: _one_part(part, place, folder, faults) for part, folder in parts.items()}
    told = {fault.part for fault in faults}
    if any(found.values()):
        faults += [
            _alone(part, parts[part], "without any mask") for part in found if not found[part] and part not in told
        ]
    found = {part: pairs for part, pairs in found.items() if pairs or part in told}
    if found:
        return _with_training(place, found)
    beside = _beside("all", place, place, faults)
    return {"all": beside} if beside or faults else {}


def _alone(part: str, folder: Path, text: str) -> Fault:
    """A folder of images that have no masks, which is usual for those to be tested on."""
    return Fault(part, folder, text, "harmless" if part == "test" else "left out")


def _one_part(part: str, place: Path, folder: Path, faults: list[Fault]) -> Sequence[Pair]:
    folders = visible_folders(folder)
    images, masks = named_folder(folders, IMAGE_FOLDERS, folder), named_folder(folders, _MASKS, folder)
    if images and masks:
        return _paired(part, place, images, masks, faults)
    return _beside(part, place, folder, faults)


def _with_training(place: Path, found: dict[str, Sequence[Pair]]) -> dict[str, Sequence[Pair]]:
    if found and "train" not in found:
        raise DataError(
            f"{str(place)!r} has {' and '.join(found)} images with masks but none to train on: {_EXPECTED}."
        )
    return found


def _paired(part: str, place: Path, images: Path, masks: Path, faults: list[Fault]) -> list[Pair]:
    """Pair the files of two folders, subfolders included."""
    pictures, files = search(images).images, search(masks).images
    if not pictures:
        told = f"{str(images)!r} holds no images; expected one for each mask in {str(masks)!r}."
        faults.append(Fault(part, images, told, "refused"))
    elif not files:
        told = f"{str(masks)!r} holds no masks; expected PNG files of a class index per pixel."
        faults.append(Fault(part, masks, told, "refused"))
    else:
        return _matched(part, place, (images, pictures), (masks, files), faults)
    return []


def _beside(part: str, place: Path, folder: Path, faults: list[Fault]) -> list[Pair]:
    """Pair ``NAME.jpg`` with ``NAME_mask.png`` of one folder, subfolders included."""
    files = search(folder).images
    masks = [file for file in files if _BESIDE.search(file.stem)]
    pictures = [file for file in files if not _BESIDE.search(file.stem)]
    return _matched(part, place, (folder, pictures), (folder, masks), faults) if masks else []


def _matched(
    part: str, place: Path, images: tuple[Path, list[Path]], masks: tuple[Path, list[Path]], faults: list[Fault]
) -> list[Pair]:
    """Pair images with masks, each a folder and its files, by their names without suffix."""

    def refuse(path: Path, text: str) -> None:
        faults.append(Fault(part, path, text, "refused"))

    pictures: dict[str, Path] = {}
    for picture in images[1]:
        first = pictures.setdefault(_stem(images[0], picture), picture)
        if first != picture:
            refuse(picture, f"{_both(first, picture)} have one name; which one is meant? Remove the other.")
    pairs: dict[str, Path] = {}
    others: list[Path] = []
    for mask in masks[1]:
        of = _pictured(_stem(masks[0], mask), pictures)
        if mask.suffix.lower() not in STORED_SUFFIXES:
            others.append(mask)
        elif of not in pictures:
            seen = f", whose first is {images[1][0].name!r}" if images[1] else ""
            refuse(
                mask,
                f"mask {str(mask)!r} has no image called {Path(of).name!r} in {str(images[0])!r}{seen}; an image and "
                "its mask must be called alike, up to the suffix.",
            )
        elif of in pairs:
            refuse(mask, f"masks {_both(pairs[of], mask)} are both of {pictures[of].name!r}; remove one.")
        else:
            pairs[of] = mask
    inexact = {file: _pictured(_stem(masks[0], file), pictures) for file in others}
    if len(others) < len(masks[1]):  # pictures of masks may lie beside them, but not in the place of one
        inexact = {file: of for file, of in inexact.items() if of in pictures and of not in pairs}
    for file in inexact:
        refuse(file, _not_exact(file))
    alone = pictures.keys() - pairs - set(inexact.values())
    faults += [Fault(part, picture, "without a mask", "left out") for of, picture in pictures.items() if of in alone]
    return [
        Pair(picture.relative_to(place).as_posix(), picture, pairs[of])
        for of, picture in pictures.items()
        if of in pairs
    ]


def _stem(folder: Path, file: Path) -> str:
    return os.path.splitext(file.relative_to(folder).as_posix())[0]


def _pictured(stem: str, pictures: Mapping[str, Path]) -> str:
    """The stem of the image that a mask is of."""
    return stem if stem in pictures else _BESIDE.sub("", stem)


def _both(first: Path, second: Path) -> str:
    return f"{str(first)!r} and {str(second)!r}"


def _not_exact(mask: Path) -> str:
    kind = "arrays" if mask.suffix == ARRAY_SUFFIX else f"{mask.suffix} files, which may change their values"
    return (
        f"mask {str(mask)!r} cannot be used: masks are not read from {kind}. Export them as PNG of a class index per "
        "pixel, from their source."
    )


def _is_ade20k(place: Path, parts: Mapping[str, Sequence[Pair]]) -> bool:
    named = place.name == "ADEChallengeData2016" or (place / "objectInfo150.txt").is_file()
    return named and any(pair.image.name.startswith("ADE_") for pairs in parts.values() for pair in pairs)
