"""What an evaluation of a segmentation collects."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vision_ssm.data.batches import Batch
from vision_ssm.errors import ShapeError
from vision_ssm.tasks.scores import Score, Table
from vision_ssm.tasks.segmentation.masks import IGNORE

__all__ = ["SegmentationMeter", "Segmented", "shrunk"]

MAP_SIDE = 512
"""Longer side of a predicted map that is kept for a picture, in pixels."""

MAPS = 6
"""So many are drawn, evenly spread over the data."""

_PIXELS = 2**22  # counted at a time: counting takes eight bytes each

_State = tuple[int, Tensor, int, dict[int, NDArray[np.uint8]]]


class Segmented(Protocol):
    """What a task's `predict` gives for one image."""

    @property
    def classes(self) -> Tensor:
        """Class indices [H, W], integers, of the size of the image's mask."""


class SegmentationMeter:
    """Intersection over union, accuracy per class and of all pixels, from exact counts; and a few predicted maps.

    Pixels labelled `IGNORE` are not counted, nor are those predicted so, where there is no image. A class that occurs
    neither in labels nor in predictions has no scores and is left out of the means, as in mmsegmentation's `IoUMetric`.

    Args:
        class_names: in the order of the outputs.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = tuple(class_names)
        classes = len(self.class_names)
        self.count = 0
        """Images seen."""
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64)
        """Pixels [true class, predicted class]."""
        # Which maps are drawn depends on the data's length alone, which is known at the end only: of every so many
        # images one is kept, and whenever there are twice as many as needed, every second goes.
        self._every = 1
        self._maps: dict[int, NDArray[np.uint8]] = {}

    def update(self, outputs: Iterable[Segmented], batch: Batch) -> None:
        """Add a batch.

        Args:
            outputs: for each image what has its class indices [H, W] as ``classes``.
            batch: with ``targets``, a mask [H, W] for each image, or one tensor of them.

        Raises:
            ShapeError: a map and its mask differ in size.
        """
        for output, target, position in zip(outputs, batch.targets, batch.indices.tolist(), strict=True):
            classes = output.classes
            if classes.shape != target.shape:
                raise ShapeError(
                    f"a predicted map must have the size of its mask, {list(target.shape)}, got {list(classes.shape)}."
                )
            step = max(1, _PIXELS // max(1, target.shape[1]))
            for top in range(0, len(target), step):
                self._add(target[top : top + step], classes[top : top + step].to(target.device))
            self.count += 1
            self._keep(position, classes)

    def state(self) -> _State:
        """The counts and maps of this process."""
        return self.count, self.confusion, self._every, self._maps

    def merge(self, states: Sequence[_State]) -> None:
        """Take the union over the ``states`` of all processes."""
        self.count = sum(count for count, _, _, _ in states)
        self.confusion = torch.stack([confusion for _, confusion, _, _ in states]).sum(0)
        self._every = max(every for _, _, every, _ in states)
        self._maps = {position: kept for _, _, _, maps in states for position, kept in maps.items()}
        self._thin()

    @property
    def maps(self) -> dict[int, NDArray[np.uint8]]:
        """Predicted class indices of up to `MAPS` images by their position in the data, see `shrunk` for their size."""
        kept = sorted(self._maps)
        picked = dict.fromkeys(kept[(2 * i + 1) * len(kept) // (2 * MAPS)] for i in range(MAPS)) if kept else {}
        return {position: self._maps[position] for position in picked}

    @property
    def iou(self) -> list[float]:
        """Intersection over union of each class, in [0, 1]; nan for a class that never occurs."""
        hits = self.confusion.diagonal()
        union = self.confusion.sum(0) + self.confusion.sum(1) - hits
        return (hits.double() / union).tolist()

    @property
    def accuracy(self) -> list[float]:
        """Share of each class's pixels that are recognised, in [0, 1]; nan for a class that is never labelled."""
        return (self.confusion.diagonal().double() / self.confusion.sum(1)).tolist()

    def scores(self) -> dict[str, float]:
        """Mean intersection over union, mean accuracy over classes, and the share of right pixels, in [0, 1]."""
        pixels = int(self.confusion.sum())
        right = int(self.confusion.diagonal().sum())
        return {"miou": _mean(self.iou), "macc": _mean(self.accuracy), "aacc": right / pixels if pixels else math.nan}

    def details(self) -> dict[str, Any]:
        """Scores (None where a class has none) and labelled pixels per class; counts [true class][predicted class]."""
        return {
            "class_names": list(self.class_names),
            "iou": [None if math.isnan(value) else value for value in self.iou],
            "accuracy": [None if math.isnan(value) else value for value in self.accuracy],
            "pixels": self.confusion.sum(1).tolist(),
            "confusion": self.confusion.tolist(),
        }

    def tables(self) -> list[Table]:
        """Scores per class that occurs; a class that is predicted but never labelled has no accuracy."""
        score, pixels = Score("", "", "%"), self.confusion.sum(1)
        total = max(1, int(pixels.sum()))
        rows = [
            (name, score.text(count / total), score.text(iou), "-" if math.isnan(accuracy) else score.text(accuracy))
            for name, count, iou, accuracy in zip(
                self.class_names, pixels.tolist(), self.iou, self.accuracy, strict=True
            )
            if not math.isnan(iou)
        ]
        columns = ("class", "pixels", "IoU", "accuracy")
        return [Table("Scores per class", columns, rows, numeric=columns[1:])]

    def _add(self, true: Tensor, predicted: Tensor) -> None:
        labelled = (true != IGNORE) & (predicted != IGNORE)
        cells = true[labelled].long() * len(self.class_names) + predicted[labelled].long()
        counts = torch.bincount(cells, minlength=self.confusion.numel())
        self.confusion += counts.view_as(self.confusion).cpu()

    def _keep(self, position: int, classes: Tensor) -> None:
        if position % self._every == 0:
            self._maps[position] = shrunk(classes).to(torch.uint8).cpu().numpy()
            self._thin()

    def _thin(self) -> None:
        while True:
            self._maps = {position: kept for position, kept in self._maps.items() if position % self._every == 0}
            if len(self._maps) <= 2 * MAPS:
                return
            self._every *= 2


def shrunk(classes: Tensor) -> Tensor:
    """Return a map [H, W] whose longer side has at most `MAP_SIDE` pixels, each that nearest to its centre."""
    factor = max(classes.shape) / MAP_SIDE
    if factor <= 1:
        return classes
    rows, columns = (
        (
            (torch.arange(max(1, round(side / factor)), device=classes.device) + 0.5)
            * side
            / max(1, round(side / factor))
        )
        .long()
        .clamp_max(side - 1)
        for side in classes.shape
    )
    return classes[rows][:, columns]


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if not math.isnan(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan
