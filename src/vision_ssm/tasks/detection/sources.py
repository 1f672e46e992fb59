"""Images with annotated things: one split of a data folder.

``samples[i]`` is ``(picture or scene, Objects)``, in an order that is the same on every machine. Nothing is decoded
before it is asked for; annotation files are read when the folder is opened.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor

from vision_ssm.data.bands import AnyImage
from vision_ssm.data.files import looked_up
from vision_ssm.data.images import MAX_PIXELS
from vision_ssm.data.parts import is_held_out
from vision_ssm.data.scenes import read_any
from vision_ssm.data.shards import ShardSplit, is_packed, open_shards, splits_of_shards
from vision_ssm.data.splits import VAL_FRACTION, held_out
from vision_ssm.errors import DataError, VisionSSMNotice, suggestion
from vision_ssm.tasks.detection.layouts import Layout, find_layout, read_part
from vision_ssm.tasks.detection.packed import SUFFIX, annotated
from vision_ssm.tasks.detection.things import Annotated, Box, Fault, Listed, Outline, Thing, usable
from vision_ssm.tasks.legend import Colour, default_palette
from vision_ssm.tasks.matching import match_names

__all__ = ["SPLITS", "ObjectImages", "Objects", "count_labels", "matched", "open_objects", "own_splits"]

SPLITS = ("train", "val", "test", "all")


@dataclass(frozen=True, eq=False)
class Objects:
    """The things of one image, as annotated; N of them. They stay on the CPU when a batch is moved.

    Attributes:
        boxes: [N, 4] float64, left, top, right, bottom in pixels of the file; each has area in it, and those that
            reach more than half a pixel beyond its edges are cut there.
        labels: class indices [N] int64.
        crowd: [N] bool; these are neither learned nor counted.
        areas: [N] float64 in pixels, of the outline where the file says so, else of the box.
        outlines: per thing polygons or run lengths in pixels of the file, or None.
        size: (height, width) of the file.
    """

    boxes: Tensor
    labels: Tensor
    crowd: Tensor
    areas: Tensor
    outlines: list[Outline | None]
    size: tuple[int, int]


class ObjectImages:
    """Image files with their things, see `vision_ssm.data.batches.Samples`.

    Attributes:
        name: for titles and logs.
        class_names: in the order of the class indices.
        category_ids: the number of each class in the annotation files.
        palette: a colour for each class.
        paths: the image file of each sample.
        found: what these samples are, in a line for people.
        faults: what is wrong in their annotation files.
        outlined: (things, those with an outline), crowds aside.
        without_outline: name of the first image with a thing that has none; None where all have.
    """

    def __init__(
        self,
        name: str,
        parts: Sequence[Annotated],
        keep: Sequence[int],
        *,
        one_class: str | None = None,
        max_pixels: int = MAX_PIXELS,
        place: str = "",
        shards: ShardSplit | None = None,
    ) -> None:
        self.name = name
        self._shards = shards  # in which the images are, in their order; else in files
        self.class_names = parts[0].class_names if one_class is None else (one_class,)
        self.category_ids = parts[0].category_ids if one_class is None else (1,)
        self.palette: tuple[Colour, ...] = default_palette(len(self.class_names))
        listed = [image for part in parts for image in part.images]
        self._images = [listed[position] for position in keep]
        self._labels = [0 if one_class else label for label in range(len(parts[0].class_names))]
        self.paths = tuple(str(image.path) for image in self._images)
        self.scenes = None if shards is None else shards.scenes
        self.faults: tuple[Fault, ...] = tuple(fault for part in parts for fault in part.faults)
        self._digest = "/".join(part.digest for part in parts)
        self._max_pixels = max_pixels
        used = [[thing for thing, _ in _used(image, image.size)] for image in self._images]
        things = [thing for of_image in used for thing in of_image if not thing.crowd]
        self.outlined = len(things), sum(thing.outline is not None for thing in things)
        self.without_outline = next(
            (
                image.path.name
                for image, of_image in zip(self._images, used, strict=True)
                if any(thing.outline is None and not thing.crowd for thing in of_image)
            ),
            None,
        )
        self.found = _described(self, len(things), sum(not of_image for of_image in used), place)

    @property
    def fingerprint(self) -> str:
        """A digest of class names, file names and the annotation files."""
        digest = blake2b(digest_size=16)
        for text in (*self.class_names, *(Path(path).name for path in self.paths), self._digest):
            digest.update(f"{text}\n".encode(errors="surrogatepass"))  # file names need not be valid text
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[AnyImage, Objects]:
        """Decode one sample. Raises DataError naming the file: unreadable, or of another size than annotated."""
        listed = self._images[index]
        image = (
            read_any(listed.path, max_pixels=self._max_pixels)
            if self._shards is None
            else self._shards.image(index, max_pixels=self._max_pixels)
        )
        if listed.size is not None and image.size[::-1] != listed.size:
            raise DataError(
                f"image {str(listed.path)!r} has {image.height} x {image.width} pixels, and {str(listed.source)!r} "
                f"annotates one of {listed.size[0]} x {listed.size[1]}; annotate the file that is there."
            )
        return image, self._objects(listed, (image.height, image.width))

    def renumbered(self, outputs: Sequence[int], names: Sequence[str], ids: Sequence[int]) -> ObjectImages:
        """Return the same samples with class ``i`` as class ``outputs[i]`` of ``names``."""
        other: ObjectImages = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.class_names, other.category_ids = tuple(names), tuple(ids)
        other.palette = default_palette(len(names))
        other._labels = [outputs[label] for label in self._labels]
        return other

    def _objects(self, listed: Listed, size: tuple[int, int]) -> Objects:
        used = _used(listed, size)
        things = [thing for thing, _ in used]
        boxes = torch.tensor([box for _, box in used], dtype=torch.float64).view(-1, 4)
        outlines = [thing.outline for thing in things]
        if listed.relative:
            outlines = [_scaled(outline, *size) for outline in outlines]
        covered = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        areas = torch.tensor([thing.area for thing in things], dtype=torch.float64).view(-1)
        return Objects(
            boxes,
            torch.tensor([self._labels[thing.label] for thing in things], dtype=torch.int64).view(-1),
            torch.tensor([thing.crowd for thing in things], dtype=torch.bool).view(-1),
            torch.where(areas.isnan(), covered, areas),
            outlines,
            size,
        )


def _used(listed: Listed, size: tuple[int, int] | None) -> list[tuple[Thing, Box]]:
    """The things of an image of (height, width) that training and scores know, and their boxes, cut at its edges.

    Boxes are in pixels; where the size is not known yet they are as the file has them.
    """
    height, width = size or ((1, 1) if listed.relative else (math.inf, math.inf))
    across, down = (width, height) if listed.relative else (1, 1)
    found = []
    for thing in listed.things:
        left, top, right, bottom = thing.box
        box = usable((left * across, top * down, right * across, bottom * down), (height, width))
        if box is not None:
            found.append((thing, box))
    return found


def _scaled(outline: Outline | None, height: int, width: int) -> Outline | None:
    if outline is None or isinstance(outline, Mapping):
        return outline
    return [[v * (height if at % 2 else width) for at, v in enumerate(polygon)] for polygon in outline]


def open_objects(
    path: str | Path,
    split: str = "train",
    *,
    val_fraction: float = VAL_FRACTION,
    one_class: str | None = None,
    max_pixels: int = MAX_PIXELS,
    strict: bool = True,
) -> ObjectImages:
    """Open one split of a folder of annotated images; see `vision_ssm.tasks.detection.layouts` for its forms.

    Images without things are samples, too. What is wrong in the annotations and can be passed over (boxes outside the
    image or without area) is told by a `VisionSSMNotice`.

    Args:
        path: the folder; or one of shards, or an address of one (`vision_ssm.data.shards`).
        split: ``train``, ``val``, ``test`` (held-out data; the same as ``val`` where there is only one held-out part),
            or ``all``.
        val_fraction: share of the images to hold out where the folder does not say itself, in (0, 1), chosen by a hash
            of the name.
        one_class: take all categories for one of this name.
        max_pixels: see `vision_ssm.data.images.read_image`.
        strict: refuse annotations that are wrong; else they are only listed in ``faults``.

    Raises:
        DataError: missing, empty or unreadable data, or annotations that are wrong.
    """
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r}, expected one of {', '.join(SPLITS)}.{suggestion(split, SPLITS)}")
    if not 0 < val_fraction < 1:
        raise DataError(f"val_fraction must lie between 0 and 1, got {val_fraction}.")
    if is_packed(path):
        shards = open_shards(path, split, SUFFIX)
        known, place = annotated(shards), f"the shards {shards.place}"
        every = range(len(known.images))
        return ObjectImages(
            shards.name, [known], every, one_class=one_class, max_pixels=max_pixels, place=place, shards=shards
        )
    root = _folder(path)
    layout = _layout(root)
    name = root.resolve().name
    wanted = _wanted(layout, split)
    try:
        parts = [read_part(layout.parts[part]) for part in wanted]
        base = parts[0] if wanted[0] in ("train", "all") else read_part(layout.parts["train"])
    except OSError as error:
        raise DataError(f"cannot read the data folder {str(error.filename or root)!r}: {error.strerror}.") from error
    parts = [_of_classes(part, base) for part in parts]
    place = f"{layout.place}, {' and '.join(wanted)}"
    keep = list(range(sum(len(part.images) for part in parts)))
    held = {"val", "test"} & {*layout.parts}
    if split != "all" and not held and (split == "train" or not is_held_out(name)):
        names = [image.path.name for image in parts[0].images]
        chosen = held_out(names, [0] * len(names), val_fraction)
        keep = [at for at in keep if (at in chosen) == (split != "train")]
        place = f"{place}, {1 - val_fraction if split == 'train' else val_fraction:.0%} of them"
    if strict:
        _require_right(parts)
        if not keep:
            raise DataError(f"{place!r} has no images for {split!r}; add some.")
    samples = ObjectImages(name, parts, keep, one_class=one_class, max_pixels=max_pixels, place=place)
    if strict:
        _tell(samples.faults, place)
    return samples


def own_splits(path: str | Path) -> tuple[str, ...]:
    """Return the splits that a data folder has itself; `open_objects` cuts the others by ``val_fraction``.

    Raises:
        DataError: as `open_objects`.
    """
    if is_packed(path):
        return splits_of_shards(path)
    root = _folder(path)
    if {"val", "test"} & {*_layout(root).parts}:  # they stand for each other
        return ("train", "val", "test")
    return ("val", "test") if is_held_out(root.resolve().name) else ()


def matched(samples: ObjectImages, class_names: Sequence[str], category_ids: Sequence[int]) -> ObjectImages:
    """Return the samples with their classes numbered as a model's outputs, which it knows by these names.

    Raises:
        DataError: they have classes that the model does not know.
    """
    if samples.class_names == tuple(class_names):
        return samples
    advice = "Name them in the annotations as in training."
    outputs = match_names(class_names, samples.class_names, advice=advice)
    return samples.renumbered(outputs, class_names, category_ids)


def _folder(spec: str | Path) -> Path:
    path, kind = looked_up(spec)
    if kind == "folder":
        return path
    told = "is a file" if kind == "file" else "does not exist"
    raise DataError(f"data {str(spec)!r} {told}; give a folder of annotated images.")


def _layout(root: Path) -> Layout:
    try:
        return find_layout(root)
    except OSError as error:
        raise DataError(f"cannot read the data folder {str(error.filename or root)!r}: {error.strerror}.") from error


def _wanted(layout: Layout, split: str) -> list[str]:
    held = [part for part in ("val", "test") if part in layout.parts]
    base = "train" if "train" in layout.parts else "all"
    if split == "all":
        return [base, *held]
    if split == "train" or not held:
        return [base]
    return [held[-1] if split == "test" else held[0]]


def _of_classes(part: Annotated, base: Annotated) -> Annotated:
    """Require the classes of the training part. Numbered classes that nothing names may be fewer."""
    if (
        part.class_names == base.class_names[: len(part.class_names)]
        and part.category_ids == (base.category_ids[: len(part.category_ids)])
    ):
        return part._replace(class_names=base.class_names, category_ids=base.category_ids)
    raise DataError(
        f"the categories of {str(base.place)!r} and {str(part.place)!r} differ: {', '.join(base.class_names)}, and "
        f"{', '.join(part.class_names)}; they must be the same."
    )


def _require_right(parts: Sequence[Annotated]) -> None:
    wrong = [fault for part in parts for fault in part.faults if fault.refused]
    if wrong:
        more = f" So are {len(wrong) - 1:,} others; `vision-ssm data check` lists all." if len(wrong) > 1 else ""
        raise DataError(f"{wrong[0].file!r} is wrong: {wrong[0].text.rstrip('.')}.{more}")


def _tell(faults: Sequence[Fault], place: str) -> None:
    faults = [fault for fault in faults if not fault.harmless]
    if faults:
        first = f"{Path(faults[0].file).name}: {faults[0].text}"
        others = f", and {len(faults) - 1:,} more that `vision-ssm data check` lists" if len(faults) > 1 else ""
        warnings.warn(f"in the annotations of {place!r}, {first}{others}.", VisionSSMNotice, stacklevel=3)


def _described(samples: ObjectImages, things: int, empty: int, place: str) -> str:
    names = samples.class_names
    shown = ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:8])}, ..."
    without = f", {empty:,} of them without any" if empty else ""
    kinds = f"{len(names)} classes" if len(names) != 1 else "one class"
    return f"{len(samples.paths):,} images with {things:,} objects of {kinds} ({shown}){without} in {place}"


def count_labels(objects: Objects, class_names: Sequence[str]) -> dict[str, int]:
    """Return how many things of each class there are, crowds aside."""
    counts = Counter(objects.labels[~objects.crowd].tolist())
    return {name: counts[label] for label, name in enumerate(class_names)}
