"""Well-known small data sets: the digits that scikit-learn ships, and torchvision's."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vision_ssm.data.labelled.fingerprints import fingerprint
from vision_ssm.data.splits import held_out
from vision_ssm.errors import DataError

__all__ = ["DATASET_NAMES", "ArrayImages", "open_named", "splits_of_named"]

# Name -> (torchvision class, whether mirrored images keep their class).
_TORCHVISION = {
    "cifar10": ("CIFAR10", True),
    "cifar100": ("CIFAR100", True),
    "mnist": ("MNIST", False),
    "fashion-mnist": ("FashionMNIST", True),
}

DATASET_NAMES = ("digits", *_TORCHVISION)


class ArrayImages:
    """Images held in one array [n, H, W] (grey) or [n, H, W, 3] (colour), uint8; attributes as in `ClassSamples`."""

    def __init__(
        self,
        name: str,
        class_names: Sequence[str],
        pixels: np.ndarray[Any, np.dtype[np.uint8]],
        targets: Sequence[int],
        ids: Sequence[int],
        mirror_safe: bool,
    ) -> None:
        self.name = name
        self.class_names = tuple(class_names)
        self.paths = tuple(f"{name}/{number:05d}" for number in ids)
        self.targets = tuple(targets)
        self.mirror_safe = mirror_safe
        self._pixels = pixels

    @property
    def fingerprint(self) -> str:
        """A digest of class names, file names and classes."""
        return fingerprint(self)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self._pixels[index]).convert("RGB"), self.targets[index]


def open_named(name: str, split: str, *, val_fraction: float, download: bool) -> ArrayImages:
    """Open a data set of `DATASET_NAMES`; arguments as in `vision_ssm.data.labelled.sources.open_dataset`.

    Raises:
        DataError: it is not on this machine and may not or cannot be fetched, or scikit-learn is missing (digits).
    """
    if name == "digits":
        return _digits(split, val_fraction)
    return _torchvision(name, split, download)


def splits_of_named(name: str) -> tuple[str, ...]:
    """Return the splits that the data set comes with; the digits are one heap."""
    return () if name == "digits" else ("train", "val", "test")


def _digits(split: str, val_fraction: float) -> ArrayImages:
    """1,797 handwritten digits of 8 x 8 pixels with 17 grey levels, from scikit-learn: no download."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("the digits come with scikit-learn: pip install 'vision-ssm[demo]'.") from error
    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    targets = [int(target) for target in bunch.target]
    ids = list(range(len(targets)))
    if split != "all":
        chosen = held_out([str(number) for number in ids], targets, val_fraction)
        ids = [number for number in ids if (number in chosen) == (split != "train")]
    class_names = [str(digit) for digit in range(10)]
    return ArrayImages("digits", class_names, pixels[ids], [targets[i] for i in ids], ids, mirror_safe=False)


def _torchvision(name: str, split: str, download: bool) -> ArrayImages:
    import torchvision.datasets

    class_name, mirror_safe = _TORCHVISION[name]
    root = Path.home() / ".cache" / "vision-ssm"
    parts = []
    for train in {"train": (True,), "all": (True, False)}.get(split, (False,)):
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                parts.append(getattr(torchvision.datasets, class_name)(root, train=train, download=download))
        except (RuntimeError, OSError, EOFError, ValueError) as error:
            if not download:
                raise DataError(
                    f"data set {name!r} is not in {str(root)!r}; allow the download (download=True), or copy it there "
                    "in torchvision's layout."
                ) from error
            raise DataError(f"data set {name!r} could not be downloaded to {str(root)!r}: {error}.") from error
    pixels = np.concatenate([np.asarray(part.data) for part in parts])
    targets = [int(target) for part in parts for target in part.targets]
    order = sorted(range(len(parts[0].classes)), key=lambda index: str(parts[0].classes[index]))
    rank = {old: new for new, old in enumerate(order)}
    class_names = [str(parts[0].classes[index]) for index in order]
    return ArrayImages(name, class_names, pixels, [rank[old] for old in targets], range(len(targets)), mirror_safe)
