"""The learning rate as a function of the position in the run, by timm's schedulers."""

from __future__ import annotations

import torch
from timm.scheduler.scheduler_factory import create_scheduler_v2

from vision_ssm.training.config import TrainConfig

__all__ = ["LearningRate", "scaled_rate"]


def scaled_rate(config: TrainConfig, processes: int) -> float:
    """The learning rate at the top of the schedule, after the rule ``optim.lr_base_batch`` asks for.

    The official code scales by batch × processes / 512 (DeiT's rule) and scales neither ``warmup_lr`` nor ``min_lr``.
    """
    optim = config.optim
    if optim.lr_base_batch is None:
        return optim.lr
    return optim.lr * config.data.batch_size * optim.accumulate * processes / optim.lr_base_batch


class LearningRate:
    """Sets the rate before each update. It has no state: the rate follows from epoch and update alone.

    With ``per: epoch`` and ``epoch_lag: 1`` epoch e runs at f(max(0, e - 1)), which is what calling timm's
    ``scheduler.step(epoch)`` after epoch ``epoch`` gives, as the official code does; the warm-up then takes one epoch
    more than it says, and the cosine ends one epoch early. timm's cosine is not shifted by the warm-up unless
    ``warmup_prefix`` says so; then it spans the epochs after it.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, config: TrainConfig, updates_per_epoch: int) -> None:
        schedule = config.schedule
        self._optimizer = optimizer
        self._per_update = schedule.per == "update"
        self._lag = schedule.epoch_lag
        self._updates_per_epoch = updates_per_epoch
        self.peak = max(float(group["lr"]) for group in optimizer.param_groups)
        self._scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=schedule.name,
            num_epochs=schedule.epochs - (schedule.warmup_epochs if schedule.warmup_prefix else 0),  # type: ignore[arg-type]
            warmup_epochs=schedule.warmup_epochs,  # type: ignore[arg-type]  # fractions of an epoch are fine
            warmup_prefix=schedule.warmup_prefix,
            warmup_lr=schedule.warmup_lr,
            min_lr=schedule.min_lr,
            step_on_epochs=not self._per_update,
            updates_per_epoch=updates_per_epoch,
        )

    def set(self, epoch: int, update: int) -> float:
        """Set the rate for an update of ``epoch`` (both counted from 0) and return it; the head's, with layer decay."""
        if self._per_update:
            self._scheduler.step_update(max(0, update - self._lag * self._updates_per_epoch))
        else:
            self._scheduler.step(max(0, epoch - self._lag))
        return max(float(group["lr"]) for group in self._optimizer.param_groups)
