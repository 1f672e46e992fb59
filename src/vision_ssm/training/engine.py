"""The training engine: one for every task, on one process or many, resumable to the bit.

`vision_ssm.training.run` drives it through the epochs. The task knows loss and scores, `Processes` the ranks,
`LearningRate` the schedule; what is left here is one update, one evaluation, and the state between them.

Exactness: the state after an update is a function of (state before, batch, seed, position). The loader makes batches a
function of (seed, epoch, position), and the generators are seeded before every batch, so a checkpoint taken between
two updates is all that a later process needs.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from vision_ssm.checkpoints.tensors import wrong_kinds
from vision_ssm.data.batches import Batch
from vision_ssm.device import autocast
from vision_ssm.errors import CheckpointError, ConfigError, TrainingDiverged
from vision_ssm.tasks.task import Meter
from vision_ssm.training.assembly import Parts, make_optimizer
from vision_ssm.training.distributed import Processes
from vision_ssm.training.randomness import seed_everything
from vision_ssm.training.schedule import LearningRate, Length
from vision_ssm.training.sharding import require_shardable, whole
from vision_ssm.training.shared_state import Key
from vision_ssm.training.state import Found, refuse_changes

__all__ = ["Engine", "Progress", "Update"]


@dataclass
class Progress:
    """Where a run is. ``epoch`` and ``update`` count what is complete, ``step`` the updates of the current epoch."""

    epoch: int = 0
    step: int = 0
    update: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    best_epoch: int = 0
    best_scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Update:
    """What one update tells about itself.

    ``losses`` are the task's by name and ``loss`` is their sum; ``stop`` is whether any process was asked to stop, and
    ``due`` whether any finds that a checkpoint is due, so that all do the same.
    """

    loss: float
    losses: dict[str, float]
    learning_rate: float
    grad_norm: float
    stop: bool
    due: bool


@contextmanager
def _single_values_refused() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):  # torch's words for it
            raise
        raise ConfigError(
            "a batch norm of this model would see one value per channel, of which there is no variance: use a larger "
            "batch size (data.batch_size, 2 or more; it needs as many training images) or larger images "
            "(model.img_size)."
        ) from error


class Engine:
    """Model, average, optimiser and the two things done with them: an update, and an evaluation."""

    def __init__(self, parts: Parts, processes: Processes) -> None:
        self.parts = parts
        self.config = parts.config
        self.processes = processes
        self.task = parts.task
        self.model = parts.model
        self.progress = Progress()
        ema = self.config.ema
        self.ema = ModelEmaV3(self.model, decay=ema.decay, use_warmup=ema.warmup) if ema.decay else None
        self._accumulate = parts.division.accumulate
        self.parallel = self._spread()
        self.optimizer = make_optimizer(
            self.config, self.model, parts.division.begun_on, backbone=self.task.backbone(self.model)
        )
        self.updates_per_epoch = math.ceil(len(parts.train) / self._accumulate)
        self.length = Length.of(self.config, self.updates_per_epoch)
        self.rate = LearningRate(self.optimizer, self.config, self.updates_per_epoch)
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=self.config.run.amp == "fp16")

    def _spread(self) -> nn.Module:
        """The model as training calls it. Before the optimiser is made: sharding puts other parameters in place."""
        models = [self.model, *([] if self.ema is None else [self.ema.module])]
        way = self.processes.way(self.config.run.parallel, sum(p.numel() for p in self.model.parameters()))
        if way == "fsdp" and self.processes.world > 1:
            require_shardable(self.config.optim.name)
            if self.ema is not None:
                self.ema.foreach = False  # one call takes no mixture of shards and buffers
        return self.processes.spread(
            models,
            [self.task.backbone(model) for model in models],
            way,
            sync_batch_norm=self.task.sync_batch_norm,
            unused_parameters=self.task.unused_parameters,
        )

    @property
    def images_per_update(self) -> int:
        """Images of a full update, over all processes."""
        return self.parts.division.batch_size * self._accumulate * self.processes.world

    def images_in(self, updates: int) -> int:
        """Images of the first so many updates of an epoch, over all processes."""
        batches = min(updates * self._accumulate, len(self.parts.train))
        return batches * self.parts.division.batch_size * self.processes.world

    def batches_in(self, step: int) -> int:
        """Batches of an update; the last one of an epoch may have fewer than the others."""
        return min(self._accumulate, len(self.parts.train) - step * self._accumulate)

    def batches(self) -> Iterator[Batch]:
        """The rest of the current epoch."""
        self.parts.train.set_position(self.progress.epoch, self.progress.step * self._accumulate)
        return iter(self.parts.train)

    def update(self, batches: Iterator[Batch], *, stop: bool = False, due: bool = False) -> Update:
        """Take one update's batches and make it. Raises TrainingDiverged, leaving the weights as they were."""
        at = self.progress
        rate = self.rate.set(at.epoch, at.update)
        self.optimizer.zero_grad(set_to_none=True)
        count = self.batches_in(at.step)
        totals: list[Tensor] = []
        parts: list[Tensor] = []
        names: list[str] = []
        indices: list[list[int]] = []
        for number in range(count):
            self.processes.at(f"update {at.update + 1} (epoch {at.epoch + 1}), reading its batch")
            batch = next(batches)
            self.processes.at(f"update {at.update + 1} (epoch {at.epoch + 1}), computing or waiting for the others")
            indices.append(batch.indices.tolist())
            batch = batch.to(self.processes.device)
            seed_everything(self.config.run.seed, "batch", at.update, number, self.processes.rank)
            with self.processes.accumulating(self.parallel, more_to_come=number + 1 < count):
                with autocast(self.processes.device, self.config.run.amp):
                    with _single_values_refused():
                        losses = self.task.losses(self.parallel, batch)
                    loss = functools.reduce(torch.add, losses.values())
                self.scaler.scale(loss / count).backward()  # type: ignore[no-untyped-call]
            if list(losses) != (names or list(losses)):
                raise ConfigError(
                    f"the losses of the task {self.task.name} must have the same names for every batch: they were "
                    f"{names} and are {list(losses)}."
                )
            names = list(losses)
            totals.append(loss.detach())
            parts.append(torch.stack([value.detach() for value in losses.values()]))
        asked = totals[0].new_tensor([float(stop), float(due)])
        told = torch.cat([torch.stack(totals).mean()[None], asked, torch.stack(parts).mean(0)])
        mean_loss, asked_to_stop, is_due, *mean_parts = self.processes.mean(told).tolist()
        self.scaler.unscale_(self.optimizer)
        norm = self._clip()
        # With loss scaling an infinite gradient only means that the scale was too high: the scaler skips the update.
        if not math.isfinite(mean_loss) or not (math.isfinite(norm) or self.scaler.is_enabled()):
            raise self._diverged(mean_loss, dict(zip(names, mean_parts, strict=True)), rate, totals, indices)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        at.step += 1
        at.update += 1
        at.loss_sum += mean_loss
        if self.ema is not None:
            self.ema.update(self.model, step=at.update if self.config.ema.warmup else None)
        by_name = dict(zip(names, mean_parts, strict=True))
        return Update(mean_loss, by_name, rate, norm, asked_to_stop > 0, is_due > 0)

    def _clip(self) -> float:
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.config.optim.clip_grad is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.optim.clip_grad, norm)
        return float(whole(norm))

    def _diverged(
        self, loss: float, parts: dict[str, float], rate: float, losses: list[Tensor], indices: list[list[int]]
    ) -> TrainingDiverged:
        guilty = [rows for value, rows in zip(losses, indices, strict=True) if not bool(value.isfinite())]
        everywhere = self.processes.gather([row for rows in guilty for row in rows])
        rows = [row for part in everywhere for row in part] or [row for rows in indices for row in rows]
        files = self.parts.files(rows)
        bad = [name for name, value in parts.items() if not math.isfinite(value)]
        of_which = f" ({' and '.join(bad)} of {', '.join(parts)})" if len(parts) > 1 and bad else ""
        what = f"the loss is {loss}{of_which}" if not math.isfinite(loss) else "the gradient is not finite"
        epoch, update = self.progress.epoch + 1, self.progress.update + 1
        shown = ", ".join(files[:4]) + (f" and {len(files) - 4} more" if len(files) > 4 else "")
        return TrainingDiverged(
            f"{what} at update {update} (epoch {epoch}, learning rate {rate:.3g}), on the batch {shown}. The update "
            "was not made. Lower optim.lr, lengthen schedule.warmup_epochs, set optim.clip_grad, or train with "
            "run.amp none.",
            epoch=epoch,
            update=update,
            learning_rate=rate,
            files=files,
        )

    def evaluate(self, model: nn.Module, keep_going: Callable[[int], bool] = lambda batches_done: True) -> Meter | None:
        """Score ``model`` on the held-out images.

        None when ``keep_going``, asked after every batch, ended it early on any process; the others come to their end.
        """
        was_training = model.training
        model.eval()
        meter = self.task.meter()
        ended_early = False
        try:
            with torch.no_grad(), self.processes.evaluating(model):
                for done, batch in enumerate(self.parts.val, start=1):
                    self.processes.at(f"update {self.progress.update}, batch {done} of its evaluation")
                    moved = batch.to(self.processes.device)
                    with autocast(self.processes.device, self.config.run.amp):
                        outputs = self.task.predict(model, moved)
                    meter.update(outputs, moved)
                    if not keep_going(done):
                        ended_early = True
                        break
        finally:
            model.train(was_training)
        self.processes.at(f"update {self.progress.update}, putting its scores together")
        states = self.processes.gather(None if ended_early else meter.state())
        if any(state is None for state in states):
            return None
        meter.merge(states)
        return meter

    def state(self) -> dict[str, Any]:
        """Everything the next update depends on. Tensors in shards are left so; all processes must ask."""
        for model in (self.model, *([] if self.ema is None else [self.ema.module])):
            self.processes.agree(model)
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": dataclasses.asdict(self.progress),
            "config": self.config.to_dict(),
            "data": self.parts.data_identity,
            "processes": self.parts.division.begun_on,
        }

    def restore(self, found: Found) -> None:
        """Continue from a state, which any number of processes may have written.

        Raises ConfigError when that would not be the same run, CheckpointError when a part of it is of another one.
        """
        refuse_changes(found.state, self.config, self.parts.data_identity)
        state = found.filled(self._like)
        averaged = {} if self.ema is None else {"ema": self.ema.module}
        for part, model in {"model": self.model, **averaged}.items():
            if state[part] is None or (kinds := wrong_kinds(model.state_dict(), state[part])):
                reason = "it is missing" if state[part] is None else ", ".join(kinds[:5])
                raise CheckpointError(f"the checkpoint's {part} does not fit this run: {reason}.")
        if state["progress"].get("update") and not state["optimizer"]["state"] and self._optimizer_has_state():
            raise CheckpointError("the checkpoint's optimizer does not fit this run: its state is missing.")
        part = "model"
        try:
            self.model.load_state_dict(state["model"])
            part = "ema"
            for model in averaged.values():
                model.load_state_dict(state["ema"])
            part = "optimizer"
            self.optimizer.load_state_dict(state["optimizer"])
            part = "scaler"
            self.scaler.load_state_dict(state["scaler"])
            part = "progress"
            self.progress = Progress(**state["progress"])
        except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise CheckpointError(f"the checkpoint's {part} does not fit this run: {error}.") from error

    def _like(self, key: Key) -> Tensor | None:
        """What is of the shape and in the shards of the tensor at ``key`` of a state."""
        match key:
            case ("model", str(name)):
                return dict(self.model.named_parameters()).get(name)
            case ("ema", str(name)) if self.ema is not None:
                return dict(self.ema.module.named_parameters()).get(name)
            case ("optimizer", "state", int(number), _):
                parameters: list[Tensor] = [p for group in self.optimizer.param_groups for p in group["params"]]
                return parameters[number] if number < len(parameters) else None
        return None

    def _optimizer_has_state(self) -> bool:
        """Whether the optimiser keeps anything from one update to the next, which plain SGD does not."""
        trial = copy.deepcopy(self.optimizer)
        for group in trial.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        trial.step()
        return bool(trial.state_dict()["state"])
