"""From the numbers in masks to class indices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vision_ssm.errors import DataError
from vision_ssm.tasks.segmentation.classes import ClassList
from vision_ssm.tasks.segmentation.masks import IGNORE

__all__ = ["FoundLabels", "LabelTable"]

_NUMBERS = 2**16
_MOST = 1024  # different numbers in one mask that nothing describes: more are no classes


class LabelTable:
    """The class index of every number that masks may hold."""

    def __init__(self, classes: ClassList) -> None:
        self._classes = classes
        self._indices = np.full(_NUMBERS, IGNORE, np.uint8)
        self._indices[list(classes.values)] = np.arange(len(classes.values))
        self._known = np.zeros(_NUMBERS, bool)
        self._known[[*classes.values, *classes.ignored]] = True

    def classes(self, labels: NDArray[np.uint8] | NDArray[np.uint16], path: str | Path) -> NDArray[np.uint8]:
        """Return class indices [H, W], `IGNORE` where no class counts, of labels [H, W].

        Raises:
            DataError: naming ``path``: there are labels of no class.
        """
        known = self._known.take(labels)
        if not known.all():
            values, counts = np.unique(labels[~known], return_counts=True)
            listed = ", ".join(f"{value} ({count:,} pixels)" for value, count in zip(values, counts, strict=True))
            shown = listed if len(values) <= 4 else f"{', '.join(listed.split('), ')[:4])}), ..."
            raise DataError(
                f"mask {str(path)!r} holds numbers that stand for no class: {shown}. The "
                f"{len(self._classes.names)} classes are {self.expected}; give each number a class in classes.json, or "
                "list it there under ignore."
            )
        return self._indices.take(labels)

    @property
    def expected(self) -> str:
        """Which numbers masks may hold, in words."""
        values, ignored = sorted(self._classes.values), self._classes.ignored
        dense = values == list(range(values[0], values[-1] + 1))
        listed = f"{values[0]} to {values[-1]}" if dense else ", ".join(map(str, values[:12]))
        others = " and ".join(map(str, ignored))
        return f"{listed}; what does not count is {others}" if ignored else listed


class FoundLabels:
    """The numbers that occur in masks."""

    def __init__(self) -> None:
        self._seen = np.zeros(_NUMBERS, bool)

    def add(self, labels: NDArray[np.uint8] | NDArray[np.uint16], path: str | Path) -> None:
        """Add those of a mask [H, W].

        Raises:
            DataError: naming ``path``: there are so many that they cannot be classes.
        """
        self._seen[np.bincount(labels.ravel(), minlength=_NUMBERS) > 0] = True
        count = int(self._seen.sum())
        if count > _MOST:
            raise DataError(
                f"{count:,} different numbers up to and in mask {str(path)!r} cannot be classes; expected an index per "
                "class. Is it the image, or a depth map?"
            )

    @property
    def values(self) -> list[int]:
        """All of them, rising."""
        return [int(value) for value in np.flatnonzero(self._seen)]
