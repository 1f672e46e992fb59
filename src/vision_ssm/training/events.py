"""What a training run tells while it runs. Each event is also one line of log.jsonl, under its snake_case name."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vision_ssm import moved
from vision_ssm.tasks.scores import Score

__all__ = [
    "CheckpointWritten",
    "Diverged",
    "EpochDone",
    "EvaluationStep",
    "Event",
    "Finished",
    "Interrupted",
    "Listener",
    "Notice",
    "RunStarted",
    "StepDone",
    "TrainResult",
]


@dataclass(frozen=True)
class Event:
    """Base of the events."""

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping that starts with the event's name."""
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()
        return {"event": name, **{f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}}


@moved.attributes
@dataclass(frozen=True)
class RunStarted(Event):
    """Everything is loaded and the first step is next.

    ``scores`` are the task's (see `vision_ssm.tasks.scores.Score`), the primary one first; ``knows`` says in words what
    the model learns to tell, ``data`` what there is to learn from; ``updates`` are those of the whole run; where the
    recipe gives them, one epoch may have fewer than the others. ``resumed_at`` is None or the updates already done.
    """

    folder: Path
    model: str
    parameters: int
    task: str
    scores: list[dict[str, Any]]
    knows: str
    data: str
    train_images: int
    val_images: int
    epochs: int
    updates: int
    updates_per_epoch: int
    images_per_update: int
    learning_rate: float
    device: str
    processes: int
    started_from: str
    resumed_at: int | None


@dataclass(frozen=True)
class Notice(Event):
    """Something the user did not ask for in so many words and should know."""

    message: str


@dataclass(frozen=True)
class StepDone(Event):
    """One update. ``update`` counts from 1 over the whole run, ``step`` from 1 within the epoch.

    ``losses`` are the task's by name, ``loss`` is their sum.
    """

    epoch: int
    step: int
    update: int
    loss: float
    losses: dict[str, float]
    learning_rate: float
    grad_norm: float
    images_per_second: float


@dataclass(frozen=True)
class EvaluationStep(Event):
    """One batch of an evaluation of ``weights`` ("model" or "ema"). Not logged."""

    weights: str
    batch: int
    batches: int


@dataclass(frozen=True)
class EpochDone(Event):
    """An epoch, counted from 1, is over. Scores are None when this epoch was not evaluated."""

    epoch: int
    update: int
    train_loss: float
    learning_rate: float
    scores: dict[str, float] | None
    ema_scores: dict[str, float] | None
    is_best: bool
    seconds: float
    images_per_second: float


@dataclass(frozen=True)
class CheckpointWritten(Event):
    """The state after ``update`` updates is on disk."""

    path: Path
    epoch: int
    update: int


@dataclass(frozen=True)
class Interrupted(Event):
    """A signal ended the run; ``path`` is the checkpoint that ``--resume`` continues from."""

    signal: str
    path: Path
    update: int


@dataclass(frozen=True)
class Diverged(Event):
    """The loss or its gradient stopped being finite; TrainingDiverged is raised next. ``files`` is the whole batch."""

    message: str
    epoch: int
    update: int
    learning_rate: float
    files: list[str]


@dataclass(frozen=True)
class TrainResult:
    """What a run left behind.

    Attributes:
        folder: the run folder.
        best_weights: the weights file with the best score so far, None before the first evaluation.
        best_scores: its scores on the held-out images, by name.
        named: how these scores are called and read.
        best_epoch: the epoch it comes from, counted from 1.
        updates: updates done over the whole run.
        interrupted: None, or the signal that ended this process early ("SIGINT", "SIGTERM").
    """

    folder: Path
    best_weights: Path | None
    best_scores: dict[str, float] = field(default_factory=dict)
    best_epoch: int = 0
    updates: int = 0
    interrupted: str | None = None
    named: tuple[Score, ...] = ()


@dataclass(frozen=True)
class Finished(Event):
    """The run is complete."""

    folder: Path
    best_weights: Path | None
    best_scores: dict[str, float]
    best_epoch: int
    updates: int
    seconds: float


Listener = Callable[[Event], None]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no nan
    return str(value) if isinstance(value, Path) else value
