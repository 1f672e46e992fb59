"""Pascal VOC files: an XML file per image, boxes by their first and last pixels, counted from 1.

The box of pixels 1 to 10 is therefore 0 to 10 here, where corners are counted. Many programs write VOC files with
other conventions, which shift edges by up to a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from vision_ssm.errors import DataError
from vision_ssm.tasks.detection.things import Annotated, Fault, Listed, Thing, box_faults, named

__all__ = ["VocPart", "read_voc"]


class VocPart(NamedTuple):
    """XML files of one part with their images.

    Attributes:
        place: the folder.
        files: with the image of each, None where there is none.
        of_all: those of all parts, for the classes.
        faults: of files and lists that do not belong together.
    """

    place: Path
    files: tuple[tuple[Path, Path | None], ...]
    of_all: tuple[Path, ...]
    faults: tuple[Fault, ...] = ()


def _names(files: Sequence[Path]) -> tuple[str, ...]:
    """The names of classes that occur in XML files, sorted."""
    return tuple(sorted({_text(thing, "name") for path in files for thing in _root(path).iter("object")}))


def read_voc(part: VocPart) -> Annotated:
    """Read the XML files of a part. Difficult things count as crowds: they are neither learned nor counted.

    Raises:
        DataError: a file cannot be read, or there are no classes.
    """
    names = named(_names(part.of_all), part.place)
    labels = {name: label for label, name in enumerate(names)}
    faults = list(part.faults)
    digest = blake2b(digest_size=16)
    listed = []
    for source, image in part.files:
        root = _root(source)
        digest.update(source.name.encode(errors="surrogatepass") + ElementTree.tostring(root))
        if image is None:
            shown = root.findtext("filename") or source.stem
            faults.append(Fault(str(source), f"image {shown!r} is missing", refused=True))
            continue
        size = _size(root)
        things = []
        for number, element in enumerate(root.iter("object"), 1):
            try:
                thing = _thing(element, number, labels)
            except (ValueError, OverflowError) as error:
                faults.append(Fault(str(source), f"object {number}: {error}", refused=True))
                continue
            faults += [Fault(str(source), text) for text in box_faults(thing, size, image.name)]
            things.append(thing)
        listed.append(Listed(image, source, size, tuple(things)))
    ids = tuple(range(1, len(names) + 1))
    ordered = tuple(sorted(listed, key=lambda image: image.path))
    return Annotated(part.place, digest.hexdigest(), names, ids, ordered, tuple(faults))


def _root(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(path).getroot()
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error.strerror}.") from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DataError(f"{str(path)!r} is no XML text ({error}).") from error


def _text(element: ElementTree.Element, name: str) -> str:
    return (element.findtext(name) or "").strip()


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    height, width = _text(root, "size/height"), _text(root, "size/width")
    known = height.isdigit() and width.isdigit() and int(height) > 0 and int(width) > 0
    return (int(height), int(width)) if known else None


def _thing(element: ElementTree.Element, number: int, labels: dict[str, int]) -> Thing:
    name = _text(element, "name")
    if not name:
        raise ValueError("it has no name")
    texts = [_text(element, f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")]
    if not all(texts):
        raise ValueError("it has no bndbox of xmin, ymin, xmax and ymax")
    left, top, right, bottom = map(float, texts)
    difficult = _text(element, "difficult") == "1"
    return Thing(labels[name], (left - 1, top - 1, right, bottom), None, math.nan, difficult, f"object {number}")
