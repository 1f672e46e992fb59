"""Which files of a data folder are images, what annotates them, and which of them are for training.

Understood are, in the folder or below folders that hold nothing but one folder:

- COCO: ``annotations/train.json`` (or ``instances_train2017.json``) with the images in ``train/`` or ``images/train/``,
  ``train/_annotations.coco.json``, or a single such file of everything;
- YOLO: ``data.yaml``, or ``images/`` and ``labels/`` with a text file per image, with or without ``train/``, ``val/``;
- Pascal VOC: ``JPEGImages/`` and ``Annotations/`` with an XML file per image, and the lists of ``ImageSets/Main/`` if
  there are any; or XML files beside the images.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vision_ssm.data.files import search
from vision_ssm.data.parts import EXACT, IMAGE_FOLDERS, named_folder, part_folder, visible_folders
from vision_ssm.errors import DataError
from vision_ssm.tasks.coco_files import CocoPart, find_coco
from vision_ssm.tasks.detection.coco import read_coco
from vision_ssm.tasks.detection.things import Annotated, Fault
from vision_ssm.tasks.detection.voc import VocPart, read_voc
from vision_ssm.tasks.detection.yolo import YoloPart, images_of, read_yolo

__all__ = ["Layout", "Part", "find_layout", "read_part", "recognise"]

Part = CocoPart | YoloPart | VocPart

_EXPECTED = (
    "expected COCO's annotations/train.json with the images in train/, YOLO's data.yaml or images/ and labels/, or "
    "Pascal VOC's JPEGImages/ and Annotations/"
)


class Layout(NamedTuple):
    """What a data folder holds.

    Attributes:
        place: the folder that everything is in.
        parts: by ``train``, ``val`` and ``test``; everything by ``all`` where nothing says what is for what.
        reason: why this is what it is, in words.
    """

    place: Path
    parts: Mapping[str, Part]
    reason: str


def find_layout(root: Path) -> Layout:
    """Find images and annotations in a data folder.

    Raises:
        DataError: there are none, or what is there does not fit together.
    """
    place = root
    for _ in range(8):  # a link may lead to a folder above
        folders = visible_folders(place)
        for find in (_coco, _yolo, _voc):
            found = find(place, folders)
            if found is not None:
                return found
        if len(folders) != 1:
            break
        place = folders[0]
    held = ", ".join([f"{folder.name}/" for folder in visible_folders(root)][:6]) or "no folders"
    raise DataError(f"no annotated images in {str(root)!r}, which holds {held}: {_EXPECTED}.")


def recognise(folder: Path) -> str | None:
    """Say why a folder can hardly be anything but images with annotated things; None where it can."""
    try:
        return find_layout(folder).reason
    except DataError:
        return None


def read_part(part: Part) -> Annotated:
    """Read the annotations of a part. Raises DataError: they cannot be read at all."""
    if isinstance(part, CocoPart):
        return read_coco(part)
    return read_yolo(part) if isinstance(part, YoloPart) else read_voc(part)


def _coco(place: Path, folders: Sequence[Path]) -> Layout | None:
    found: Mapping[str, Part] = find_coco(place, folders)
    if not found:
        images, listed = named_folder(folders, IMAGE_FOLDERS, place), named_folder(folders, ("annotations",), place)
        where = [path for path in (images, place) if path]
        files = [file for folder in (listed, *where) if folder for file in sorted(folder.glob("*.json"))]
        single = [file for file in files if _is_coco(file)]
        if len(single) > 1:
            raise DataError(f"{str(single[0])!r} and {single[1].name!r} are both COCO files of everything; keep one.")
        found = {"all": CocoPart(single[0], tuple(where))} if single else {}
    reason = ", ".join(file.annotations.name for file in found.values() if isinstance(file, CocoPart))
    return Layout(place, found, f"{reason} lists images and annotations") if found else None


def _is_coco(path: Path) -> bool:
    """Tell whether a file begins like one of COCO; all of it is read where nothing shorter can say."""
    try:
        with path.open(encoding="utf-8") as file:
            if file.read(1) != "{":
                return False
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys()


# --------------------------------------------------------------------------------------------------------------- YOLO


def _yolo(place: Path, folders: Sequence[Path]) -> Layout | None:
    settings = [path for path in sorted(place.glob("*.y*ml")) if path.suffix in (".yaml", ".yml")]
    described = [(path, content) for path in settings if (content := _described(path)) is not None]
    if len(described) > 1:
        listed = " and ".join(repr(path.name) for path, _ in described)
        raise DataError(f"{str(place)!r} has {listed}, each of which describes a YOLO data set; keep one.")
    if described:
        path, content = described[0]
        return Layout(place, _from_yaml(path, content), f"{path.name} names images and classes")
    images, labels = named_folder(folders, IMAGE_FOLDERS[:1], place), named_folder(folders, ("labels",), place)
    if images is None or labels is None or not any(_texts(labels)):
        return None
    names = _listed_names(place, labels)
    inner = {part: part_folder(visible_folders(images), part) for part in EXACT}
    parts = {part: YoloPart(folder, images_of([folder]), names) for part, folder in inner.items() if folder}
    if not parts:
        parts = {"all": YoloPart(images, images_of([images]), names)}
    _require_training(place, parts)
    return Layout(place, parts, f"{labels.name}/ holds text files for the images of {images.name}/")


def _texts(labels: Path) -> Iterable[Path]:
    return (path for path in labels.rglob("*.txt") if path.stem != "classes")


def _listed_names(place: Path, labels: Path) -> tuple[str, ...]:
    for path in (labels / "classes.txt", place / "classes.txt", place / "obj.names"):
        if path.is_file():
            return tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    return ()


def _described(path: Path) -> dict[str, Any] | None:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return content if isinstance(content, dict) and "names" in content and "train" in content else None


def _from_yaml(path: Path, content: dict[str, Any]) -> dict[str, YoloPart]:
    given = content["names"]
    names = [str(given[key]) for key in sorted(given)] if isinstance(given, dict) else given
    if not isinstance(names, list) or not names:
        raise DataError(f"{str(path)!r}: names must list the classes, got {str(given)[:80]}.")
    if isinstance(given, dict) and sorted(given) != list(range(len(given))):
        raise DataError(f"{str(path)!r}: names must number the classes from 0, got {sorted(given)[:8]}.")
    parts = {}
    for part, keys in EXACT.items():
        entries = next((content[key] for key in keys if content.get(key)), None)
        if entries is not None:
            places = [_place(path, content, str(entry)) for entry in _listing(entries)]
            images = images_of(places)
            if not images:
                raise DataError(f"{str(path)!r}: there are no images for {part} in {str(places[0])!r}.")
            parts[part] = YoloPart(path, images, tuple(map(str, names)))
    return parts


def _listing(entries: Any) -> list[Any]:
    return entries if isinstance(entries, list) else [entries]


def _place(path: Path, content: dict[str, Any], entry: str) -> Path:
    """Where an entry leads: below ``path`` of the file, or below its folder, or above it as exports often say."""
    bases = [path.parent / str(content.get("path") or "."), path.parent]
    stripped = entry[3:] if entry.startswith("../") else entry
    candidates = [base / text for text in dict.fromkeys((entry, stripped)) for base in dict.fromkeys(bases)]
    found = next((place for place in candidates if place.exists()), None)
    if found is None:
        raise DataError(f"{str(path)!r} names {entry!r}, which does not exist; looked for {str(candidates[0])!r}.")
    return found


# ---------------------------------------------------------------------------------------------------------------- VOC


def _voc(place: Path, folders: Sequence[Path]) -> Layout | None:
    images, listed = named_folder(folders, IMAGE_FOLDERS, place), named_folder(folders, ("annotations",), place)
    files: dict[str, _Pairs] = {}
    if images and listed:
        inner = {part: part_folder(visible_folders(listed), part) for part in EXACT}
        for part, folder in inner.items():
            other = part_folder(visible_folders(images), part)
            if folder and other:
                files[part] = _pairs(folder, other)
        if not files:
            files = _by_lists(place, _pairs(listed, images))
    else:
        for part in EXACT:
            folder = part_folder(folders, part)
            if folder:
                files[part] = _pairs(folder, folder)
        if not any(found.files for found in files.values()):
            files = {"all": _pairs(place, place)}
    files = {part: found for part, found in files.items() if found.files}
    if not files:
        return None
    of_all = tuple(source for found in files.values() for source, _ in found.files)
    parts = {part: VocPart(place, found.files, of_all, found.faults) for part, found in files.items()}
    _require_training(place, parts)
    first = next(iter(files.values())).files[0][0]
    return Layout(place, parts, f"{first.name} is an XML file of an image's things")


class _Pairs(NamedTuple):
    """XML files, the image of each or None, and what stands alone."""

    files: tuple[tuple[Path, Path | None], ...]
    faults: tuple[Fault, ...] = ()


def _pairs(folder: Path, images: Path) -> _Pairs:
    """XML files of a folder with the images of their names."""
    files = sorted(folder.glob("*.xml"))
    pictures = {path.stem: path for path in search(images).images} if files else {}
    known = {file.stem for file in files}
    alone = (path for stem, path in pictures.items() if stem not in known)
    faults = [Fault(str(path), f"has no {path.stem}.xml: it was never annotated") for path in alone]
    return _Pairs(tuple((file, pictures.get(file.stem)) for file in files), tuple(faults))


def _by_lists(place: Path, all_: _Pairs) -> dict[str, _Pairs]:
    """Part XML files as ``ImageSets/Main/train.txt`` and ``val.txt`` say; the names before the first blank count."""
    folder = place / "ImageSets" / "Main"
    known = {source.stem: (source, image) for source, image in all_.files}
    found = {}
    for part, path in ((part, folder / f"{part}.txt") for part in EXACT):
        if path.is_file():
            stems = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            faults = tuple(Fault(str(path), f"{stem}.xml is missing") for stem in stems if stem not in known)
            # Images that no XML file is of belong to no list; they are said once.
            alone = all_.faults if part == "train" else ()
            found[part] = _Pairs(tuple(known[stem] for stem in stems if stem in known), faults + alone)
    return found if "train" in found and found["train"].files else {"all": all_}


def _require_training(place: Path, parts: Mapping[str, Part]) -> None:
    if "train" not in parts and "all" not in parts:
        raise DataError(f"{str(place)!r} has {' and '.join(parts)} images but none to train on: {_EXPECTED}.")
