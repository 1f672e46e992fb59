"""How a training run shows on the screen: one bar with the time left on a terminal, one line per epoch anywhere."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vision_ssm.cli.console import OutputLostError, amount, console, note, say
from vision_ssm.tasks.scores import Score
from vision_ssm.training.config import TrainConfig
from vision_ssm.training.events import (
    EpochDone,
    EvaluationStep,
    Event,
    Interrupted,
    Notice,
    RunStarted,
    StepDone,
)

__all__ = ["TrainingDisplay"]


class TrainingDisplay:
    """A listener for training events; use it as a context manager so that the terminal is left in order.

    Args:
        on_start: shows the configuration that the run has saved in its folder.
    """

    def __init__(self, on_start: Callable[[TrainConfig], None]) -> None:
        self._on_start = on_start
        self._console = console()
        self._lost = False
        self._epochs = 0
        self._scores: tuple[Score, ...] = ()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._training: TaskID | None = None
        self._evaluation: TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        """Show one event. A screen that is lost does not end the training: it is said once, and no more is shown."""
        if self._lost:
            return
        try:
            self._show(event)
        except OutputLostError as lost:
            self._lost = True
            note(f"{lost} Training goes on unseen; its log is in the run folder.")

    def _show(self, event: Event) -> None:
        match event:
            case RunStarted():
                self._started(event)
            case StepDone():
                self._step(event)
            case EvaluationStep():
                self._evaluating(event)
            case EpochDone():
                self._epoch(event)
            case Notice():
                note(event.message)
            case Interrupted():
                self._say(f"stopped by {event.signal} after {event.update} updates")

    def _say(self, message: str) -> None:
        say(message, on=self._console)

    def _started(self, event: RunStarted) -> None:
        self._epochs = event.epochs
        self._scores = tuple(Score(**score) for score in event.scores)
        self._say(f"Data: {event.data}")
        self._on_start(TrainConfig.load(event.folder / "config.yaml"))
        self._say(
            f"{event.model}, {amount(event.parameters)} parameters, from {event.started_from}; "
            f"{f'{event.knows}; ' if event.knows else ''}"
            f"{event.train_images:,} images to train on, {event.val_images:,} held out"
        )
        self._say(
            f"{event.epochs} epochs, {event.updates:,} updates with {event.images_per_update} images "
            f"on {event.device}; results in {event.folder}"
        )
        done = event.resumed_at or 0
        if event.resumed_at is not None:
            self._say(f"resumed after {done} updates")
        if self._training is not None:  # one run after another
            self._progress.remove_task(self._training)
        self._training = self._progress.add_task("training", total=event.updates, completed=done)

    def _step(self, event: StepDone) -> None:
        if self._training is not None:
            text = (
                f"epoch {event.epoch}/{self._epochs}  loss {event.loss:.3f}  lr {event.learning_rate:.1e}  "
                f"{event.images_per_second:.0f} images/s"
            )
            self._progress.update(self._training, completed=event.update, description=text)

    def _evaluating(self, event: EvaluationStep) -> None:
        if self._evaluation is None:
            self._evaluation = self._progress.add_task("evaluating", total=event.batches)
        self._progress.update(self._evaluation, completed=event.batch, total=event.batches)

    def _epoch(self, event: EpochDone) -> None:
        if self._evaluation is not None:
            self._progress.remove_task(self._evaluation)
            self._evaluation = None
        scores = [
            f"{label}{score.title} {score.text(group[score.name])}"
            for label, group in (("", event.scores), ("EMA ", event.ema_scores))
            for score in self._scores
            if not score.minor
            if group is not None and score.name in group
        ]
        self._say(
            f"epoch {event.epoch:>{len(str(self._epochs))}}/{self._epochs}  loss {event.train_loss:.4f}"
            + ("  held out: " + "  ".join(scores) if scores else "")
            + f"  {event.images_per_second:.0f} images/s  {event.seconds:.0f} s"
            + ("  best so far" if event.is_best else "")
        )
