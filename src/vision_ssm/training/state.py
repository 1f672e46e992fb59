"""The state of a run on disk: written whole or not at all, read without running anything that is in it.

A checkpoint holds everything that the next update depends on: weights, average, optimiser, loss scaler, position and
configuration. Random numbers need no state, because they are a function of the seed and the position. A digest over all
of it is checked when it is read. One process writes a file, several write a folder of the same name together
(`vision_ssm.training.shared_state`); any number of processes continues from either.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vision_ssm.checkpoints.pickles import refuse_bombs
from vision_ssm.errors import CheckpointError, ConfigError
from vision_ssm.settings import differences
from vision_ssm.storage import what_else, whole_file
from vision_ssm.training.config import TrainConfig
from vision_ssm.training.distributed import Processes
from vision_ssm.training.integrity import fault, state_digest
from vision_ssm.training.sharding import in_shards_like
from vision_ssm.training.shared_state import Key, fill, read_record, unwhole, write_folder

__all__ = ["LAST", "NEXT", "PREVIOUS", "Found", "has_state", "read_state", "refuse_changes", "remove", "write_state"]

FORMAT = 2
"""2: with a ``digest``. 1 had none, and is still read."""

LAST, PREVIOUS, NEXT = "last.ckpt", "previous.ckpt", "next.ckpt"
_KEYS = {"format", "model", "ema", "optimizer", "scaler", "progress", "config", "data", "processes", "log_bytes"}


def write_state(folder: Path, state: Mapping[str, Any], processes: Processes | None = None) -> Path:
    """Write ``last.ckpt`` in ``folder`` and keep the one before it as ``previous.ckpt``.

    Whatever happens meanwhile (kill, full disk, power), one of the two is whole afterwards. Several processes must all
    call this; each writes what it holds.

    Raises CheckpointError when it cannot be written; the files of before are untouched then.
    """
    content = {"format": FORMAT, **state}
    try:
        if processes is None or processes.world == 1:
            _write_alone(folder, content)
        else:
            _write_together(folder, content, processes)
    except (CheckpointError, OSError) as error:
        kept = next((folder / name for name in (LAST, PREVIOUS) if (folder / name).exists()), None)
        advice = f"The last good checkpoint is {kept}; make room and resume." if kept else "There is no earlier one."
        told = CheckpointError(f"could not write the checkpoint: {error} {advice}")
        told.is_shared = getattr(error, "is_shared", False)
        raise told from error
    return folder / LAST


def _write_alone(folder: Path, content: Mapping[str, Any]) -> None:
    if (folder / NEXT).is_dir():  # whose place no file can take
        _settle(folder)
    with whole_file(folder / NEXT, error=CheckpointError) as part:
        _serialise({**content, "digest": state_digest(content)}, part)
    _settle(folder)


def _write_together(folder: Path, content: Mapping[str, Any], processes: Processes) -> None:
    if processes.is_main:
        _settle(folder)
    write_folder(folder / NEXT, content, processes)
    if processes.is_main:
        _settle(folder)


def _settle(folder: Path) -> None:
    """Give the newest state its name, and the one before it; a kill between two steps leaves both."""
    if not (folder / NEXT).exists():
        return
    if (folder / LAST).exists():
        if (folder / PREVIOUS).is_dir() or (folder / LAST).is_dir():  # a folder takes no other's place
            remove(folder / PREVIOUS)
        os.replace(folder / LAST, folder / PREVIOUS)
    os.replace(folder / NEXT, folder / LAST)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it; nothing where neither is."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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
    """A state, the file it came from, and what was wrong with newer ones.

    ``state`` of a folder that many processes wrote has shapes in place of tensors until it is `filled`.
    """

    state: dict[str, Any]
    file: Path
    passed_over: tuple[str, ...] = ()

    def filled(self, like: Callable[[Key], Tensor | None] = lambda key: None) -> dict[str, Any]:
        """The state with its tensors: in shards where that which is ``like`` them in this run is, else whole.

        Several processes must all ask. Raises CheckpointError when the tensors cannot be read.
        """
        if self.file.is_dir():
            return fill(self.file, self.state, like)

        def cut(value: Any, key: Key) -> Any:
            if isinstance(value, Tensor):
                return in_shards_like(value, like(key))
            if isinstance(value, dict):
                return {name: cut(inner, (*key, name)) for name, inner in value.items()}
            return value

        return {name: cut(value, (name,)) for name, value in self.state.items()}


def read_state(path: Path, processes: Processes | None = None) -> Found:
    """Read a checkpoint, or the newest whole one of a run folder; several processes all read the same.

    Raises CheckpointError when there is none, or none that can be read.
    """
    if path.suffix == ".ckpt" or not path.is_dir():
        try:
            return Found(_agreed(path, processes), path)
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
            return Found(_agreed(candidate, processes), candidate, tuple(problems))
        except CheckpointError as error:
            problems.append(str(error))
    raise CheckpointError(" ".join(problems) or f"{path}: no checkpoint ({LAST}) here.")


def _agreed(path: Path, processes: Processes | None) -> dict[str, Any]:
    """Read on every process; what one of them cannot read, none has."""
    state: dict[str, Any] = {}
    problem = None
    try:
        state = _hollow(path) if path.is_dir() else _read(path)
    except CheckpointError as error:
        problem = error
    told = [problem] if processes is None else processes.gather(problem)
    for each in told:
        if each is not None:
            raise each
    if path.is_dir() and (what := unwhole(path, state.pop("files"), processes)):
        raise CheckpointError(f"{path}: damaged: {what}.")
    return state


def _hollow(path: Path) -> dict[str, Any]:
    state = read_record(path)
    _require_format(path, state)
    if what := fault(state, hollow=True):
        raise CheckpointError(f"{path}: damaged: {what}.")
    return state


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
    _require_format(path, state)
    if state["format"] > 1 and state.pop("digest", None) != state_digest(state):
        raise CheckpointError(f"{path}: damaged: its content is not what was written.")
    if what := fault(state):
        raise CheckpointError(f"{path}: damaged: {what}.")
    return state  # type: ignore[no-any-return]


def _require_format(path: Path, state: Any) -> None:
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


def refuse_changes(state: Mapping[str, Any], config: TrainConfig, data: Mapping[str, Any]) -> None:
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
    if lines:
        raise ConfigError(
            f"resuming would not continue the same run: {'; '.join(lines)}. Undo this, or start a new run from the "
            "weights with model.checkpoint."
        )
