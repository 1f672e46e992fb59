"""Labelled images: a folder of class folders, or a well-known data set by name.

Every data set here is map-style: ``dataset[i]`` is ``(picture or scene, class index)``, in an order that is the same on
every machine. Nothing is decoded before it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from vision_ssm.data.bands import AnyImage
from vision_ssm.data.files import looked_up
from vision_ssm.data.images import MAX_PIXELS
from vision_ssm.data.labelled.fingerprints import fingerprint
from vision_ssm.data.labelled.folders import open_folder, splits_of_folder
from vision_ssm.data.labelled.named import DATASET_NAMES, open_named, splits_of_named
from vision_ssm.data.labelled.packed import open_packed
from vision_ssm.data.shards import is_packed, splits_of_shards
from vision_ssm.data.splits import VAL_FRACTION
from vision_ssm.errors import DataError, suggestion

__all__ = ["DATASET_NAMES", "SPLITS", "ClassSamples", "open_dataset", "own_splits", "renumbered"]

SPLITS = ("train", "val", "test", "all")


class ClassSamples(Protocol):
    """Images with one class each, see `vision_ssm.data.batches.Samples`.

    Attributes:
        name: for titles and logs.
        class_names: in the order of the class indices (sorted by name).
        paths: one file name (or, where there are no files, an identifier such as ``digits/0042``) per sample.
        targets: one class index per sample.
        mirror_safe: whether an image mirrored left-right still belongs to its class.
    """

    name: str
    class_names: tuple[str, ...]
    paths: tuple[str, ...]
    targets: tuple[int, ...]
    mirror_safe: bool

    @property
    def fingerprint(self) -> str:
        """A digest of class names, file names and classes; folders may move."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def __getitem__(self, index: int) -> tuple[AnyImage, int]:
        """Decode one sample: (RGB picture or scene, class index). Raises DataError naming the file if that fails."""


def open_dataset(
    spec: str | Path,
    split: str = "train",
    *,
    val_fraction: float = VAL_FRACTION,
    download: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> ClassSamples:
    """Open one split of a data set.

    Args:
        spec: a folder, or one of `DATASET_NAMES` (``digits``, ``cifar10``, ...). For a folder whose name is one of
            these write ``./digits``. A folder holds either ``train/`` and ``val/`` (or ``validation/``, ``valid/``,
            ``test/``; other spellings such as ``Training/`` and ``test_images/`` where there are class folders in
            them) with the same class folders in each, or the class folders themselves, possibly inside the only
            folder there is. What a system or a training run left in it is no data. In the second case, and
            when ``val/`` is missing, ``val_fraction`` of each class is held out, chosen by a hash of the relative
            path: the choice is the same on every machine and nearly unaffected by new files. A folder of class
            folders that is itself called ``val``, ``validation``, ``valid`` or ``test`` is taken whole when
            a held-out split is asked for. Or a folder of shards, or an address of one (`vision_ssm.data.shards`).
        split: ``train``, ``val``, ``test`` (held-out data; the same as ``val`` where a data set has only one
            held-out part), or ``all``.
        val_fraction: share of each class to hold out where the data set does not say itself, in (0, 1).
        download: whether a named data set may be fetched when it is not on this machine.
        max_pixels: see `vision_ssm.data.images.read_image`.

    Raises:
        DataError: missing, empty or unreadable data, unknown name, or classes that differ between the splits.
    """
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r}, expected one of {', '.join(SPLITS)}.{suggestion(split, SPLITS)}")
    if not 0 < val_fraction < 1:
        raise DataError(f"val_fraction must lie between 0 and 1, got {val_fraction}.")
    if is_packed(spec):
        return open_packed(spec, split, max_pixels)
    if str(spec) in DATASET_NAMES:
        return open_named(str(spec), split, val_fraction=val_fraction, download=download)
    return open_folder(_folder(spec), split, val_fraction=val_fraction, max_pixels=max_pixels)


def own_splits(spec: str | Path) -> tuple[str, ...]:
    """Return the splits that a data set has itself; `open_dataset` cuts the others by ``val_fraction``.

    Raises:
        DataError: missing or unreadable data, or an unknown name.
    """
    if is_packed(spec):
        return splits_of_shards(spec)
    if str(spec) in DATASET_NAMES:
        return splits_of_named(str(spec))
    return splits_of_folder(_folder(spec))


def _folder(spec: str | Path) -> Path:
    text = str(spec)
    folder, kind = looked_up(spec)
    if kind == "folder":
        return folder
    if kind == "file":
        raise DataError(f"data {text!r} is a file; give a folder of class folders, or a name: {_names()}.")
    raise DataError(f"no folder and no data set is called {text!r}; the names are {_names()}.{_nearest(text)}")


def renumbered(samples: ClassSamples, outputs: Sequence[int], class_names: Sequence[str]) -> ClassSamples:
    """Return the samples with other numbers for their classes.

    Args:
        samples: of any classes.
        outputs: the new number of each of their classes.
        class_names: by the new numbers.
    """
    return _Renumbered(samples, outputs, class_names)


class _Renumbered:
    def __init__(self, samples: ClassSamples, outputs: Sequence[int], class_names: Sequence[str]) -> None:
        self._samples, self._outputs = samples, tuple(outputs)
        self.name, self.paths, self.mirror_safe = samples.name, samples.paths, samples.mirror_safe
        self.class_names = tuple(class_names)
        self.found = getattr(samples, "found", "")
        self.scenes = getattr(samples, "scenes", None)
        self.targets = tuple(self._outputs[target] for target in samples.targets)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[AnyImage, int]:
        image, target = self._samples[index]
        return image, self._outputs[target]


def _names() -> str:
    return ", ".join(DATASET_NAMES)


def _nearest(text: str) -> str:
    return suggestion(text.lower(), DATASET_NAMES)
