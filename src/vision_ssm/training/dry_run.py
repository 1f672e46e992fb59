"""What a run would cost here, measured with a few real updates. Nothing is written."""

from __future__ import annotations

import itertools
import time
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import median

from vision_ssm import moved
from vision_ssm.data.loader import worker_failures
from vision_ssm.training.assembly import assemble
from vision_ssm.training.config import TrainConfig
from vision_ssm.training.distributed import Processes
from vision_ssm.training.engine import Engine

__all__ = ["DryRun", "estimate"]

_ENOUGH_SECONDS = 10.0
_ENOUGH_UPDATES = 10


@moved.attributes
@dataclass(frozen=True)
class DryRun:
    """The size of a run and its speed on this machine.

    Attributes:
        images_per_second: of training, reading and augmentation included.
        eval_images_per_second: of evaluation.
        seconds: estimate for the whole run with its evaluations; without the set-up and the writing of files.
        knows: what the model would learn to tell, in words.
        data: what there is to train on and what is held out.
        notices: where the run would differ from what was asked for.
    """

    model: str
    parameters: int
    device: str
    processes: int
    knows: str
    data: str
    train_images: int
    val_images: int
    epochs: int
    images_per_update: int
    updates_per_epoch: int
    updates: int
    learning_rate: float
    images_per_second: float
    eval_images_per_second: float
    seconds: float
    notices: tuple[str, ...]


def estimate(config: TrainConfig) -> DryRun:
    """Make a few updates and evaluate a few batches, then multiply.

    Raises:
        ConfigError, DataError, CheckpointError, TrainingDiverged: as `vision_ssm.training.train`, but the run folder
        is not looked at.
    """
    joined = Processes.join(config.run.device, config.run.timeout)
    with joined as processes, processes.watch or nullcontext(), worker_failures():
        engine = Engine(assemble(config, processes, resuming=False), processes)
        per_update = _seconds_per_update(engine)
        per_eval_batch = _seconds_per_eval_batch(engine)
    parts, config = engine.parts, engine.config
    evaluations = -(-engine.length.epochs // config.run.eval_every) * (2 if engine.ema is not None else 1)
    updates = engine.length.updates
    eval_batch = parts.val.batch_size * processes.world
    return DryRun(
        model=config.model.name,
        parameters=sum(parameter.numel() for parameter in engine.model.parameters()),
        device=str(processes.device),
        processes=processes.world,
        knows=parts.task.knows(),
        data=parts.data,
        train_images=len(parts.train.dataset),
        val_images=len(parts.val.dataset),
        epochs=engine.length.epochs,
        images_per_update=engine.images_per_update,
        updates_per_epoch=engine.updates_per_epoch,
        updates=updates,
        learning_rate=engine.rate.peak,
        images_per_second=engine.images_per_update / per_update,
        eval_images_per_second=eval_batch / per_eval_batch,
        seconds=updates * per_update + evaluations * len(parts.val) * per_eval_batch,
        notices=tuple(parts.notices),
    )


def _seconds_per_update(engine: Engine) -> float:
    """Median over some updates; the first, which allocates and starts the workers, is left out where there are more."""
    engine.model.train()
    batches = engine.batches()
    times: list[float] = []
    began = time.monotonic()
    while len(times) < min(_ENOUGH_UPDATES, engine.updates_per_epoch):
        started = time.monotonic()
        engine.update(batches)  # reads the loss, so the device is done when it returns
        times.append(time.monotonic() - started)
        if len(times) > 1 and time.monotonic() - began > _ENOUGH_SECONDS:
            break
    return median(times[1:] or times)


def _seconds_per_eval_batch(engine: Engine) -> float:
    marks = [time.monotonic()]

    def keep_going(done: int) -> bool:
        marks.append(time.monotonic())
        return done < 5 and marks[-1] - marks[0] < _ENOUGH_SECONDS

    engine.evaluate(engine.model, keep_going)
    times = [later - sooner for sooner, later in itertools.pairwise(marks)]
    return median(times[1:] or times)
