"""What collects an evaluation, and the other models that one may ask."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from PIL import Image
from torch import Tensor

from vision_ssm.data.batches import Batch
from vision_ssm.tasks.scores import Table

__all__ = ["Critic", "Maker", "Meter"]

Maker = Callable[[Sequence[int], Sequence[int]], Iterator[list[Image.Image]]]
"""From labels and seeds to the images of `Task.sample`, batch by batch."""


class Meter(Protocol):
    """Collects one evaluation."""

    @property
    def count(self) -> int:
        """Number of images seen."""

    def update(self, outputs: Any, batch: Batch) -> None:
        """Add one batch: what `Task.predict` returned for it, and its targets."""

    def state(self) -> Any:
        """Everything collected so far by this process, picklable."""

    def merge(self, states: Sequence[Any]) -> None:
        """Replace what was collected by the union of the ``states`` of all processes, in any order."""

    def scores(self) -> dict[str, float]:
        """The values of the task's `scores`, by name; nan where there is nothing to score."""

    def details(self) -> dict[str, Any]:
        """What else is worth keeping, such as a score per class, as plain JSON values."""

    def tables(self) -> list[Table]:
        """The same for people, shown above the scores."""


class Critic(Protocol):
    """Another trained model that an evaluation asks about images.

    Attributes:
        source: the file, or the name, of its weights.
        class_names: that it knows, in the order of its outputs; empty where it knows none.
    """

    source: str
    class_names: tuple[str, ...]

    def features(self, images: Sequence[Image.Image]) -> Tensor:
        """What it makes of RGB pictures before its classifier, [n, D] float32 on the CPU."""

    def classes(self, images: Sequence[Image.Image]) -> list[int]:
        """The most probable class of each. Raises ConfigError where it does not tell one class per image."""
