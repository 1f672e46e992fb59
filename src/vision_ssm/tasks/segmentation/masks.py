"""Masks: files that hold a class per pixel, as an index or as a colour, read and written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vision_ssm.data.budget import MAX_PIXELS
from vision_ssm.data.stored import read_stored
from vision_ssm.errors import DataError
from vision_ssm.storage import whole_file
from vision_ssm.tasks.legend import Colour

__all__ = ["IGNORE", "paletted", "read_mask", "write_mask"]

IGNORE = 255
"""The label of pixels that nobody has labelled, or that do not count."""


def read_mask(
    path: str | Path, *, colours: Mapping[Colour, int] | None = None, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Read one mask: the indices of a picture with a palette, the values of a grey one, or colours that stand for some.

    Args:
        path: PNG, TIFF, BMP or GIF of 1 to 16 bits, see `vision_ssm.data.stored.read_stored`.
        colours: the label of each colour, for masks in RGB. A picture with a palette is read by its indices, and
            refused where it shows them in the colours of other labels: some programs reorder palettes as they save.
        max_pixels: see `vision_ssm.data.images.read_image`.

    Returns:
        Labels [H, W].

    Raises:
        DataError: naming the file and the reason: unreadable, lossy (JPEG), in RGB without ``colours``, or of a colour
            that stands for no label; or its palette contradicts ``colours``.
    """
    try:
        stored = read_stored(path, max_pixels=max_pixels)
    except DataError as error:
        if isinstance(error.__cause__, UnidentifiedImageError):  # whose list of formats is that of images
            raise DataError(f"cannot read mask {str(path)!r}: expected a PNG, TIFF, BMP or GIF file.") from error
        raise
    if stored.values.ndim == 2:
        if stored.palette is not None and colours:
            _require_agreement(path, stored.values, stored.palette, colours)
        return stored.values
    if not colours:
        raise DataError(
            f"mask {str(path)!r} holds RGB colours and nothing says what they mean: list them in classes.json as "
            '[{"name": "road", "color": [128, 64, 128]}, ...], or save the indices of the classes.'
        )
    return _labels(path, stored.values, colours)


def _require_agreement(
    path: str | Path, indices: NDArray[Any], palette: NDArray[np.uint8], colours: Mapping[Colour, int]
) -> None:
    used = np.flatnonzero(np.bincount(indices.ravel(), minlength=256)[: len(palette)])
    labels = set(colours.values())
    shown = {int(index): colours.get(_colour(palette[index])) for index in used if index in labels}
    swapped = [index for index, label in shown.items() if label != index]
    if swapped and None not in shown.values():
        raise DataError(
            f"mask {str(path)!r} contradicts itself: pixels of index {swapped[0]} are shown in the colour that stands "
            f"for {shown[swapped[0]]}. If the colours are right, save it as RGB; if the indices are, as grey."
        )


def _colour(row: NDArray[np.uint8]) -> Colour:
    return int(row[0]), int(row[1]), int(row[2])


def _labels(path: str | Path, pixels: NDArray[Any], colours: Mapping[Colour, int]) -> NDArray[np.uint16]:
    """Colours [H, W, 3] to labels [H, W]; each must be known exactly: what is between two is of neither class."""
    packed = (pixels.astype(np.uint32) << np.array([16, 8, 0], np.uint32)).sum(axis=2, dtype=np.uint32)
    known = np.array(sorted((red << 16) + (green << 8) + blue for red, green, blue in colours), np.uint32)
    labels = np.array([colours[_unpacked(int(code))] for code in known], np.uint16)
    at = np.searchsorted(known, packed).clip(max=len(known) - 1)
    strange = known[at] != packed
    if strange.any():
        codes, counts = np.unique(packed[strange], return_counts=True)
        listed = ", ".join(str(list(_unpacked(int(code)))) for code in codes[np.argsort(-counts)][:3])
        raise DataError(
            f"mask {str(path)!r} holds {len(codes):,} colour{'s' if len(codes) != 1 else ''} that stand"
            f"{'' if len(codes) != 1 else 's'} for no class, on {int(counts.sum()):,} pixels: {listed}"
            f"{', ...' if len(codes) > 3 else ''}. Add them to classes.json, under ignore_colors if they mean nothing; "
            "many colours come from lossy compression or smooth edges: export the mask without."
        )
    chosen: NDArray[np.uint16] = labels[at]
    return chosen


def _unpacked(code: int) -> Colour:
    return code >> 16, (code >> 8) & 255, code & 255


def paletted(classes: NDArray[Any], palette: Sequence[Colour]) -> Image.Image:
    """Return a class map [H, W], integers in 0..255, as a picture of indices (mode ``P``) that shows these colours.

    `IGNORE` is black where the palette has no colour for it.
    """
    image = Image.fromarray(np.ascontiguousarray(classes, dtype=np.uint8))
    flat = [part for colour in palette[:256] for part in colour]
    image.putpalette(flat + [0] * (768 - len(flat)))  # turns the values into indices
    return image


def write_mask(path: str | Path, classes: NDArray[Any], palette: Sequence[Colour]) -> None:
    """Write a class map [H, W], integers in 0..255, as an index PNG that shows the colours of ``palette``.

    Raises:
        DataError: the file cannot be written.
    """
    with whole_file(path) as part:
        paletted(classes, palette).save(part, format="PNG")
