"""What an evaluation of a classifier collects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vision_ssm.data.batches import Batch
from vision_ssm.tasks.classification.calibration import Calibration, calibration
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
    """Top-1, top-5, loss, scores per class and the confusion matrix, from exact counts, and every single guess.

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

    @property
    def precision(self) -> list[float]:
        """Share of the images taken for each class that are of it, in [0, 1]; nan for one never predicted."""
        return (self.confusion.diagonal().double() / self.confusion.sum(0)).tolist()

    @property
    def f1(self) -> list[float]:
        """Harmonic mean of precision and recall of each class; nan for one that is neither seen nor predicted.

        In counts, 2 right / (images of the class + images taken for it), which is 0 where either is 0.
        """
        both = self.confusion.sum(0) + self.confusion.sum(1)
        return (2 * self.confusion.diagonal().double() / both).tolist()

    def means(self) -> dict[str, float]:
        """Precision, recall and F1, each the mean over the classes that have images (macro average).

        A class with images that is never predicted has precision 0 there.
        """
        seen = [at for at, count in enumerate(self.confusion.sum(1).tolist()) if count]
        columns = {"precision": self.precision, "recall": self.per_class, "f1": self.f1}
        return {
            name: math.fsum(_or_zero(values[at]) for at in seen) / len(seen) if seen else math.nan
            for name, values in columns.items()
        }

    @property
    def calibration(self) -> Calibration:
        """How far the probabilities of the first guesses can be believed."""
        guesses = self.guesses
        return calibration([g.probability for g in guesses], [g.predicted == g.true for g in guesses])

    def mistakes(self) -> list[Guess]:
        """The wrong guesses, the surest first."""
        wrong = [guess for guess in self._guesses if guess.predicted != guess.true]
        return sorted(wrong, key=lambda guess: (-guess.probability, guess.position))

    def details(self) -> dict[str, Any]:
        """Scores per class (None where a class has none), counts [true class][predicted class] and calibration.

        ``per_class`` is the recall: the share of the images of a class that are recognised.
        """
        per_class = {"per_class": self.per_class, "precision": self.precision, "recall": self.per_class, "f1": self.f1}
        return {
            "class_names": list(self.class_names),
            "images": self.confusion.sum(1).tolist(),
            **{name: [None if math.isnan(value) else value for value in found] for name, found in per_class.items()},
            "means": {name: None if math.isnan(value) else value for name, value in self.means().items()},
            "calibration": self.calibration.to_dict(),
            "confusion": self.confusion.tolist(),
        }

    def tables(self) -> list[Table]:
        """Scores per class that has images, their means, and how far the probabilities can be believed."""
        columns = ("class", "images", "precision", "recall", "F1")
        counts = self.confusion.sum(1).tolist()
        rows = [
            (name, f"{count:,}", *(SHARE.text(_or_zero(value)) for value in values))
            for name, count, *values in zip(
                self.class_names, counts, self.precision, self.per_class, self.f1, strict=True
            )
            if count
        ]
        rows.append(("mean of the classes", f"{self.count:,}", *(SHARE.text(mean) for mean in self.means().values())))
        return [Table("Scores per class", columns, rows, numeric=columns[1:]), _calibration_table(self.calibration)]


def _or_zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def _calibration_table(found: Calibration) -> Table:
    columns = ("probability", "images", "mean", "right")
    rows = [
        (f"{100 * row.lower:.0f} to {100 * row.upper:.0f} %", f"{row.images:,}", SHARE.text(row.confidence),
         SHARE.text(row.accuracy))
        for row in found.bins if row.images
    ]  # fmt: skip
    title = f"Calibration: the first guess is right as often as it is probable, but for {SHARE.text(found.ece)} (ECE)"
    return Table(title, columns, rows, numeric=columns)
