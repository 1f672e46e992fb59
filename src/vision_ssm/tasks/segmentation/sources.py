"""Images with masks: folders of both in the usual layouts, and COCO files.

Every data set here is map-style: ``dataset[i]`` is ``(picture or scene, mask)``, in an order that is the same on every
machine. Nothing is decoded before it is asked for, but where no file lists the classes: then the masks are searched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision import tv_tensors

from vision_ssm.data.bands import AnyImage
from vision_ssm.data.contents import contents_digest
from vision_ssm.data.files import looked_up
from vision_ssm.data.images import MAX_PIXELS
from vision_ssm.data.parts import is_held_out
from vision_ssm.data.scenes import read_any
from vision_ssm.data.shards import is_packed, splits_of_shards
from vision_ssm.data.splits import VAL_FRACTION, held_out
from vision_ssm.data.subset import Subset
from vision_ssm.errors import DataError, suggestion
from vision_ssm.tasks.legend import Colour, default_palette
from vision_ssm.tasks.matching import match_names
from vision_ssm.tasks.segmentation.checks import described, faults_of, require_labels, require_whole
from vision_ssm.tasks.segmentation.classes import ClassList, ade20k, numbered, read_classes
from vision_ssm.tasks.segmentation.coco import CocoImages, fill, read_coco
from vision_ssm.tasks.segmentation.labels import FoundLabels, LabelTable
from vision_ssm.tasks.segmentation.layouts import Fault, Layout, Pair, find_layout
from vision_ssm.tasks.segmentation.masks import IGNORE, read_mask
from vision_ssm.tasks.segmentation.packed import open_packed, with_mask

__all__ = ["SPLITS", "ChosenMasks", "CocoMasks", "MaskFolder", "MaskSamples", "matched", "open_masks", "own_splits"]

SPLITS = ("train", "val", "test", "all")


class MaskSamples(Protocol):
    """Images with a class per pixel, see `vision_ssm.data.batches.Samples`.

    Attributes:
        name: for titles and logs.
        class_names: in the order of the class indices.
        palette: a colour for each class.
        paths: the image file of each sample.
        mask_paths: the file that its mask comes from.
        found: what these samples are, in a line for people.
    """

    name: str
    class_names: tuple[str, ...]
    palette: tuple[Colour, ...]
    paths: tuple[str, ...]
    mask_paths: tuple[str, ...]
    found: str

    @property
    def fingerprint(self) -> str:
        """A digest of class names, file names and masks; folders may move."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def __getitem__(self, index: int) -> tuple[AnyImage, tv_tensors.Mask]:
        """Decode one sample: (RGB picture or scene, class indices uint8 [H, W] of its size, 255 where none counts).

        Where a scene holds no data, no class counts.

        Raises:
            DataError: naming the file: unreadable, of another size than its image, or with labels out of range.
        """

    def mask(self, index: int) -> NDArray[np.uint8]:
        """Decode the class indices [H, W] alone. Raises DataError as above, but does not compare sizes."""


def open_masks(
    path: str | Path,
    split: str = "train",
    *,
    val_fraction: float = VAL_FRACTION,
    max_pixels: int = MAX_PIXELS,
    look_ahead: bool = True,
) -> MaskSamples:
    """Open one split of a folder of images with masks; see `vision_ssm.tasks.segmentation.layouts` for its forms.

    ``classes.json`` (or ``palette.json``) in it names the classes, and the number or colour that stands for each, see
    `vision_ssm.tasks.segmentation.classes.read_classes`. Without one, ADE20K as it is distributed has its own 150, and
    the classes of any other data are the numbers in all of its masks. COCO files bring theirs.

    Images without a mask are left out, which ``found`` and a `VisionSSMNotice` tell. What else does not fit is an
    error, and so are masks of training without a labelled pixel; of those of other parts a notice tells.

    Args:
        path: the folder; or one of shards, or an address of one (`vision_ssm.data.shards`).
        split: ``train``, ``val``, ``test`` (held-out data; the same as ``val`` where there is only one held-out part),
            or ``all``.
        val_fraction: share of the images to hold out where the folder does not say itself, in (0, 1), chosen by a hash
            of the relative path: the choice is the same on every machine and nearly unaffected by new files.
        max_pixels: see `vision_ssm.data.images.read_image`.
        look_ahead: read some of the masks now, to refuse wrong numbers in them before any work is done. Without it
            whoever opens them is going to look himself: what else does not fit is among their ``faults``, and masks
            that cannot be read are skipped in the search for classes.

    Raises:
        DataError: missing, empty or unreadable data, masks that do not belong to images, or fewer than two classes.
    """
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r}, expected one of {', '.join(SPLITS)}.{suggestion(split, SPLITS)}")
    if not 0 < val_fraction < 1:
        raise DataError(f"val_fraction must lie between 0 and 1, got {val_fraction}.")
    if is_packed(path):
        return open_packed(path, split, max_pixels)
    root = _folder(path)
    try:
        layout = find_layout(root)
        name = root.resolve().name
        if layout.coco:
            return _open_coco(layout, name, split, val_fraction, max_pixels)
        if look_ahead:
            require_whole(layout.faults)
        classes = _classes(layout, max_pixels, skip_unreadable=not look_ahead)
        part, pairs, place = _chosen(layout.parts, split, val_fraction, str(root), is_held_out(name))
    except OSError as error:
        raise DataError(f"cannot read the data folder {str(error.filename or root)!r}: {error.strerror}.") from error
    if look_ahead:
        require_labels(pairs, classes, max_pixels, split)
    faults = faults_of(part, layout.faults, layout.parts)
    found = described(len(pairs), classes.names, place, layout.place, faults)
    return MaskFolder(name, classes, pairs, max_pixels, found, faults)


def own_splits(path: str | Path) -> tuple[str, ...]:
    """Return the splits that a data folder has itself; `open_masks` cuts the others by ``val_fraction``.

    Raises:
        DataError: as `open_masks`.
    """
    if is_packed(path):
        return splits_of_shards(path)
    root = _folder(path)
    try:
        layout = find_layout(root)
    except OSError as error:
        raise DataError(f"cannot read the data folder {str(error.filename or root)!r}: {error.strerror}.") from error
    if {"val", "test"} & {*layout.parts, *layout.coco}:  # they stand for each other
        return ("train", "val", "test")
    return ("val", "test") if is_held_out(root.resolve().name) else ()


def matched(samples: MaskSamples, class_names: Sequence[str], palette: Sequence[Colour]) -> MaskSamples:
    """Return the samples with their classes numbered as a model's outputs, which it knows by these names.

    Raises:
        DataError: they have classes that the model does not know.
    """
    if samples.class_names == tuple(class_names):
        return samples
    advice = "Name them in classes.json as in training."
    return _Renumbered(samples, match_names(class_names, samples.class_names, advice=advice), class_names, palette)


class MaskFolder:
    """Image files with mask files; attributes as in `MaskSamples`, and ``faults``: what of the folder is not used."""

    def __init__(
        self,
        name: str,
        classes: ClassList,
        pairs: Sequence[Pair],
        max_pixels: int = MAX_PIXELS,
        found: str = "",
        faults: Sequence[Fault] = (),
    ) -> None:
        self.name, self.found, self.faults = name, found, tuple(faults)
        self.class_names, self.palette = classes.names, classes.palette
        self.paths = tuple(str(pair.image) for pair in pairs)
        self.mask_paths = tuple(str(pair.mask) for pair in pairs)
        self._colours, self._table, self._max_pixels = classes.colours, LabelTable(classes), max_pixels

    @property
    def fingerprint(self) -> str:
        """A digest of class names, file names, and the content of an even sample of the masks."""
        return _fingerprint(self, contents_digest(self.mask_paths))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[AnyImage, tv_tensors.Mask]:
        return _sample(self, index, self._max_pixels)

    def mask(self, index: int) -> NDArray[np.uint8]:
        """Decode one mask."""
        path = self.mask_paths[index]
        return self._table.classes(read_mask(path, colours=self._colours, max_pixels=self._max_pixels), path)


class CocoMasks:
    """Image files with outlines in a COCO file; attributes as in `MaskFolder`."""

    def __init__(
        self,
        name: str,
        parts: Sequence[CocoImages],
        keep: Sequence[int],
        max_pixels: int = MAX_PIXELS,
        found: str = "",
        faults: Sequence[Fault] = (),
    ) -> None:
        self.name, self.found, self.faults = name, found, tuple(faults)
        self.class_names = parts[0].class_names
        self.palette = ((0, 0, 0), *default_palette(len(self.class_names) - 1))
        listed = [(part.source, *image) for part in parts for image in part.images]
        self._images = [listed[position] for position in keep]
        self.paths = tuple(str(path) for _, path, _, _ in self._images)
        self.mask_paths = tuple(str(source) for source, _, _, _ in self._images)
        self._digest = "/".join(part.digest for part in parts)
        self._max_pixels = max_pixels

    @property
    def fingerprint(self) -> str:
        """A digest of class names, file names and the COCO files."""
        return _fingerprint(self, self._digest)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[AnyImage, tv_tensors.Mask]:
        return _sample(self, index, self._max_pixels)

    def mask(self, index: int) -> NDArray[np.uint8]:
        """Fill the outlines of one image."""
        source, _, size, outlines = self._images[index]
        return fill(outlines, size, self.class_names, source)


class ChosenMasks(Subset):
    """Some of the samples of a data set; attributes as in `MaskSamples`."""

    def __init__(self, samples: MaskSamples, positions: Sequence[int], found: str | None = None) -> None:
        super().__init__(samples, positions, ("mask_paths",), found)

    def mask(self, index: int) -> NDArray[np.uint8]:
        """Decode one mask."""
        labels: NDArray[np.uint8] = self._samples.mask(self._positions[index])  # type: ignore[attr-defined]
        return labels


class _Renumbered:
    def __init__(
        self, samples: MaskSamples, outputs: Sequence[int], class_names: Sequence[str], palette: Sequence[Colour]
    ) -> None:
        self._samples = samples
        self._table = np.full(256, IGNORE, np.uint8)
        self._table[: len(outputs)] = outputs
        self.class_names, self.palette = tuple(class_names), tuple(palette)
        self.name, self.found = samples.name, samples.found
        self.paths, self.mask_paths = samples.paths, samples.mask_paths
        self.scenes = getattr(samples, "scenes", None)

    @property
    def fingerprint(self) -> str:
        return _fingerprint(self, self._samples.fingerprint)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[AnyImage, tv_tensors.Mask]:
        image, mask = self._samples[index]
        return image, tv_tensors.Mask(torch.from_numpy(self._table[mask.numpy()]))

    def mask(self, index: int) -> NDArray[np.uint8]:
        return self._table[self._samples.mask(index)]


def _sample(samples: MaskSamples, index: int, max_pixels: int) -> tuple[AnyImage, tv_tensors.Mask]:
    image, mask = read_any(samples.paths[index], max_pixels=max_pixels), samples.mask(index)
    if image.size[::-1] != mask.shape:
        raise DataError(
            f"image {samples.paths[index]!r} has {image.height} x {image.width} pixels and its mask, from "
            f"{samples.mask_paths[index]!r}, {mask.shape[0]} x {mask.shape[1]}; export both at the same size."
        )
    return with_mask(image, mask)


def _fingerprint(samples: MaskSamples, masks: str) -> str:
    digest = blake2b(digest_size=16)
    for text in (*samples.class_names, *(Path(path).name for path in samples.paths), masks):
        digest.update(f"{text}\n".encode(errors="surrogatepass"))  # file names need not be valid text
    return digest.hexdigest()


def _folder(spec: str | Path) -> Path:
    path, kind = looked_up(spec)
    if kind == "folder":
        return path
    told = "is a file" if kind == "file" else "does not exist"
    raise DataError(f"data {str(spec)!r} {told}; give a folder of images with masks.")


def _classes(layout: Layout, max_pixels: int, *, skip_unreadable: bool) -> ClassList:
    if layout.classes is not None:
        return read_classes(layout.classes)
    if layout.is_ade20k:
        return ade20k()
    found = FoundLabels()
    unreadable: DataError | None = None
    for pair in chain.from_iterable(layout.parts.values()):
        try:
            labels = read_mask(pair.mask, max_pixels=max_pixels)
        except DataError as error:
            if not skip_unreadable:
                raise
            unreadable = unreadable or error
        else:
            found.add(labels, pair.mask)
    if not found.values:
        require_whole(layout.faults)
        if unreadable is not None:
            raise unreadable
    return numbered(found.values)


def _chosen(
    parts: Mapping[str, Sequence[Pair]], split: str, val_fraction: float, place: str, is_held: bool
) -> tuple[str, Sequence[Pair], str]:
    """The part that a split is taken from, its pairs, and in words where they are."""
    if split == "all":
        return "all", [pair for pairs in parts.values() for pair in pairs], place
    held = [part for part in ("val", "test") if part in parts]
    if held and split != "train":
        part = held[-1] if split == "test" else held[0]
        return part, parts[part], f"{place}, {part}"
    (part, everything), *_ = parts.items()  # train, or all
    if held:
        return part, everything, f"{place}, train"
    if is_held and split != "train":
        return part, everything, place
    keep, share = _divided([pair.name for pair in everything], split, val_fraction, place)
    return part, [everything[position] for position in keep], f"{place}, {share}"


def _divided(names: Sequence[str], split: str, val_fraction: float, place: str) -> tuple[list[int], str]:
    chosen = held_out(names, [0] * len(names), val_fraction)
    keep = [position for position in range(len(names)) if (position in chosen) == (split != "train")]
    if not keep:
        raise DataError(f"{place!r} has one image with a mask, so nothing can be held out for {split!r}; add images.")
    return keep, f"{1 - val_fraction if split == 'train' else val_fraction:.0%} of them"


def _open_coco(layout: Layout, name: str, split: str, val_fraction: float, max_pixels: int) -> CocoMasks:
    held = [part for part in ("val", "test") if part in layout.coco]
    wanted = ["train"]
    if split == "all":
        wanted += held
    elif split != "train" and held:
        wanted = [held[-1] if split == "test" else held[0]]
    parts = [read_coco(layout.coco[part], max_pixels=max_pixels) for part in wanted]
    trained = parts[0] if wanted[0] == "train" else read_coco(layout.coco["train"], max_pixels=max_pixels)
    for part in parts:
        if part.class_names != trained.class_names:
            raise DataError(
                f"the categories of {str(trained.source)!r} and {str(part.source)!r} differ: "
                f"{', '.join(trained.class_names)}, and {', '.join(part.class_names)}; they must be the same."
            )
    keep, place = list(range(sum(len(part.images) for part in parts))), f"{layout.place}, {' and '.join(wanted)}"
    if not held and split != "all":
        keep, share = _divided([path.name for path, _, _ in parts[0].images], split, val_fraction, place)
        place = f"{place}, {share}"
    faults = [
        Fault(named, part.source, f"with {part.without_outline:,} annotations without an outline", "left out")
        for named, part in zip(wanted, parts, strict=True)
        if part.without_outline
    ]
    found = described(len(keep), trained.class_names, place, layout.place, faults)
    return CocoMasks(name, parts, keep, max_pixels, found, faults)
