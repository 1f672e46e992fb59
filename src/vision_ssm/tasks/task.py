"""What the training engine asks of a task. A new task needs these methods and no change of the engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

__all__ = ["Batch", "Meter", "Task"]


class Batch(Protocol):
    """A batch as the loader makes it. What ``targets`` holds is between the task and its loader."""

    @property
    def images(self) -> Tensor:
        """Images [B, 3, H, W]."""

    @property
    def targets(self) -> Any:
        """What is to be predicted."""

    @property
    def indices(self) -> Tensor:
        """Positions in the data set [B], for messages that name files."""

    def to(self, device: torch.device) -> Self:
        """The same batch on another device."""


class Meter(Protocol):
    """Collects one evaluation."""

    def update(self, outputs: Any, batch: Batch) -> None:
        """Add one batch: what ``Task.predict`` returned for it, and its targets."""

    def state(self) -> Any:
        """Everything collected so far by this process, picklable."""

    def merge(self, states: Sequence[Any]) -> None:
        """Replace what was collected by the union of the ``states`` of all processes, in any order."""

    def scores(self) -> dict[str, float]:
        """The scores by name; higher is better for the task's ``primary`` one."""


class Task(Protocol):
    """Model, loss and scores of one kind of problem."""

    name: str
    primary: str  # the score by which the best weights are chosen

    def build(self, model: str, **options: Any) -> nn.Module:
        """Make the model with the right head for the data."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Mean training loss of a batch, a scalar in float32.

        What is drawn at random here (mixup, drop path) comes from the global generators of `random`, `numpy.random` and
        torch, which the engine seeds before every call.
        """

    def predict(self, model: nn.Module, batch: Any) -> Any:
        """Outputs of a model in evaluation mode, as ``Meter.update`` takes them."""

    def meter(self) -> Meter:
        """A fresh meter."""
