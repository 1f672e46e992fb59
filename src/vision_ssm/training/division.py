"""How the images of an update are divided over processes, so that another number of them continues the same run.

A run begins on W processes with batches of B images and A of them per update. What it learns from is then fixed: the
images of one update are A·G of the epoch's order, G = B·W, and an epoch ends with its last whole G. On W' processes
batches of B' with B'·W' dividing G keep all of that, so the updates, their images and the learning rate stay the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from vision_ssm.errors import ConfigError
from vision_ssm.training.config import TrainConfig

__all__ = ["Division"]


@dataclass(frozen=True)
class Division:
    """What one process takes of an update.

    Attributes:
        begun_on: processes that the run began on; its configuration speaks of these.
        batch_size: images of a batch on one process now.
        accumulate: batches of a whole update now.
        whole: G, images of a batch over all processes when the run began; an epoch has a multiple of them.
    """

    begun_on: int
    batch_size: int
    accumulate: int
    whole: int

    @classmethod
    def of(cls, config: TrainConfig, processes: int, begun_on: int, *, multiple: int = 1) -> Division:
        """Divide for so many processes, with batches no larger than the run began with.

        Args:
            config: as the run began.
            processes: now.
            begun_on: processes then.
            multiple: that a batch must be of.

        Raises:
            ConfigError: the batch cannot be divided by them.
        """
        size, accumulate = config.batch_size, config.optim.accumulate
        whole = size * begun_on
        if processes == begun_on:
            return cls(begun_on, size, accumulate, whole)
        share, rest = divmod(whole, processes)
        fitting = [b for b in range(1, min(size, share) + 1) if share % b == 0 and b % multiple == 0]
        if rest or not fitting:
            fit = [n for n in range(1, whole // multiple + 1) if whole % n == 0 and (whole // n) % multiple == 0]
            raise ConfigError(
                f"the run began on {begun_on} processes with batches of {size} images, {whole} over all of them, which "
                f"{processes} processes cannot share evenly; resume it on {', '.join(map(str, fit[-12:]))}."
            )
        return cls(begun_on, fitting[-1], accumulate * share // fitting[-1], whole)
