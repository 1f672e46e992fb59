"""The mask of one object as a part of its image's: the pixels of its box, and where they are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vision_ssm.tasks.outlines import pack_counts, runs_of

__all__ = ["Patch", "joined", "patch_of"]


class Patch(NamedTuple):
    """Pixels [h, w] of a mask whose others are outside, the first of them in row ``top`` and column ``left``."""

    top: int
    left: int
    bits: NDArray[np.bool_]

    def shifted(self, down: int, right: int) -> Patch:
        """Return it so many pixels further down and right."""
        return Patch(self.top + down, self.left + right, self.bits)

    def packed(self, height: int, width: int) -> str:
        """Return the text that packs the run lengths of the whole mask of an image of that size, as COCO does."""
        return pack_counts(runs_of(self.bits, self.top, self.left, height, width))

    def resized(self, down: float, across: float, height: int, width: int) -> Patch:
        """Return it in an image of (height, width) that is so many times higher and wider; nearest pixels."""
        rows, columns = self.bits.shape
        top, bottom = int(self.top * down), min(height, int(np.ceil((self.top + rows) * down)))
        left, right = int(self.left * across), min(width, int(np.ceil((self.left + columns) * across)))
        y = np.floor((np.arange(top, bottom) + 0.5) / down).astype(np.int64) - self.top
        x = np.floor((np.arange(left, right) + 0.5) / across).astype(np.int64) - self.left
        inside = ((y >= 0) & (y < rows))[:, None] & ((x >= 0) & (x < columns))[None]
        if not inside.size or not self.bits.size:
            return Patch(top, left, np.zeros((max(0, bottom - top), max(0, right - left)), bool))
        bits = self.bits[y.clip(0, rows - 1)][:, x.clip(0, columns - 1)] & inside
        return Patch(top, left, bits)


def patch_of(mask: Tensor) -> Patch:
    """Return the part of a mask [H, W], bool, that has pixels; nothing of it where there are none."""
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    if not len(rows):
        return Patch(0, 0, np.zeros((0, 0), bool))
    top, left = int(rows[0]), int(columns[0])
    part = mask[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1]
    return Patch(top, left, part.cpu().numpy().copy())


def joined(patches: list[Patch]) -> Patch:
    """Return what any of some patches covers."""
    parts = [patch for patch in patches if patch.bits.size]
    if not parts:
        return patches[0]
    top, left = min(part.top for part in parts), min(part.left for part in parts)
    bottom = max(part.top + part.bits.shape[0] for part in parts)
    right = max(part.left + part.bits.shape[1] for part in parts)
    bits = np.zeros((bottom - top, right - left), bool)
    for part in parts:
        rows, columns = part.bits.shape
        bits[part.top - top : part.top - top + rows, part.left - left : part.left - left + columns] |= part.bits
    return Patch(top, left, bits)
