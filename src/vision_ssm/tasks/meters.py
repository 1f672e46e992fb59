"""Reading a meter, and a ready-made one for tasks whose scores are means over images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from vision_ssm.data.batches import Batch
from vision_ssm.errors import ConfigError
from vision_ssm.tasks.scores import Table
from vision_ssm.tasks.task import Meter, Task

__all__ = ["AverageMeter", "read_scores"]


def read_scores(meter: Meter, task: Task) -> dict[str, float]:
    """The values of the task's scores, in their order, as plain numbers.

    Raises:
        ConfigError: the meter lacks one.
    """
    values = meter.scores()
    missing = [score.name for score in task.scores if score.name not in values]
    if missing:
        raise ConfigError(f"the meter of the task {task.name} lacks the score {missing[0]!r}; it has {list(values)}.")
    return {score.name: float(values[score.name]) for score in task.scores}


class AverageMeter:
    """The mean over images of what ``score`` says of each; see `vision_ssm.tasks.task.Meter`.

    Args:
        score: from the outputs of a batch of B images, and the batch, to values [B] by the name of the score.
    """

    def __init__(self, score: Callable[[Any, Batch], Mapping[str, Tensor]]) -> None:
        self._score = score
        self._sums: dict[str, float] = {}
        self.count = 0

    def update(self, outputs: Any, batch: Batch) -> None:
        """Add one batch."""
        self.count += len(batch.indices)
        for name, values in self._score(outputs, batch).items():
            self._sums[name] = self._sums.get(name, 0.0) + float(values.double().sum())

    def state(self) -> tuple[int, dict[str, float]]:
        """The count and the sums of this process."""
        return self.count, self._sums

    def merge(self, states: Sequence[tuple[int, dict[str, float]]]) -> None:
        """Take the sums over the ``states`` of all processes."""
        self.count = sum(count for count, _ in states)
        names = dict.fromkeys(name for _, sums in states for name in sums)
        self._sums = {name: math.fsum(sums.get(name, 0.0) for _, sums in states) for name in names}

    def scores(self) -> dict[str, float]:
        """The means by name; nothing before the first image."""
        return {name: total / self.count for name, total in self._sums.items()}

    def details(self) -> dict[str, Any]:
        """Nothing more."""
        return {}

    def tables(self) -> list[Table]:
        """None."""
        return []
