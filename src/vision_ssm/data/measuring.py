"""What the images of a data set are made of: how many bands, of which numbers, with which mean and deviation each."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vision_ssm.data.bands import AnyImage, described_bands, valid_pixels
from vision_ssm.data.batches import Samples
from vision_ssm.data.geo.raster import Raster
from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.data.scenes import is_scene
from vision_ssm.errors import DataError

__all__ = ["Bands", "measure_bands"]

_IMAGES = 64  # that are looked at
_PIXELS = 2**16  # of each


@dataclass(frozen=True)
class Bands:
    """What images are made of.

    Attributes:
        count: channels.
        samples: the type of the numbers, see `Preprocessing`.
        mean, std: of each channel, in `Preprocessing.unit`.
        names: of the channels.
        images: so many were measured.
    """

    count: int
    samples: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    names: tuple[str, ...]
    images: int

    def applied(self, preprocessing: Preprocessing) -> Preprocessing:
        """Return how such images are prepared: as ``preprocessing`` says otherwise."""
        size = (self.count, *preprocessing.input_size[1:])
        return dataclasses.replace(preprocessing, input_size=size, mean=self.mean, std=self.std, samples=self.samples)

    def __str__(self) -> str:
        """Say it for people."""
        unit = 255 if self.samples == "uint8" else 1
        each = ", ".join(
            f"{name} {unit * mean:.4g} ± {unit * std:.4g}"
            for name, mean, std in zip(self.names, self.mean, self.std, strict=True)
        )
        kind, images = described_bands(self.count, self.samples), f"{self.images} image{'s' * (self.images != 1)}"
        return f"The images have {kind}; mean and deviation, measured on {images}: {each}."


def measure_bands(samples: Samples, *, grey: bool = False, seed: int = 0) -> Bands | None:
    """Look at images of a data set, at up to 64 of them and up to 65,536 pixels of each, drawn by ``seed``.

    Pixels without data do not count.

    Args:
        samples: of training.
        grey: pictures are read as one channel.
        seed: of the draw.

    Returns:
        None where they are pictures in colour, for which models state their own mean and deviation.

    Raises:
        DataError: naming the files: two have different bands or samples, none has a pixel with data, or scenes are to
            be read as grey.
    """
    known = getattr(samples, "scenes", None)  # of shards, which are no files of their own
    scenes = [at for at, path in enumerate(samples.paths) if (is_scene(path) if known is None else known[at])]
    if not scenes and not grey:
        return None
    if scenes and grey:
        raise DataError(f"{samples.paths[scenes[0]]!r} is a scene, whose bands are what they are; leave data.grey out.")
    draw = random.Random(f"{seed} bands")
    chosen = sorted(draw.sample(range(len(samples)), min(len(samples), _IMAGES)))
    first: tuple[str, AnyImage] | None = None
    sums: list[tuple[int, NDArray[np.float64], NDArray[np.float64]]] = []
    for path, image in _read(samples, sorted({*chosen, scenes[0]}) if scenes else chosen):
        if first is None:
            first = path, image
        _require_alike(first, (path, image))
        pixels = _drawn(image, draw, grey=grey)
        if len(pixels):
            sums.append((len(pixels), pixels.sum(0), (pixels**2).sum(0)))
    if first is None or not sums:
        raise DataError(f"not one pixel of the images of {samples.name!r} that were looked at holds data.")
    count = sum(number for number, _, _ in sums)
    mean = np.sum([total for _, total, _ in sums], axis=0) / count
    variance = np.sum([squares for _, _, squares in sums], axis=0) / count - mean**2
    kind = _kind(first[1])
    unit = 255.0 if kind == "uint8" else 1.0
    # A band that never changes says nothing, and must not be divided by nothing.
    std = np.sqrt(np.maximum(variance, 0))
    std = np.where(std > 1e-6 * np.maximum(np.abs(mean), 1e-6), std, np.maximum(np.abs(mean), 1.0))
    names = ("grey",) if grey else _names(first[1])
    return Bands(len(mean), kind, _plain(mean / unit), _plain(std / unit), names, len(sums))


def _read(samples: Samples, positions: list[int]) -> Iterator[tuple[str, AnyImage]]:
    for position in positions:
        yield samples.paths[position], samples[position][0]


def _require_alike(one: tuple[str, AnyImage], other: tuple[str, AnyImage]) -> None:
    (path, image), (path_of_other, other_image) = one, other
    kinds = [(len(_names(each)), _kind(each)) for each in (image, other_image)]
    if kinds[0] != kinds[1]:
        told = " and ".join(f"{str(Path(p))!r} has {described_bands(*k)}" for p, k in zip((path, path_of_other), kinds,
                                                                                       strict=True))  # fmt: skip
        raise DataError(f"{told}; images of one data set must have the same. Convert one kind, or move it away.")


def _names(image: AnyImage) -> tuple[str, ...]:
    return image.bands if isinstance(image, Raster) else ("red", "green", "blue")


def _kind(image: AnyImage) -> str:
    return image.samples if isinstance(image, Raster) else "uint8"


def _drawn(image: AnyImage, draw: random.Random, *, grey: bool) -> NDArray[np.float64]:
    """Pixels [n, C] that hold data, every so many of all."""
    values = np.asarray(image.convert("L"))[..., None] if grey and isinstance(image, Image.Image) else np.asarray(image)
    pixels, valid = values.reshape(-1, values.shape[-1]), valid_pixels(image)
    if valid is not None:
        pixels = pixels[valid.ravel()]
    step = max(1, -(-len(pixels) // _PIXELS))
    return pixels[draw.randrange(step) :: step].astype(np.float64)


def _plain(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(f"{value:.7g}") for value in values)
