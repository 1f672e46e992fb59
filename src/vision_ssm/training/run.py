"""A training run from start to end: epochs, evaluations, checkpoints, events, and how it may be ended early."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import torch
from torch import nn

from vision_ssm.data.loader import worker_failures
from vision_ssm.errors import DataError, TrainingDiverged, UnreadableError
from vision_ssm.tasks.meters import read_scores
from vision_ssm.training import results
from vision_ssm.training import state as checkpoint
from vision_ssm.training.agreement import contact, require_same, require_same_data, require_same_folder
from vision_ssm.training.assembly import assemble
from vision_ssm.training.config import TrainConfig
from vision_ssm.training.distributed import Processes, restarts
from vision_ssm.training.engine import Engine
from vision_ssm.training.events import (
    CheckpointWritten,
    Diverged,
    EpochDone,
    EvaluationStep,
    Event,
    Finished,
    Interrupted,
    Listener,
    Notice,
    RunStarted,
    StepDone,
    TrainResult,
)
from vision_ssm.training.interruption import StopRequest
from vision_ssm.training.opening import WAYS_OUT, write_skipped
from vision_ssm.training.run_folder import RunFolder
from vision_ssm.training.sharding import whole_state
from vision_ssm.training.sinks import Opening, Outcome, Sinks

__all__ = ["train"]

PROGRESS_SECONDS = 10.0
"""Between two drawings of the curve while training runs: short epochs would else spend their time on it."""


def train(config: TrainConfig, *, on_event: Listener | None = None) -> TrainResult:
    """Train as ``config`` says and leave everything in its run folder.

    Started by torchrun, every process calls this with the same configuration.

    Args:
        config: see `TrainConfig.load`.
        on_event: called with every event, between two updates; on the main process only.

    Returns:
        the best scores and where the weights are; ``interrupted`` is set when a signal ended the run early.

    Raises:
        ConfigError, DataError, CheckpointError: before the first update, saying what to do.
        TrainingDiverged: the loss is no longer finite. The last good checkpoint stays.
    """
    joined = Processes.join(config.run.device, config.run.timeout)
    with (
        joined as processes,
        processes.watch or nullcontext(),
        _reproducible_kernels(),
        StopRequest() as stop,
        worker_failures(),
    ):
        with contact(processes, lambda: "starting"):
            with processes.together():
                processes.at("comparing code and settings")
                config = _going_on(config, processes)
                require_same(config, processes)
                processes.at("looking into the run's folder")
                folder = RunFolder(config)
                source = Path(config.run.resume) if config.run.resume else None
                has_state = source is not None and checkpoint.has_state(source)
                found = checkpoint.read_state(source, processes) if source is not None and has_state else None
                begun_on = None if found is None else found.state["processes"]
                parts = assemble(config, processes, resuming=found is not None, begun_on=begun_on)
                processes.at("comparing the data")
                require_same_data(parts, processes)
            processes.at("spreading the model")
            engine = Engine(parts, processes)
        run = _Run(engine, folder, stop, on_event)
        with contact(processes, lambda: f"update {engine.progress.update}"):
            return run.carry_out(found)


def _going_on(config: TrainConfig, processes: Processes) -> TrainConfig:
    """What torchrun starts anew after a failure goes on where it was, although nobody asks to resume."""
    if config.run.resume or not processes.has_begun(config.run_folder):
        return config
    return config.replace(**{"run.resume": str(config.run_folder), "run.overwrite": False})


@contextmanager
def _reproducible_kernels() -> Iterator[None]:
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


class _Run:
    """An engine at work in a folder."""

    def __init__(self, engine: Engine, folder: RunFolder, stop: StopRequest, listener: Listener | None) -> None:
        self.engine = engine
        self.config = engine.config
        self.folder = folder
        self.stop = stop
        self._listener = listener
        self._is_main = engine.processes.is_main
        self._sinks: Sinks | None = None
        self._started_at = self._saved_at = self._drawn_at = time.monotonic()

    def carry_out(self, found: checkpoint.Found | None) -> TrainResult:
        """Train from the beginning, or from a checkpoint, to the end or until a signal."""
        engine = self.engine
        notices = list(engine.parts.notices)
        if restarts():
            notices.append(f"torchrun has started the run anew, for the {restarts()}. time, as a process had ended.")
        if found is not None:
            with engine.processes.together():
                engine.processes.at("restoring the state")
                engine.restore(found)
            notices += found.passed_over
            if found.file.name != checkpoint.LAST:
                notices.append(f"Continuing from {found.file}.")
        elif self.config.run.resume:
            notices.append("The run had written no checkpoint yet, so it starts from the beginning.")
        resumed_at = engine.progress.update if found is not None else None
        self._open_folder(0 if found is None else found.state["log_bytes"])
        if self._is_main:
            primary = f"held_out/{engine.task.primary.name}"
            self._sinks = Sinks(Opening(self.config, self.folder.path, primary, resumed_at))
        outcome: Outcome = "failed"
        try:
            self.emit(self._introduction(resumed_at))
            for message in notices:
                self.emit(Notice(message))
            result = self._to_the_end()
            outcome = "finished" if result.interrupted is None else "interrupted"
            return result
        finally:
            for problem in self._sinks.close(outcome) if self._sinks is not None else []:
                self.emit(Notice(problem))

    def _open_folder(self, log_bytes: int) -> None:
        """The main process makes the folder ready, and then each makes sure that it can write its part there."""
        processes = self.engine.processes
        processes.at("making the run's folder ready")
        with processes.together():
            if self._is_main:
                self.folder.start(self.config, log_bytes)
                if self.engine.parts.skipped is not None:
                    write_skipped(self.folder.path, self.engine.parts.skipped)
        processes.note_begun(self.folder.path)
        require_same_folder(self.folder.path, processes)

    def _to_the_end(self) -> TrainResult:
        engine = self.engine
        try:
            while engine.progress.epoch < engine.length.epochs and not self._is_out_of_patience():
                if not self._train_epoch() or not self._close_epoch():
                    return self._interrupted()
        except UnreadableError as error:
            if self.config.data.skip_unreadable:  # it could be read before the run
                raise
            raise DataError(f"{error} {WAYS_OUT}") from error
        except TrainingDiverged as error:
            self.emit(Diverged(str(error), error.epoch, error.update, error.learning_rate, error.files))
            raise
        if engine.progress.epoch < engine.length.epochs:
            title, best = engine.task.primary.title, engine.progress.best_epoch
            self.emit(
                Notice(
                    f"Ended after epoch {engine.progress.epoch}: {title} was best in epoch {best} (schedule.patience)."
                )
            )
        return self._finished()

    def _is_out_of_patience(self) -> bool:
        patience, at = self.config.schedule.patience, self.engine.progress
        is_judged = at.step == 0 and at.epoch % self.config.run.eval_every == 0
        return patience is not None and is_judged and at.epoch - at.best_epoch >= patience

    def emit(self, event: Event) -> None:
        """Log an event and hand it to the listener."""
        if not self._is_main:
            return
        if self._is_logged(event):
            self.folder.record(event)
            for problem in self._sinks.record(event) if self._sinks is not None else []:
                self.emit(Notice(problem))
        if self._listener is not None:
            self._listener(event)

    def _is_logged(self, event: Event) -> bool:
        if isinstance(event, StepDone):
            ends = event.update == 1 or event.step == self.engine.length.updates_in(event.epoch - 1)
            return ends or event.update % self.config.run.log_every == 0
        return not isinstance(event, EvaluationStep)

    def _train_epoch(self) -> bool:
        """Make the epoch's remaining updates. False when a signal came."""
        engine, at = self.engine, self.engine.progress
        updates = engine.length.updates_in(at.epoch)
        if at.step == updates:  # resumed between the last update and the evaluation
            return True
        engine.model.train()
        batches = engine.batches()
        rate = _Rate(engine.images_per_update)
        while at.step < updates:
            started = time.monotonic()
            due = time.monotonic() - self._saved_at >= 60 * self.config.run.checkpoint_minutes
            done = engine.update(batches, stop=self.stop.signal is not None, due=due)
            at.seconds += time.monotonic() - started
            speed = rate.after_update(restart=at.update % self.config.run.log_every == 0)
            position = at.epoch + 1, at.step, at.update
            self.emit(StepDone(*position, done.loss, done.losses, done.learning_rate, done.grad_norm, speed))
            if done.stop:
                return False
            if done.due:
                self._save()
        return True

    def _close_epoch(self) -> bool:
        """Evaluate, keep the weights, write the checkpoint that starts the next epoch. False when a signal came."""
        engine, at = self.engine, self.engine.progress
        epoch = at.epoch + 1
        candidates = {"model": engine.model} | ({"ema": engine.ema.module} if engine.ema is not None else {})
        scores: dict[str, dict[str, float]] = {}
        if epoch % self.config.run.eval_every == 0 or epoch == engine.length.epochs:
            for name, model in candidates.items():
                found = self._scores(name, model)
                if found is None:
                    return False
                scores[name] = found
        primary = engine.task.primary
        winner, best = None, at.best_scores.get(primary.name)
        for name, found in scores.items():
            if primary.is_better(found[primary.name], best):
                winner, best = name, found[primary.name]
        is_best = winner is not None
        if winner is not None:
            at.best_epoch, at.best_scores = epoch, scores[winner]
        self._write_weights(candidates, scores, epoch, winner)
        self.emit(
            EpochDone(
                epoch=epoch,
                update=at.update,
                train_loss=at.loss_sum / at.step,
                learning_rate=engine.rate.set(at.epoch, at.update - 1),
                scores=scores.get("model"),
                ema_scores=scores.get("ema"),
                is_best=is_best,
                seconds=at.seconds,
                images_per_second=engine.images_in(at.step) / at.seconds,
            )
        )
        at.epoch, at.step, at.loss_sum, at.seconds = epoch, 0, 0.0, 0.0
        self._save()
        if scores and epoch < engine.length.epochs:  # after the last one everything is drawn
            self._show_progress()
        return True

    def _write_weights(
        self, candidates: Mapping[str, nn.Module], scores: dict[str, dict[str, float]], epoch: int, winner: str | None
    ) -> None:
        """Write the last weights, and those of the winner if there is one; processes with shards all take part."""
        last = "ema" if "ema" in candidates else "model"
        self.engine.processes.at(f"update {self.engine.progress.update}, writing its weights")
        for name, model in candidates.items():
            paths = [self.folder.last_weights] * (name == last) + [self.folder.best_weights] * (name == winner)
            state = whole_state(model, keep=self._is_main) if paths else {}
            for path in paths if self._is_main else []:
                results.write_weights(path, state, self.engine.parts, scores.get(name, {}), epoch, name)

    def _show_progress(self) -> None:
        if not self._is_main or time.monotonic() - self._drawn_at < PROGRESS_SECONDS:
            return
        problem = results.write_progress(self.folder)
        self._drawn_at = time.monotonic()
        if problem is not None:
            self.emit(Notice(f"The curve could not be drawn: {problem}"))

    def _scores(self, name: str, model: nn.Module) -> dict[str, float] | None:
        batches = len(self.engine.parts.val)

        def keep_going(done: int) -> bool:
            self.emit(EvaluationStep(name, done, batches))
            return self.stop.signal is None

        meter = self.engine.evaluate(model, keep_going)
        return None if meter is None else read_scores(meter, self.engine.task)

    def _save(self) -> Path:
        self.engine.processes.at(f"update {self.engine.progress.update}, writing its checkpoint")
        state = {**self.engine.state(), "log_bytes": self.folder.log_bytes}
        path = checkpoint.write_state(self.folder.path, state, self.engine.processes)
        self._saved_at = time.monotonic()
        self.emit(CheckpointWritten(path, self.engine.progress.epoch, self.engine.progress.update))
        return path

    def _introduction(self, resumed_at: int | None) -> RunStarted:
        engine, parts = self.engine, self.engine.parts
        return RunStarted(
            folder=self.folder.path,
            model=self.config.model.name,
            parameters=sum(parameter.numel() for parameter in engine.model.parameters()),
            task=engine.task.name,
            scores=[dataclasses.asdict(score) for score in engine.task.scores],
            knows=engine.task.knows(),
            data=parts.data,
            train_images=len(parts.train.dataset),
            val_images=len(parts.val.dataset),
            epochs=engine.length.epochs,
            updates=engine.length.updates,
            updates_per_epoch=engine.updates_per_epoch,
            images_per_update=engine.images_per_update,
            learning_rate=engine.rate.peak,
            device=str(engine.processes.device),
            processes=engine.processes.world,
            started_from=parts.started_from,
            resumed_at=resumed_at,
        )

    def _interrupted(self) -> TrainResult:
        path = self._save()
        signals = self.engine.processes.gather(self.stop.signal)
        signal = next(name for name in signals if name is not None)
        self.emit(Interrupted(signal, path, self.engine.progress.update))
        if self.engine.progress.epoch:
            with suppress(KeyboardInterrupt):  # asked to stop once more: everything but the pictures is there
                self._draw()
        return self._result(signal)

    def _draw(self) -> None:
        problem = results.write_pictures(self.folder, self.engine) if self._is_main else None
        if problem is not None:
            self.emit(Notice(problem))

    def _finished(self) -> TrainResult:
        self._draw()
        result = self._result(None)
        self.emit(
            Finished(
                folder=result.folder,
                best_weights=result.best_weights,
                best_scores=result.best_scores,
                best_epoch=result.best_epoch,
                updates=result.updates,
                seconds=time.monotonic() - self._started_at,
            )
        )
        return result

    def _result(self, signal: str | None) -> TrainResult:
        at = self.engine.progress
        best = self.folder.best_weights if at.best_epoch else None
        scores = self.engine.task.scores
        return TrainResult(self.folder.path, best, dict(at.best_scores), at.best_epoch, at.update, signal, scores)


class _Rate:
    """Images per second since the last restart."""

    def __init__(self, images_per_update: int) -> None:
        self._images_per_update = images_per_update
        self._since, self._updates = time.monotonic(), 0

    def after_update(self, *, restart: bool) -> float:
        self._updates += 1
        now = time.monotonic()
        speed = self._updates * self._images_per_update / (now - self._since)
        if restart:
            self._since, self._updates = now, 0
        return speed
