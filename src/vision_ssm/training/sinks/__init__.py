"""Where a run's numbers are shown besides its folder: one file per program, loaded when ``run.log_to`` names it.

Each file has ``open_sink(run)``, from an `Opening` to a `Sink`. They get the numbers of the log
under the same names everywhere; the log itself stays the record of the run.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from vision_ssm.errors import ConfigError
from vision_ssm.settings import describe
from vision_ssm.storage import whole_file
from vision_ssm.training.config import TrainConfig
from vision_ssm.training.events import EpochDone, Event, StepDone

__all__ = ["IDENTITIES", "Opening", "Outcome", "Sink", "Sinks", "hyperparameters", "numbers", "require_installed"]

Outcome = Literal["finished", "interrupted", "failed"]

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
"""What to install for each."""

IDENTITIES = "tracking.json"
"""In the run's folder: by which name each program knows the run, so that a resumed run is one run there too."""


class Opening(NamedTuple):
    """The run that a sink is opened for.

    Attributes:
        config: its configuration.
        folder: its folder.
        primary: name of the number that decides, such as ``held_out/top1``.
        resumed_at: updates that it had made before it was resumed, else None.
        identity: that the sink gave it when it began; None for a run that begins.
    """

    config: TrainConfig
    folder: Path
    primary: str
    resumed_at: int | None = None
    identity: str | None = None


class Sink(Protocol):
    """A program that shows the numbers of a run.

    Attributes:
        identity: by which it finds this run again; None where the run's folder is enough.
    """

    identity: str | None

    def record(self, values: Mapping[str, float], update: int, epoch: int) -> None:
        """Show some numbers of an update, counted from 1 over the whole run, in an epoch, counted from 1."""

    def close(self, outcome: Outcome) -> None:
        """Write what is not written yet, and say how the run has ended."""


def require_installed(names: Sequence[str]) -> None:
    """Raise ConfigError for the first of ``names`` whose package is not installed, saying what to install."""
    for name in names:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise ConfigError(
                f"run.log_to names {name}, which is not installed: pip install {PACKAGES[name]}, or leave it out. "
                "log.jsonl, log.csv and curve.png in the run's folder need nothing."
            )


class Sinks:
    """The sinks of a run.

    One that fails while training runs is left out from there on: that is said once, and the run goes on.

    Args:
        run: that they are opened for; ``identity`` is read from its folder.

    Raises:
        ConfigError: one of them cannot be opened.
    """

    def __init__(self, run: Opening) -> None:
        self._open: dict[str, Sink] = {}
        names = run.config.run.log_to
        known = _identities(run.folder) if names and run.resumed_at is not None else {}
        try:
            for name in names:
                self._open[name] = _opened(name, run._replace(identity=known.get(name)))
        except ConfigError:
            self.close("failed")
            raise
        known |= {name: sink.identity for name, sink in self._open.items() if sink.identity is not None}
        if known:
            with whole_file(run.folder / IDENTITIES) as part:
                part.write_text(json.dumps(known) + "\n", encoding="utf-8")

    def record(self, event: Event) -> list[str]:
        """Hand on the numbers of an event; returns, in sentences, which sinks have failed at it."""
        problems = []
        if isinstance(event, StepDone | EpochDone):
            for name, sink in list(self._open.items()):
                try:
                    sink.record(numbers(event), event.update, event.epoch)
                except Exception as error:  # noqa: BLE001 -- of a program of others: its server ends no run
                    del self._open[name]
                    problems.append(f"{name} is told nothing more, as it failed: {error or type(error).__name__}")
        return problems

    def close(self, outcome: Outcome) -> list[str]:
        """Close all of them, however the run has ended; returns, in sentences, which could not be."""
        problems = []
        while self._open:
            name, sink = self._open.popitem()
            try:
                sink.close(outcome)
            except Exception as error:  # noqa: BLE001 -- as above
                problems.append(f"{name} could not be closed: {error or type(error).__name__}")
        return problems


def _opened(name: str, run: Opening) -> Sink:
    sink = importlib.import_module(f"{__name__}.{name}")
    try:
        opened: Sink = sink.open_sink(run)
    except Exception as error:  # whatever a program of others raises while it looks for its server
        raise ConfigError(f"run.log_to: {name} cannot be opened: {error}") from error
    return opened


def numbers(event: Event) -> dict[str, float]:
    """The numbers of an update or an epoch by name; those that are not finite are left out.

    ``train/loss``, ``train/loss_NAME`` where a task has several, ``train/learning_rate``, ``train/grad_norm``,
    ``train/images_per_second``; ``epoch/train_loss``, ``epoch/seconds``; ``held_out/NAME`` and ``held_out_ema/NAME``.
    No name is the folder of another one: MLflow keeps numbers in files of these names.
    """
    values: dict[str, float] = {}
    if isinstance(event, StepDone):
        for name in ("loss", "learning_rate", "grad_norm", "images_per_second"):
            values[f"train/{name}"] = getattr(event, name)
        if len(event.losses) > 1:
            values |= {f"train/loss_{name}": value for name, value in event.losses.items()}
    elif isinstance(event, EpochDone):
        values = {"epoch/train_loss": event.train_loss, "epoch/seconds": event.seconds}
        values |= {f"held_out/{name}": value for name, value in (event.scores or {}).items()}
        values |= {f"held_out_ema/{name}": value for name, value in (event.ema_scores or {}).items()}
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


def hyperparameters(config: TrainConfig) -> dict[str, Any]:
    """Every setting of a run by its dotted name."""
    values = config.to_dict()
    found: dict[str, Any] = {}
    for key in describe(type(config)):
        inner: Any = values
        for name in key.split("."):
            inner = inner[name]
        found[key] = inner
    return found


def _identities(folder: Path) -> dict[str, str]:
    file = folder / IDENTITIES
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{file}: cannot be read ({error}); delete it to begin new entries.") from error
