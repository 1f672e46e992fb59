"""Outlines as COCO writes them, polygons and run lengths, filled into masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vision_ssm.errors import DataError

__all__ = [
    "fill_polygons",
    "lengths_of",
    "pack_counts",
    "polygon_corners",
    "rings_of",
    "run_lengths",
    "runs_of",
    "signed_area",
    "unpacked_counts",
]

_FARTHEST = 1e9  # pixels from the corner
_CHARACTERS = 12  # of a packed number: 60 bits


def fill_polygons(polygons: Sequence[Sequence[float]], height: int, width: int) -> NDArray[np.bool_]:
    """Return the pixels [H, W] whose centre is inside any of the polygons, each [x0, y0, x1, y1, ...] in pixels.

    Coordinates count from the corner of the first pixel, so the square 2, 3, 6, 3, 6, 8, 2, 8 is columns 2 to 5 and
    rows 3 to 7. A polygon that crosses itself is inside where a ray leaves it an odd number of times.

    Raises:
        DataError: without the file's name; a polygon has less than three corners, or one that is nowhere near an image.
    """
    inside = np.zeros((height, width), bool)
    for polygon in polygons:
        _fill(inside, polygon_corners(polygon))
    return inside


def polygon_corners(polygon: Sequence[float]) -> NDArray[np.float64]:
    """Return the corners (x, y) [N, 2] of a polygon [x0, y0, x1, y1, ...].

    Raises:
        DataError: without the file's name; there are less than three, or one that is nowhere near an image.
    """
    corners = np.asarray(polygon, np.float64)
    if corners.ndim != 1 or len(corners) < 6 or len(corners) % 2 or not (np.abs(corners) < _FARTHEST).all():
        raise DataError(f"a polygon must be three or more corners [x0, y0, x1, y1, ...], got {list(polygon)!r:.80}")
    return corners.reshape(-1, 2)


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
    lengths = lengths_of(counts, height, width)
    values = np.arange(len(lengths)) % 2 == 1
    return np.repeat(values, lengths).reshape(width, height).T


def lengths_of(counts: Sequence[int] | str, height: int, width: int) -> NDArray[np.int64]:
    """Return the run lengths of a mask [H, W], see `run_lengths`. Raises DataError likewise."""
    lengths = unpacked_counts(counts) if isinstance(counts, str) else np.asarray(counts)
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or (lengths < 0).any() or lengths.sum() != height * width:
        raise DataError(f"run lengths must add up to the {height} x {width} pixels of the image")
    return lengths.astype(np.int64)


def unpacked_counts(text: str) -> NDArray[np.int64]:
    """Return the run lengths that COCO's text packs.

    A length is written five bits a character, the lowest first, from the character '0' on; 32 more says that another
    follows, and the highest bit of the last is the sign. From the fourth on, a length is written as its difference to
    the one before the last.

    Raises:
        DataError: without the file's name; the text ends within a length, or holds other characters.
    """
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64) - 48
    wrong = np.flatnonzero((codes < 0) | (codes >= 64))
    if len(wrong):
        raise DataError(f"packed run lengths hold the character {text[wrong[0]]!r}")
    if not len(codes):
        return np.zeros(0, np.int64)
    last = np.flatnonzero(codes & 32 == 0)
    if not len(last) or last[-1] != len(codes) - 1:
        raise DataError("packed run lengths end within a number")
    first = np.append(0, last[:-1] + 1)
    characters = last - first + 1
    if characters.max() > _CHARACTERS:
        raise DataError(f"packed run lengths hold a number of {characters.max()} characters")
    place = 5 * (np.arange(len(codes)) - np.repeat(first, characters))
    lengths = np.add.reduceat((codes & 31) << place, first)
    lengths -= np.where(codes[last] & 16, 1 << (5 * characters), 0)
    for start in (1, 2):  # differences to the one before the last
        lengths[start::2] = np.cumsum(lengths[start::2])
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


def rings_of(mask: NDArray[np.bool_]) -> list[list[tuple[int, int]]]:
    """Return the borders of a mask [H, W] along the edges of its pixels, each a list of corners (x, y), not closed.

    Round a piece of the mask they go clockwise as one sees the image, round a hole the other way; the largest comes
    first. Pixels that meet at a corner alone are of one piece only where a side joins them elsewhere.
    """
    inside = np.pad(mask, 1)
    following: dict[tuple[int, int], list[tuple[int, int]]] = {}
    # Every side of a pixel whose neighbour is outside is an edge that has the mask on its right.
    for (dy, dx), start, stop in (
        ((-1, 0), (0, 0), (1, 0)),
        ((0, 1), (1, 0), (1, 1)),
        ((1, 0), (1, 1), (0, 1)),
        ((0, -1), (0, 1), (0, 0)),
    ):
        rows, columns = np.nonzero(inside[1:-1, 1:-1] & ~np.roll(inside, (-dy, -dx), (0, 1))[1:-1, 1:-1])
        for y, x in zip(rows.tolist(), columns.tolist(), strict=True):
            following.setdefault((x + start[0], y + start[1]), []).append((x + stop[0], y + stop[1]))
    rings = []
    while following:
        ring = [next(iter(following))]
        while True:
            here = ring[-1]
            ends = following[here]
            chosen = ends[0] if len(ends) == 1 else _turned_right(ring[-2] if len(ring) > 1 else None, here, ends)
            ends.remove(chosen)
            if not ends:
                del following[here]
            if chosen == ring[0]:
                break
            ring.append(chosen)
        rings.append(_without_straight(ring))
    return sorted(rings, key=lambda ring: -abs(signed_area(ring)))


def signed_area(ring: Sequence[tuple[float, float]]) -> float:
    """Return the area inside a ring of corners (x, y); positive where it goes clockwise as one sees the image."""
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(ring, [*ring[1:], ring[0]], strict=True)) / 2


def _turned_right(
    before: tuple[int, int] | None, here: tuple[int, int], ends: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """Where two pixels meet at a corner, stay with the one whose border this is."""
    if before is None:
        return ends[0]
    dx, dy = here[0] - before[0], here[1] - before[1]
    return next((end for end in ends if (end[0] - here[0], end[1] - here[1]) == (-dy, dx)), ends[0])


def _without_straight(ring: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Leave out corners at which nothing turns."""
    around = zip([ring[-1], *ring[:-1]], ring, [*ring[1:], ring[0]], strict=True)
    return [b for a, b, c in around if (b[0] - a[0]) * (c[1] - b[1]) != (b[1] - a[1]) * (c[0] - b[0])]
