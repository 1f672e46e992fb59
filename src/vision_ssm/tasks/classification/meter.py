"""What an evaluation of a classifier collects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vision_ssm.data.batches import Batch
from vision_ssm.tasks.scores import Score, Table

__all__ = ["TOP_K", "ClassificationMeter", "Guess"]

TOP_K = 5
"""Of so many classes or fewer the right one is always among the first five, which scores nothing."""

SHARE = Score("top1", "top-1", "%")


class Guess(NamedTuple):
    """One evaluated image: its position in the data set, class, predicted class, and the probability given to it."""

    position: int
    true: int
    predicted: int
    probability: float


class ClassificationMeter:
    """Top-1, top-5, loss, accuracy per class and the confusion matrix, from exact counts, and every single guess.

    Of five classes or fewer top-5 is no score: it would always be 100 %.

    Args:
        class_names: in the order of the outputs.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = tuple(class_names)
        classes = len(self.class_names)
        self.top_k = min(TOP_K, classes)
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64)
        """Counts [true class, predicted class]."""
        self._top_k_hits = 0
        self._loss = 0.0
        self._guesses: list[Guess] = []

    def update(self, outputs: Tensor, batch: Batch) -> None:
        """Add logits [B, classes] and the targets [B] of a batch."""
        targets = batch.targets
        top = outputs.topk(self.top_k, dim=1).indices
        self._top_k_hits += int((top == targets[:, None]).sum())
        self._loss += float(F.cross_entropy(outputs, targets, reduction="sum"))
        cells = (targets * len(self.confusion) + top[:, 0]).cpu()
        self.confusion += torch.bincount(cells, minlength=self.confusion.numel()).view_as(self.confusion)
        probability, predicted = outputs.softmax(dim=1).max(dim=1)
        columns = batch.indices, targets, predicted, probability
        self._guesses += [Guess(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]

    def state(self) -> tuple[Tensor, int, float, list[Guess]]:
        """The counts and guesses of this process."""
        return self.confusion, self._top_k_hits, self._loss, self._guesses

    def merge(self, states: Sequence[tuple[Tensor, int, float, list[Guess]]]) -> None:
        """Take the union over the ``states`` of all processes."""
        confusions, hits, losses, guesses = zip(*states, strict=True)
        self.confusion = torch.stack(confusions).sum(0)
        self._top_k_hits, self._loss = sum(hits), sum(losses)
        self._guesses = [guess for part in guesses for guess in part]

    @property
    def guesses(self) -> tuple[Guess, ...]:
        """One per image, in the order of the data."""
        return tuple(sorted(self._guesses))

    @property
    def count(self) -> int:
        """Number of images seen."""
        return int(self.confusion.sum())

    @property
    def top1(self) -> float:
        """Share of images whose first guess is right, in [0, 1]; nan before the first image."""
        return int(self.confusion.diagonal().sum()) / self.count if self.count else math.nan

    @property
    def top5(self) -> float:
        """Share of images whose class is among the first ``top_k`` guesses, in [0, 1]; nan before the first image."""
        return self._top_k_hits / self.count if self.count else math.nan

    @property
    def per_class(self) -> list[float]:
        """Share of each class's images that are recognised, in [0, 1]; nan for a class without images."""
        return (self.confusion.diagonal().double() / self.confusion.sum(1)).tolist()

    def scores(self) -> dict[str, float]:
        """top1, top5 in [0, 1], the latter for more than five classes, and the mean cross-entropy in nats."""
        top5 = {"top5": self.top5} if len(self.class_names) > TOP_K else {}
        return {"top1": self.top1, **top5, "loss": self._loss / self.count if self.count else math.nan}

    def details(self) -> dict[str, Any]:
        """The top-1 share per class (None for a class without images) and the counts [true class][predicted class]."""
        return {
            "class_names": list(self.class_names),
            "per_class": [None if math.isnan(share) else share for share in self.per_class],
            "confusion": self.confusion.tolist(),
        }

    def tables(self) -> list[Table]:
        """Accuracy per class that has images."""
        counts = self.confusion.sum(1).tolist()
        rows = [
            (name, str(count), SHARE.text(share))
            for name, count, share in zip(self.class_names, counts, self.per_class, strict=True)
            if count
        ]
        return [Table("Accuracy per class", ("class", "images", "top-1"), rows, numeric=("images", "top-1"))]
