"""YOLO folders: a text file per image, a line per thing, in shares of the image.

class  x_centre  y_centre  width  height          or          class  x0 y0  x1 y1  x2 y2  ...
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from vision_ssm.data.files import image_files
from vision_ssm.errors import DataError
from vision_ssm.tasks.detection.things import Annotated, Box, Fault, Listed, Thing, box_faults, named, usable

__all__ = ["YoloPart", "images_of", "label_file", "read_yolo"]

_ROUNDING = 0.005  # shares beyond the edge at which a box may end
_FARTHEST = 2.0  # shares from the corner; larger ones are pixels


class YoloPart(NamedTuple):
    """Images of one part, and the names of the classes by number; empty names where nothing lists them."""

    place: Path
    images: tuple[Path, ...]
    names: tuple[str, ...]


def label_file(image: Path) -> Path:
    """Return where the text file of an image is: in ``labels/`` for its ``images/``, else beside it."""
    parts = list(image.parts)
    for at in range(len(parts) - 2, -1, -1):
        if parts[at].lower() == "images":
            parts[at] = "labels"
            return Path(*parts).with_suffix(".txt")
    return image.with_suffix(".txt")


def read_yolo(part: YoloPart) -> Annotated:
    """Read the text files of a part's images. An image without one has no things.

    Raises:
        DataError: a file cannot be read.
    """
    faults: list[Fault] = []
    digest = blake2b(digest_size=16)
    listed, highest = [], len(part.names) - 1
    for image in part.images:
        source = label_file(image)
        things: list[Thing] = []
        if source.is_file():
            text = _read(source)
            digest.update(f"{source.name}\n{text}\n".encode(errors="surrogatepass"))
            things = _things(text, source, image, len(part.names), faults)
            highest = max([highest, *(thing.label for thing in things)])
        else:
            faults.append(Fault(str(image), f"has no {source.name}: it counts as one without objects", harmless=True))
        listed.append(Listed(image, source, None, tuple(things), relative=True))
    faults += _without_image(part.images)
    names = part.names or tuple(f"class {number}" for number in range(highest + 1))
    ids = tuple(range(len(names)))
    return Annotated(part.place, digest.hexdigest(), named(names, part.place), ids, tuple(listed), tuple(faults))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {str(path)!r}: {getattr(error, 'strerror', None) or error}.") from error


def _things(text: str, source: Path, image: Path, classes: int, faults: list[Fault]) -> list[Thing]:
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            label, *values = (float(word) for word in line.split())
            if label != int(label) or label < 0 or (classes and label >= classes):
                raise ValueError(f"class {label:g} is not one of the {classes}" if classes else f"class {label:g}")
            box, outline = _box(values)
        except (ValueError, OverflowError) as error:
            faults.append(Fault(str(source), f"line {number} ({line.strip()[:60]}): {error}", refused=True))
            continue
        thing = Thing(int(label), box, outline, math.nan, False, f"line {number}")
        wrong = [*box_faults(thing, None, image.name)] or [*_outside(box, number, image.name)]
        faults += [Fault(str(source), text) for text in wrong]
        found.append(thing)
    return found


def _outside(box: Box, number: int, image: str) -> Iterator[str]:
    shown = f"box {[round(value, 4) for value in box]} of line {number}"
    if usable(box, (1, 1)) is None:
        yield f"{shown} is outside {image}; it is left out"
    elif min(box) < -_ROUNDING or max(box) > 1 + _ROUNDING:
        yield f"{shown} reaches outside {image}; it is cut"


def _box(values: Sequence[float]) -> tuple[Box, list[list[float]] | None]:
    farthest = max(map(abs, values[:4] if len(values) == 5 else values), default=0.0)
    if farthest > _FARTHEST:
        raise ValueError(
            f"expected shares of the image's width and height, from 0 to 1, got {farthest:g}; divide pixels by them"
        )
    if len(values) in (4, 5):  # predictions have a score at the end
        x, y, width, height = values[:4]
        return (x - width / 2, y - height / 2, x + width / 2, y + height / 2), None
    if len(values) >= 6 and len(values) % 2 == 0:
        xs, ys = values[::2], values[1::2]
        return (min(xs), min(ys), max(xs), max(ys)), [list(values)]
    raise ValueError(f"expected a class and 4 numbers, or three or more corners, got {len(values) + 1} numbers")


def _without_image(images: Iterable[Path]) -> list[Fault]:
    """Text files beside those of the images that belong to none of them."""
    known = {label_file(image) for image in images}
    folders = {path.parent for path in known}
    alone = [
        path
        for folder in sorted(folders)
        if folder.is_dir()
        for path in sorted(folder.glob("*.txt"))
        if path not in known and path.stem.lower() not in ("classes", "train", "val", "test", "readme", "notes")
    ]
    pictures = {image.stem for image in images} if alone else set()
    return [Fault(str(path), "belongs to no image here") for path in alone if path.stem not in pictures]


def images_of(entries: Iterable[Path]) -> tuple[Path, ...]:
    """Return the images of folders and of text files that list images, in their order.

    Raises:
        DataError: naming what is missing.
    """
    found: list[Path] = []
    for entry in entries:
        if entry.is_dir():
            found += image_files(entry)
        elif entry.is_file() and entry.suffix.lower() == ".txt":
            lines = [line.strip() for line in _read(entry).splitlines() if line.strip()]
            listed = [path if (path := Path(line)).is_absolute() else entry.parent / line for line in lines]
            missing = next((path for path in listed if not path.is_file()), None)
            if missing is not None:
                raise DataError(f"image {str(missing)!r}, listed in {str(entry)!r}, is missing.")
            found += listed
        else:
            raise DataError(f"{str(entry)!r} is neither a folder of images nor a .txt file that lists some.")
    return tuple(sorted(dict.fromkeys(found)))
