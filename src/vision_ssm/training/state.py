"""The state of a run on disk: written whole or not at all, read without running anything that is in it.

A checkpoint holds everything that the next update depends on: weights, average, optimiser, loss scaler, position and
configuration. Random numbers need no state, because they are a function of the seed and the position. A digest over all
of it is checked when it is read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vision_ssm.checkpoints.pickles import refuse_bombs
from vision_ssm.errors import CheckpointError, ConfigError
from vision_ssm.settings import differences
from vision_ssm.storage import what_else, whole_file
from vision_ssm.training.config import TrainConfig
from vision_ssm.training.integrity import fault, state_digest

__all__ = ["LAST", "NEXT", "PREVIOUS", "Found", "has_state", "read_state", "refuse_changes", "write_state"]

FORMAT = 2
"""2: with a ``digest``. 1 had none, and is still read."""

LAST, PREVIOUS, NEXT = "last.ckpt", "previous.ckpt", "next.ckpt"
_KEYS = {"format", "model", "ema", "optimizer", "scaler", "progress", "config", "data", "processes", "log_bytes"}


def write_state(folder: Path, state: Mapping[str, Any]) -> Path:
    """Write ``last.ckpt`` in ``folder`` and keep the one before it as ``previous.ckpt``.

    Whatever happens meanwhile (kill, full disk, power), one of the two is whole afterwards.

    Raises CheckpointError when it cannot be written; the files of before are untouched then.
    """
    path = folder / LAST
    try:
        with whole_file(folder / NEXT, error=CheckpointError) as part:
            content = {"format": FORMAT, **state}
            _serialise({**content, "digest": state_digest(content)}, part)
        if path.exists():
            os.replace(path, folder / PREVIOUS)
        os.replace(folder / NEXT, path)
    except (CheckpointError, OSError) as error:
        kept = next((folder / name for name in (LAST, PREVIOUS) if (folder / name).exists()), None)
        advice = f"The last good checkpoint is {kept}; make room and resume." if kept else "There is no earlier one."
        raise CheckpointError(f"could not write the checkpoint: {error} {advice}") from error
    return path


def _serialise(state: Mapping[str, Any], path: Path) -> None:
    try:
        with path.open("wb") as file:
            torch.save(dict(state), file)
    except RuntimeError as error:
        # torch's writer hides the reason (no space left ...) behind an internal message.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def has_state(path: Path) -> bool:
    """Whether ``path`` is, or is a run folder with, a checkpoint to continue from."""
    return path.suffix == ".ckpt" or any((path / name).exists() for name in (NEXT, LAST, PREVIOUS))


class Found(NamedTuple):
    """A state, the file it came from, and what was wrong with newer ones."""

    state: dict[str, Any]
    file: Path
    passed_over: tuple[str, ...] = ()


def read_state(path: Path) -> Found:
    """Read a checkpoint, or the newest whole one of a run folder.

    Raises CheckpointError when there is none, or none that can be read.
    """
    if not path.is_dir():
        try:
            return Found(_read(path), path)
        except CheckpointError as error:
            others = [name for name in (NEXT, LAST, PREVIOUS) if name != path.name and (path.parent / name).exists()]
            hint = f" To continue from {' or '.join(others)} beside it, give the folder." if others else ""
            raise CheckpointError(f"{error}{hint}") from error
    problems: list[str] = []
    # What was written last is there under the first of these names, even after a kill between two renames.
    for candidate in (path / NEXT, path / LAST, path / PREVIOUS):
        if not candidate.exists():
            continue
        try:
            return Found(_read(candidate), candidate, tuple(problems))
        except CheckpointError as error:
            problems.append(str(error))
    raise CheckpointError(" ".join(problems) or f"{path}: no checkpoint ({LAST}) here.")


def _read(path: Path) -> dict[str, Any]:
    if other := what_else(path):
        raise CheckpointError(f"{path}: is {other}, not a training checkpoint.")
    refuse_bombs(path)
    try:
        file = path.open("rb")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}.") from error
    try:
        with file:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever damaged bytes bring out; torch's text would tell how to load them unsafely
        raise CheckpointError(f"{path}: damaged, or not a training checkpoint.") from error
    if not isinstance(state, dict) or not set(state) >= _KEYS:
        raise CheckpointError(
            f"{path}: not a training checkpoint of this library. To start from its weights use model.checkpoint "
            "(--checkpoint)."
        )
    version = state["format"]
    if type(version) is not int or version < 1:
        raise CheckpointError(f"{path}: damaged: its format is {str(version)[:50]!r}.")
    if version > FORMAT:
        raise CheckpointError(f"{path}: written by a newer version (format {version}, known is {FORMAT}).")
    if version > 1 and state.pop("digest", None) != state_digest(state):
        raise CheckpointError(f"{path}: damaged: its content is not what was written.")
    if what := fault(state):
        raise CheckpointError(f"{path}: damaged: {what}.")
    return state


def refuse_changes(state: Mapping[str, Any], config: TrainConfig, data: Mapping[str, Any], processes: int) -> None:
    """Make sure that continuing ``state`` under ``config`` is the same run.

    Settings that leave the trained weights alone may change (paths, logging, workers, device, checkpoint interval);
    ``schedule.cooldown_epochs`` may, since the schedule before it is the same function; ``schedule.epochs`` may only
    for constant and step, where the rate does not depend on the length. ``schedule.updates`` may never: the epoch
    that it cuts would have been whole in the longer run, so only a longer cool-down continues it.

    Raises ConfigError naming every setting that differs, with both values.
    """
    changed = differences(type(config), state["config"], config.to_dict())
    if config.schedule.name in ("constant", "step"):
        old, new = changed.get("schedule.epochs", (None, None))
        if old is not None and new is not None:  # not from or to a length in updates
            del changed["schedule.epochs"]
    lines = [f"{key} was {old!r} and is {new!r}" for key, (old, new) in changed.items()]
    # Checkpoints of format 1 knew the names of the images only.
    lines += [f"the {key} differ" for key, value in data.items() if state["data"].get(key, value) != value]
    if state["processes"] != processes:
        lines.append(f"it ran on {state['processes']} processes and would continue on {processes}")
    if lines:
        raise ConfigError(
            f"resuming would not continue the same run: {'; '.join(lines)}. Undo this, or start a new run from the "
            "weights with model.checkpoint."
        )
