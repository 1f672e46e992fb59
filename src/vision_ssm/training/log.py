"""The log of a run, read back: what its curve and its table are made from."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vision_ssm.errors import DataError
from vision_ssm.storage import what_else, whole_file
from vision_ssm.tasks.scores import Score

__all__ = ["RunLog", "read_log", "write_table"]


class RunLog(NamedTuple):
    """What a log.jsonl holds.

    Attributes:
        scores: of the task, the primary one first.
        steps: the events ``step_done``, by update.
        epochs: the events ``epoch_done``, by epoch.
        started: the last event ``run_started``; empty in a log that lacks it.
    """

    scores: tuple[Score, ...]
    steps: list[dict[str, Any]]
    epochs: list[dict[str, Any]]
    started: dict[str, Any]


def read_log(log: Path) -> RunLog:
    """Read a log. Of a step or an epoch that is there twice, as after a resume, the later line counts.

    Raises:
        DataError: it cannot be read, or a line before the last one is damaged.
    """
    scores: tuple[Score, ...] = ()
    steps: dict[int, dict[str, Any]] = {}
    epochs: dict[int, dict[str, Any]] = {}
    started: dict[str, Any] = {}
    try:
        if other := what_else(log):
            raise DataError(f"cannot read log {str(log)!r}: it is {other}.")
        # Not splitlines, which also ends a line at characters that may be in a class's name.
        lines = log.read_text(encoding="utf-8", errors="replace").rstrip("\n").split("\n")
    except OSError as error:
        raise DataError(f"cannot read log {str(log)!r}: {error.strerror or error}.") from error
    for number, line in enumerate(lines, start=1):
        try:
            event = json.loads(line)
            kind = event.get("event")
            if kind == "run_started" and event.get("scores"):
                scores, started = tuple(Score(**score) for score in event["scores"]), event
            elif kind == "step_done":
                steps[event["update"]] = _checked(event, ("update", "epoch", "learning_rate"), ("loss",), ("losses",))
            elif kind == "epoch_done":
                epochs[event["epoch"]] = _checked(event, ("update", "epoch"), ("train_loss",), ("scores", "ema_scores"))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            if number == len(lines):  # a run that was killed while writing
                break
            raise DataError(f"log {str(log)!r} is damaged in line {number}: {error}.") from error
    if not scores:  # a log from before runs said it: the first score is the primary one
        names = next((list(epoch["scores"]) for epoch in epochs.values() if epoch.get("scores")), ["score"])
        scores = tuple(Score(name, name) for name in names)
    return RunLog(scores, [steps[key] for key in sorted(steps)], [epochs[key] for key in sorted(epochs)], started)


def _checked(
    event: dict[str, Any], finite: Sequence[str], numbers: Sequence[str], mappings: Sequence[str]
) -> dict[str, Any]:
    """The event, if it has these numbers and, where they are there, mappings of names to numbers.

    Raises TypeError or ValueError; KeyError for a number that is not there.
    """
    for name in (*finite, *numbers):
        value = event[name]
        if isinstance(value, bool) or not isinstance(value, int | float | None if name in numbers else int | float):
            raise TypeError(f"{name} is {str(value)[:50]!r}")
        if name in finite and not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} is {value!r}")
    for name in mappings:
        values = event.get(name) or {}
        if not isinstance(values, dict) or not all(isinstance(value, int | float | None) for value in values.values()):
            raise TypeError(f"{name} is {str(values)[:50]!r}")
    if min(event["epoch"], event["update"]) < 1:
        raise ValueError(f"epoch {event['epoch']}, update {event['update']}")
    return event


_COLUMNS = (
    *("event", "epoch", "update", "loss", "learning_rate", "grad_norm", "images_per_second"),
    *("train_loss", "seconds", "is_best"),
)


def write_table(log: str | Path, path: str | Path) -> None:
    """Write the steps and epochs of a log as CSV, in the order of the run.

    The columns are the same from a run's first table to its last: ``event`` (``step_done`` or ``epoch_done``), the
    numbers of these events under their names in the log, then ``loss:NAME`` for each loss of the task, ``score:NAME``
    for each score and ``ema:NAME`` for that of the moving average. What an event does not have, or is no number, is
    empty.

    Args:
        log: the run's log.jsonl.
        path: the CSV file.

    Raises:
        DataError: the log cannot be read, or the table not be written.
    """
    found = read_log(Path(log))
    losses = list(dict.fromkeys(name for step in found.steps for name in step.get("losses") or {}))
    scores = [score.name for score in found.scores]
    columns = [*_COLUMNS, *(f"loss:{name}" for name in losses)]
    columns += [f"{kind}:{name}" for kind in ("score", "ema") for name in scores]
    with whole_file(path) as part, part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(_rows(found))


def _rows(log: RunLog) -> Iterator[dict[str, Any]]:
    # An epoch comes after its last step; sorted() keeps the order of the list among equals.
    for event in sorted([*log.steps, *log.epochs], key=lambda event: event["update"]):
        named = {f"loss:{name}": value for name, value in (event.get("losses") or {}).items()}
        for prefix, which in (("score:", "scores"), ("ema:", "ema_scores")):
            named |= {f"{prefix}{name}": value for name, value in (event.get(which) or {}).items()}
        yield {**named, **{name: event.get(name) for name in _COLUMNS}}
