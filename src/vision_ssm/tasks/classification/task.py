"""Image classification: one class per image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup
from torch import Tensor, nn

from vision_ssm.errors import ConfigError
from vision_ssm.models.registry import create_model
from vision_ssm.tasks.task import Batch

__all__ = ["Classification", "ClassificationMeter", "Mixing"]


@dataclass(frozen=True)
class Mixing:
    """Combining pairs of training images and of their targets.

    Attributes:
        mixup: alpha of the beta distribution of blending ratios (arXiv:1710.09412); 0 is off.
        cutmix: the same for pasted rectangles (arXiv:1905.04899); 0 is off.
        prob: probability that anything is mixed.
        switch_prob: probability of cutmix when both are on.
        mode: whether a ``batch``, a ``pair`` or each element (``elem``) draws its own ratio.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    prob: float = 1.0
    switch_prob: float = 0.5
    mode: str = "batch"


class Classification:
    """Cross-entropy on hard, smoothed or mixed targets; top-1 and top-5.

    Args:
        class_names: in the order of the class indices.
        label_smoothing: probability mass that training spreads evenly over all classes, in [0, 1).
        mixing: None, or what to mix; batches must then be even.
    """

    name = "classification"
    primary = "top1"

    def __init__(
        self, class_names: Sequence[str], *, label_smoothing: float = 0.0, mixing: Mixing | None = None
    ) -> None:
        if not class_names:
            raise ConfigError("classification needs at least one class.")
        self.class_names = tuple(class_names)
        self._smoothing = label_smoothing
        self._mixup = None
        if mixing is not None and (mixing.mixup > 0 or mixing.cutmix > 0):
            self._mixup = Mixup(  # type: ignore[no-untyped-call]
                mixup_alpha=mixing.mixup,
                cutmix_alpha=mixing.cutmix,
                prob=mixing.prob,
                switch_prob=mixing.switch_prob,
                mode=mixing.mode,
                label_smoothing=label_smoothing,
                num_classes=len(self.class_names),
            )

    def build(self, model: str, **options: Any) -> nn.Module:
        """Make ``model`` with one output per class; see `vision_ssm.models.create_model` for the options."""
        return create_model(model, num_classes=len(self.class_names), **options)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy in float32. With mixing on, ``batch.images`` is overwritten."""
        if self._mixup is not None:  # the smoothing is in the mixed targets already
            images, targets = self._mixup(batch.images, batch.targets)
            return F.cross_entropy(model(images).float(), targets)
        return F.cross_entropy(model(batch.images).float(), batch.targets, label_smoothing=self._smoothing)

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits [B, classes] in float32."""
        logits: Tensor = model(batch.images).float()
        return logits

    def meter(self) -> ClassificationMeter:
        """A fresh meter for these classes."""
        return ClassificationMeter(len(self.class_names))


class ClassificationMeter:
    """Top-1, top-5, loss, accuracy per class and the confusion matrix, from exact counts.

    ``top_k`` is 5, or the number of classes where there are fewer; "top5" means that k.
    """

    def __init__(self, num_classes: int) -> None:
        self.top_k = min(5, num_classes)
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        """Counts [true class, predicted class]."""
        self._top_k_hits = 0
        self._loss = 0.0

    def update(self, outputs: Tensor, batch: Batch) -> None:
        """Add logits [B, classes] and the targets [B] of a batch."""
        targets = batch.targets
        top = outputs.topk(self.top_k, dim=1).indices
        self._top_k_hits += int((top == targets[:, None]).sum())
        self._loss += float(F.cross_entropy(outputs, targets, reduction="sum"))
        cells = (targets * len(self.confusion) + top[:, 0]).cpu()
        self.confusion += torch.bincount(cells, minlength=self.confusion.numel()).view_as(self.confusion)

    def state(self) -> tuple[Tensor, int, float]:
        """The counts of this process."""
        return self.confusion, self._top_k_hits, self._loss

    def merge(self, states: Sequence[tuple[Tensor, int, float]]) -> None:
        """Take the sum over the ``states`` of all processes."""
        confusions, hits, losses = zip(*states, strict=True)
        self.confusion = torch.stack(confusions).sum(0)
        self._top_k_hits, self._loss = sum(hits), sum(losses)

    @property
    def count(self) -> int:
        """Number of images seen."""
        return int(self.confusion.sum())

    @property
    def top1(self) -> float:
        """Share of images whose first guess is right, in [0, 1]; nan before the first image."""
        return int(self.confusion.diagonal().sum()) / self.count if self.count else float("nan")

    @property
    def top5(self) -> float:
        """Share of images whose class is among the first ``top_k`` guesses, in [0, 1]; nan before the first image."""
        return self._top_k_hits / self.count if self.count else float("nan")

    @property
    def per_class(self) -> list[float]:
        """Share of each class's images that are recognised, in [0, 1]; nan for a class without images."""
        return (self.confusion.diagonal().double() / self.confusion.sum(1)).tolist()

    def scores(self) -> dict[str, float]:
        """top1, top5 in [0, 1], and the mean cross-entropy in nats."""
        return {"top1": self.top1, "top5": self.top5, "loss": self._loss / self.count if self.count else float("nan")}
