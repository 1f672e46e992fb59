"""Outlines as COCO writes them, polygons and run lengths, filled into masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vision_ssm.errors import DataError

__all__ = ["fill_polygons", "pack_counts", "run_lengths", "runs_of", "unpacked_counts"]

_FARTHEST = 1e9  # pixels from the corner


def fill_polygons(polygons: Sequence[Sequence[float]], height: int, width: int) -> NDArray[np.bool_]:
    """Return the pixels [H, W] whose centre is inside any of the polygons, each [x0, y0, x1, y1, ...] in pixels.

    Coordinates count from the corner of the first pixel, so the square 2, 3, 6, 3, 6, 8, 2, 8 is columns 2 to 5 and
    rows 3 to 7. A polygon that crosses itself is inside where a ray leaves it an odd number of times.

    Raises:
        DataError: without the file's name; a polygon has less than three corners, or one that is nowhere near an image.
    """
    inside = np.zeros((height, width), bool)
    for polygon in polygons:
        corners = np.asarray(polygon, np.float64)
        if corners.ndim != 1 or len(corners) < 6 or len(corners) % 2 or not (np.abs(corners) < _FARTHEST).all():
            raise DataError(f"a polygon must be three or more corners [x0, y0, x1, y1, ...], got {list(polygon)!r:.80}")
        _fill(inside, corners.reshape(-1, 2))
    return inside


def _fill(inside: NDArray[np.bool_], corners: NDArray[np.float64]) -> None:
    height, width = inside.shape
    rows = np.arange(max(0, int(np.floor(corners[:, 1].min()))), min(height, int(np.ceil(corners[:, 1].max())) + 1))
    crossed = np.zeros((len(rows), width + 1), np.int32)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        # An end at the height of a centre belongs to the edge below it only, so no ray meets a corner twice.
        at = np.flatnonzero((rows + 0.5 >= min(y0, y1)) & (rows + 0.5 < max(y0, y1)))
        if len(at):
            x = x0 + (rows[at] + 0.5 - y0) * (x1 - x0) / (y1 - y0)
            crossed[at, np.ceil(x - 0.5).clip(0, width).astype(np.int64)] += 1
    inside[rows] |= np.cumsum(crossed[:, :width], axis=1) % 2 == 1


def run_lengths(counts: Sequence[int] | str, height: int, width: int) -> NDArray[np.bool_]:
    """Return the mask [H, W] of run lengths, column after column, the first of which is of pixels outside.

    Args:
        counts: the lengths, or the text that packs them, see `unpacked_counts`.
        height: of the mask.
        width: of the mask.

    Raises:
        DataError: without the file's name; the lengths do not fill the mask.
    """
    lengths = np.asarray(unpacked_counts(counts) if isinstance(counts, str) else counts)
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or (lengths < 0).any() or lengths.sum() != height * width:
        raise DataError(f"run lengths must add up to the {height} x {width} pixels of the image")
    values = np.arange(len(lengths)) % 2 == 1
    return np.repeat(values, lengths).reshape(width, height).T


def unpacked_counts(text: str) -> list[int]:
    """Return the run lengths that COCO's text packs.

    A length is written five bits a character, the lowest first, from the character '0' on; 32 more says that another
    follows, and the highest bit of the last is the sign. From the fourth on, a length is written as its difference to
    the one before the last.

    Raises:
        DataError: without the file's name; the text ends within a length, or holds other characters.
    """
    lengths: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise DataError(f"packed run lengths hold the character {character!r}")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = shift = 0
    if shift:
        raise DataError("packed run lengths end within a number")
    return lengths


def pack_counts(counts: Sequence[int]) -> str:
    """Return the text that packs run lengths; `unpacked_counts` reads it."""
    characters: list[str] = []
    for number, count in enumerate(counts):
        value = int(count) - (int(counts[number - 2]) if number > 2 else 0)
        while True:
            low, value = value & 31, value >> 5
            more = value != (-1 if low & 16 else 0)
            characters.append(chr(48 + low + (32 if more else 0)))
            if not more:
                break
    return "".join(characters)


def runs_of(mask: NDArray[np.bool_], top: int, left: int, height: int, width: int) -> list[int]:
    """Return the run lengths, column after column, of a mask whose pixels are all in one part of it.

    Args:
        mask: that part, [h, w].
        top: its first row.
        left: its first column.
        height: of the whole mask.
        width: of the whole mask.
    """
    edges = np.diff(np.pad(mask, ((1, 1), (0, 0))).astype(np.int8), axis=0).T  # [w, h + 1]
    columns, starts = np.nonzero(edges == 1)
    _, stops = np.nonzero(edges == -1)
    first = (left + columns) * height + top + starts
    last = (left + columns) * height + top + stops
    if not len(first):
        return [height * width]
    apart = first[1:] != last[:-1]  # a run that reaches the last row may go on in the next column
    bounds = np.stack([first[np.append(True, apart)], last[np.append(apart, True)]], axis=1).ravel()
    lengths: list[int] = np.diff(np.concatenate([[0], bounds, [height * width]])).tolist()
    return lengths if lengths[-1] else lengths[:-1]
