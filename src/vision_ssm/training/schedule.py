"""How long a run is, and its learning rate as a function of the position in it."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass

import torch

from vision_ssm.errors import ConfigError
from vision_ssm.training.config import TrainConfig

__all__ = ["LearningRate", "Length", "scaled_rate"]


def scaled_rate(config: TrainConfig, processes: int) -> float:
    """The learning rate at the top of the schedule, after the rule ``optim.lr_base_batch`` asks for.

    The official code scales by batch × processes / 512 (DeiT's rule) and scales neither ``warmup_lr`` nor ``min_lr``.
    """
    optim = config.optim
    if optim.lr_base_batch is None:
        return optim.lr
    return optim.lr * config.batch_size * optim.accumulate * processes / optim.lr_base_batch


@dataclass(frozen=True)
class Length:
    """How many updates a run makes, and how they fall into epochs.

    A schedule of so many updates cuts its last epoch. The epochs of the cool-down after it are whole again, so a run
    that is resumed for a longer cool-down is the run that had it from the start.

    Attributes:
        updates_per_epoch: of a whole epoch.
        scheduled: updates of the schedule, without the cool-down.
        cooldown_epochs: after it.
    """

    updates_per_epoch: int
    scheduled: int
    cooldown_epochs: int

    @classmethod
    def of(cls, config: TrainConfig, updates_per_epoch: int) -> Length:
        """The length that ``schedule`` asks for."""
        schedule = config.schedule
        updates = schedule.length * (updates_per_epoch if schedule.unit == "epochs" else 1)
        return cls(updates_per_epoch, updates, schedule.cooldown_epochs)

    @property
    def _scheduled_epochs(self) -> int:
        return -(-self.scheduled // self.updates_per_epoch)

    @property
    def epochs(self) -> int:
        """Epochs of the run; the last one of the schedule may be cut."""
        return self._scheduled_epochs + self.cooldown_epochs

    @property
    def updates(self) -> int:
        """Updates of the run."""
        return self.scheduled + self.cooldown_epochs * self.updates_per_epoch

    def updates_in(self, epoch: int) -> int:
        """Updates of one epoch, counted from 0."""
        cut = self._scheduled_epochs - 1
        return self.scheduled - cut * self.updates_per_epoch if epoch == cut else self.updates_per_epoch


class LearningRate:
    """Sets the rate before each update. It has no state: the rate follows from epoch and update alone.

    With t the position, T the length and W the warm-up, in updates or, with ``per: epoch``, in epochs:

        t < W      warmup_lr + (lr - warmup_lr) t / W
        constant   lr
        step       lr × drop_factor^n, n the number of drops at or before t
        cosine     min_lr + (lr - min_lr) (1 + cos(π t / T)) / 2
        poly       min_lr + (lr - min_lr) (1 - t / T)^power

    With ``warmup_prefix`` t and T of cosine and poly are counted from the end of the warm-up; from T on both stay at
    min_lr. Sources: cosine arXiv:1608.03983, poly arXiv:1606.00915; both as in timm, to the bit. (timm's drops come one
    step early, and its lengths are in epochs only, which is why its schedulers are not called.)

    With ``per: epoch`` and ``epoch_lag: 1`` epoch e runs at f(max(0, e - 1)), which is what calling timm's
    ``scheduler.step(epoch)`` after epoch ``epoch`` gives, as the official code does; the warm-up then takes one epoch
    more than it says, and the cosine ends one epoch early.

    Raises ConfigError when the warm-up, given in the other unit, turns out longer than the schedule.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, config: TrainConfig, updates_per_epoch: int) -> None:
        schedule = config.schedule
        self._schedule = schedule
        self._optimizer = optimizer
        self._updates_per_epoch = updates_per_epoch
        self._tops = [float(group["lr"]) for group in optimizer.param_groups]
        self.peak = max(self._tops)
        self._prefix = schedule.warmup_prefix and schedule.name in ("cosine", "poly")
        epoch = updates_per_epoch if schedule.per == "update" else 1  # in positions
        unit = epoch if schedule.unit == "epochs" else 1
        self._drops = [drop * unit for drop in schedule.drops]
        length, warmup = float(schedule.length), schedule.warmup_epochs
        if schedule.unit == "updates" or schedule.warmup_updates:  # both in updates
            length, warmup, unit = length * unit, schedule.warmup_updates or warmup * epoch, 1
        self._warmup = warmup * unit
        self._span = (length - warmup if self._prefix else length) * unit
        if warmup > length or self._span <= 0:
            raise ConfigError(f"the warm-up of {warmup:g} updates leaves nothing of the schedule's {length:g}.")

    def set(self, epoch: int, update: int) -> float:
        """Set the rate for an update of ``epoch`` (both counted from 0) and return it; the head's, with layer decay."""
        lag = self._schedule.epoch_lag
        if self._schedule.per == "update":
            position = max(0, update - lag * self._updates_per_epoch)
        else:
            position = max(0, epoch - lag)
        for group, top in zip(self._optimizer.param_groups, self._tops, strict=True):
            group["lr"] = self._at(position, top) * group.get("lr_scale", 1.0)
        return max(float(group["lr"]) for group in self._optimizer.param_groups)

    def _at(self, position: int, top: float) -> float:
        schedule = self._schedule
        if position < self._warmup:
            return schedule.warmup_lr + position * ((top - schedule.warmup_lr) / self._warmup)
        if schedule.name == "constant":
            return top
        if schedule.name == "step":
            return top * schedule.drop_factor ** bisect.bisect_right(self._drops, position)
        since = position - self._warmup if self._prefix else position
        if since >= self._span:
            return schedule.min_lr
        if schedule.name == "poly":
            return schedule.min_lr + (top - schedule.min_lr) * math.pow(1 - since / self._span, schedule.power)
        return schedule.min_lr + 0.5 * (top - schedule.min_lr) * (1 + math.cos(math.pi * since / self._span))
