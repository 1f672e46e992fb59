"""What an evaluation of a detector collects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import box_iou

from vision_ssm.data.batches import Batch
from vision_ssm.tasks.detection.coco_scores import FIGURES, CocoScores, Seen, coco_scores, require_scorer
from vision_ssm.tasks.detection.inference import Found
from vision_ssm.tasks.detection.sources import Objects
from vision_ssm.tasks.scores import Score, Table

__all__ = ["CONFIDENT", "MATCHED", "DetectionMeter", "box_overlaps", "score_list"]

CONFIDENT = 0.3
"""Finds of a lower score are in no confusion matrix and no picture."""

MATCHED = 0.5
"""IoU from which a find counts as of an object in a confusion matrix."""


class DetectionMeter:
    """COCO's figures for boxes and masks, and which classes are taken for which.

    Kept of an image are its annotations, the best finds and, as run lengths, their masks: nothing that grows with the
    number of its pixels.

    Args:
        class_names: in the order of the outputs.
        masks: whether masks are scored as well, where everything annotated has an outline, crowds aside.
        most: finds of an image that count.

    Raises:
        ConfigError: faster-coco-eval is not installed.
    """

    def __init__(self, class_names: Sequence[str], *, masks: bool = False, most: int = 100) -> None:
        require_scorer()
        self.class_names = tuple(class_names)
        self._masks, self.most = masks, most
        self.seen: dict[int, Seen] = {}
        """What was annotated and found, by the image's position in the data."""
        self._scored: dict[bool, CocoScores] = {}

    @property
    def masks(self) -> bool:
        """Whether masks are scored: of the model, and of all objects seen so far."""
        return self._masks and all(
            outline is not None or crowd
            for seen in self.seen.values()
            for outline, crowd in zip(seen.outlines, seen.crowd.tolist(), strict=True)
        )

    @property
    def count(self) -> int:
        """Images seen."""
        return len(self.seen)

    def update(self, outputs: Sequence[Found], batch: Batch) -> None:
        """Add a batch: what was found in each image, and its `Objects` as target."""
        self._scored.clear()
        for found, target, position in zip(outputs, batch.targets, batch.indices.tolist(), strict=True):
            self.seen[position] = self._kept(found, target)

    def state(self) -> dict[int, Seen]:
        """The images of this process."""
        return self.seen

    def merge(self, states: Sequence[dict[int, Seen]]) -> None:
        """Take the images of all processes."""
        self._scored.clear()
        self.seen = {position: seen for state in states for position, seen in state.items()}

    def scored(self, *, masks: bool = False) -> CocoScores:
        """COCO's scores of boxes, or of masks."""
        if masks not in self._scored:
            self._scored[masks] = coco_scores(self.seen, len(self.class_names), masks=masks, most=self.most)
        return self._scored[masks]

    def scores(self) -> dict[str, float]:
        """The twelve figures for boxes, and for masks with ``mask_`` before their names; nan of masks not scored."""
        found = dict(self.scored().figures)
        if self._masks:
            masks = self.scored(masks=True).figures if self.masks else dict.fromkeys(FIGURES, math.nan)
            found |= {f"mask_{name}": value for name, value in masks.items()}
        return found

    def confusion(self) -> NDArray[np.int64]:
        """Count finds [classes + 1, classes + 1]: [annotated, found]; the last row found nothing annotated, the last
        column was not found.

        Finds of at least `CONFIDENT` are taken in the order of their scores; each is of that object, of whatever class,
        that it covers best among those that no find before was of, if their IoU is at least 0.5. Crowds do not count.
        """
        classes = len(self.class_names)
        counts = np.zeros((classes + 1, classes + 1), np.int64)
        for seen in self.seen.values():
            sure = seen.scores >= CONFIDENT
            free = ~seen.crowd
            overlaps = box_overlaps(seen.found[sure], seen.boxes)
            for row, label in zip(overlaps, seen.found_labels[sure], strict=True):
                best = int(np.where(free, row, -1).argmax()) if len(row) else -1
                if best >= 0 and free[best] and row[best] >= MATCHED:
                    counts[seen.labels[best], label] += 1
                    free[best] = False
                elif not (len(row) and (row[seen.crowd] > 0).any()):
                    counts[classes, label] += 1
            counts[:classes, classes] += np.bincount(seen.labels[free], minlength=classes)
        return counts

    def details(self) -> dict[str, Any]:
        """Scores (None where a class has none) and objects per class; counts as `confusion` gives them."""
        boxes = self.scored().per_class
        told: dict[str, Any] = {
            "class_names": list(self.class_names),
            "objects": self._objects().tolist(),
            "class_ap": _plain(boxes[:, 0]),
            "class_ap50": _plain(boxes[:, 1]),
            "class_ar": _plain(boxes[:, 2]),
            "confusion": self.confusion().tolist(),
        }
        if self.masks:
            masks = self.scored(masks=True).per_class
            told |= {"class_mask_ap": _plain(masks[:, 0]), "class_mask_ap50": _plain(masks[:, 1])}
        return told

    def tables(self) -> list[Table]:
        """Scores of each class that is annotated."""
        columns = ["class", "objects", "AP", "AP50", "AR"]
        values = self.scored().per_class
        if self.masks:
            columns += ["mask AP", "mask AP50"]
            values = np.concatenate([values, self.scored(masks=True).per_class[:, :2]], axis=1)
        score, objects = Score("", "", "%"), self._objects()
        rows = [
            (name, f"{count:,}", *("-" if math.isnan(value) else score.text(value) for value in own))
            for name, count, own in zip(self.class_names, objects.tolist(), values.tolist(), strict=True)
            if count
        ]
        return [Table("Scores per class", columns, rows, numeric=columns[1:])]

    def _objects(self) -> NDArray[np.int64]:
        labels = [seen.labels[~seen.crowd] for seen in self.seen.values()]
        return np.bincount(np.concatenate([np.zeros(0, np.int64), *labels]), minlength=len(self.class_names))

    def _kept(self, found: Found, target: Objects) -> Seen:
        best = slice(0, self.most)
        masks = None
        if self._masks and found.masks is not None:
            masks = [mask.packed(*found.size) for mask in found.masks[best]]
        return Seen(
            target.size,
            target.boxes.numpy(),
            target.labels.numpy(),
            target.crowd.numpy(),
            target.areas.numpy(),
            target.outlines if self._masks else [None] * len(target.outlines),
            found.boxes[best].numpy(),
            found.labels[best].numpy(),
            found.scores[best].numpy(),
            masks,
        )


def score_list(masks: bool) -> tuple[Score, ...]:
    """Return the scores of boxes, and of masks where there are any."""
    kinds = [("", ""), *([("mask_", "mask ")] if masks else [])]
    return tuple(
        Score(f"{before}{name}", f"{word}{title}", "%", minor=name not in ("ap", "ap50", "ap75"))
        for before, word in kinds
        for name, title in FIGURES.items()
    )


def box_overlaps(boxes: NDArray[Any], others: NDArray[Any]) -> NDArray[np.float64]:
    """Return IoU [N, M] of boxes [N, 4] and [M, 4], in float64; 0 where both are empty."""
    overlaps: NDArray[np.float64] = box_iou(torch.from_numpy(boxes).double(), torch.from_numpy(others).double()).numpy()
    return np.nan_to_num(overlaps)


def _plain(values: NDArray[np.float64]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]
