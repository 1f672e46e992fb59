"""Image classification: one class per image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup
from torch import Tensor, nn

from vision_ssm.errors import ConfigError
from vision_ssm.models.registry import create_model
from vision_ssm.tasks.classification.settings import AugmentSettings
from vision_ssm.tasks.task import Batch

__all__ = ["Classification", "ClassificationMeter"]


class Classification:
    """Cross-entropy on hard, smoothed or mixed targets; top-1 and top-5.

    Args:
        class_names: in the order of the class indices.
        augment: label smoothing, and whether pairs of images are mixed; batches must then be even.
    """

    name = "classification"
    primary = "top1"

    def __init__(self, class_names: Sequence[str], augment: AugmentSettings | None = None) -> None:
        if not class_names:
            raise ConfigError("classification needs at least one class.")
        self.class_names = tuple(class_names)
        augment = augment or AugmentSettings()
        self._smoothing = augment.label_smoothing
        self._mixup = None
        if augment.mixes:
            self._mixup = Mixup(  # type: ignore[no-untyped-call]
                mixup_alpha=augment.mixup,
                cutmix_alpha=augment.cutmix,
                prob=augment.mix_prob,
                switch_prob=augment.mix_switch_prob,
                mode=augment.mix_mode,
                label_smoothing=augment.label_smoothing,
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
